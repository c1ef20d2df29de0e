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

__all__ = ["attend_head", "head_weights"]


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
    chex.assert_rank([query, key], 2)
    chex.assert_equal_shape_suffix([query, key], 1)
    chex.assert_shape(mask, (query.shape[0], key.shape[0])) if mask is not None else None
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    dtype = _softmax_dtype(query.dtype)
    if mask is None:
        products = wide_einsum("th,sh->ts", query, key, dtype)
        return jax.nn.softmax(_logits(products, bias, scale), axis=-1)
    # 0 * NaN is NaN, so rows that are not finite leave the product and come back as NaN logits,
    # added rather than selected so that NaN also flows back to whatever saw them.
    q_broken, k_broken = _not_finite(query), _not_finite(key)
    k_broken = k_broken if broken is None else k_broken | broken
    query, key = _without(query, q_broken), _without(key, k_broken)
    products = wide_einsum("th,sh->ts", query, key, dtype)
    products += jnp.where(q_broken[:, None] | k_broken[None, :], jnp.nan, 0.0).astype(dtype)
    logits = _logits(jnp.where(mask, products, 0.0), bias, scale)
    hidden = jnp.where(mask.any(axis=-1, keepdims=True), -jnp.inf, 0.0).astype(dtype)
    weights = jax.nn.softmax(jnp.where(mask, logits, hidden), axis=-1)
    return jnp.where(mask, weights, 0.0)  # a row that sees nothing has had even weights so far


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
        broken = _not_finite(value)
        value = _without(value, broken)
        weights = head_weights(query, key, mask, bias=bias, scale=scale, broken=broken)
    if dropout_seeds is not None:
        q_idx, kv_idx = jnp.arange(weights.shape[0]), jnp.arange(weights.shape[1])
        kept = keep(dropout_seeds, q_idx, kv_idx, dropout_rate)
        weights = jnp.where(kept, weights / (1.0 - dropout_rate), 0.0)
    output = wide_einsum("ts,sh->th", weights.astype(value.dtype), value, weights.dtype)
    if mask is not None:  # so that nothing flows back from a row that sees nothing, not even NaN
        output = jnp.where(mask.any(axis=-1, keepdims=True), output, 0.0)
    return output.astype(query.dtype)


def _softmax_dtype(dtype: Any) -> Any:
    return jnp.float64 if dtype == jnp.float64 else jnp.float32


def _logits(products: jax.Array, bias: Any, scale: Any) -> jax.Array:
    logits = products * jnp.asarray(scale, products.dtype)
    return logits if bias is None else logits + bias.astype(products.dtype)


def _not_finite(rows: jax.Array) -> jax.Array:
    """Which rows hold anything that is not finite: [S, H] -> bool [S]."""
    return ~jnp.isfinite(rows).all(axis=-1)


def _without(rows: jax.Array, broken: jax.Array) -> jax.Array:
    return jnp.where(broken[:, None], 0.0, rows).astype(rows.dtype)
