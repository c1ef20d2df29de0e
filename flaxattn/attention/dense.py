"""The definition of attention for one head: softmax(score(q kᵀ · scale + bias), where mask) v.

Every faster implementation must equal this one, in values and gradients. What a mask hides is
deleted, not multiplied by zero: NaN or inf in a hidden key or value changes nothing, and a row
that may see nothing gives zeros.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from flaxattn.attention.dropout import keep
from flaxattn.attention.heads import over_batch_and_heads
from flaxattn.attention.options import OfHeads, Options
from flaxattn.attention.repair import repair
from flaxattn.attention.scoring import Pairs, scored
from flaxattn.einsum import wide_einsum
from flaxattn.masks import BlockPlan, Mask
from flaxattn.scores import Score

__all__ = [
    "OfKey",
    "OfQuery",
    "attend_dense",
    "attend_head",
    "four_axes",
    "logits_of_head",
    "repaired",
    "softmax_dtype",
    "weights_of_head",
]


class OfQuery(NamedTuple):
    """Queries, finite where there is a mask, and what was taken out of them: NaN or 0."""

    query: jax.Array  # [..., H]
    nan: jax.Array | None  # [...]; None without a mask


class OfKey(NamedTuple):
    """Keys and values, and what was taken out of either: NaN or 0."""

    key: jax.Array  # [..., H]
    value: jax.Array  # [..., H']
    nan: jax.Array | None  # [...]; None without a mask


def attend_dense(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: Mask | BlockPlan | None,
    options: Options,
) -> tuple[jax.Array, jax.Array]:
    """The definition, `attend_head`, over batch and heads; inputs are repaired once for all."""
    mask = mask.mask if isinstance(mask, BlockPlan) else mask
    of_query, of_key = repaired(query, key, value, mask)

    pairs = Pairs.all(query.shape[1], key.shape[1])

    def head(
        of_query: OfQuery,
        of_key: OfKey,
        mask: jax.Array | None,
        of_head: OfHeads,
        seeds: jax.Array | None,
    ) -> tuple[jax.Array, jax.Array]:
        logits = logits_of_head(of_query, of_key, mask, of_head, pairs)
        weights = weights_of_head(logits, mask, of_head.sinks)
        output = _output_of_head(weights, of_key.value, mask, options, seeds)
        return output, _log_sum_exp_of_head(logits, mask, of_head.sinks)

    dense = None if mask is None else four_axes(mask.dense(query.shape[1], key.shape[1]))
    of_heads = options.of_heads(query.shape[-1], softmax_dtype(query.dtype))
    return over_batch_and_heads(head, of_query, of_key, dense, of_heads, options.seeds)


def attend_head(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: jax.Array | None = None,
    *,
    bias: jax.Array | None = None,
    scale: float | jax.Array | None = None,
    score: Score | None = None,
    sink: float | jax.Array | None = None,
    dropout_rate: float = 0.0,
    dropout_seeds: jax.Array | None = None,
) -> jax.Array:
    """Attention of one head (Vaswani et al. 2017, equation 1), with what is hidden deleted.

    Args:
      query: `[T, H]`; key: `[S, H]`; value: `[S, H']`.
      mask: bool `[T, S]`, True = attend; None: every query sees every key.
      bias: `[T, S]` or an axis of 1, added to the logits; it never hides.
      scale: multiplies the logits; default `H**-0.5`.
      score: what becomes of the logits then, its arrays being those of the head.
      sink: a logit that takes part in the sum of the softmax alone; None: none.
      dropout_rate: the share of weights set to zero, the rest being scaled up.
      dropout_seeds: uint32 `[2]`; None: no dropout.

    Returns:
      `[T, H']` in the dtype of `query`; zeros in a row that may see nothing. A row that sees a key
      or value that is not finite is NaN; all others are as if that key were not there.
    """
    chex.assert_rank([query, key], 2)
    chex.assert_rank(value, 2)
    chex.assert_equal_shape_prefix([key, value], 1)
    if score is not None and score.lead:
        raise ValueError(f"score {score} has leading axes {score.lead}; expected that of one head.")
    of_query, of_key = repaired(query, key, value, mask)
    options = Options(bias, scale, score, sink, dropout_rate=dropout_rate)
    of_head = options.of_heads(query.shape[-1], softmax_dtype(query.dtype)).of_one()
    pairs = Pairs.all(query.shape[0], key.shape[0])
    logits = logits_of_head(of_query, of_key, mask, of_head, pairs)
    weights = weights_of_head(logits, mask, of_head.sinks)
    return _output_of_head(weights, of_key.value, mask, options, dropout_seeds)


def logits_of_head(
    of_query: OfQuery,
    of_key: OfKey,
    mask: jax.Array | None,
    of_head: OfHeads,
    pairs: Pairs,
) -> jax.Array:
    """[T, S] in float32, or float64 for float64 inputs: -inf where hidden, 0 in rows all hidden."""
    (query, q_nan), (key, _, kv_nan) = of_query, of_key
    chex.assert_rank([query, key], 2)
    chex.assert_equal_shape_suffix([query, key], 1)
    dtype = softmax_dtype(query.dtype)
    products = wide_einsum("th,sh->ts", query, key, dtype)
    if mask is not None:  # or products that overflow reach the gradient of the scale
        chex.assert_shape(mask, products.shape)
        products = jnp.where(mask, products, 0.0)
    logits = products * of_head.scale
    if of_head.bias is not None:
        logits += of_head.bias.astype(dtype)
    if of_head.score is not None:
        seen = None if mask is None else mask[None]
        logits = scored(of_head.score, logits[None], pairs, seen)[0]
    if mask is None or q_nan is None or kv_nan is None:  # all three or none are there
        return logits
    # Added, not selected: so NaN flows back to whatever saw it, too.
    logits += q_nan[:, None] + kv_nan[None, :]
    return jnp.where(mask, logits, jnp.where(mask.any(axis=-1, keepdims=True), -jnp.inf, 0.0))


def weights_of_head(
    logits: jax.Array, mask: jax.Array | None, sink: jax.Array | None = None
) -> jax.Array:
    """Rows of [T, S] that sum to one, less the weight of the sink, or to zero if all is hidden."""
    weights: jax.Array = jax.nn.softmax(_with_sink(logits, sink), axis=-1)
    weights = weights[:, : logits.shape[1]]
    return weights if mask is None else jnp.where(mask, weights, 0.0)


def _with_sink(logits: jax.Array, sink: jax.Array | None) -> jax.Array:
    """The logits [T, S] with those of the sink as a last column, if there is one."""
    if sink is None:
        return logits
    return jnp.append(logits, jnp.broadcast_to(sink, (logits.shape[0], 1)), axis=1)


def _log_sum_exp_of_head(
    logits: jax.Array, mask: jax.Array | None, sink: jax.Array | None
) -> jax.Array:
    """[T, S] -> [T]: log Σ exp(logits) over what a row sees and its sink.

    Where it sees nothing that is the sink, or -inf without one.
    """
    total = jax.nn.logsumexp(_with_sink(logits, sink), axis=-1)
    if mask is None:
        return total
    return jnp.where(mask.any(axis=-1), total, -jnp.inf if sink is None else sink)


def _output_of_head(
    weights: jax.Array,
    value: jax.Array,
    mask: jax.Array | None,
    options: Options,
    seeds: jax.Array | None,
) -> jax.Array:
    """Weights [T, S], less those dropped, times value [S, H'] -> [T, H'] in its dtype."""
    if seeds is not None:
        rate = options.dropout_rate
        q_idx, kv_idx = map(jnp.asarray, options.places or map(jnp.arange, weights.shape))
        stays = keep(seeds, q_idx, kv_idx, rate) | jnp.isnan(weights)  # NaN stays NaN
        weights = jnp.where(stays, weights / (1.0 - rate), 0.0)
    output = wide_einsum("ts,sh->th", weights.astype(value.dtype), value, weights.dtype)
    if mask is not None:  # nothing flows back from a row that sees nothing, not even NaN
        output = jnp.where(mask.any(axis=-1, keepdims=True), output, 0.0)
    return output if options.wide else output.astype(value.dtype)


def softmax_dtype(dtype: np.dtype) -> np.dtype:
    """The dtype of logits and sums: float32, or float64 for float64 inputs."""
    return np.dtype(np.float64 if dtype == np.float64 else np.float32)


def repaired(
    query: jax.Array, key: jax.Array, value: jax.Array, mask: Mask | jax.Array | None
) -> tuple[OfQuery, OfKey]:
    """The three [..., H] of `repair` where there is a mask, else as they are."""
    if mask is None:
        return OfQuery(query, None), OfKey(key, value, None)
    query, key, value, q_nan, kv_nan = repair(query, key, value, softmax_dtype(query.dtype))
    return OfQuery(query, q_nan), OfKey(key, value, kv_nan)


def four_axes(dense: jax.Array) -> jax.Array:
    """[T, S], [B, T, S] or [B, N, T, S] -> [B, N, T, S], 1 where shared."""
    return jnp.expand_dims(dense, {2: (0, 1), 3: (1,), 4: ()}[dense.ndim])
