"""A key/value cache: keys and values of earlier positions, kept from one call to the next.

The cache is an array `[B, S, K, H]` of S cells; cell i holds the key, or value, of position i. A
call writes T of them from an index on, the same for all examples or each its own, and attends with
the mask and score that served in training, shifted to that index. Cells may also form a `ring`.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from flaxattn import checks
from flaxattn.attention.costs import live_lengths
from flaxattn.masks import BlockPlan, Mask, full, lengths
from flaxattn.scores import Score

__all__ = [
    "CachePosition",
    "Cells",
    "Kept",
    "check_index",
    "cells_for",
    "in_slot",
    "index_positions",
    "mask_or_full",
    "nan_where_lost",
    "over_live_cells",
    "write_cells",
    "write_in_line",
]


class Cells(NamedTuple):
    """What is kept from call to call."""

    key: jax.Array  # [B, S, K, H]
    value: jax.Array
    positions: jax.Array | None = None
    """int32 [B, S], the position that each cell of a ring holds, -1 for none; None: no ring."""


class Kept(NamedTuple):
    """What the queries of a call attend to, and how: a mask, and what is done to the logits."""

    key: jax.Array  # [B, S, K, H]
    value: jax.Array
    mask: Mask | BlockPlan | jax.Array | None
    bias: jax.Array | None = None  # [B, N, T, S], 1 where shared
    score: Score | None = None
    num_live: jax.Array | None = None
    """int32 [], how many of the first cells may be seen; None: all."""
    lost: jax.Array | None = None
    """bool [B, N, T], 1 where shared: queries that see a position whose cell holds another."""

    def shifted(self, index: jax.Array) -> "Kept":
        """The same for queries from `index` on, int [] or [B]; keys stand where they stood."""
        mask, score = _check_mask(self.mask), self.score
        return self._replace(
            mask=None if mask is None else mask.shift(q_start=index),
            score=None if score is None else score.shift(q_start=index),
        )


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["index"], meta_fields=["length", "slot", "ring"]
)
@dataclasses.dataclass(frozen=True)
class CachePosition:
    """Where a call stands in the cache; a pytree, so that new values of `index` never recompile.

    >>> CachePosition(0, length=8)  # for the call that makes the cache
    CachePosition(index=0, length=8, slot=0, ring=False)
    >>> CachePosition(3)  # for a later one
    CachePosition(index=3, length=None, slot=0, ring=False)
    """

    index: int | jax.Array
    """int `[]` or `[B]`: the position of the first of the tokens, which is the cell that takes its
    key and value. An example that runs past the last cell gives NaN, unless they form a ring."""
    length: int | None = None
    """S, how many cells; needed only by the call that makes the cache."""
    slot: int = 0
    """Which cache, where a layer is applied several times in one pass, as shared layers are."""
    ring: bool = False
    """Whether position p takes cell p % S, from whatever was there: for masks that see fewer than S
    positions back. A query that sees one whose cell was taken, or that no bounds of its mask tell
    from these, gives NaN. The same at each call."""


def check_index(position: CachePosition, lead: tuple[int, ...]) -> jax.Array:
    """Its index as an int32 array: traced even where it was a Python integer.

    Raises TypeError unless it is a CachePosition of integers, ValueError unless they are [] or one
    for each example of the leading axes, which become one axis.
    """
    if not isinstance(position, CachePosition):
        kind = type(position).__name__
        raise TypeError(f"cache_position is a {kind}; expected CachePosition(index, length).")
    array = jnp.asarray(position.index)
    checks.check_integer("cache_position.index", array)
    if array.shape not in ((), lead):
        raise ValueError(
            f"cache_position.index has shape {array.shape}; expected [] or one index per "
            f"example, [B] = {lead}."
        )
    return array.reshape(-1 if array.ndim else ()).astype(jnp.int32)


def in_slot(name: str, position: CachePosition) -> str:
    """The name of the variable that holds these cells."""
    return f"{name}_{position.slot}" if position.slot else name


def index_positions(index: jax.Array | None, length: int) -> jax.Array:
    """The positions of `length` tokens from `index` on: int [] or [B] -> int32 [1 or B, T].

    >>> index_positions(jnp.array([0, 5]), 3).tolist()
    [[0, 1, 2], [5, 6, 7]]
    """
    offsets = jnp.arange(length, dtype=jnp.int32)[None, :]
    return offsets if index is None else index.reshape(-1, 1) + offsets


def cells_for(
    position: CachePosition, key: jax.Array, value: jax.Array, cells: Cells | None
) -> Cells:
    """The cells that a new key and value [B, T, K, H] are to be written into; None: empty ones.

    Raises ValueError if there are none, or they do not fit.
    """
    if cells is None:
        cells = _empty(position, key, value)
    num_cells = cells.key.shape[1]
    if position.length not in (None, num_cells):
        raise ValueError(
            f"cache_position.length is {position.length}, but the cache has {num_cells} cells."
        )
    if position.ring != (cells.positions is not None):
        raise ValueError(
            f"cache_position.ring is {position.ring}, but the cache was made with "
            f"{not position.ring}; expected the same at each call."
        )
    if key.shape[1] > num_cells and not position.ring:
        raise ValueError(
            f"inputs_q has {key.shape[1]} tokens, but the cache {num_cells} cells; make it with a "
            "longer CachePosition.length, or as a ring."
        )
    for new, old in ((key, cells.key), (value, cells.value)):
        if old.shape != (new.shape[0], num_cells, *new.shape[2:]) or old.dtype != new.dtype:
            raise ValueError(
                f"the cache has {old.dtype} cells of shape {old.shape}; new keys and values are "
                f"{new.dtype} {new.shape}. All but the second axis must be the same."
            )
    return cells


def _empty(position: CachePosition, key: jax.Array, value: jax.Array) -> Cells:
    """Cells that hold nothing, for keys and values like these."""
    if position.length is None:
        raise ValueError(
            "cache_position is given, but there is no cache yet; give a CachePosition with a "
            'length to the call that makes it, and to later calls the "cache" collection '
            "which that one returned."
        )
    if position.length < 1:
        raise ValueError(f"cache_position.length is {position.length}; expected at least 1.")
    batch, length = key.shape[0], position.length
    keys, values = (jnp.zeros((batch, length, *x.shape[2:]), x.dtype) for x in (key, value))
    positions = jnp.full((batch, length), -1, jnp.int32) if position.ring else None
    return Cells(keys, values, positions)


def write_in_line(cells: Cells, new: Kept, index: jax.Array) -> tuple[Cells, Kept]:
    """The cells with the T `new` keys and values from `index` on, and what is attended to.

    Under jit no error can be raised; numbers computed without some of the keys would go unnoticed.
    So all is lost where tokens pass the last cell.
    """
    end, num_cells = index + new.key.shape[1], cells.key.shape[1]
    key, value = write_cells(cells.key, new.key, index), write_cells(cells.value, new.value, index)
    kept = new.shifted(index)
    mask = mask_or_full(kept.mask) & lengths(kv_lengths=end)
    lost = (end > num_cells).reshape(-1, 1, 1)
    kept = kept._replace(key=key, value=value, mask=mask, num_live=end.max(), lost=lost)
    return Cells(key, value), kept


def write_cells(cells: jax.Array, new: jax.Array, index: jax.Array) -> jax.Array:
    """`cells` [B, S, ...] with `new` [B, T, ...] from `index` on, int [] or [B].

    Where there is no room for all T, they take the last T cells: see `write_in_line`.

    >>> cells, new = jnp.zeros((2, 4)), jnp.ones((2, 2))
    >>> write_cells(cells, new, jnp.array([0, 1])).astype(int).tolist()
    [[1, 1, 0, 0], [0, 1, 1, 0]]
    """
    write = jax.lax.dynamic_update_slice_in_dim
    if index.ndim == 0:
        return write(cells, new, index, axis=1)
    return jax.vmap(lambda cells, new, index: write(cells, new, index, axis=0))(cells, new, index)


def _check_mask(mask: Mask | BlockPlan | jax.Array | None) -> Mask | None:
    """The mask, which must be one that can be read from another index, or None.

    Raises ValueError for an array or a `BlockPlan`.
    """
    if mask is None or isinstance(mask, Mask):
        return mask
    raise ValueError(
        f"mask is a {type(mask).__name__}; with cache_position expected a Mask over all "
        "positions, which the layer shifts itself. Wrap a boolean array, with a row for each "
        "query of the whole sequence, in from_dense(array)."
    )


def mask_or_full(mask: Mask | BlockPlan | jax.Array | None) -> Mask:
    """The checked mask, or the one that hides nothing."""
    mask = _check_mask(mask)
    return full() if mask is None else mask


def over_live_cells(attend: Callable[[Kept], jax.Array], kept: Kept, q_len: int) -> jax.Array:
    """`attend(kept)` over the shortest run of cells that holds all that is live."""
    ends = live_lengths(q_len, kept.key.shape[1])
    if kept.num_live is None or len(ends) == 1:
        return attend(kept)

    def over(end: int) -> Callable[..., jax.Array]:
        def first_cells(key: jax.Array, value: jax.Array, bias: jax.Array | None) -> jax.Array:
            bias = bias if bias is None or bias.shape[-1] == 1 else bias[..., :end]
            return attend(kept._replace(key=key[:, :end], value=value[:, :end], bias=bias))

        return first_cells

    which = sum(jnp.asarray(kept.num_live > end, jnp.int32) for end in ends[:-1])
    output: jax.Array = jax.lax.switch(which, [*map(over, ends)], kept.key, kept.value, kept.bias)
    return output


def nan_where_lost(output: jax.Array, lost: jax.Array | None) -> jax.Array:
    """`output` [B, T, N, H], NaN where a query sees what is `lost`, bool [B, N, T]."""
    if lost is None:
        return output
    return jnp.where(lost.swapaxes(1, 2)[..., None], jnp.nan, output).astype(output.dtype)
