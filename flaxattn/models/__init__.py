"""Models assembled from layers; here the masks are built and passed down."""

from flaxattn.models.config import EncoderDecoderConfig as EncoderDecoderConfig
from flaxattn.models.decoder_only import DecoderOnly as DecoderOnly
from flaxattn.models.encoder_decoder import EncoderDecoder as EncoderDecoder
from flaxattn.models.encoder_decoder import Masks as Masks
from flaxattn.models.encoder_decoder import build_masks as build_masks
from flaxattn.models.encoder_decoder import shift_right as shift_right
from flaxattn.models.encoder_only import EncoderOnly as EncoderOnly
from flaxattn.models.encoder_only import MaskedTokens as MaskedTokens
from flaxattn.models.encoder_only import TextLabels as TextLabels
from flaxattn.models.encoder_only import TokenLabels as TokenLabels
from flaxattn.models.stack_config import TransformerConfig as TransformerConfig
