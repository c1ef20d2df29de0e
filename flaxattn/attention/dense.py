"""The definition of attention for one head: softmax(q kᵀ · scale + bias, where mask) v.

Every faster implementation must equal this one, in values and gradients. What a mask hides is
deleted, not multiplied by zero: NaN or inf in a hidden key or value changes nothing, and a row
that may see nothing gives zeros.
"""

from typing import Any

import chex
import jax
import jax.numpy as jnp

from flaxattn.attention.dropout import keep
from flaxattn.products import wide_einsum

__all__ = [
    "attend_head",
    "head_log_sum_exp",
    "head_weights",
    "not_finite",
    "softmax_dtype",
    "without",
]


def head_weights(
    query: jax.Array,
    key: jax.Array,
    mask: jax.Array | None = None,
    *,
    bias: jax.Array | None = None,
    scale: Any = None,
    broken: jax.Array | None = None,
) -> jax.Array:
    """The attention weights of one head; rows sum to one, or to zero where nothing is seen.

    Args:
      query: `[T, H]`.
      key: `[S, H]`.
      mask: bool `[T, S]`, True = attend; None: every query sees every key.
      bias: `[T, S]` or an axis of 1, added to the logits; it never hides.
      scale: multiplies the logits; default `H**-0.5`.
      broken: bool `[S]`, further keys to be treated as not finite.

    Returns:
      `[T, S]` in float32, or float64 for float64 inputs. A row that sees a key that is not finite
      is NaN; all others are as if that key were not there.
    """
    logits = _logits(query, key, mask, bias, scale, broken)
    weights = jax.nn.softmax(logits, axis=-1)
    return weights if mask is None else jnp.where(mask, weights, 0.0)


def head_log_sum_exp(
    query: jax.Array,
    key: jax.Array,
    mask: jax.Array | None = None,
    *,
    bias: jax.Array | None = None,
    scale: Any = None,
    broken: jax.Array | None = None,
) -> jax.Array:
    """The logarithm of the sum of exp(logits) over what a row sees, -inf where that is nothing.

    Args are those of `head_weights`; returns `[T]` in float32, or float64 for float64 inputs.
    """
    total = jax.nn.logsumexp(_logits(query, key, mask, bias, scale, broken), axis=-1)
    return total if mask is None else jnp.where(mask.any(axis=-1), total, -jnp.inf)


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
      mask, bias, scale: as in `head_weights`.
      dropout_rate: the share of weights set to zero, the rest being scaled up.
      dropout_seeds: uint32 `[2]`; None: no dropout.

    Returns:
      `[T, H']` in the dtype of `query`; zeros in a row that may see nothing.
    """
    chex.assert_rank([query, key, value], 2)
    chex.assert_equal_shape_prefix([key, value], 1)
    if mask is None:
        weights = head_weights(query, key, bias=bias, scale=scale)
    else:
        broken = not_finite(value)
        value = without(value, broken)
        weights = head_weights(query, key, mask, bias=bias, scale=scale, broken=broken)
    if dropout_seeds is not None:
        q_idx, kv_idx = jnp.arange(weights.shape[0]), jnp.arange(weights.shape[1])
        kept = keep(dropout_seeds, q_idx, kv_idx, dropout_rate)
        weights = jnp.where(kept, weights / (1.0 - dropout_rate), 0.0)
    output = wide_einsum("ts,sh->th", weights.astype(value.dtype), value, weights.dtype)
    if mask is not None:  # so that nothing flows back from a row that sees nothing, not even NaN
        output = jnp.where(mask.any(axis=-1, keepdims=True), output, 0.0)
    return output.astype(query.dtype)


def softmax_dtype(dtype: Any) -> Any:
    """That of logits and sums: float32, or float64 for float64 inputs."""
    return jnp.float64 if dtype == jnp.float64 else jnp.float32


def _logits(
    query: jax.Array, key: jax.Array, mask: Any, bias: Any, scale: Any, broken: Any
) -> jax.Array:
    """The logits [T, S]; those hidden are -inf, or 0 in rows that see nothing."""
    chex.assert_rank([query, key], 2)
    chex.assert_equal_shape_suffix([query, key], 1)
    dtype = softmax_dtype(query.dtype)
    scale = jnp.asarray(query.shape[-1] ** -0.5 if scale is None else scale, dtype)
    bias = None if bias is None else bias.astype(dtype)
    if mask is None:
        logits = wide_einsum("th,sh->ts", query, key, dtype) * scale
        return logits if bias is None else logits + bias
    chex.assert_shape(mask, (query.shape[0], key.shape[0]))
    # 0 * NaN is NaN, so rows that are not finite leave the product and come back as NaN logits,
    # added rather than selected so that NaN also flows back to whatever saw them.
    q_broken, k_broken = not_finite(query), not_finite(key)
    k_broken = k_broken if broken is None else k_broken | broken
    query, key = without(query, q_broken), without(key, k_broken)
    logits = wide_einsum("th,sh->ts", query, key, dtype) * scale
    logits += _nan_where(q_broken, dtype)[:, None] + _nan_where(k_broken, dtype)[None, :]
    logits = logits if bias is None else logits + bias
    return jnp.where(mask, logits, jnp.where(mask.any(axis=-1, keepdims=True), -jnp.inf, 0.0))


def _nan_where(broken: jax.Array, dtype: Any) -> jax.Array:
    return jnp.where(broken, jnp.nan, 0.0).astype(dtype)


def not_finite(rows: jax.Array) -> jax.Array:
    """Which rows hold anything that is not finite: [..., H] -> bool [...]."""
    return ~jnp.isfinite(rows).all(axis=-1)


def without(rows: jax.Array, broken: jax.Array) -> jax.Array:
    """Rows [..., H] with zeros where `broken`, bool [...]."""
    return jnp.where(broken[..., None], 0.0, rows).astype(rows.dtype)
