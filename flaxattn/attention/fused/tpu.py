"""Attention on TPUs: one Pallas kernel for each pass.

The grid of a kernel is the list of its steps that hold work, drawn from the live lists of the plan
and given ahead: a step's blocks are fetched while the one before it is computed, and those that are
empty take no time at all. A step is a tile of logits, [block_q, block_kv], or the other way round
in the pass to keys and values, so that sums over a line of steps stay where they are. Only steps of
partial blocks ask the mask, by its rule on the tile.
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

__all__ = ["LANES", "backward_keys", "backward_query", "forward"]

Ref: TypeAlias = Any  # of an array, or a block of it, in the memory of a kernel
Scalar: TypeAlias = Any
Shaped: TypeAlias = jax.Array | jax.ShapeDtypeStruct

LANES = 1  # what widths of heads are padded to: blocks have whole rows, of any width
COLUMN = 128  # how often what belongs to a row of a tile stands in it
LOWEST = float(jnp.finfo(jnp.float32).min)
NOTHING, PARTIAL, FULL = range(3)  # kinds of steps
FIRST, LAST = 4, 8  # bits beside these: whether a step begins its line, and ends it
FLAGS, INDEX = 4, 14  # how many bits these have together, and the number of a block


class Place(NamedTuple):
    """Where a step stands, and what it is."""

    b: Scalar
    head: Scalar
    kv_head: Scalar
    q_block: Scalar
    kv_block: Scalar
    kind: Scalar
    first: Scalar
    last: Scalar


class Walk(NamedTuple):
    """The steps of a kernel: lines of them along the queries of a block, or along its keys."""

    steps: jax.Array  # int32, those of all examples and heads that have their own
    grid: tuple[Scalar, ...]  # examples, heads, steps, and query heads that share them
    place: Callable[..., Place]  # of a point of the grid, and the steps
    by_keys: bool
    heads: int  # how many query heads have steps in a line
    block_q: int
    block_kv: int

    @property
    def shape(self) -> tuple[int, int]:
        """Of a tile."""
        return (self.block_q, self.block_kv)[:: -1 if self.by_keys else 1]


class Read(NamedTuple):
    """What a kernel reads."""

    given: Given
    returned: Returned | None


class Columns(NamedTuple):
    """What a kernel keeps of what belongs to rows of its tiles, each number COLUMN times."""

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
    """A sum of a line of steps: the rows of a tile by so many numbers, and where it begins."""

    width: int
    start: float = 0.0


def forward(
    given: Given, rules: Rules, *, block_q: int, block_kv: int, interpret: Any = False
) -> tuple[jax.Array, jax.Array]:
    """The output [B, T, N, H'] and the log-sum-exp [B, N, T], both float32."""
    (batch, q_len, num_heads, _), width = given.query.shape, given.value.shape[-1]

    def step(kind: int, work: Work) -> None:
        top, total, mixed = work.sums
        logits, answers = _tile(kind, rules, walk, work)
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
        sink = None if sinks is None else _of_head(sinks, work.place)
        factor, found = _ended(top, total, sink)
        output[0, 0] = mixed * _wide(factor, width)
        lse[0, 0] = found.T[:1]

    walk = _by_queries(given, block_q, block_kv)
    out = [
        (_of_query, (batch, num_heads, q_len, width)),
        (_along_query, (batch, num_heads, 1, q_len)),
    ]
    sums = [Sum(COLUMN, LOWEST), Sum(COLUMN), Sum(width)]
    output, lse = _call(walk, Read(given, None), out, sums, step, end, interpret)
    return output.swapaxes(1, 2), lse[:, :, 0]


def _ended(top: jax.Array, total: jax.Array, sink: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    """What the sum of a row's values is multiplied by, and its log-sum-exp."""
    empty, share = total == 0.0, jnp.ones_like(total)
    if sink is not None:  # a logit with a value of zero
        origin = jnp.maximum(top, sink)
        share = jnp.exp(top - origin)
        top, total = origin, total * share + jnp.exp(sink - origin)
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
        _, d_logits = _returned_tile(kind, rules, walk, work)
        key = work.read.given.key[0, 0]
        work.sums[0][...] += _product(d_logits.astype(key.dtype), key, 1, 0)

    def end(work: Work, d_query: Ref) -> None:
        d_query[0, 0] = work.sums[0][...]

    walk = _by_queries(given, block_q, block_kv)
    out = [(_of_query, (batch, num_heads, q_len, width))]
    (d_query,) = _call(walk, Read(given, returned), out, [Sum(width)], step, end, interpret)
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
    """The gradients of keys and values, float32 [B, S, K, H] and [B, S, K, H']."""
    widths = given.key.shape[-1], given.value.shape[-1]
    batch, kv_len, num_kv_heads, _ = given.key.shape
    out = [(_of_key, (batch, num_kv_heads, kv_len, width)) for width in widths]

    def step(kind: int, work: Work) -> None:
        d_key, d_value = work.sums
        read, scale = work.read, _of_head(work.read.given.scale, work.place)
        weights, d_logits = _returned_tile(kind, rules, walk, work)
        query, d_output = read.given.query[0, 0], read.returned.d_output[0, 0]
        d_key[...] += _product(d_logits.astype(query.dtype), query, 1, 0) * scale
        d_value[...] += _product(weights.astype(query.dtype), d_output, 1, 0)

    def end(work: Work, d_key: Ref, d_value: Ref) -> None:
        d_key[0, 0], d_value[0, 0] = (x[...] for x in work.sums)

    walk = _by_keys(given, columns, block_q, block_kv)
    found = _call(walk, Read(given, returned), out, [*map(Sum, widths)], step, end, interpret)
    d_key, d_value = (x.swapaxes(1, 2) for x in found)
    return d_key, d_value


# ---- Tiles --------------------------------------------------------------------------------------


def _tile(kind: int, rules: Rules, walk: Walk, work: Work) -> tuple[jax.Array, Answers]:
    """The logits of a tile, and what else it answers."""
    given, place = work.read.given, work.place
    rule, outside = (rules.full, given.full) if kind == FULL else (rules.partial, given.partial)
    kept = work.columns.full if kind == FULL else work.columns.partial
    factors = (given.key, given.query) if walk.by_keys else (given.query, given.key)
    logits = _product(*(x[0, 0] for x in factors), 1, 1) * _of_head(given.scale, place)

    def spread(x: jax.Array) -> jax.Array:
        return jnp.broadcast_to(x, walk.shape)

    columns = [_wide(x[...], walk.shape[1]) for x in kept]
    rows = [spread(x[0, 0]) for x in (outside.of_queries if walk.by_keys else outside.of_keys)]
    of_queries, of_keys = (rows, columns) if walk.by_keys else (columns, rows)
    of_heads = [spread(_of_head(x, place)) for x in outside.of_heads]
    answers = rule.answers(rule.split.tile([logits], of_queries, of_keys, of_heads, spread))
    return logits if answers.logit is None else answers.logit, answers


def _returned_tile(kind: int, rules: Rules, walk: Walk, work: Work) -> tuple[jax.Array, jax.Array]:
    """The weights that values are mixed with, and the gradient of the logits before the score."""
    given, returned = work.read
    assert returned is not None
    logits, (_, slope, seen, kept) = _tile(kind, rules, walk, work)
    if walk.by_keys:
        lse, mean = (jnp.broadcast_to(x[0, 0], walk.shape) for x in (returned.lse, returned.mean))
        factors = given.value, returned.d_output
    else:
        lse, mean = (_wide(x[...], walk.shape[1]) for x in work.columns.returned)
        factors = returned.d_output, given.value
    weights = _where(seen, jnp.exp(logits - lse))
    d_weights, mixing = _product(*(x[0, 0] for x in factors), 1, 1), weights
    if kept is not None:
        stays = kept | (weights != weights)  # NaN stays NaN  # noqa: PLR0124
        mixing, d_weights = (
            jnp.where(stays, x * (1.0 / (1.0 - rules.rate)), 0.0) for x in (weights, d_weights)
        )
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
    return numbers[_own(numbers, 0, place.b), _own(numbers, 1, place.head)]


def _own(x: Any, axis: int, i: Scalar) -> Scalar:
    return i if x.shape[axis] > 1 else 0


# ---- Steps --------------------------------------------------------------------------------------


def _by_queries(given: Given, block_q: int, block_kv: int) -> Walk:
    batch, _, num_heads, _ = given.query.shape
    group = num_heads // given.key.shape[2]
    (b, n, *_), (steps, longest) = given.rows.blocks.shape, _steps(given.rows)

    def place(i: Scalar, head: Scalar, step: Scalar, _: Scalar, steps: Ref) -> Place:
        q_block, kv_block, *flags = _unpacked(_word(steps, (b, n), i, head, step))
        return Place(i, head, lax.div(head, group), q_block, kv_block, *flags)

    return Walk(steps, (batch, num_heads, longest, 1), place, False, 1, block_q, block_kv)


def _by_keys(given: Given, columns: Lists, block_q: int, block_kv: int) -> Walk:
    batch, _, num_kv_heads, _ = given.key.shape
    q_blocks, group = given.query.shape[1] // block_q, given.query.shape[2] // num_kv_heads
    own = columns.blocks.shape[1] > 1
    columns = _of_groups(columns, group) if own else columns
    shared = 1 if own else group  # how many heads have the same steps
    (b, n, *_), (steps, longest) = columns.blocks.shape, _steps(columns)

    def place(i: Scalar, kv_head: Scalar, step: Scalar, member: Scalar, steps: Ref) -> Place:
        kv_block, column, kind, first, last = _unpacked(_word(steps, (b, n), i, kv_head, step))
        head = kv_head * group + lax.div(column, q_blocks) + member
        first, last = first & (member == 0), last & (member == shared - 1)
        return Place(i, head, kv_head, lax.rem(column, q_blocks), kv_block, kind, first, last)

    return Walk(
        steps, (batch, num_kv_heads, longest, shared), place, True, group, block_q, block_kv
    )


def _of_groups(lists: Lists, group: int) -> Lists:
    """Lists of query heads [b, N, ...] as those of key heads [b, K, ...].

    The columns of the heads of a group stand after each other: full ones of all, then partial ones.
    """
    blocks, num_full, num_live = lists
    b, n, lines, count = blocks.shape
    head, slot = (lax.broadcasted_iota(jnp.int32, blocks.shape, axis) for axis in (1, 3))
    kind = sum((slot >= x[..., None]).astype(jnp.int32) for x in (num_full, num_live))

    def together(x: jax.Array) -> jax.Array:
        x = x.reshape(b, n // group, group, lines, count).swapaxes(2, 3)
        return x.reshape(b, n // group, lines, group * count)

    kind, blocks = lax.sort([together(kind), together(head % group * count + blocks)], num_keys=1)
    return Lists(blocks, *((kind < below).sum(axis=-1, dtype=jnp.int32) for below in (1, 2)))


def _steps(lists: Lists) -> tuple[jax.Array, jax.Array]:
    """All steps in turn, packed, int32 [b * n * steps], and how many the longest walk has.

    A line without live blocks has one step, of nothing, and the last line as many as are left.
    """
    lines, slots = (lax.broadcasted_iota(jnp.int32, lists.blocks.shape, axis) for axis in (2, 3))
    num_full, num_live = lists.num_full[..., None], lists.num_live[..., None]
    count = jnp.maximum(num_live, 1)
    kind = jnp.where(slots < num_full, FULL, jnp.where(slots < num_live, PARTIAL, NOTHING))
    ends = jnp.where(slots == 0, FIRST, 0) | jnp.where(slots == count - 1, LAST, 0)
    words = (lines << (FLAGS + INDEX)) | (lists.blocks << FLAGS) | ends | kind
    after = slots >= count
    words = jnp.where(after, (lists.blocks.shape[2] - 1) << (FLAGS + INDEX), words)
    flat = [x.reshape(*x.shape[:2], -1) for x in (after.astype(jnp.int32), words)]
    _, steps = lax.sort(flat, num_keys=1, is_stable=True)
    return steps.reshape(-1), count.sum(axis=(2, 3)).max()


def _word(steps: Ref, lead: tuple[int, int], i: Scalar, head: Scalar, step: Scalar) -> Scalar:
    (b, n), count = lead, steps.shape[0] // (lead[0] * lead[1])
    return steps[((i if b > 1 else 0) * n + (head if n > 1 else 0)) * count + step]


def _unpacked(word: Scalar) -> tuple[Scalar, ...]:
    """Of a step: its line, its block, its kind, and whether it is the first, and the last."""
    line = lax.shift_right_logical(word, FLAGS + INDEX)
    block = lax.shift_right_logical(word, FLAGS) & (2**INDEX - 1)
    return line, block, word & (FIRST - 1), (word & FIRST) != 0, (word & LAST) != 0


# ---- Calls --------------------------------------------------------------------------------------


def _call(
    walk: Walk,
    read: Read,
    out: Sequence[tuple[Callable[..., Any], tuple[int, ...]]],
    sums: Sequence[Sum],
    step: Callable[[int, Work], None],
    end: Callable[..., None],
    interpret: Any,
) -> list[jax.Array]:
    """Walks: `step(kind, work)` adds to the sums of a line, `end(work, *outputs)` stores them."""
    read = _laid_out(read)
    specs, columns = _specs(walk, read), _columns(walk, read)
    arrays, tree = jax.tree.flatten(read)
    kept, kept_tree = jax.tree.flatten(columns)
    # What heads of a line have of their own changes from step to step.
    heads = [x.shape[1] if walk.heads > 1 else 1 for x in jax.tree.leaves(_of_rows(walk, read))]
    steady, changing = ([i for i, n in enumerate(heads) if (n > 1) == x] for x in (False, True))
    ends = [len(arrays), len(arrays) + len(out), len(arrays) + len(out) + len(sums)]

    def kernel(steps: Ref, *refs: Ref) -> None:
        inputs, outputs, totals, keeps = (refs[i:j] for i, j in zip([0, *ends], [*ends, None]))
        place = walk.place(*map(pl.program_id, range(4)), steps)
        read = tree.unflatten(inputs)
        work = Work(place, read, kept_tree.unflatten(keeps), totals)
        rows = jax.tree.leaves(_of_rows(walk, read))

        def fill(chosen: Sequence[int]) -> None:
            for i in chosen:
                keeps[i][...] = jnp.broadcast_to(rows[i][0, 0], keeps[i].shape[::-1]).T

        @pl.when(place.first)
        def _() -> None:
            for ref, (_, start) in zip(totals, sums, strict=True):
                ref[...] = jnp.full_like(ref, start)
            fill(steady)

        fill(changing)

        for kind in (PARTIAL, FULL):
            pl.when(place.kind == kind)(functools.partial(step, kind, work))
        pl.when(place.last)(lambda: end(work, *outputs))

    out_shape = [jax.ShapeDtypeStruct(shape, jnp.float32) for _, shape in out]
    return pl.pallas_call(
        kernel,
        out_shape=out_shape,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=walk.grid,
            in_specs=jax.tree.leaves(specs),
            out_specs=[of(walk, x) for (of, _), x in zip(out, out_shape, strict=True)],
            scratch_shapes=[
                *(pltpu.VMEM((walk.shape[0], x.width), jnp.float32) for x in sums),
                *kept,
            ],
        ),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary", "arbitrary")
        ),
        interpret=interpret,
    )(walk.steps, *arrays)


def _laid_out(read: Read) -> Read:
    """As kernels read it: positions before features, and numbers of positions in rows."""
    given, returned = read

    def row(x: jax.Array) -> jax.Array:
        x = x.astype(jnp.int32) if x.dtype == jnp.uint32 else x
        return x[:, :, None]

    def outside(x: Outside) -> Outside:
        return Outside(*(list(map(row, xs)) for xs in x[:2]), x.of_heads)

    query, key, value = (x.swapaxes(1, 2) for x in given[:3])
    full, partial = map(outside, (given.full, given.partial))
    given = given._replace(query=query, key=key, value=value, full=full, partial=partial, rows=None)
    if returned is not None:
        returned = Returned(returned.d_output.swapaxes(1, 2), row(returned.lse), row(returned.mean))
    return Read(given, returned)


def _specs(walk: Walk, read: Read) -> Read:
    """The block of each array that a step reads."""
    given, returned = read

    def outside(x: Outside) -> Outside:
        of = (_along_query, _along_key, _numbers)
        return Outside(*([spec(walk, x) for x in xs] for spec, xs in zip(of, x, strict=True)))

    of_given = Given(
        query=_of_query(walk, given.query),
        key=_of_key(walk, given.key),
        value=_of_key(walk, given.value),
        scale=_numbers(walk, given.scale),
        sinks=None if given.sinks is None else _numbers(walk, given.sinks),
        rows=None,
        full=outside(given.full),
        partial=outside(given.partial),
    )
    if returned is None:
        return Read(of_given, None)
    rows = (_along_query(walk, x) for x in returned[1:])
    return Read(of_given, Returned(_of_query(walk, returned.d_output), *rows))


def _of_query(walk: Walk, x: Shaped) -> pl.BlockSpec:
    """Of [B, N, T, features]."""
    return _block(walk, x, (walk.block_q, x.shape[3]), lambda at: (at.head, at.q_block, 0))


def _of_key(walk: Walk, x: Shaped) -> pl.BlockSpec:
    """Of [B, K, S, features]."""
    return _block(walk, x, (walk.block_kv, x.shape[3]), lambda at: (at.kv_head, at.kv_block, 0))


def _along_query(walk: Walk, x: Shaped) -> pl.BlockSpec:
    """Of [b, n, 1, T]."""
    return _block(walk, x, (1, walk.block_q), lambda at: (at.head, 0, at.q_block))


def _along_key(walk: Walk, x: Shaped) -> pl.BlockSpec:
    """Of [b, n, 1, S]."""
    return _block(walk, x, (1, walk.block_kv), lambda at: (at.head, 0, at.kv_block))


def _numbers(walk: Walk, x: Shaped) -> pl.BlockSpec:
    """Of [b, n]: all of them."""
    return pl.BlockSpec(memory_space=pltpu.SMEM)


def _block(
    walk: Walk, x: Shaped, sizes: tuple[int, int], at: Callable[[Place], tuple[Scalar, ...]]
) -> pl.BlockSpec:
    def index(*point: Scalar) -> tuple[Scalar, ...]:
        place = walk.place(*point)
        head, *rest = at(place)
        return (_own(x, 0, place.b), _own(x, 1, head), *rest)

    return pl.BlockSpec((1, 1, *sizes), index)


def _columns(walk: Walk, read: Read) -> Columns:
    """Memory for what belongs to rows of tiles."""
    return jax.tree.map(
        lambda x: pltpu.VMEM((walk.shape[0], COLUMN), x.dtype), _of_rows(walk, read)
    )


def _of_rows(walk: Walk, read: Read) -> Columns:
    given, returned = read
    if walk.by_keys:
        return Columns(given.full.of_keys, given.partial.of_keys, [])
    of_returned = [] if returned is None else [returned.lse, returned.mean]
    return Columns(given.full.of_queries, given.partial.of_queries, of_returned)
