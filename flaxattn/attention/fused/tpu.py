"""Attention on TPUs: one Pallas kernel for each pass.

A kernel walks through tiles of logits, [block_q, block_kv], or the other way round in the pass to
keys and values: what it adds up belongs to the rows of its tiles. Only tiles of partial blocks ask
the mask, by its rule on the tile. `tpu_grid.py` says which tiles there are, and in what order.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from flaxattn.attention.fused.given import Given, Lists, Returned, Rules
from flaxattn.attention.fused.rules import Answers
from flaxattn.attention.fused.split import Outside
from flaxattn.attention.fused.tpu_grid import (
    FULL,
    PARTIAL,
    Grid,
    Place,
    Scalar,
    along_key,
    along_query,
    grid_of_keys,
    grid_of_queries,
    of_key,
    of_query,
    own,
)
from flaxattn.types import PyTree

__all__ = ["LANES", "backward_keys", "backward_query", "forward"]

Ref: TypeAlias = Any
"""Of a block of an array, in the memory of a kernel."""

LANES = 1  # what widths of heads are padded to: blocks have whole rows, of any width
COLUMN = 128  # how often a number of a row of a tile is kept, side by side
LOWEST = float(jnp.finfo(jnp.float32).min)


class Read(NamedTuple):
    """What a kernel reads."""

    given: Given
    returned: Returned | None


class Columns(NamedTuple):
    """Numbers of the rows of a line's tiles, [rows, COLUMN] each."""

    full: Sequence[Ref]
    partial: Sequence[Ref]
    returned: Sequence[Ref]


class Work(NamedTuple):
    """What a step has at hand."""

    place: Place
    read: Read
    columns: Columns
    sums: Sequence[Ref]


class Sum(NamedTuple):
    """What a line adds up: for each row so many numbers, which begin with one."""

    width: int
    start: float = 0.0


class Out(NamedTuple):
    """An array that a kernel makes, and where its blocks are."""

    shape: tuple[int, ...]
    spec: Callable[[Grid, Sequence[int]], pl.BlockSpec]


def forward(
    given: Given, rules: Rules, *, block_q: int, block_kv: int, interpret: Any = False
) -> tuple[jax.Array, jax.Array]:
    """The output [B, T, N, H'] and the log-sum-exp [B, N, T], both float32."""
    (batch, q_len, num_heads, _), width = given.query.shape, given.value.shape[-1]

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
        value = work.read.given.value[0, 0]
        products = _product(powers.astype(value.dtype), value, 1, 0)
        mixed[...] = mixed[...] * _wide(decay, width) + products

    def end(work: Work, output: Ref, lse: Ref) -> None:
        top, total, mixed = (x[...] for x in work.sums)
        sinks = work.read.given.sinks
        factor, found = _ended(top, total, None if sinks is None else _of_head(sinks, work.place))
        output[0, 0] = mixed * _wide(factor, width)
        lse[0, 0] = found.T[:1]

    grid = grid_of_queries(given, block_q, block_kv)
    out = [
        Out((batch, num_heads, q_len, width), of_query),
        Out((batch, num_heads, 1, q_len), along_query),
    ]
    # The top begins with a finite number, so that no difference is one of infinities.
    sums = [Sum(COLUMN, LOWEST), Sum(COLUMN), Sum(width)]
    output, lse = _call(grid, Read(given, None), out, sums, step, end, interpret)
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
    given: Given,
    returned: Returned,
    rules: Rules,
    *,
    block_q: int,
    block_kv: int,
    interpret: Any = False,
) -> jax.Array:
    """The gradient of queries, float32 [B, T, N, H], not yet multiplied by the scale."""
    batch, q_len, num_heads, width = given.query.shape

    def step(kind: int, work: Work) -> None:
        _, d_logits = _returned_tile(kind, rules, grid, work)
        key = work.read.given.key[0, 0]
        work.sums[0][...] += _product(d_logits.astype(key.dtype), key, 1, 0)

    grid = grid_of_queries(given, block_q, block_kv)
    out = [Out((batch, num_heads, q_len, width), of_query)]
    (d_query,) = _call(grid, Read(given, returned), out, [Sum(width)], step, _store, interpret)
    return d_query.swapaxes(1, 2)


def backward_keys(
    given: Given,
    returned: Returned,
    rules: Rules,
    *,
    columns: Lists,
    block_q: int,
    block_kv: int,
    interpret: Any = False,
) -> tuple[jax.Array, jax.Array]:
    """The gradients of keys and values, float32 [B, S, K, H] and [B, S, K, H'].

    Args:
      columns: the query blocks of each key block.
    """
    batch, kv_len, num_kv_heads, _ = given.key.shape
    widths = given.key.shape[-1], given.value.shape[-1]

    def step(kind: int, work: Work) -> None:
        read, (d_key, d_value) = work.read, work.sums
        assert read.returned is not None
        weights, d_logits = _returned_tile(kind, rules, grid, work)
        query, d_output = read.given.query[0, 0], read.returned.d_output[0, 0]
        scale = _of_head(read.given.scale, work.place)
        d_key[...] += _product(d_logits.astype(query.dtype), query, 1, 0) * scale
        d_value[...] += _product(weights.astype(query.dtype), d_output, 1, 0)

    grid = grid_of_keys(given, columns, block_q, block_kv)
    out = [Out((batch, num_kv_heads, kv_len, width), of_key) for width in widths]
    sums = [*map(Sum, widths)]
    found = _call(grid, Read(given, returned), out, sums, step, _store, interpret)
    d_key, d_value = (x.swapaxes(1, 2) for x in found)
    return d_key, d_value


def _store(work: Work, *outputs: Ref) -> None:
    for output, total in zip(outputs, work.sums, strict=True):
        output[0, 0] = total[...]


# ---- Tiles --------------------------------------------------------------------------------------


def _tile(kind: int, rules: Rules, grid: Grid, work: Work) -> tuple[jax.Array, Answers]:
    """The logits of a tile, and what else it answers."""
    given, place = work.read.given, work.place
    rule, outside = (rules.full, given.full) if kind == FULL else (rules.partial, given.partial)
    kept = work.columns.full if kind == FULL else work.columns.partial
    factors = (given.key, given.query) if grid.by_keys else (given.query, given.key)
    logits = _product(*(x[0, 0] for x in factors), 1, 1) * _of_head(given.scale, place)

    def spread(x: jax.Array) -> jax.Array:
        return jnp.broadcast_to(x, grid.tile)

    columns = [_wide(x[...], grid.tile[1]) for x in kept]
    rows = [spread(x[0, 0]) for x in (outside.of_queries if grid.by_keys else outside.of_keys)]
    of_queries, of_keys = (rows, columns) if grid.by_keys else (columns, rows)
    of_heads = [spread(_of_head(x, place)) for x in outside.of_heads]
    answers = rule.answers(rule.split.tile([logits], of_queries, of_keys, of_heads, spread))
    return logits if answers.logit is None else answers.logit, answers


def _returned_tile(kind: int, rules: Rules, grid: Grid, work: Work) -> tuple[jax.Array, jax.Array]:
    """The weights that values are mixed with, and the gradient of the logits before the score."""
    given, returned = work.read
    assert returned is not None
    logits, (_, slope, seen, kept) = _tile(kind, rules, grid, work)
    if grid.by_keys:
        lse, mean = (jnp.broadcast_to(x[0, 0], grid.tile) for x in (returned.lse, returned.mean))
        factors = given.value, returned.d_output
    else:
        lse, mean = (_wide(x[...], grid.tile[1]) for x in work.columns.returned)
        factors = returned.d_output, given.value
    weights = _where(seen, jnp.exp(logits - lse))
    d_weights, mixing = _product(*(x[0, 0] for x in factors), 1, 1), weights
    if kept is not None:
        stays, share = kept | jnp.isnan(weights), 1.0 / (1.0 - rules.rate)  # NaN stays NaN
        mixing, d_weights = (jnp.where(stays, x * share, 0.0) for x in (weights, d_weights))
    d_logits = weights * (d_weights - mean)
    return mixing, _where(seen, d_logits if slope is None else d_logits * slope)


def _where(seen: jax.Array | None, x: jax.Array) -> jax.Array:
    return x if seen is None else jnp.where(seen, x, 0.0)


def _product(x: jax.Array, y: jax.Array, x_axis: int, y_axis: int) -> jax.Array:
    """The product of two matrices over an axis of each, as precise as jax is asked to be."""
    asked = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]
    rough = x.dtype != jnp.float32 or asked in (None, "default", "fastest", "bfloat16")
    return lax.dot_general(
        x,
        y,
        (((x_axis,), (y_axis,)), ((), ())),
        precision=lax.Precision.DEFAULT if rough else lax.Precision.HIGHEST,
        preferred_element_type=jnp.float32,
    )


def _wide(column: jax.Array, width: int) -> jax.Array:
    """[rows, COLUMN] -> [rows, width]."""
    return jnp.tile(column, (1, pl.cdiv(width, COLUMN)))[:, :width]


def _of_head(numbers: Ref, place: Place) -> Scalar:
    """That of `numbers` [b, n] which belongs to a step."""
    return numbers[own(numbers.shape[0], place.b), own(numbers.shape[1], place.head)]


# ---- Calls --------------------------------------------------------------------------------------


def _call(
    grid: Grid,
    read: Read,
    out: Sequence[Out],
    sums: Sequence[Sum],
    step: Callable[[int, Work], None],
    end: Callable[..., None],
    interpret: Any,
) -> list[jax.Array]:
    """Runs `step(kind, work)` for each tile, and `end(work, *outputs)` at the end of each line."""
    operands, tree = jax.tree.flatten(_operands(grid, read), is_leaf=_is_operand)
    columns, columns_tree = jax.tree.flatten(
        _of_rows(grid, tree.unflatten(x.array for x in operands))
    )
    # What heads have of their own changes within a line that is of many.
    changing = [grid.heads > 1 and x.shape[1] > 1 for x in columns]

    def kernel(steps: Ref, *refs: Ref) -> None:
        inputs, outputs, totals, kept = _parted(refs, len(operands), len(out), len(sums))
        place = grid.place(*map(pl.program_id, range(4)), steps)
        read = tree.unflatten(inputs)
        work = Work(place, read, columns_tree.unflatten(kept), totals)

        def fill(chosen: bool) -> None:
            rows = jax.tree.leaves(_of_rows(grid, read))
            for column, row, changes in zip(kept, rows, changing, strict=True):
                if changes == chosen:
                    column[...] = jnp.broadcast_to(row[0, 0], column.shape[::-1]).T

        @pl.when(place.first)
        def _() -> None:
            fill(False)
            for total, (_, start) in zip(totals, sums, strict=True):
                total[...] = jnp.full_like(total, start)

        fill(True)
        for kind in (PARTIAL, FULL):
            pl.when(place.kind == kind)(functools.partial(step, kind, work))
        pl.when(place.last)(lambda: end(work, *outputs))

    rows = grid.tile[0]
    found: list[jax.Array] = pl.pallas_call(
        kernel,
        out_shape=[jax.ShapeDtypeStruct(x.shape, jnp.float32) for x in out],
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=grid.sizes,
            in_specs=[x.spec for x in operands],
            out_specs=[x.spec(grid, x.shape) for x in out],
            scratch_shapes=[
                *(pltpu.VMEM((rows, x.width), jnp.float32) for x in sums),
                *(pltpu.VMEM((rows, COLUMN), x.dtype) for x in columns),
            ],
        ),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary", "arbitrary")
        ),
        interpret=interpret,
    )(grid.steps, *(x.array for x in operands))
    return found


def _parted(refs: Sequence[Ref], *counts: int) -> list[Sequence[Ref]]:
    """So many at a time, and the rest."""
    parts = []
    for count in counts:
        parts.append(refs[:count])
        refs = refs[count:]
    return [*parts, refs]


class Operand(NamedTuple):
    """An array as kernels read it, and the block of it that each step reads."""

    array: jax.Array
    spec: pl.BlockSpec


def _is_operand(x: PyTree) -> bool:
    return isinstance(x, Operand)


def _operands(grid: Grid, read: Read) -> Read:
    """Positions stand before features, and numbers of positions in rows."""
    given, returned = read

    def features(spec: Callable[..., pl.BlockSpec], x: jax.Array) -> Any:
        x = x.swapaxes(1, 2)
        return Operand(x, spec(grid, x.shape))

    def numbers(spec: Callable[..., pl.BlockSpec], x: jax.Array) -> Any:
        x = (x.astype(jnp.int32) if x.dtype == jnp.uint32 else x)[:, :, None]
        return Operand(x, spec(grid, x.shape))

    def of_heads(x: jax.Array) -> Any:
        return Operand(x, pl.BlockSpec(memory_space=pltpu.SMEM))

    def outside(x: Outside) -> Outside:
        rows = (
            map(functools.partial(numbers, spec), xs)
            for spec, xs in ((along_query, x[0]), (along_key, x[1]))
        )
        return Outside(*map(list, rows), list(map(of_heads, x.of_heads)))

    given = Given(
        query=features(of_query, given.query),
        key=features(of_key, given.key),
        value=features(of_key, given.value),
        scale=of_heads(given.scale),
        sinks=None if given.sinks is None else of_heads(given.sinks),
        rows=Lists(None, None, None),
        full=outside(given.full),
        partial=outside(given.partial),
    )
    if returned is not None:
        d_output, *rows = returned
        returned = Returned(features(of_query, d_output), *(numbers(along_query, x) for x in rows))
    return Read(given, returned)


def _of_rows(grid: Grid, read: Read) -> Columns:
    """What a kernel keeps as columns."""
    given, returned = read
    if grid.by_keys:
        return Columns(given.full.of_keys, given.partial.of_keys, [])
    of_returned = [] if returned is None else [returned.lse, returned.mean]
    return Columns(given.full.of_queries, given.partial.of_queries, of_returned)
