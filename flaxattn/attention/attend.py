"""The front door of attention: checks, then the chosen implementation over batch and heads."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flaxattn.attention.arguments import (
    Implementation,
    check_bias,
    check_call,
    check_indices,
    check_mask,
    check_query_key,
    check_scale,
)
from flaxattn.attention.blockwise import attend_blockwise
from flaxattn.attention.dense import (
    log_sum_exp_of_head,
    logits_of_head,
    output_of_head,
    softmax_dtype,
    weights_of_head,
)
from flaxattn.attention.dropout import head_seeds
from flaxattn.attention.heads import over_batch_and_heads
from flaxattn.attention.repair import repair
from flaxattn.masks import BlockPlan, Mask, full

__all__ = ["attend", "attend_with_stats", "attention_weights"]


def attend(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: Mask | BlockPlan | jax.Array | None = None,
    *,
    bias: jax.Array | None = None,
    scale: float | jax.Array | None = None,
    dropout_rate: float = 0.0,
    dropout_key: jax.Array | None = None,
    implementation: Implementation = "auto",
) -> jax.Array:
    """Masked multi-head attention: softmax(query keyᵀ · scale + bias, where mask) value.

    What the mask hides is deleted: NaN or inf in hidden keys and values changes neither outputs
    nor gradients, and a row that may see nothing gives zero output and zero gradient. Query
    heads share key heads in groups of G = N // K (grouped-query attention, arXiv:2305.13245).

    Args:
      query: `[B, T, N, H]`, a floating dtype.
      key: `[B, S, K, H]`, the dtype of `query`; K divides N.
      value: `[B, S, K, H']`, the dtype of `query`.
      mask: a `Mask`; or its `BlockPlan`, which several calls can share; or booleans `[T, S]`,
        `[B, T, S]` or `[B, N, T, S]` in which an axis of 1 is shared; True = attend. None: every
        query sees every key.
      bias: float `[B, N, T, S]`, axes of 1 shared; added to the logits; it never hides.
      scale: multiplies the logits; default `H**-0.5`.
      dropout_rate: the share of attention weights dropped, 0 <= rate < 1.
      dropout_key: a jax random key, needed where `dropout_rate` > 0.
      implementation: "dense" is the definition, with memory T·S; "blockwise" visits only blocks
        in which something is seen, with memory T + S, and has first derivatives in reverse mode
        only; "auto" takes blockwise where it is the faster one or a `BlockPlan` is given (on a
        CPU above about 360 x 360 logits per head: `Mask.explain` tells).

    Returns:
      `[B, T, N, H']` in the dtype of `query`. Softmax and sums are taken in float32. With a mask
      a row that sees a query, key or value that is not finite is NaN; without one nothing is
      looked for, and inf and NaN go through the sums as they are.

    Raises:
      TypeError for a mask that is not boolean or dtypes that differ; ValueError for shapes that
      do not fit, heads that do not divide, a rate without a key. Each names the argument.

    >>> q = k = v = jnp.ones((2, 5, 4, 8))
    >>> attend(q, k, v, causal() & lengths(kv_lengths=np.array([5, 3]))).shape
    (2, 5, 4, 8)
    """
    arrays, static = check_call(
        query, key, value, mask, bias, scale, dropout_rate, dropout_key, implementation
    )
    return _run(*arrays, **static, stats=False)


def attend_with_stats(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: Mask | BlockPlan | jax.Array | None = None,
    *,
    bias: jax.Array | None = None,
    scale: float | jax.Array | None = None,
    dropout_rate: float = 0.0,
    dropout_key: jax.Array | None = None,
    implementation: Implementation = "auto",
) -> tuple[jax.Array, jax.Array]:
    """`attend`, and the log-sum-exp of each row's logits: with it parts of a sequence are merged.

    Args and raises are those of `attend`.

    Returns:
      The output `[B, T, N, H']`, and `[B, T, N]` in float32: log Σ exp(logits) over the keys that
      a row sees, before dropout, -inf where it sees none. Gradients flow through both.

    >>> q = k = v = jnp.zeros((1, 4, 1, 8))
    >>> jnp.exp(attend_with_stats(q, k, v, causal())[1])[0, :, 0].round().tolist()
    [1.0, 2.0, 3.0, 4.0]
    """
    arrays, static = check_call(
        query, key, value, mask, bias, scale, dropout_rate, dropout_key, implementation
    )
    return _run(*arrays, **static, stats=True)


def attention_weights(
    query: jax.Array,
    key: jax.Array,
    mask: Mask | BlockPlan | jax.Array | None = None,
    *,
    bias: jax.Array | None = None,
    scale: float | jax.Array | None = None,
    rows: Any = None,
    heads: Any = None,
) -> jax.Array:
    """The attention weights `attend` mixes values with, all of them or chosen rows and heads.

    Args:
      query, key, mask, bias, scale: as in `attend`.
      rows: int `[R]`, the query positions wanted, so that memory is R·S; None: all T. Negative
        ones count from the end. Traced ones must be in range: they are not checked.
      heads: int `[M]`, the query heads wanted, likewise; None: all N.

    Returns:
      `[B, M, R, S]` in float32; each row sums to one, or to zero where nothing is seen.

    Raises:
      TypeError and ValueError as `attend`, and for rows or heads that are no integers or not
      there.

    >>> q = k = jnp.ones((1, 3, 2, 8))
    >>> attention_weights(q, k, causal(), rows=np.array([1]), heads=np.array([0])).tolist()
    [[[[0.5, 0.5, 0.0]]]]
    """
    sizes = check_query_key(query, key)
    mask = check_mask(mask, sizes)
    mask = mask.mask if isinstance(mask, BlockPlan) else mask
    check_bias(bias, sizes)
    check_scale(scale)
    rows = _chosen("rows", rows, "T", query.shape[1])
    heads = _chosen("heads", heads, "N", query.shape[2])
    return _weights(query, key, mask, bias, scale, rows, heads)


@functools.partial(jax.jit, static_argnames=("rate", "blockwise", "stats"))
def _run(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: Mask | BlockPlan | None,
    bias: jax.Array | None,
    scale: Any,
    dropout_key: jax.Array | None,
    *,
    rate: float,
    blockwise: bool,
    stats: bool,
) -> Any:
    """The output, and with `stats` the log-sum-exp, by blocks or by the definition."""
    options = {"bias": bias, "scale": scale, "dropout_key": dropout_key, "rate": rate}
    if not blockwise:
        return _dense(query, key, value, mask, **options, stats=stats)
    if isinstance(mask, BlockPlan):
        plan = mask
    else:
        plan = (full() if mask is None else mask).plan(query.shape[1], key.shape[1])
    both = attend_blockwise(query, key, value, plan, **options, has_mask=mask is not None)
    return both if stats else both[0]


def _dense(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: Any,
    *,
    bias: jax.Array | None,
    scale: Any,
    dropout_key: jax.Array | None,
    rate: float,
    stats: bool,
) -> Any:
    """The definition, `attend_head`, over batch and heads, repaired for all of them at once."""
    of_query, of_key = _repaired(query, key, value, mask)

    def head(of_query: Any, of_key: Any, mask: Any, bias: Any, seeds: Any) -> Any:
        (query, q_nan), (key, value, kv_nan) = of_query, of_key
        logits = logits_of_head(query, key, mask, q_nan, kv_nan, bias=bias, scale=scale)
        output = output_of_head(weights_of_head(logits, mask), value, mask, rate, seeds)
        return (output, log_sum_exp_of_head(logits, mask)) if stats else output

    batch, q_len, num_heads, _ = query.shape
    dense = None if mask is None else _four_axes(mask.dense(q_len, key.shape[1]))
    seeds = None if dropout_key is None else head_seeds(dropout_key, batch, num_heads)
    return over_batch_and_heads(head, of_query, of_key, dense, bias, seeds)


def _repaired(query: jax.Array, key: jax.Array, value: jax.Array, mask: Any) -> tuple[Any, Any]:
    """(query, q_nan) and (key, value, kv_nan) of `repair`; with no mask as they are, and None."""
    if mask is None:
        return (query, None), (key, value, None)
    query, key, value, q_nan, kv_nan = repair(query, key, value, softmax_dtype(query.dtype))
    return (query, q_nan), (key, value, kv_nan)


@jax.jit
def _weights(
    query: jax.Array,
    key: jax.Array,
    mask: Mask | None,
    bias: jax.Array | None,
    scale: Any,
    rows: jax.Array,
    heads: jax.Array,
) -> jax.Array:
    """`weights_of_head` of chosen rows and heads -> [B, M, R, S]."""

    def head(of_query: Any, of_key: Any, mask: Any, bias: Any) -> jax.Array:
        (query, q_nan), (key, _, kv_nan) = of_query, of_key
        logits = logits_of_head(query, key, mask, q_nan, kv_nan, bias=bias, scale=scale)
        return weights_of_head(logits, mask)

    dense = None
    if mask is not None:
        dense = _pick(_four_axes(mask.outer(rows, jnp.arange(key.shape[1]))), heads, axis=1)
    if bias is not None:
        bias = _pick(_pick(bias, heads, axis=1), rows, axis=2)
    group = query.shape[2] // key.shape[2]
    query, key = query[:, rows][:, :, heads], key[:, :, heads // group]
    of_query, of_key = _repaired(query, key, key, mask)
    return over_batch_and_heads(head, of_query, of_key, dense, bias).swapaxes(1, 2)


def _chosen(name: str, indices: Any, letter: str, size: int) -> jax.Array:
    """The indices along an axis, all of them by default; negative ones count from its end."""
    if indices is None:
        return jnp.arange(size)
    indices = indices if isinstance(indices, jax.Array) else np.asarray(indices)
    check_indices(name, indices, letter, size)
    indices = jnp.asarray(indices, jnp.int32)
    return jnp.where(indices < 0, indices + size, indices)


def _four_axes(dense: jax.Array) -> jax.Array:
    """[T, S], [B, T, S] or [B, N, T, S] -> [B, N, T, S], 1 where shared."""
    return jnp.expand_dims(dense, {2: (0, 1), 3: (1,), 4: ()}[dense.ndim])


def _pick(array: jax.Array, indices: jax.Array, axis: int) -> jax.Array:
    """`array` at `indices` of `axis`, unless that axis is shared."""
    return array if array.shape[axis] == 1 else jnp.take(array, indices, axis=axis)
