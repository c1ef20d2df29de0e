"""Blocks of positions, and what a mask can prove about them without looking at every element.

For each pair of a query block and a key block a mask gives two booleans. `some` False proves that
no query of the block sees any key of the other; `every` True proves that each sees all. They come
from the ends, minima and maxima of the blocks, so their cost grows with the number of blocks.
"""

from typing import NamedTuple

import numpy as np

from flaxattn.masks.indices import namespace
from flaxattn.types import Array, Indices

__all__ = ["Blocks", "Bounds", "all_in", "any_in", "count_in", "range_in"]


class Blocks(NamedTuple):
    """Consecutive runs of positions: block i holds `first[i]` to `last[i]`, both included."""

    first: Array  # int32, [n] or broadcastable to [Q, K]
    last: Array
    size: int  # positions in the longest block

    @classmethod
    def of(cls, length: int, size: int) -> "Blocks":
        """Positions 0 to `length` - 1 in blocks of `size`; the last may be shorter."""
        first = np.arange(0, length, size, dtype=np.int32)
        return cls(first, np.minimum(first + size, length) - 1, size)

    @property
    def lengths(self) -> Array:
        """How many positions each block holds."""
        return self.last - self.first + 1

    def shift(self, start: Indices) -> "Blocks":
        """The same blocks, `start` positions later."""
        return self._replace(first=self.first + start, last=self.last + start)

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


def count_in(cells: Array, blocks: Blocks, *, axis: int) -> Array:
    """int32 sums of `cells` over each block along `axis`; positions outside count as 0.

    An axis of size 1 is shared by all positions.
    """
    xp = namespace(cells, blocks.first)
    first, last = blocks.first.reshape(-1), blocks.last.reshape(-1)
    size = cells.shape[axis]
    if size == 1 and cells.ndim > 1:
        shape = [1] * cells.ndim
        shape[axis] = -1
        return cells.astype(np.int32) * (last - first + 1).reshape(shape)
    sums: Array = xp.cumsum(xp.asarray(cells), axis=axis, dtype=np.int32)
    sums = xp.concatenate([xp.zeros_like(sums.take(np.arange(1), axis)), sums], axis=axis)
    ends, starts = (xp.clip(i, 0, size) for i in (last + 1, first))
    counts: Array = xp.take(sums, ends, axis=axis) - xp.take(sums, starts, axis=axis)
    return counts


def any_in(flags: Array, blocks: Blocks) -> Array:
    """Whether a flag is set in each block: bool [S]; positions outside count as not set."""
    return count_in(flags, blocks, axis=0).reshape(blocks.first.shape) > 0


def all_in(flags: Array, blocks: Blocks) -> Array:
    """Whether all flags are set in each block: bool [S]; positions outside count as not set."""
    return count_in(flags, blocks, axis=0).reshape(blocks.first.shape) == blocks.lengths


def range_in(values: Array, blocks: Blocks, where: Array) -> tuple[Array, Array]:
    """The least and the greatest value of each block among those where `where` holds.

    In a block with none the least value is above the greatest. Both are int [S].
    """
    xp = namespace(values, blocks.first)
    limits = np.iinfo(np.int32)
    size, shape = values.shape[0], blocks.first.shape
    first, last = blocks.first.reshape(-1, 1), blocks.last.reshape(-1, 1)
    positions = first + np.arange(blocks.size, dtype=np.int32)[None, :]
    inside = (positions >= 0) & (positions < size) & (positions <= last)
    positions = xp.clip(positions, 0, max(size - 1, 0))
    values, kept = xp.asarray(values)[positions], xp.asarray(where)[positions] & inside
    least = xp.where(kept, values, xp.asarray(limits.max, values.dtype)).min(axis=1)
    greatest = xp.where(kept, values, xp.asarray(limits.min, values.dtype)).max(axis=1)
    return least.reshape(shape), greatest.reshape(shape)
