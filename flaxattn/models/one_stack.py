"""What models of one stack are made of: the embedding of tokens, the layers, what these may see."""

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from flaxattn import checks
from flaxattn.einsum import wide_einsum
from flaxattn.layers import (
    Dropout,
    Encoder,
    EncoderLayer,
    LearnedPositions,
    Rotary,
    segment_positions,
    sinusoidal,
)
from flaxattn.layers.names import constrained, named
from flaxattn.layers.transformer import make_norm
from flaxattn.masks import Mask, same_segment, sliding_window
from flaxattn.models.stack_config import TransformerConfig
from flaxattn.scores import Score, alibi, softcap

__all__ = ["Embedding", "in_window", "make_stack", "norm_of", "score_of", "segments_of"]


class Embedding(nn.Module):
    """Tokens to vectors, and vectors to logits of tokens.

    Attributes:
      config: the architecture.
    """

    config: TransformerConfig

    def setup(self) -> None:
        config = self.config
        dtypes: dict[str, Any] = {
            "dtype": jnp.dtype(config.dtype),
            "param_dtype": jnp.dtype(config.param_dtype),
        }
        normal = nn.initializers.normal(config.features**-0.5)
        width = config.embedding_features or config.features

        def table(size: int, width: int, axis: str) -> nn.Embed:
            return nn.Embed(size, width, embedding_init=named(normal, (axis, "embed")), **dtypes)

        self.tokens = table(config.vocab_size, width, "vocab")
        if not config.tie_embeddings:
            self.output = table(config.vocab_size, width, "vocab")
        if config.embedding_features:
            init = named(nn.initializers.xavier_uniform(), ("factor", "embed"))
            self.factor = self.param(
                "factor", init, (width, config.features), dtypes["param_dtype"]
            )
        if config.positions == "learned":
            self.positions = LearnedPositions(config.max_positions, config.features, **dtypes)
        if config.token_types:
            self.types = table(config.token_types, config.features, "token_type")
        if config.embedding_norm:
            self.norm = norm_of(config)
        self.dropout = Dropout(config.dropout_rate)

    def __call__(
        self,
        tokens: jax.Array,
        positions: jax.Array,
        token_types: jax.Array | None = None,
        *,
        deterministic: bool,
    ) -> jax.Array:
        """int [B, T] each -> [B, T, D]; `token_types` None: all of type 0."""
        sizes: checks.Sizes = {}
        for name, array in (("tokens", tokens), ("token_types", token_types)):
            if array is not None:
                checks.check_axes(name, array, "B T", sizes)
                checks.check_integer(name, array)
        config = self.config
        x = constrained(self.tokens(tokens))
        if config.embedding_features:
            x = x @ self.factor.astype(x.dtype)
        if config.scale_embeddings:
            x *= math.sqrt(config.features)
        if config.positions == "sinusoidal":
            x += sinusoidal(positions, config.features).astype(x.dtype)
        elif config.positions == "learned":
            x += self.positions(positions)
        if config.token_types:
            x += self.types(jnp.zeros_like(tokens) if token_types is None else token_types)
        elif token_types is not None:
            raise ValueError("token_types are given, but config.token_types is 0; expected None.")
        if config.embedding_norm:
            x = self.norm(x)
        return self.dropout(x, deterministic=deterministic)

    def logits(self, x: jax.Array) -> jax.Array:
        """[..., D] -> float32 [..., V]."""
        if self.config.embedding_features:
            x = x @ self.factor.astype(x.dtype).T
        table = self.tokens if self.config.tie_embeddings else self.output
        return wide_einsum("...d,vd->...v", x, table.embedding.astype(x.dtype), jnp.float32)


def make_stack(config: TransformerConfig) -> Encoder:
    """The stack of all layers."""
    layer = functools.partial(EncoderLayer, **_options(config))
    return Encoder(layer, config.num_layers, share_layers=config.share_layers, remat=config.remat)


def norm_of(config: TransformerConfig) -> nn.LayerNorm | nn.RMSNorm:
    """A norm as those of the layers, to be made in the `setup` of a module."""
    return make_norm(EncoderLayer(**_options(config), parent=None), None)


def _options(config: TransformerConfig) -> dict[str, Any]:
    """Of a layer."""
    return {
        "num_heads": config.num_heads,
        "num_kv_heads": config.num_kv_heads,
        "ff_features": config.ff_features,
        "rotary": Rotary(base=config.rotary_base) if config.positions == "rotary" else False,
        "activation": config.activation,
        "norm": config.norm,
        "norm_position": config.norm_position,
        "norm_epsilon": config.norm_epsilon,
        "use_bias": config.use_bias,
        "dropout_rate": config.dropout_rate,
        "attention_dropout_rate": config.attention_dropout_rate,
        "activation_dropout_rate": config.activation_dropout_rate,
        "dtype": jnp.dtype(config.dtype),
        "param_dtype": jnp.dtype(config.param_dtype),
    }


def score_of(config: TransformerConfig) -> Score | None:
    """What is done to the attention's logits."""
    biased = alibi() if config.positions == "alibi" else None
    if config.softcap is None:
        return biased
    return biased >> softcap(config.softcap) if biased else softcap(config.softcap)


def in_window(mask: Mask, config: TransformerConfig) -> Mask:
    """`mask`, and no more than the window that the architecture has."""
    return mask if config.window is None else mask & sliding_window(config.window)


def segments_of(
    tokens: jax.Array, segment_ids: jax.Array | None, pad_id: int
) -> tuple[jax.Array, jax.Array, Mask]:
    """Segment ids, positions that count each segment from 0, and the mask that parts segments.

    Args:
      tokens: int `[B, T]`.
      segment_ids: int `[B, T]`, 0 for padding; None: one segment a row, of all but `pad_id`.

    Raises:
      TypeError or ValueError naming the argument that is no integer [B, T].
    """
    if segment_ids is None:
        segment_ids = (tokens != pad_id).astype(jnp.int32)
    sizes: dict[str, tuple[int, str]] = {}
    for name, array in (("tokens", tokens), ("segment_ids", segment_ids)):
        checks.check_axes(name, array, "B T", sizes)
        checks.check_integer(name, array)
    return segment_ids, segment_positions(segment_ids), same_segment(segment_ids)
