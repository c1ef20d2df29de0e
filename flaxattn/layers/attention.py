"""Multi-head attention as a linen module: projections around `attend`."""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from flaxattn import checks
from flaxattn.attention import attend, attention_weights
from flaxattn.layers.cache import (
    CachePosition,
    cells_for,
    check_index,
    in_slot,
    index_positions,
    nan_unless_room,
    shifted_mask,
    write_cells,
)
from flaxattn.layers.dense_general import DenseGeneral
from flaxattn.layers.positions import rotary
from flaxattn.masks import BlockPlan, Mask

__all__ = ["MultiHeadAttention"]

HEADS = ("embed", "heads", "kv")  # the axes of a kernel to queries, keys or values


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
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()
    bias_init: nn.initializers.Initializer = nn.initializers.zeros_init()
    implementation: str = "auto"

    @nn.compact
    def __call__(
        self,
        inputs_q: jax.Array,
        inputs_kv: jax.Array | Literal["cached"] | None = None,
        *,
        mask: Mask | BlockPlan | jax.Array | None = None,
        bias: jax.Array | None = None,
        q_positions: jax.Array | None = None,
        kv_positions: jax.Array | None = None,
        cache_position: CachePosition | None = None,
        sow_weights: bool = False,
        deterministic: bool,
    ) -> jax.Array:
        """Attends from `inputs_q` to `inputs_kv`, or to itself.

        With `cache_position` keys and values are kept in the "cache" collection, which must be
        mutable, as `cached_key` and `cached_value` `[B, S, K, H]`. In self-attention those of
        `inputs_q` take the cells from its index on, and all cells up to them may be seen. Keys
        and values of an `inputs_kv` are kept whole; later calls say `inputs_kv="cached"` for them.

        Args:
          inputs_q: `[B, T, D]`.
          inputs_kv: `[B, S, D]`; None: `inputs_q`; "cached": what an earlier call kept.
          mask, bias: as in `flaxattn.attend`. With a cache the mask is a `Mask` or None: that of
            the whole sequence, the same at each call; it is shifted here.
          q_positions, kv_positions: int `[B, T]`, `[B, S]` for rotary; default 0, 1, 2, ...,
            counted from the index in the cache where the tokens are `inputs_q`.
          cache_position: where in the cache `inputs_q` stand; None: no cache.
          sow_weights: also sow the weights `[B, N, T, S]`, before dropout, as
            `attention_weights` in the "intermediates" collection.
          deterministic: True switches dropout off.

        Returns:
          `[B, T, out_features]`.

        Raises:
          ValueError if heads do not divide, for a cache that is missing, immutable, too short or
          of another batch, or as `attend`.

        >>> layer, x = MultiHeadAttention(num_heads=2), jnp.ones((1, 5, 8))
        >>> variables = layer.init(jax.random.key(0), x, deterministic=True)
        >>> for t in range(5):
        ...     output, cache = layer.apply(
        ...         variables, x[:, t : t + 1], mask=causal(),
        ...         cache_position=CachePosition(t, length=5), deterministic=True, mutable=["cache"]
        ...     )
        ...     variables |= cache
        >>> jax.tree.map(jnp.shape, variables["cache"])
        {'cached_key': (1, 5, 2, 4), 'cached_value': (1, 5, 2, 4)}
        """
        checks.check_axes("inputs_q", inputs_q, "B T D", {})
        index = None if cache_position is None else check_index(cache_position, inputs_q.shape[0])
        num_kv_heads, head_dim = self._head_sizes(inputs_q.shape[-1])
        query = self._project("query", (self.num_heads, head_dim), HEADS)(inputs_q)
        query = self._rotate(query, q_positions, index)
        own_keys = inputs_kv is None
        start = index if own_keys else None
        if isinstance(inputs_kv, str):
            key, value = self._kept(inputs_kv, cache_position)
        else:
            inputs = inputs_q if inputs_kv is None else inputs_kv
            checks.check_axes("inputs_kv", inputs, "B S D", {"B": (inputs_q.shape[0], "inputs_q")})
            key = self._project("key", (num_kv_heads, head_dim), HEADS)(inputs)
            value = self._project("value", (num_kv_heads, head_dim), HEADS)(inputs)
            key = self._rotate(key, kv_positions, start)
            if cache_position is not None:
                key, value = self._write(cache_position, key, value, start)
        if index is not None:
            mask = shifted_mask(mask, index, num_written=inputs_q.shape[1] if own_keys else None)
        if sow_weights:
            weights = attention_weights(query, key, mask, bias=bias)
            self.sow("intermediates", "attention_weights", weights)
        output = self._attend(query, key, value, mask, bias, deterministic=deterministic)
        if index is not None and own_keys:
            output = nan_unless_room(output, index, key.shape[1])
        out_features = self.out_features or inputs_q.shape[-1]
        out = self._project("out", (out_features,), ("heads", "kv", "embed"), num_in_axes=2)
        return out(output)

    def _attend(
        self,
        query: jax.Array,
        key: jax.Array,
        value: jax.Array,
        mask: Mask | BlockPlan | jax.Array | None,
        bias: jax.Array | None,
        *,
        deterministic: bool,
    ) -> jax.Array:
        rate = self.dropout_rate if self.dropout_rate and not deterministic else 0.0
        return attend(
            query,
            key,
            value,
            mask,
            bias=bias,
            dropout_rate=rate,
            dropout_key=self.make_rng("dropout") if rate > 0 else None,
            implementation=self.implementation,
        )

    def _rotate(
        self, x: jax.Array, positions: jax.Array | None, index: jax.Array | None
    ) -> jax.Array:
        """`x` turned by its positions, by default those from `index` on, if the layer is rotary."""
        if not self.rotary:
            return x
        return rotary(x, index_positions(index, x.shape[1]) if positions is None else positions)

    def _kept(self, inputs_kv: str, position: CachePosition | None) -> tuple[jax.Array, jax.Array]:
        """The keys and values that an earlier call kept."""
        if position is None or inputs_kv != "cached":
            raise ValueError(
                f"inputs_kv is {inputs_kv!r} and cache_position {position}; expected an array, or "
                '"cached" with a cache_position.'
            )
        key: jax.Array | None = self.get_variable("cache", in_slot("cached_key", position))
        value: jax.Array | None = self.get_variable("cache", in_slot("cached_value", position))
        if key is None or value is None:
            raise ValueError('inputs_kv is "cached", but no earlier call has kept any.')
        return key, value

    def _write(
        self, position: CachePosition, key: jax.Array, value: jax.Array, start: jax.Array | None
    ) -> tuple[jax.Array, jax.Array]:
        """All cells of both caches, after writing from `start` on, or in place of them all."""
        if not self.is_mutable_collection("cache"):
            raise ValueError(
                'cache_position is given, but the "cache" collection cannot be written; call '
                'apply(..., mutable=["cache"]), which returns the new cache beside the output.'
            )
        written = []
        for name, new in (("cached_key", key), ("cached_value", value)):
            name = in_slot(name, position)
            if start is not None:
                cells = cells_for(new, self.get_variable("cache", name), position.length)
                new = write_cells(cells, new, start)
            self.put_variable("cache", name, new)
            written.append(new)
        key, value = written
        return key, value

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
    ) -> DenseGeneral:
        return DenseGeneral(
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
