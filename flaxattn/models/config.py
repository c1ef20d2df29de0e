"""The architecture of the encoder-decoder: every field with its range."""

import dataclasses
from typing import Annotated, Any, Literal

from flaxattn.ranges import FieldError, Range, check_fields

__all__ = ["EncoderDecoderConfig", "Layers", "Rate", "Width", "check_widths"]

# So that a number read from a damaged file is not built.
Width = Annotated[int, Range(1, 1_000_000)]
Layers = Annotated[int, Range(1, 1000)]
Rate = Annotated[float, Range(0, 1, below=True)]


@dataclasses.dataclass(frozen=True)
class EncoderDecoderConfig:
    """The architecture: plain data, so that it can be stored beside the parameters."""

    vocab_size: Annotated[int, Range(1, 10_000_000)]
    """V, the number of tokens of source and target together."""
    features: Width = 256
    """D, the width of the model."""
    ff_features: Width = 1024
    """F, the hidden width of the feed-forward layers."""
    num_heads: Width = 4
    """N, the number of attention heads."""
    num_kv_heads: Width | None = None
    """K, the number of key/value heads, dividing N; None: N."""
    encoder_layers: Layers = 3
    """How many layers the encoder applies."""
    decoder_layers: Layers = 3
    """How many layers the decoder applies."""
    share_layers: bool = False
    """Whether the layers of a stack share one layer's parameters."""
    positions: Literal["sinusoidal", "learned", "rotary"] = "sinusoidal"
    """How a token's position is told to the model."""
    max_positions: Annotated[int, Range(1, 10_000_000)] = 512
    """The length of the table of learned positions; nothing else has a maximum length."""
    activation: Literal["relu", "gelu", "swiglu"] = "relu"
    """Of the feed-forward layers."""
    norm_position: Literal["pre", "post"] = "pre"
    """Whether a sublayer is normed before it or after its residual."""
    tie_embeddings: Literal["all", "target", "none"] = "all"
    """One matrix for source, target and output; for target and output; or three matrices."""
    dropout_rate: Rate = 0.1
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


def check_widths(config: Any) -> None:
    """Raises FieldError unless heads, key/value heads and positions divide the width."""
    features, heads = config.features, config.num_heads
    _check_multiple("features", features, heads, f"num_heads, {heads}")
    if config.num_kv_heads:
        _check_multiple(
            "num_heads", heads, config.num_kv_heads, f"num_kv_heads, {config.num_kv_heads}"
        )
    # Sines and cosines come in pairs, in every head where it is heads that are rotated.
    pairs = {"sinusoidal": 2, "rotary": 2 * heads}.get(config.positions, 1)
    _check_multiple("features", features, pairs, f"{pairs} with {config.positions} positions")


def _check_multiple(name: str, value: int, divisor: int, what: str) -> None:
    if value % divisor:
        raise FieldError(name, f"is {value}; expected a multiple of {what}.")
