"""The architecture of models of one stack, decoder-only and encoder-only: every field's range."""

import dataclasses
from typing import Annotated, Literal

from flaxattn.models.config import Layers, Rate, Width, check_widths
from flaxattn.ranges import Range, check_fields

__all__ = ["TransformerConfig"]


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """The architecture of one stack: plain data, so that it can be stored beside the parameters."""

    vocab_size: Annotated[int, Range(1, 10_000_000)]
    """V, the number of tokens."""
    features: Width = 256
    """D, the width of the model."""
    ff_features: Width = 1024
    """F, the hidden width of the feed-forward layers."""
    num_heads: Width = 4
    """N, the number of attention heads."""
    num_kv_heads: Width | None = None
    """K, the number of key/value heads, dividing N; None: N."""
    num_layers: Layers = 4
    """How many layers are applied."""
    share_layers: bool = False
    """Whether all layers share one layer's parameters."""
    embedding_features: Width | None = None
    """E, the width of the token embeddings, from which a matrix leads to D: factors of low rank
    (ALBERT, arXiv:1909.11942, section 3.1). None: D."""
    positions: Literal["sinusoidal", "learned", "rotary", "alibi"] = "rotary"
    """How a token's position is told to the model."""
    max_positions: Annotated[int, Range(1, 10_000_000)] = 512
    """The length of the table of learned positions; nothing else has a maximum length."""
    rotary_base: Annotated[float, Range(1, 1e12, above=True)] = 10_000.0
    """Of rotary positions: the larger, the slower the slowest of them turns."""
    window: Annotated[int, Range(1, 10_000_000)] | None = None
    """How many positions before its own a token sees, and as many after where the model sees both
    sides. None: all."""
    softcap: Annotated[float, Range(0, 1e6, above=True)] | None = None
    """The cap of the attention's logits, softcap * tanh(logit / softcap). None: none."""
    activation: Literal["relu", "gelu", "gelu_exact", "swiglu"] = "swiglu"
    """Of the feed-forward layers."""
    norm: Literal["layer", "rms"] = "rms"
    """Of layers: LayerNorm, or RMSNorm, which has neither mean nor bias."""
    norm_position: Literal["pre", "post"] = "pre"
    """Whether a sublayer is normed before it or after its residual."""
    norm_epsilon: Annotated[float, Range(0, 1)] = 1e-6
    """What a norm adds to the variance."""
    use_bias: bool = False
    """Whether projections, feed-forward layers and LayerNorms have biases."""
    tie_embeddings: bool = True
    """Whether tokens are read and told by one matrix."""
    scale_embeddings: bool = True
    """Whether token embeddings are multiplied by the square root of D."""
    embedding_norm: bool = False
    """Whether embeddings are normed before the first layer, as in BERT."""
    token_types: Annotated[int, Range(0, 1000)] = 0
    """How many types of tokens have an embedding of their own, as BERT's two sentences. 0: none."""
    dropout_rate: Rate = 0.0
    """On embeddings and on the output of every sublayer."""
    attention_dropout_rate: Rate = 0.0
    """On the attention weights."""
    activation_dropout_rate: Rate = 0.0
    """On the hidden units of the feed-forward layers."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of computation; softmax and logits are float32 always."""
    param_dtype: Literal["float32", "bfloat16"] = "float32"
    """Of parameters."""
    remat: bool = False
    """Whether layers are computed anew in the backward pass to save memory."""

    def __post_init__(self) -> None:
        check_fields(self)
        check_widths(self)
