"""The grids of TPU kernels: which steps there are, where each stands, and what it reads.

A step is one tile of logits. Steps follow each other in lines: all tiles of a query block, or of a
key block, whose sums stay where they are meanwhile. The grid is as long as the longest list of
steps that hold work. It is made of the live lists of the plan and given ahead, packed into words:
so a step's blocks are fetched while the one before it is computed, and empty blocks take no time.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from flaxattn.attention.fused.given import Given, Lists

__all__ = [
    "FULL",
    "NOTHING",
    "PARTIAL",
    "Grid",
    "Place",
    "Scalar",
    "along_key",
    "along_query",
    "grid_of_keys",
    "grid_of_queries",
    "of_key",
    "of_pairs",
    "of_query",
    "own",
    "why_no_grid",
]

Scalar: TypeAlias = Any
"""A number inside a kernel."""

NOTHING, PARTIAL, FULL = range(3)
"""Kinds of steps."""

FIRST, LAST = 4, 8  # bits beside the kind: whether a step begins its line, and ends it
FLAGS, INDEX = 4, 14  # how many bits these have together, and how many the number of a block
MOST_STEPS = 2**18 - 2**13  # words that a TPU's 1 MB of scalar memory has room for, with the rest


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


class Grid(NamedTuple):
    """The steps of a kernel."""

    steps: jax.Array  # int32, those of all examples and heads that have their own
    sizes: tuple[Scalar, ...]  # examples, heads, steps, and query heads that share them
    place: Callable[..., Place]  # of a point of the grid, and the steps
    by_keys: bool  # whether a line is of a key block
    heads: int  # how many query heads have steps in a line
    block_q: int
    block_kv: int

    @property
    def tile(self) -> tuple[int, int]:
        """The shape of a tile: rows are what a line is of."""
        by_queries = (self.block_q, self.block_kv)
        return (self.block_kv, self.block_q) if self.by_keys else by_queries


def why_no_grid(lead: Sequence[int], q_blocks: int, kv_blocks: int) -> str | None:
    """Why the steps of lists [*lead, q_blocks, kv_blocks] cannot be given ahead; None: they can."""
    own = math.prod(lead)
    count = own * q_blocks * kv_blocks
    longest = max(q_blocks * (lead[1] if len(lead) == 2 else 1), kv_blocks)  # of one of keys
    if longest >= 2**INDEX:
        return f"a line has up to {longest:,} blocks, and a step tells {2**INDEX - 1:,} apart"
    if count <= MOST_STEPS:
        return None
    return (
        f"the plans of the {own} examples and heads with masks of their own have {count:,} blocks, "
        f"and a TPU's scalar memory holds {MOST_STEPS:,}; give fewer at a time, or masks they share"
    )


def grid_of_queries(given: Given, block_q: int, block_kv: int) -> Grid:
    """A line is of a query block of a query head."""
    batch, _, num_heads, _ = given.query.shape
    group = num_heads // given.key.shape[2]
    lead, (steps, longest) = given.rows.blocks.shape[:2], _steps(given.rows)

    def place(b: Scalar, head: Scalar, step: Scalar, _: Scalar, steps: Any) -> Place:
        q_block, kv_block, *flags = _unpacked(_word(steps, lead, b, head, step))
        return Place(b, head, lax.div(head, group), q_block, kv_block, *flags)

    return Grid(steps, (batch, num_heads, longest, 1), place, False, 1, block_q, block_kv)


def grid_of_keys(given: Given, columns: Lists, block_q: int, block_kv: int) -> Grid:
    """A line is of a key block of a key head: the steps of all query heads of its group."""
    batch, _, num_kv_heads, _ = given.key.shape
    q_blocks, group = given.query.shape[1] // block_q, given.query.shape[2] // num_kv_heads
    together = columns.blocks.shape[1] == 1  # heads take the same steps, one after the other
    members = group if together else 1
    columns = columns if together else _of_groups(columns, group)
    lead, (steps, longest) = columns.blocks.shape[:2], _steps(columns)

    def place(b: Scalar, kv_head: Scalar, step: Scalar, member: Scalar, steps: Any) -> Place:
        kv_block, column, kind, first, last = _unpacked(_word(steps, lead, b, kv_head, step))
        head = kv_head * group + lax.div(column, q_blocks) + member
        first, last = first & (member == 0), last & (member == members - 1)
        return Place(b, head, kv_head, lax.rem(column, q_blocks), kv_block, kind, first, last)

    sizes = (batch, num_kv_heads, longest, members)
    return Grid(steps, sizes, place, True, group, block_q, block_kv)


def _of_groups(lists: Lists, group: int) -> Lists:
    """Lists of query heads [b, N, ...] as those of key heads [b, K, ...].

    A block's number is then counted from those of the heads of the group before it.
    """
    blocks, num_full, num_live = lists
    b, n, lines, count = blocks.shape
    head, slot = (lax.broadcasted_iota(jnp.int32, blocks.shape, axis) for axis in (1, 3))
    partial, empty = ((slot >= x[..., None]).astype(jnp.int32) for x in (num_full, num_live))

    def joined(x: jax.Array) -> jax.Array:
        x = x.reshape(b, n // group, group, lines, count).swapaxes(2, 3)
        return x.reshape(b, n // group, lines, group * count)

    kind, blocks = joined(partial + empty), joined(head % group * count + blocks)
    _, blocks = lax.sort([kind, blocks], num_keys=1)
    return Lists(blocks, *((kind < below).sum(axis=-1, dtype=jnp.int32) for below in (1, 2)))


# ---- Steps as words -----------------------------------------------------------------------------


def _steps(lists: Lists) -> tuple[jax.Array, jax.Array]:
    """All steps in turn, int32 [b * n * steps], and how many the longest list has.

    A line without live blocks has one step, of nothing. Lists end in steps of nothing.
    """
    shape = lists.blocks.shape
    lines, slots = (lax.broadcasted_iota(jnp.int32, shape, axis) for axis in (2, 3))
    num_full, num_live = lists.num_full[..., None], lists.num_live[..., None]
    # Of both, since under vmap jax asks steps and their number to vary together.
    count = jnp.maximum(jnp.maximum(num_live, num_full), 1)
    kind = jnp.where(slots < num_full, FULL, jnp.where(slots < num_live, PARTIAL, NOTHING))
    flags = jnp.where(slots == 0, FIRST, 0) | jnp.where(slots == count - 1, LAST, 0)
    words = (lines << (FLAGS + INDEX)) | (lists.blocks << FLAGS) | flags | kind
    is_none = slots >= count
    # In the last line, whose sums must not be left before all steps are done.
    words = jnp.where(is_none, ((shape[2] - 1) << (FLAGS + INDEX)) | NOTHING, words)
    flat = [x.reshape(*shape[:2], -1) for x in (is_none.astype(jnp.int32), words)]
    _, steps = lax.sort(flat, num_keys=1, is_stable=True)
    return steps.reshape(-1), count.sum(axis=(2, 3), dtype=jnp.int32).max()


def _word(steps: Any, lead: Sequence[int], b: Scalar, head: Scalar, step: Scalar) -> Scalar:
    of_own = (b if lead[0] > 1 else 0) * lead[1] + (head if lead[1] > 1 else 0)
    return steps[of_own * (steps.shape[0] // (lead[0] * lead[1])) + step]


def _unpacked(word: Scalar) -> tuple[Scalar, ...]:
    """Of a step: its line, its block, its kind, and whether it is the first, and the last."""
    line = lax.shift_right_logical(word, jnp.int32(FLAGS + INDEX))
    block = lax.shift_right_logical(word, jnp.int32(FLAGS)) & (2**INDEX - 1)
    return line, block, word & (FIRST - 1), (word & FIRST) != 0, (word & LAST) != 0


# ---- Blocks of arrays ---------------------------------------------------------------------------


def of_query(grid: Grid, shape: Sequence[int]) -> pl.BlockSpec:
    """Of [B, N, T, features]."""
    return _block(grid, shape, (grid.block_q, shape[3]), lambda at: (at.head, at.q_block, 0))


def of_key(grid: Grid, shape: Sequence[int]) -> pl.BlockSpec:
    """Of [B, K, S, features]."""
    return _block(grid, shape, (grid.block_kv, shape[3]), lambda at: (at.kv_head, at.kv_block, 0))


def of_pairs(grid: Grid, shape: Sequence[int]) -> pl.BlockSpec:
    """Of [b, n, T, S], or [b, n, S, T] where a line is of a key block."""

    def find(at: Place) -> tuple[Scalar, ...]:
        line, block = (at.kv_block, at.q_block) if grid.by_keys else (at.q_block, at.kv_block)
        return at.head, line, block

    return _block(grid, shape, grid.tile, find)


def along_query(grid: Grid, shape: Sequence[int]) -> pl.BlockSpec:
    """Of [b, n, 1, T]."""
    return _block(grid, shape, (1, grid.block_q), lambda at: (at.head, 0, at.q_block))


def along_key(grid: Grid, shape: Sequence[int]) -> pl.BlockSpec:
    """Of [b, n, 1, S]."""
    return _block(grid, shape, (1, grid.block_kv), lambda at: (at.head, 0, at.kv_block))


def _block(
    grid: Grid,
    shape: Sequence[int],
    sizes: tuple[int, int],
    find: Callable[[Place], tuple[Scalar, ...]],
) -> pl.BlockSpec:
    def index(*point: Scalar) -> tuple[Scalar, ...]:
        place = grid.place(*point)
        head, *rest = find(place)
        return (own(shape[0], place.b), own(shape[1], head), *rest)

    return pl.BlockSpec((1, 1, *sizes), index)


def own(size: int, i: Scalar) -> Scalar:
    """Where `i` is on an axis of that size, 1 where shared."""
    return i if size > 1 else 0
