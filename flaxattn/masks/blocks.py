"""Blocks of positions, and what a mask can prove about them without looking at every element.

For each pair of a query block and a key block a mask gives two booleans. `some` False proves that
no query of the block sees any key of the other; `every` True proves that each sees all. They come
from the ends, minima and maxima of the blocks, so their cost grows with the number of blocks.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

__all__ = ["Blocks", "Bounds", "all_in", "any_in", "count_in", "range_in"]


class Blocks(NamedTuple):
    """Consecutive runs of positions: block i holds `first[i]` to `last[i]`, both included."""

    first: Any  # int32, [n] or broadcastable to [Q, K]
    last: Any
    size: int  # the most positions a block holds

    @classmethod
    def of(cls, length: int, size: int) -> "Blocks":
        """Positions 0 to `length` - 1 in blocks of `size`; the last may be shorter."""
        first = np.arange(0, length, size, dtype=np.int32)
        return cls(first, np.minimum(first + size, length) - 1, size)

    @property
    def lengths(self) -> Any:
        """How many positions each block holds."""
        return self.last - self.first + 1

    def shift(self, start: Any) -> "Blocks":
        """The same blocks, `start` positions later."""
        return self._replace(first=self.first + start, last=self.last + start)

    def reshape(self, *shape: int) -> "Blocks":
        """The same blocks with `first` and `last` in another shape."""
        return self._replace(first=self.first.reshape(shape), last=self.last.reshape(shape))


class Bounds(NamedTuple):
    """What is proved of each pair of blocks, bool [Q, K]; combined by three-valued logic."""

    some: Any
    every: Any

    def __and__(self, other: "Bounds") -> "Bounds":
        return Bounds(self.some & other.some, self.every & other.every)

    def __or__(self, other: "Bounds") -> "Bounds":
        return Bounds(self.some | other.some, self.every | other.every)

    def __invert__(self) -> "Bounds":
        return Bounds(self.every ^ True, self.some ^ True)


def count_in(cells: Any, blocks: Blocks, *, axis: int) -> Any:
    """Sums of `cells` over the positions of each block along `axis`, 0 outside; int32.

    An axis of size 1 stands for all positions alike.
    """
    xp = _namespace(cells, blocks.first)
    first, last = blocks.first.reshape(-1), blocks.last.reshape(-1)
    size = cells.shape[axis]
    if size == 1 and cells.ndim > 1:
        shape = [1] * cells.ndim
        shape[axis] = -1
        return cells.astype(np.int32) * (last - first + 1).reshape(shape)
    sums = xp.cumsum(xp.asarray(cells), axis=axis, dtype=np.int32)
    sums = xp.concatenate([xp.zeros_like(sums.take(np.arange(1), axis)), sums], axis=axis)
    ends, starts = (xp.clip(i, 0, size) for i in (last + 1, first))
    return xp.take(sums, ends, axis=axis) - xp.take(sums, starts, axis=axis)


def any_in(flags: Any, blocks: Blocks) -> Any:
    """Whether a flag is set in each block: bool [S]; positions outside count as not set."""
    return count_in(flags, blocks, axis=0).reshape(blocks.first.shape) > 0


def all_in(flags: Any, blocks: Blocks) -> Any:
    """Whether all flags are set in each block: bool [S]; positions outside count as not set."""
    return count_in(flags, blocks, axis=0).reshape(blocks.first.shape) == blocks.lengths


def range_in(values: Any, blocks: Blocks, where: Any) -> tuple[Any, Any]:
    """The least and the greatest value of each block among those where `where` holds.

    A block with none has its least value above its greatest. Both are int [S].
    """
    xp = _namespace(values, blocks.first)
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


def _namespace(*arrays: Any) -> Any:
    """jnp if any array is jax's, else np: what is known while tracing stays in NumPy."""
    return jnp if any(isinstance(array, jax.Array) for array in arrays) else np
