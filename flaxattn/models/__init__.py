"""Models assembled from layers; here the masks are built and passed down."""

from flaxattn.models.config import EncoderDecoderConfig as EncoderDecoderConfig
from flaxattn.models.encoder_decoder import EncoderDecoder as EncoderDecoder
from flaxattn.models.encoder_decoder import Masks as Masks
from flaxattn.models.encoder_decoder import build_masks as build_masks
from flaxattn.models.encoder_decoder import shift_right as shift_right
