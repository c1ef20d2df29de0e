"""Multi-head attention as a linen module: projections around `attend`."""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from flaxattn import checks
from flaxattn.attention import Implementation, attend, attention_weights
from flaxattn.layers.positions import rotary
from flaxattn.masks import BlockPlan, Mask

__all__ = ["MultiHeadAttention"]


class MultiHeadAttention(nn.Module):
    """Multi-head attention (Vaswani et al. 2017, section 3.2.2) with any mask.

    The parameter tree is that of `flax.linen.MultiHeadDotProductAttention`, so its checkpoints
    load: kernels `query`, `key`, `value` `[D, N, H]` (`[D, K, H]` for key and value where
    `num_kv_heads` is given) and `out` `[N, H, D]`, with biases `[N, H]` and `[D]`.

    Attributes:
      num_heads: N.
      qkv_features: N · H; default: the width of `inputs_q`.
      out_features: default: the width of `inputs_q`.
      num_kv_heads: K, dividing N; default N. Fewer is grouped-query attention.
      rotary: whether queries and keys are rotated by their positions.
      dropout_rate: on the attention weights, drawn from the "dropout" stream.
      use_bias: whether the projections have biases.
      dtype, param_dtype: of computation and of parameters; `dtype` None: as the inputs.
      kernel_init, bias_init: of the projections.
      implementation: of `attend`.

    >>> layer = MultiHeadAttention(num_heads=2)
    >>> x = jnp.ones((1, 5, 8))
    >>> variables = layer.init(jax.random.key(0), x, deterministic=True)
    >>> layer.apply(variables, x, mask=causal(), deterministic=True).shape
    (1, 5, 8)
    """

    num_heads: int
    qkv_features: int | None = None
    out_features: int | None = None
    num_kv_heads: int | None = None
    rotary: bool = False
    dropout_rate: float = 0.0
    use_bias: bool = True
    dtype: Any = None
    param_dtype: Any = jnp.float32
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()
    bias_init: nn.initializers.Initializer = nn.initializers.zeros_init()
    implementation: Implementation = "auto"

    @nn.compact
    def __call__(
        self,
        inputs_q: jax.Array,
        inputs_kv: jax.Array | None = None,
        *,
        mask: Mask | BlockPlan | jax.Array | None = None,
        bias: jax.Array | None = None,
        q_positions: jax.Array | None = None,
        kv_positions: jax.Array | None = None,
        sow_weights: bool = False,
        deterministic: bool,
    ) -> jax.Array:
        """Attends from `inputs_q` to `inputs_kv`, or to itself.

        Args:
          inputs_q: `[B, T, D]`.
          inputs_kv: `[B, S, D]`; None: `inputs_q`.
          mask, bias: as in `flaxattn.attend`.
          q_positions, kv_positions: int `[B, T]`, `[B, S]` for rotary; default 0, 1, 2, ...
          sow_weights: also sow the weights `[B, N, T, S]`, before dropout, as
            `attention_weights` in the "intermediates" collection.
          deterministic: True switches dropout off.

        Returns:
          `[B, T, out_features]`.

        Raises:
          ValueError if heads do not divide, or as `attend`.
        """
        inputs_kv = inputs_q if inputs_kv is None else inputs_kv
        sizes: dict[str, tuple[int, str]] = {}
        checks.check_axes("inputs_q", inputs_q, "B T D", sizes)
        checks.check_axes("inputs_kv", inputs_kv, "B S D'", sizes)
        num_kv_heads, head_dim = self._head_sizes(inputs_q.shape[-1])
        project = self._project
        query = project("query", (self.num_heads, head_dim), ("embed", "heads", "kv"))(inputs_q)
        key = project("key", (num_kv_heads, head_dim), ("embed", "heads", "kv"))(inputs_kv)
        value = project("value", (num_kv_heads, head_dim), ("embed", "heads", "kv"))(inputs_kv)
        if self.rotary:
            query = rotary(query, _positions_or_index(q_positions, query))
            key = rotary(key, _positions_or_index(kv_positions, key))
        if sow_weights:
            weights = attention_weights(query, key, mask, bias=bias)
            self.sow("intermediates", "attention_weights", weights)
        rate = self.dropout_rate if self.dropout_rate and not deterministic else 0.0
        output = attend(
            query,
            key,
            value,
            mask,
            bias=bias,
            dropout_rate=rate,
            dropout_key=self.make_rng("dropout") if rate > 0 else None,
            implementation=self.implementation,
        )
        out_features = self.out_features or inputs_q.shape[-1]
        out = project("out", (out_features,), ("heads", "kv", "embed"), num_in_axes=2)
        return out(output)

    def _head_sizes(self, features: int) -> tuple[int, int]:
        """K and H, or ValueError."""
        qkv_features = self.qkv_features or features
        num_kv_heads = self.num_kv_heads or self.num_heads
        if qkv_features % self.num_heads:
            raise ValueError(
                f"qkv_features is {qkv_features} and num_heads {self.num_heads}; "
                "the heads must divide the features."
            )
        if self.num_heads % num_kv_heads:
            raise ValueError(
                f"num_heads is {self.num_heads} and num_kv_heads {num_kv_heads}; "
                "the key/value heads must divide the query heads."
            )
        return num_kv_heads, qkv_features // self.num_heads

    def _project(
        self, name: str, features: tuple[int, ...], axes: tuple[str, ...], *, num_in_axes: int = 1
    ) -> "Projection":
        return Projection(
            features,
            axes,
            num_in_axes,
            use_bias=self.use_bias,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            kernel_init=self.kernel_init,
            bias_init=self.bias_init,
            name=name,
        )


class Projection(nn.Module):
    """A linear map of the last axes of an array to new ones.

    It has the parameters and initial values of `flax.linen.DenseGeneral`, which cannot name the
    logical axes of a kernel of rank 3 under a mesh: it makes the kernel as a matrix first.

    Attributes:
      features: the new axes.
      axes: the logical names of the kernel's axes.
      num_in_axes: how many of the last axes are mapped.
      use_bias, dtype, param_dtype, kernel_init, bias_init: as in `MultiHeadAttention`.
    """

    features: tuple[int, ...]
    axes: tuple[str, ...]
    num_in_axes: int
    use_bias: bool
    dtype: Any
    param_dtype: Any
    kernel_init: nn.initializers.Initializer
    bias_init: nn.initializers.Initializer

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., *inputs] -> [..., *features]."""
        inputs = x.shape[x.ndim - self.num_in_axes :]
        kernel = self._param("kernel", self.kernel_init, inputs, self.axes)
        bias = None
        if self.use_bias:
            bias = self._param("bias", self.bias_init, (), self.axes[self.num_in_axes :])
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        y = jnp.tensordot(x, kernel, axes=self.num_in_axes)
        return y if bias is None else y + jnp.expand_dims(bias, tuple(range(y.ndim - bias.ndim)))

    def _param(
        self, name: str, init: Any, inputs: tuple[int, ...], axes: tuple[str, ...]
    ) -> jax.Array:
        """A parameter initialised as a matrix (or vector), so that fan-in and fan-out are right."""
        flat = (math.prod(inputs),) * bool(inputs) + (math.prod(self.features),)

        def shaped(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
            return jnp.reshape(init(key, flat, dtype), shape)

        boxed = nn.with_logical_partitioning(shaped, axes)
        param: Any = self.param(name, boxed, (*inputs, *self.features), self.param_dtype)
        return param


def _positions_or_index(positions: jax.Array | None, x: jax.Array) -> jax.Array:
    return jnp.arange(x.shape[1])[None, :] if positions is None else positions
