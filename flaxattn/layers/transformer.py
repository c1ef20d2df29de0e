"""Encoder and decoder layers: attention and feed-forward with norms and residuals around them."""

import functools
from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from flaxattn.layers.attention import MultiHeadAttention
from flaxattn.layers.cache import CachePosition
from flaxattn.layers.dropout import Dropout
from flaxattn.layers.feed_forward import Activation, FeedForward
from flaxattn.layers.names import constrained, named
from flaxattn.layers.rotation import Rotary
from flaxattn.masks import BlockPlan, Mask
from flaxattn.scores import Score

__all__ = ["DecoderLayer", "EncoderLayer", "Norm", "NormPosition", "TransformerLayer", "make_norm"]

Norm = Literal["layer", "rms"]
NormPosition = Literal["pre", "post"]


class TransformerLayer(nn.Module):
    """What encoder and decoder layers have in common.

    Attributes:
      num_heads, num_kv_heads, qkv_features, rotary, normalize_qk, use_sinks: of the attentions; see
        `MultiHeadAttention`. Cross-attention is never rotated: source and target positions are not
        comparable.
      ff_features: F.
      activation: of the feed-forward layer.
      norm: "layer" (arXiv:1607.06450) or "rms" (arXiv:1910.07467), which has no mean and no bias.
      norm_epsilon: what a norm adds to the variance.
      norm_position: "pre" is x + f(norm(x)); "post" is norm(x + f(x)), as in the 2017 paper.
      use_bias: whether projections, feed-forward layer and norms have biases.
      dropout_rate: on the output of each sublayer, before it is added.
      attention_dropout_rate: on the attention weights.
      activation_dropout_rate: on the hidden units of the feed-forward layer.
      dtype, param_dtype: of computation and of parameters; `dtype` None: as the inputs.
      implementation: of `attend`.
    """

    num_heads: int
    ff_features: int
    num_kv_heads: int | None = None
    qkv_features: int | None = None
    rotary: Rotary | bool = False
    normalize_qk: bool = False
    activation: Activation = "relu"
    norm: Norm = "layer"
    norm_epsilon: float = 1e-6
    norm_position: NormPosition = "pre"
    use_bias: bool = True
    use_sinks: bool = False
    dropout_rate: float = 0.0
    attention_dropout_rate: float = 0.0
    activation_dropout_rate: float = 0.0
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    implementation: str = "auto"

    def _attention(self, name: str, *, rotary: Rotary | bool = False) -> MultiHeadAttention:
        """One of the layer's attentions."""
        return MultiHeadAttention(
            self.num_heads,
            num_kv_heads=self.num_kv_heads,
            qkv_features=self.qkv_features,
            rotary=rotary,
            normalize_qk=self.normalize_qk,
            use_bias=self.use_bias,
            use_sinks=self.use_sinks,
            dropout_rate=self.attention_dropout_rate,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            kernel_init=nn.initializers.xavier_uniform(),
            implementation=self.implementation,
            name=name,
        )

    def _self_attention(
        self,
        mask: Mask | BlockPlan | jax.Array | None,
        score: Score | None,
        positions: jax.Array | None,
        cache_position: CachePosition | None,
        sow_weights: bool,
    ) -> Callable[..., jax.Array]:
        """The layer's attention to its own inputs, to be given these and `deterministic`."""
        return functools.partial(
            self._attention("self_attention", rotary=self.rotary),
            mask=mask,
            score=score,
            q_positions=positions,
            kv_positions=positions,
            cache_position=cache_position,
            sow_weights=sow_weights,
        )

    def _feed_forward(self) -> FeedForward:
        """The layer's feed-forward sublayer."""
        return FeedForward(
            self.ff_features,
            activation=self.activation,
            dropout_rate=self.activation_dropout_rate,
            use_bias=self.use_bias,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            name="feed_forward",
        )

    def _residual(
        self, x: jax.Array, sublayer: Callable[..., jax.Array], name: str, *, deterministic: bool
    ) -> jax.Array:
        """`x` plus `sublayer(x)`, normed before or after."""
        norm = make_norm(self, f"{name}_norm")
        dropout = functools.partial(Dropout(self.dropout_rate), deterministic=deterministic)

        def added(inputs: jax.Array) -> jax.Array:
            outputs = sublayer(constrained(inputs), deterministic=deterministic)
            return x + dropout(constrained(outputs))

        if self.norm_position == "pre":
            return added(norm(x))
        if self.norm_position == "post":
            return norm(added(x))
        raise ValueError(f"norm_position is {self.norm_position!r}; expected 'pre' or 'post'.")


def make_norm(layer: TransformerLayer, name: str | None) -> nn.LayerNorm | nn.RMSNorm:
    """A norm as those of `layer`, made in the module that is calling."""
    common: dict[str, Any] = {
        "epsilon": layer.norm_epsilon,
        "dtype": layer.dtype,
        "param_dtype": layer.param_dtype,
        "scale_init": named(nn.initializers.ones_init(), ("embed",)),
        "name": name,
    }
    if layer.norm == "rms":
        return nn.RMSNorm(**common)
    if layer.norm == "layer":
        bias_init = named(nn.initializers.zeros_init(), ("embed",))
        return nn.LayerNorm(use_bias=layer.use_bias, bias_init=bias_init, **common)
    raise ValueError(f"norm is {layer.norm!r}; expected 'layer' or 'rms'.")


class EncoderLayer(TransformerLayer):
    """Self-attention, then feed-forward. Attributes: those of `TransformerLayer`."""

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        *,
        mask: Mask | BlockPlan | jax.Array | None = None,
        score: Score | None = None,
        positions: jax.Array | None = None,
        cache_position: CachePosition | None = None,
        sow_weights: bool = False,
        deterministic: bool,
    ) -> jax.Array:
        """[B, T, D] -> [B, T, D].

        Args:
          mask, score, cache_position, sow_weights: as in `MultiHeadAttention`.
          positions: int `[B, T]`, for rotary.
        """
        self_attention = self._self_attention(mask, score, positions, cache_position, sow_weights)
        residual = functools.partial(self._residual, deterministic=deterministic)
        x = residual(x, self_attention, "self_attention")
        return residual(x, self._feed_forward(), "feed_forward")


class DecoderLayer(TransformerLayer):
    """Self-attention, attention to the encoder's output, then feed-forward.

    Attributes: those of `TransformerLayer`.
    """

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        encoded: jax.Array | None,
        *,
        mask: Mask | BlockPlan | jax.Array | None = None,
        cross_mask: Mask | BlockPlan | jax.Array | None = None,
        score: Score | None = None,
        positions: jax.Array | None = None,
        cache_position: CachePosition | None = None,
        sow_weights: bool = False,
        deterministic: bool,
    ) -> jax.Array:
        """[B, T, D] and `encoded` [B, S, D] -> [B, T, D].

        Args:
          encoded: None: what an earlier call kept of it in the same slot of the cache.
          mask, cross_mask, cache_position, sow_weights: as in `MultiHeadAttention`.
          score: of self-attention, likewise.
          positions: int `[B, T]`, for rotary.
        """
        self_attention = self._self_attention(mask, score, positions, cache_position, sow_weights)
        cross_attention = functools.partial(
            self._attention("cross_attention"),
            inputs_k="cached" if encoded is None else encoded,
            mask=cross_mask,
            cache_position=cache_position,
            sow_weights=sow_weights,
        )
        residual = functools.partial(self._residual, deterministic=deterministic)
        x = residual(x, self_attention, "self_attention")
        x = residual(x, cross_attention, "cross_attention")
        return residual(x, self._feed_forward(), "feed_forward")
