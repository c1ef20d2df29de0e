"""Masks that are given whole: a tile reads its own part of their arrays.

A rule that looks an array up by a query and a key index at once is none for a kernel. `from_dense`
does nothing else, and where it is asked about the very indices of a tile, that is a block.
"""

from collections.abc import Callable, Sequence

import jax

from flaxattn.masks import Mask, from_dense
from flaxattn.masks.leaves import mask_type
from flaxattn.masks.mask import And, Not, Or
from flaxattn.types import Array, Booleans, Indices

__all__ = ["taken_out", "told"]


@mask_type
class Told(Mask):
    """In place of a mask that its array tells."""

    number: int
    """Of the array."""


def taken_out(mask: Mask, tables: list[Array]) -> Mask:
    """The mask without the arrays of whole masks, [..., T, S] each: `tables` has them after it."""

    def take(x: Mask) -> Mask:
        if not isinstance(x, from_dense) or 1 in x.array.shape[-2:]:
            return x
        tables.append(x.array)
        return Told(len(tables) - 1)

    return _mapped(take, mask)


def told(mask: Mask, pair: Sequence[jax.Array]) -> Callable[[Indices, Indices], Booleans]:
    """The rule of a mask that was `taken_out`, for one pair and what the tables say of it."""
    return _mapped(lambda x: (lambda *_: pair[x.number]) if isinstance(x, Told) else x, mask)


def _mapped(fn: Callable[[Mask], object], mask: Mask) -> Mask:
    """`fn` of each part that is asked about the same indices as the whole is."""
    found: Mask = jax.tree.map(fn, mask, is_leaf=lambda x: not isinstance(x, (And, Or, Not, tuple)))
    return found
