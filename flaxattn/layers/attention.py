"""Multi-head attention as a linen module: projections around `attend`."""

import contextlib
from collections.abc import Callable
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from flaxattn.attention import attend, attention_weights
from flaxattn.layers.cache import (
    CachePosition,
    Cells,
    Kept,
    check_index,
    index_positions,
    nan_where_lost,
    over_live_cells,
)
from flaxattn.layers.dense_general import DenseGeneral
from flaxattn.layers.keeping import keep, store, stored
from flaxattn.layers.leading import flat, flat_key_value, flat_logits, flat_positions
from flaxattn.layers.names import named
from flaxattn.layers.rotation import Rotary, rotary
from flaxattn.layers.spread import attend_in_mesh
from flaxattn.masks import BlockPlan, Mask
from flaxattn.scores import Score

__all__ = ["MultiHeadAttention", "Precision"]

Precision = jax.lax.Precision | Literal["default", "high", "highest"] | None

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
      rotary: whether queries and keys are rotated by their positions, or a `Rotary` that says how.
      normalize_qk: whether queries and keys are normed in each head, before they are rotated, with
        scales `query_ln` and `key_ln` `[H]` (arXiv:2302.05442).
      dropout_rate: on the attention weights, drawn from the "dropout" stream.
      use_bias: whether the projections have biases.
      use_sinks: whether each head has a logit that takes part in the sum of its softmax alone, so
        that it may attend to nothing: a parameter `sinks` `[N]` (arXiv:2309.17453).
      dtype, param_dtype: of computation and of parameters; `dtype` None: as the inputs.
      precision: of the matrix products of the projections and of `attend`; None: jax's default.
      kernel_init, bias_init: of the projections.
      out_kernel_init, out_bias_init: of the last one; None: the same.
      sinks_init: of the sinks.
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
    rotary: Rotary | bool = False
    normalize_qk: bool = False
    dropout_rate: float = 0.0
    use_bias: bool = True
    use_sinks: bool = False
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    precision: Precision = None
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()
    bias_init: nn.initializers.Initializer = nn.initializers.zeros_init()
    out_kernel_init: nn.initializers.Initializer | None = None
    out_bias_init: nn.initializers.Initializer | None = None
    sinks_init: nn.initializers.Initializer = nn.initializers.zeros_init()
    implementation: str = "auto"

    @nn.compact
    def __call__(
        self,
        inputs_q: jax.Array,
        inputs_k: jax.Array | Literal["cached"] | None = None,
        inputs_v: jax.Array | None = None,
        *,
        mask: Mask | BlockPlan | jax.Array | None = None,
        bias: jax.Array | None = None,
        score: Score | None = None,
        q_positions: jax.Array | None = None,
        kv_positions: jax.Array | None = None,
        cache_position: CachePosition | None = None,
        dropout_rng: jax.Array | None = None,
        sow_weights: bool = False,
        deterministic: bool,
    ) -> jax.Array:
        """Attends from `inputs_q` to `inputs_k` and `inputs_v`, or to itself.

        B stands for any leading axes, also none. To the leaves of a mask or score they are one
        axis; arrays are given with all of them: a mask of booleans or a bias `[..., N, T, S]`.

        With `cache_position` keys and values are kept in the "cache" collection, which must be
        mutable, as `cached_key` and `cached_value` `[B, S, K, H]`. In self-attention those of
        `inputs_q` take the cells from its index on, and all cells up to them may be seen. Keys and
        values of an `inputs_k` are kept whole; later calls say `inputs_k="cached"` for them.

        Args:
          inputs_q: `[B, T, D]`.
          inputs_k: `[B, S, D]`; None: `inputs_q`; "cached": keys and values an earlier call kept.
          inputs_v: `[B, S, D]`; None: `inputs_k`.
          mask, bias, score: as in `flaxattn.attend`. With a cache the mask is a `Mask` or None; it
            and the score are those of the whole sequence, the same at each call, and shifted here.
          q_positions, kv_positions: int `[B, T]`, `[B, S]` for rotary; default 0, 1, 2, ...,
            counted from the index in the cache where the tokens are `inputs_q`.
          cache_position: where in the cache `inputs_q` stand; None: no cache.
          dropout_rng: the key of dropout, in place of one of the "dropout" stream.
          sow_weights: also sow the weights `[B, N, T, S]`, before dropout, as
            `attention_weights` in the "intermediates" collection; of a ring: over its cells and,
            where T > 1, over the T new keys after them.
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
        lead, out_features = inputs_q.shape[:-2], self.out_features or inputs_q.shape[-1]
        num_kv_heads, head_dim = self._head_sizes(inputs_q.shape[-1])
        inputs_q = flat("inputs_q", inputs_q, lead)
        mask, bias = flat_logits("mask", mask, lead), flat_logits("bias", bias, lead)
        index = None if cache_position is None else check_index(cache_position, lead)
        start = index if inputs_k is None else None  # of the keys
        query = self._heads("query", inputs_q, (self.num_heads, head_dim))
        query = self._rotate(query, flat_positions("q_positions", q_positions, lead), index)
        if isinstance(inputs_k, str):
            key, value = stored(self, inputs_k, inputs_v, cache_position)
        else:
            inputs_k, inputs_v = flat_key_value(inputs_q, inputs_k, inputs_v, lead)
            key = self._heads("key", inputs_k, (num_kv_heads, head_dim))
            key = self._rotate(key, flat_positions("kv_positions", kv_positions, lead), start)
            value = self._heads("value", inputs_v, (num_kv_heads, head_dim))
            if cache_position is not None and start is None:
                store(self, cache_position, Cells(key, value))
        kept = keep(self, cache_position, Kept(key, value, mask, bias, score), index, start)
        sinks = self._sinks()
        if sow_weights:
            weights = attention_weights(
                query, kept.key, kept.mask, bias=kept.bias, score=kept.score, sinks=sinks
            )
            weights = weights.reshape(*lead, *weights.shape[1:])
            self.sow("intermediates", "attention_weights", weights)
        drops = self.dropout_rate > 0 and not deterministic
        if drops and dropout_rng is None:
            dropout_rng = self.make_rng("dropout")
        call = attend_in_mesh if cache_position is None else attend
        output = self._attend(call, query, kept, sinks, dropout_rng if drops else None)
        out = self._project("out", (out_features,), ("heads", "kv", "embed"), num_in_axes=2)
        return out(output).reshape(*lead, -1, out_features)

    def _attend(
        self,
        call: Callable[..., jax.Array],
        query: jax.Array,
        kept: Kept,
        sinks: jax.Array | None,
        dropout_key: jax.Array | None,
    ) -> jax.Array:
        def over(kept: Kept) -> jax.Array:
            return call(
                query,
                kept.key,
                kept.value,
                kept.mask,
                bias=kept.bias,
                score=kept.score,
                sinks=sinks,
                dropout_rate=0.0 if dropout_key is None else self.dropout_rate,
                dropout_key=dropout_key,
                implementation=self.implementation,
            )

        with _matmul_precision(self.precision):
            output = over_live_cells(over, kept, query.shape[1])
        return nan_where_lost(output, kept.lost)

    def _sinks(self) -> jax.Array | None:
        """The parameter, if the layer has it."""
        if not self.use_sinks:
            return None
        init = named(self.sinks_init, ("heads",))
        sinks: jax.Array = self.param("sinks", init, (self.num_heads,), self.param_dtype)
        return sinks

    def _heads(self, name: str, inputs: jax.Array, features: tuple[int, int]) -> jax.Array:
        """Queries, keys or values: [B, T, D] -> [B, T, *features]."""
        heads = self._project(name, features, HEADS)(inputs)
        if not self.normalize_qk or name == "value":
            return heads
        return nn.LayerNorm(
            use_bias=False,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            scale_init=named(nn.initializers.ones_init(), ("kv",)),
            name=f"{name}_ln",
        )(heads)

    def _rotate(
        self, x: jax.Array, positions: jax.Array | None, index: jax.Array | None
    ) -> jax.Array:
        """`x` turned by its positions, by default those from `index` on, if the layer is rotary."""
        if not self.rotary:
            return x
        how = Rotary() if isinstance(self.rotary, bool) else self.rotary
        positions = index_positions(index, x.shape[1]) if positions is None else positions
        return rotary(x, positions, how)

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
        last = name == "out"
        return DenseGeneral(
            features,
            axes,
            num_in_axes,
            use_bias=self.use_bias,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            precision=self.precision,
            kernel_init=(self.out_kernel_init if last else None) or self.kernel_init,
            bias_init=(self.out_bias_init if last else None) or self.bias_init,
            name=name,
        )


def _matmul_precision(precision: Precision) -> contextlib.AbstractContextManager[object]:
    """Within it jax multiplies matrices with this precision, unless it is None."""
    if precision is None:
        return contextlib.nullcontext()
    name = precision if isinstance(precision, str) else precision.name.lower()
    return jax.default_matmul_precision(name)
