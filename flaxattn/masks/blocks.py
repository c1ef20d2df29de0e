"""Blocks of positions, and what a mask can prove about them without looking at every element.

For each pair of a query block and a key block a mask gives two booleans. `some` False proves that
no query of the block sees any key of the other; `every` True proves that each sees all. They come
from the ends, minima and maxima of the blocks, so their cost grows with the number of blocks.
"""

from typing import NamedTuple

import numpy as np

from flaxattn.masks.indices import add, at, namespace, true_like
from flaxattn.types import Array, Indices

__all__ = ["Blocks", "Bounds", "Given", "all_in", "any_in", "range_in", "within"]


class Given(NamedTuple):
    """Positions in the order of an array, and the blocks that its indices are cut into."""

    positions: Array  # int32 [n], -1 where an index has none
    runs: "Blocks"  # of indices


class Blocks(NamedTuple):
    """Blocks of positions: block i goes from `first[i]` to `last[i]`, both included.

    It holds all the positions between them, or, where they were given, some: what is proved of all
    is proved of these.
    """

    first: Array  # int32, [n] or broadcastable to [Q, K]
    last: Array
    size: int  # positions in the longest block
    given: Given | None = None

    @classmethod
    def of(cls, length: int, size: int) -> "Blocks":
        """Positions 0 to `length` - 1 in blocks of `size`; the last may be shorter."""
        first = np.arange(0, length, size, dtype=np.int32)
        ends = np.append(first, np.int32(length))[1:]
        return cls(first, ends - np.int32(1), size)

    @property
    def lengths(self) -> Array:
        """How many positions each block holds."""
        return self.last - self.first + 1 if self.given is None else self.given.runs.lengths

    def shift(self, start: Indices) -> "Blocks":
        """The same blocks, `start` positions later."""
        first, last = add(self.first, start), add(self.last, start)
        if self.given is None:
            return Blocks(first, last, self.size)
        positions = add(self.given.positions, start)
        return Blocks(first, last, self.size, Given(positions, self.given.runs))

    def at(self, positions: Array | None) -> tuple["Blocks", "Bounds"]:
        """The positions, int32 [n], that stand at those of the blocks, and where there are any.

        None: those that there are.
        """
        always = true_like(self.first)
        if positions is None:
            return self, Bounds(always, always)
        ends = range_in(positions, self, true_like(positions))
        given = Given(positions, self)
        if self.given is not None:
            given = Given(at(positions, self.given.positions, -1), self.given.runs)
        return Blocks(*ends, self.size, given), within(positions.shape[0], self)

    def reshape(self, *shape: int) -> "Blocks":
        """The same blocks with `first` and `last` in another shape."""
        return self._replace(first=self.first.reshape(shape), last=self.last.reshape(shape))


class Bounds(NamedTuple):
    """What is proved of each pair of blocks, bool [Q, K]; combines by three-valued logic."""

    some: Array
    every: Array

    def __and__(self, other: "Bounds") -> "Bounds":
        return Bounds(self.some & other.some, self.every & other.every)

    def __or__(self, other: "Bounds") -> "Bounds":
        return Bounds(self.some | other.some, self.every | other.every)

    def __invert__(self) -> "Bounds":
        return Bounds(self.every ^ True, self.some ^ True)


def within(length: int, blocks: Blocks) -> Bounds:
    """Bounds of "the position is from 0 to `length` - 1" on blocks of one side."""
    some = (blocks.last >= 0) & (blocks.first < length)
    return Bounds(some & (length > 0), every=(blocks.first >= 0) & (blocks.last < length))


def any_in(flags: Array, blocks: Blocks) -> Array:
    """Whether a flag is set in each block; positions outside count as not set.

    bool [S] -> the shape of the blocks; [S, ...] -> [n, ...].
    """
    return _like(flags, blocks, _counts(flags, blocks) > 0)


def all_in(flags: Array, blocks: Blocks) -> Array:
    """Whether all flags are set in each block, else as `any_in`."""
    lengths = blocks.lengths.reshape(-1, *[1] * (flags.ndim - 1))
    return _like(flags, blocks, _counts(flags, blocks) == lengths)


def _counts(flags: Array, blocks: Blocks) -> Array:
    """How many flags of each block are set: bool [S, ...] -> int32 [n, ...]."""
    flags, runs = _on_runs(flags, blocks, False)
    if not flags.shape[0]:  # as one that is not set: nothing cannot be indexed
        flags = np.zeros((1, *flags.shape[1:]), bool)
    xp, size = namespace(flags, runs.first), flags.shape[0]
    sums: Array = xp.cumsum(xp.asarray(flags), axis=0, dtype=np.int32)
    sums = xp.pad(sums, ((1, 0), *((0, 0),) * (flags.ndim - 1)))
    ends, starts = (xp.clip(i, 0, size).reshape(-1) for i in (add(runs.last, 1), runs.first))
    counts: Array = sums[ends] - sums[starts]
    return counts


def _like(flags: Array, blocks: Blocks, answers: Array) -> Array:
    return answers.reshape(blocks.first.shape) if flags.ndim == 1 else answers


def range_in(values: Array, blocks: Blocks, where: Array) -> tuple[Array, Array]:
    """The least and the greatest value of each block among those where `where` holds.

    In a block with none the least value is above the greatest. Both are int [S].
    """
    (values, _), (where, runs) = _on_runs(values, blocks, 0), _on_runs(where, blocks, False)
    xp, shape, limits = namespace(values, runs.first), blocks.first.shape, np.iinfo(np.int32)
    first, last = runs.first.reshape(-1, 1), runs.last.reshape(-1, 1)
    positions = add(first, np.arange(runs.size, dtype=np.int32)[None, :])
    kept = at(where, positions, False) & (positions <= last)
    values = at(values, positions, 0)
    least = xp.where(kept, values, xp.asarray(limits.max, values.dtype)).min(axis=1)
    greatest = xp.where(kept, values, xp.asarray(limits.min, values.dtype)).max(axis=1)
    return least.reshape(shape), greatest.reshape(shape)


def _on_runs(cells: Array, blocks: Blocks, outside: bool | int) -> tuple[Array, Blocks]:
    """The cells in the order of the given positions, if they were, and the runs to look through."""
    if blocks.given is None:
        return cells, blocks
    positions, runs = blocks.given
    return at(cells, positions, outside), runs
