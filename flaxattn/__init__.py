"""flaxattn: masked attention for JAX and Flax, exact for any mask.

>>> mask = causal() & sliding_window(256) & same_segment(np.array([[1, 1, 2, 0]]))
>>> q = k = v = jnp.ones((1, 4, 2, 8))
>>> attend(q, k, v, mask).shape
(1, 4, 2, 8)
"""

from flaxattn.attention import Layout as Layout
from flaxattn.attention import attend as attend
from flaxattn.attention import attend_head as attend_head
from flaxattn.attention import attend_over as attend_over
from flaxattn.attention import attend_with_stats as attend_with_stats
from flaxattn.attention import attention_weights as attention_weights
from flaxattn.attention import dropout_keys as dropout_keys
from flaxattn.attention import merge as merge
from flaxattn.attention import prepare as prepare
from flaxattn.drawing import explain as explain
from flaxattn.layers import CachePosition as CachePosition
from flaxattn.layers import Decoder as Decoder
from flaxattn.layers import DecoderLayer as DecoderLayer
from flaxattn.layers import Encoder as Encoder
from flaxattn.layers import EncoderLayer as EncoderLayer
from flaxattn.layers import FeedForward as FeedForward
from flaxattn.layers import LearnedPositions as LearnedPositions
from flaxattn.layers import LinearScaling as LinearScaling
from flaxattn.layers import Llama3Scaling as Llama3Scaling
from flaxattn.layers import MultiHeadAttention as MultiHeadAttention
from flaxattn.layers import RelativeBias as RelativeBias
from flaxattn.layers import Rotary as Rotary
from flaxattn.layers import YarnScaling as YarnScaling
from flaxattn.layers import rotary as rotary
from flaxattn.layers import segment_positions as segment_positions
from flaxattn.layers import sinusoidal as sinusoidal
from flaxattn.masks import BlockPlan as BlockPlan
from flaxattn.masks import Blocks as Blocks
from flaxattn.masks import Bounds as Bounds
from flaxattn.masks import Mask as Mask
from flaxattn.masks import causal as causal
from flaxattn.masks import chunked as chunked
from flaxattn.masks import dilated as dilated
from flaxattn.masks import from_dense as from_dense
from flaxattn.masks import full as full
from flaxattn.masks import global_tokens as global_tokens
from flaxattn.masks import index_leaf as index_leaf
from flaxattn.masks import leaf as leaf
from flaxattn.masks import lengths as lengths
from flaxattn.masks import mask_type as mask_type
from flaxattn.masks import prefix as prefix
from flaxattn.masks import same_segment as same_segment
from flaxattn.masks import sliding_window as sliding_window
from flaxattn.masks import valid as valid
from flaxattn.masks import where as where
from flaxattn.memory import keep_freed_memory as keep_freed_memory
from flaxattn.models import DecoderOnly as DecoderOnly
from flaxattn.models import EncoderDecoder as EncoderDecoder
from flaxattn.models import EncoderDecoderConfig as EncoderDecoderConfig
from flaxattn.models import EncoderOnly as EncoderOnly
from flaxattn.models import MaskedTokens as MaskedTokens
from flaxattn.models import TextLabels as TextLabels
from flaxattn.models import TokenLabels as TokenLabels
from flaxattn.models import TransformerConfig as TransformerConfig
from flaxattn.models import build_masks as build_masks
from flaxattn.models import shift_right as shift_right
from flaxattn.scores import Score as Score
from flaxattn.scores import alibi as alibi
from flaxattn.scores import alibi_slopes as alibi_slopes
from flaxattn.scores import number_leaf as number_leaf
from flaxattn.scores import relative_bias as relative_bias
from flaxattn.scores import relative_buckets as relative_buckets
from flaxattn.scores import relative_positions as relative_positions
from flaxattn.scores import score as score
from flaxattn.scores import score_type as score_type
from flaxattn.scores import softcap as softcap
from flaxattn.scores import temperature as temperature

__version__ = "0.1.0"
