"""The definition of attention for one head: softmax(q kᵀ · scale + bias, where mask) v.

Every faster implementation must equal this one, in values and gradients. What a mask hides is
deleted, not multiplied by zero: NaN or inf in a hidden key or value changes nothing, and a row
that may see nothing gives zeros.
"""

from typing import Any

import chex
import jax
import jax.numpy as jnp

from flaxattn.attention.dropout import head_seeds, keep
from flaxattn.attention.heads import over_batch_and_heads
from flaxattn.attention.options import Options
from flaxattn.attention.repair import repair
from flaxattn.masks import BlockPlan, Mask
from flaxattn.products import wide_einsum

__all__ = [
    "attend_dense",
    "attend_head",
    "four_axes",
    "log_sum_exp_of_head",
    "logits_of_head",
    "output_of_head",
    "repaired",
    "softmax_dtype",
    "weights_of_head",
]


def attend_dense(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: Mask | BlockPlan | None,
    options: Options,
) -> tuple[jax.Array, jax.Array]:
    """The definition, `attend_head`, over batch and heads, repaired for all of them at once."""
    mask = mask.mask if isinstance(mask, BlockPlan) else mask
    of_query, of_key = repaired(query, key, value, mask)
    scale, rate, dropout_key = options.scale, options.dropout_rate, options.dropout_key

    def head(of_query: Any, of_key: Any, mask: Any, bias: Any, seeds: Any) -> Any:
        (query, q_nan), (key, value, kv_nan) = of_query, of_key
        logits = logits_of_head(query, key, mask, q_nan, kv_nan, bias=bias, scale=scale)
        output = output_of_head(weights_of_head(logits, mask), value, mask, rate, seeds)
        return output, log_sum_exp_of_head(logits, mask)

    batch, q_len, num_heads, _ = query.shape
    dense = None if mask is None else four_axes(mask.dense(q_len, key.shape[1]))
    seeds = None if dropout_key is None else head_seeds(dropout_key, batch, num_heads)
    return over_batch_and_heads(head, of_query, of_key, dense, options.bias, seeds)


def attend_head(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: jax.Array | None = None,
    *,
    bias: jax.Array | None = None,
    scale: Any = None,
    dropout_rate: float = 0.0,
    dropout_seeds: jax.Array | None = None,
) -> jax.Array:
    """Attention of one head (Vaswani et al. 2017, equation 1), with what is hidden deleted.

    Args:
      query: `[T, H]`; key: `[S, H]`; value: `[S, H']`.
      mask: bool `[T, S]`, True = attend; None: every query sees every key.
      bias: `[T, S]` or an axis of 1, added to the logits; it never hides.
      scale: multiplies the logits; default `H**-0.5`.
      dropout_rate: the share of weights set to zero, the rest being scaled up.
      dropout_seeds: uint32 `[2]`; None: no dropout.

    Returns:
      `[T, H']` in the dtype of `query`; zeros in a row that may see nothing. A row that sees a key
      or value that is not finite is NaN; all others are as if that key were not there.
    """
    chex.assert_rank([query, key, value], 2)
    chex.assert_equal_shape_prefix([key, value], 1)
    q_nan = kv_nan = None
    if mask is not None:
        query, key, value, q_nan, kv_nan = repair(query, key, value, softmax_dtype(query.dtype))
    logits = logits_of_head(query, key, mask, q_nan, kv_nan, bias=bias, scale=scale)
    weights = weights_of_head(logits, mask)
    return output_of_head(weights, value, mask, dropout_rate, dropout_seeds)


def logits_of_head(
    query: jax.Array,
    key: jax.Array,
    mask: jax.Array | None,
    q_nan: Any,
    kv_nan: Any,
    *,
    bias: jax.Array | None,
    scale: Any,
) -> jax.Array:
    """[T, S] in float32, or float64 for float64 inputs: -inf where hidden, 0 in rows all hidden.

    With a mask, query `[T, H]` and key `[S, H]` are finite, and what was taken out of them stands
    in `q_nan` `[T]` and `kv_nan` `[S]`.
    """
    chex.assert_rank([query, key], 2)
    chex.assert_equal_shape_suffix([query, key], 1)
    dtype = softmax_dtype(query.dtype)
    scale = jnp.asarray(query.shape[-1] ** -0.5 if scale is None else scale, dtype)
    products = wide_einsum("th,sh->ts", query, key, dtype)
    if mask is not None:  # for the gradient of the scale: products of large numbers overflow
        chex.assert_shape(mask, products.shape)
        products = jnp.where(mask, products, 0.0)
    logits = products * scale
    if bias is not None:
        logits += bias.astype(dtype)
    if mask is None:
        return logits
    # Added, not selected, so that NaN also flows back to whatever saw it.
    logits += q_nan[:, None] + kv_nan[None, :]
    return jnp.where(mask, logits, jnp.where(mask.any(axis=-1, keepdims=True), -jnp.inf, 0.0))


def weights_of_head(logits: jax.Array, mask: jax.Array | None) -> jax.Array:
    """Rows of [T, S] that sum to one, or to zero where nothing is seen."""
    weights = jax.nn.softmax(logits, axis=-1)
    return weights if mask is None else jnp.where(mask, weights, 0.0)


def log_sum_exp_of_head(logits: jax.Array, mask: jax.Array | None) -> jax.Array:
    """[T, S] -> [T]: log Σ exp(logits) over what a row sees, -inf where that is nothing."""
    total = jax.nn.logsumexp(logits, axis=-1)
    return total if mask is None else jnp.where(mask.any(axis=-1), total, -jnp.inf)


def output_of_head(
    weights: jax.Array, value: jax.Array, mask: jax.Array | None, rate: float, seeds: Any
) -> jax.Array:
    """Weights [T, S], less those dropped, times value [S, H'] -> [T, H'] in its dtype."""
    if seeds is not None:
        q_idx, kv_idx = jnp.arange(weights.shape[0]), jnp.arange(weights.shape[1])
        stays = keep(seeds, q_idx, kv_idx, rate) | jnp.isnan(weights)  # NaN is never hushed up
        weights = jnp.where(stays, weights / (1.0 - rate), 0.0)
    output = wide_einsum("ts,sh->th", weights.astype(value.dtype), value, weights.dtype)
    if mask is not None:  # so that nothing flows back from a row that sees nothing, not even NaN
        output = jnp.where(mask.any(axis=-1, keepdims=True), output, 0.0)
    return output.astype(value.dtype)


def softmax_dtype(dtype: Any) -> Any:
    """That of logits and sums: float32, or float64 for float64 inputs."""
    return jnp.float64 if dtype == jnp.float64 else jnp.float32


def repaired(query: jax.Array, key: jax.Array, value: jax.Array, mask: Any) -> tuple[Any, Any]:
    """(query, q_nan) and (key, value, kv_nan) of `repair`; with no mask as they are, and None."""
    if mask is None:
        return (query, None), (key, value, None)
    query, key, value, q_nan, kv_nan = repair(query, key, value, softmax_dtype(query.dtype))
    return (query, q_nan), (key, value, kv_nan)


def four_axes(dense: jax.Array) -> jax.Array:
    """[T, S], [B, T, S] or [B, N, T, S] -> [B, N, T, S], 1 where shared."""
    return jnp.expand_dims(dense, {2: (0, 1), 3: (1,), 4: ()}[dense.ndim])
