"""Flax linen modules: attention, feed-forward, positions, and the layers built of them."""

from flaxattn.layers.attention import MultiHeadAttention as MultiHeadAttention
from flaxattn.layers.cache import CachePosition as CachePosition
from flaxattn.layers.dropout import Dropout as Dropout
from flaxattn.layers.feed_forward import FeedForward as FeedForward
from flaxattn.layers.positions import LearnedPositions as LearnedPositions
from flaxattn.layers.positions import segment_positions as segment_positions
from flaxattn.layers.positions import sinusoidal as sinusoidal
from flaxattn.layers.rotation import LinearScaling as LinearScaling
from flaxattn.layers.rotation import Llama3Scaling as Llama3Scaling
from flaxattn.layers.rotation import Rotary as Rotary
from flaxattn.layers.rotation import YarnScaling as YarnScaling
from flaxattn.layers.rotation import rotary as rotary
from flaxattn.layers.scores import RelativeBias as RelativeBias
from flaxattn.layers.stacks import Decoder as Decoder
from flaxattn.layers.stacks import Encoder as Encoder
from flaxattn.layers.transformer import DecoderLayer as DecoderLayer
from flaxattn.layers.transformer import EncoderLayer as EncoderLayer
