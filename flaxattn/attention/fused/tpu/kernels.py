"""Attention on TPUs: one Pallas kernel for each pass.

A kernel walks through tiles of logits, [block_q, block_kv], or the other way round in the pass to
keys and values: what it adds up belongs to the rows of its tiles. Only tiles of partial blocks ask
the mask, by its rule on the tile. `grid.py` says which tiles there are, and in what order.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from flaxattn.attention.fused.given import Given, Lists, Returned, Rules
from flaxattn.attention.fused.rules import Answers
from flaxattn.attention.fused.tpu.call import COLUMN, Out, Pass, Ref, Sum, Work, call
from flaxattn.attention.fused.tpu.grid import (
    FULL,
    Grid,
    Place,
    Scalar,
    along_query,
    grid_of_keys,
    grid_of_queries,
    of_key,
    of_query,
    own,
)

__all__ = ["backward_keys", "backward_query", "forward"]

LOWEST = float(jnp.finfo(jnp.float32).min)


def forward(
    given: Given, rules: Rules, *, block_q: int, block_kv: int, wide: bool = True
) -> tuple[jax.Array, jax.Array]:
    """The output [B, T, N, H'] and the float32 log-sum-exp [B, N, T].

    Args:
      wide: whether the output is float32, or in the dtype of the query.
    """
    (batch, q_len, num_heads, _), dtype = given.query.shape, given.query.dtype
    width = given.value.shape[-1]

    def step(kind: int, work: Work) -> None:
        top, total, mixed = work.sums
        logits, answers = _tile(kind, rules, grid, work)
        if answers.seen is not None:
            logits = jnp.where(answers.seen, logits, -jnp.inf)
        new_top = jnp.maximum(top[...], logits.max(axis=1, keepdims=True))
        powers, decay = jnp.exp(logits - _wide(new_top, block_kv)), jnp.exp(top[...] - new_top)
        top[...] = new_top
        total[...] = total[...] * decay + powers.sum(axis=1, keepdims=True)
        if answers.kept is not None:
            powers = jnp.where(answers.kept, powers * (1.0 / (1.0 - rules.rate)), 0.0)
        value = work.read.value[0, 0]
        products = _product(powers.astype(value.dtype), value, (1, 0))
        mixed[...] = mixed[...] * _wide(decay, width) + products

    def end(work: Work, output: Ref, lse: Ref) -> None:
        (top, total, mixed), sinks = (x[...] for x in work.sums), work.read.sinks
        sink = None if sinks is None else _of_head(sinks, work.place)
        factor, found = _ended(top, total, sink)
        output[0, 0] = (mixed * _wide(factor, width)).astype(output.dtype)
        lse[0, 0] = found.T[:1]

    grid = grid_of_queries(given, block_q, block_kv)
    outs = [
        Out((batch, num_heads, q_len, width), of_query, jnp.float32 if wide else dtype),
        Out((batch, num_heads, 1, q_len), along_query),
    ]
    # The top begins with a finite number, so that no difference is one of infinities.
    sums = [Sum(COLUMN, LOWEST), Sum(COLUMN), Sum(width)]
    does = Pass("forward", step, end, sums, outs)
    output, lse = call(grid, given, None, does)
    return output.swapaxes(1, 2), lse[:, :, 0]


def _ended(top: jax.Array, total: jax.Array, sink: Scalar | None) -> tuple[jax.Array, jax.Array]:
    """What the sum of a row's values is multiplied by, and its log-sum-exp."""
    empty, share = total == 0.0, jnp.ones_like(total)
    if sink is not None:  # a logit with a value of zero
        highest = jnp.maximum(top, sink)
        share = jnp.exp(top - highest)
        top, total = highest, total * share + jnp.exp(sink - highest)
    factor = jnp.where(empty, 0.0, share / total)
    return factor, jnp.where(empty, -jnp.inf, top + jnp.log(total))


def backward_query(
    given: Given, returned: Returned, rules: Rules, *, block_q: int, block_kv: int
) -> jax.Array:
    """The gradient of queries, float32 [B, T, N, H], not yet multiplied by the scale."""
    batch, q_len, num_heads, width = given.query.shape

    def step(kind: int, work: Work) -> None:
        _, d_logits = _returned_tile(kind, rules, grid, work)
        key = work.read.key[0, 0]
        work.sums[0][...] += _product(d_logits.astype(key.dtype), key, (1, 0))

    grid = grid_of_queries(given, block_q, block_kv)
    outs = [Out((batch, num_heads, q_len, width), of_query)]
    does = Pass("backward_query", step, _store, [Sum(width)], outs)
    (d_query,) = call(grid, given, returned, does)
    return d_query.swapaxes(1, 2)


def backward_keys(
    given: Given,
    returned: Returned,
    rules: Rules,
    *,
    columns: Lists,
    block_q: int,
    block_kv: int,
) -> tuple[jax.Array, jax.Array]:
    """The gradients of keys and values, float32 [B, S, K, H] and [B, S, K, H'].

    Args:
      columns: the query blocks of each key block.
    """
    batch, kv_len, num_kv_heads, _ = given.key.shape
    widths = given.key.shape[-1], given.value.shape[-1]

    def step(kind: int, work: Work) -> None:
        read, (d_key, d_value) = work.read, work.sums
        weights, d_logits = _returned_tile(kind, rules, grid, work)
        query, d_output = read.query[0, 0], read.d_output[0, 0]
        scale = _of_head(read.scale, work.place)
        d_key[...] += _product(d_logits.astype(query.dtype), query, (1, 0)) * scale
        d_value[...] += _product(weights.astype(query.dtype), d_output, (1, 0))

    grid = grid_of_keys(given, columns, block_q, block_kv)
    outs = [Out((batch, num_kv_heads, kv_len, width), of_key) for width in widths]
    does = Pass("backward_keys", step, _store, [*map(Sum, widths)], outs)
    d_key, d_value = (x.swapaxes(1, 2) for x in call(grid, given, returned, does))
    return d_key, d_value


def _store(work: Work, *outputs: Ref) -> None:
    for output, total in zip(outputs, work.sums, strict=True):
        output[0, 0] = total[...]


# ---- Tiles --------------------------------------------------------------------------------------


def _tile(kind: int, rules: Rules, grid: Grid, work: Work) -> tuple[jax.Array, Answers]:
    """The logits of a tile, and what else it answers."""
    read, place = work.read, work.place
    rule, outside = (rules.full, read.full) if kind == FULL else (rules.partial, read.partial)
    kept = work.columns.full if kind == FULL else work.columns.partial
    logits = _of_both(grid, read.query, read.key) * _of_head(read.scale, place)

    def spread(x: jax.Array) -> jax.Array:
        return jnp.broadcast_to(x, grid.tile)

    columns = [_wide(x[...], grid.tile[1]) for x in kept]
    rows = [spread(x[0, 0]) for x in (outside.of_queries if grid.by_keys else outside.of_keys)]
    of_queries, of_keys = (rows, columns) if grid.by_keys else (columns, rows)
    of_heads = [spread(_of_head(x, place)) for x in outside.of_heads]
    tables = [x[0, 0] for x in read.tables[: len(rule.tables)]]
    found = rule.split.tile([logits, *tables], of_queries, of_keys, of_heads, spread)
    answers = rule.answers(found)
    return logits if answers.logit is None else answers.logit, answers


def _returned_tile(kind: int, rules: Rules, grid: Grid, work: Work) -> tuple[jax.Array, jax.Array]:
    """The weights that values are mixed with, and the gradient of the logits before the score."""
    read, of_queries = work.read, (work.columns.lse, work.columns.mean)
    logits, (_, slope, seen, kept) = _tile(kind, rules, grid, work)
    if grid.by_keys:
        lse, mean = (jnp.broadcast_to(x[0, 0], grid.tile) for x in (read.lse, read.mean))
    else:
        lse, mean = (_wide(x[...], grid.tile[1]) for x in of_queries)
    weights = mixing = _where(seen, jnp.exp(logits - lse))
    d_weights = _of_both(grid, read.d_output, read.value)
    if kept is not None:
        stays, share = kept | jnp.isnan(weights), 1.0 / (1.0 - rules.rate)  # NaN stays NaN
        mixing, d_weights = (jnp.where(stays, x * share, 0.0) for x in (weights, d_weights))
    d_logits = weights * (d_weights - mean)
    return mixing, _where(seen, d_logits if slope is None else d_logits * slope)


def _where(seen: jax.Array | None, x: jax.Array) -> jax.Array:
    return x if seen is None else jnp.where(seen, x, 0.0)


def _of_both(grid: Grid, of_queries: Ref, of_keys: Ref) -> jax.Array:
    """The products of features of queries and of keys, a tile."""
    x, y = (of_keys, of_queries) if grid.by_keys else (of_queries, of_keys)
    return _product(x[0, 0], y[0, 0], (1, 1))


def _product(x: jax.Array, y: jax.Array, axes: tuple[int, int]) -> jax.Array:
    """The product of two matrices over an axis of each, as precise as jax is asked to be."""
    asked = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]
    rough = x.dtype != jnp.float32 or asked in (None, "default", "fastest", "bfloat16")
    return lax.dot_general(
        x,
        y,
        (((axes[0],), (axes[1],)), ((), ())),
        precision=lax.Precision.DEFAULT if rough else lax.Precision.HIGHEST,
        preferred_element_type=jnp.float32,
    )


def _wide(column: jax.Array, width: int) -> jax.Array:
    """[rows, COLUMN] -> [rows, width]."""
    return jnp.tile(column, (1, pl.cdiv(width, COLUMN)))[:, :width]


def _of_head(numbers: Ref, place: Place) -> Scalar:
    """That of `numbers` [b, n] which belongs to a step."""
    return numbers[own(numbers.shape[0], place.b), own(numbers.shape[1], place.head)]
