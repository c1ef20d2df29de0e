"""A key/value cache: keys and values of earlier positions, kept from one call to the next.

The cache is an array `[B, S, K, H]` of S cells; cell i holds the key, or value, of position i. A
call writes T of them from an index on, the same for all examples or each its own, and attends with
the mask that served in training, shifted to that index.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from flaxattn import checks
from flaxattn.masks import BlockPlan, Mask, full, lengths

__all__ = [
    "CachePosition",
    "cells_for",
    "check_index",
    "in_slot",
    "index_positions",
    "nan_unless_room",
    "shifted_mask",
    "write_cells",
]


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["index"], meta_fields=["length", "slot"]
)
@dataclasses.dataclass(frozen=True)
class CachePosition:
    """Where a call stands in the cache; a pytree, so that new values of `index` never recompile.

    >>> CachePosition(0, length=8)  # for the call that makes the cache
    CachePosition(index=0, length=8, slot=0)
    >>> CachePosition(3)  # for a later one
    CachePosition(index=3, length=None, slot=0)
    """

    index: int | jax.Array
    """int `[]` or `[B]`: the position of the first of the tokens, which is the cell that takes its
    key and value. An example that runs past the last cell gives NaN."""
    length: int | None = None
    """S, how many cells; needed only by the call that makes the cache."""
    slot: int = 0
    """Which cache, where a layer is applied several times in one pass, as shared layers are."""


def check_index(position: CachePosition, batch: int) -> jax.Array:
    """Its index as an int32 array: traced even where it was a Python integer.

    Raises TypeError unless it is a CachePosition of integers, ValueError unless they are [] or [B].
    """
    if not isinstance(position, CachePosition):
        kind = type(position).__name__
        raise TypeError(f"cache_position is a {kind}; expected CachePosition(index, length).")
    array = jnp.asarray(position.index)
    checks.check_integer("cache_position.index", array)
    if array.shape not in ((), (batch,)):
        raise ValueError(
            f"cache_position.index has shape {array.shape}; expected [] or one index per "
            f"example, [B] = ({batch},)."
        )
    return array.astype(jnp.int32)


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


def cells_for(new: jax.Array, cells: jax.Array | None, length: int | None) -> jax.Array:
    """The cells [B, S, ...] that `new` [B, T, ...] is to be written into; None: S = `length`.

    Raises ValueError if there are none, or they do not fit.
    """
    if cells is None:
        if length is None:
            raise ValueError(
                "cache_position is given, but there is no cache yet; give a CachePosition with a "
                'length to the call that makes it, and to later calls the "cache" collection '
                "which that one returned."
            )
        cells = jnp.zeros((new.shape[0], length, *new.shape[2:]), new.dtype)
    num_cells = cells.shape[1]
    if length not in (None, num_cells):
        raise ValueError(f"cache_position.length is {length}, but the cache has {num_cells} cells.")
    if new.shape[1] > num_cells:
        raise ValueError(
            f"inputs_q has {new.shape[1]} tokens, but the cache {num_cells} cells; make it with a "
            "longer CachePosition.length."
        )
    if cells.shape != (new.shape[0], num_cells, *new.shape[2:]) or cells.dtype != new.dtype:
        raise ValueError(
            f"the cache has {cells.dtype} cells of shape {cells.shape}; new keys and values are "
            f"{new.dtype} {new.shape}. All but the second axis must be the same."
        )
    return cells


def write_cells(cells: jax.Array, new: jax.Array, index: jax.Array) -> jax.Array:
    """`cells` [B, S, ...] with `new` [B, T, ...] from `index` on, int [] or [B].

    Where there is no room for all T, they take the last T cells: see `nan_unless_room`.

    >>> cells, new = jnp.zeros((2, 4)), jnp.ones((2, 2))
    >>> write_cells(cells, new, jnp.array([0, 1])).astype(int).tolist()
    [[1, 1, 0, 0], [0, 1, 1, 0]]
    """
    write = jax.lax.dynamic_update_slice_in_dim
    if index.ndim == 0:
        return write(cells, new, index, axis=1)
    return jax.vmap(lambda cells, new, index: write(cells, new, index, axis=0))(cells, new, index)


def shifted_mask(
    mask: Mask | BlockPlan | jax.Array | None, index: jax.Array, num_written: int | None = None
) -> Mask | None:
    """The mask of a whole sequence, as the queries from `index` on see it.

    Args:
      mask: a `Mask` or None.
      index: int [] or [B].
      num_written: how many cells from `index` on are written; all later ones are hidden. None:
        every cell holds a key.

    Raises ValueError for an array or a `BlockPlan`: they cannot be read from another index.
    """
    if mask is not None and not isinstance(mask, Mask):
        raise ValueError(
            f"mask is a {type(mask).__name__}; with cache_position expected a Mask over all "
            "positions, which the layer shifts itself. Wrap a boolean array, with a row for each "
            "query of the whole sequence, in from_dense(array)."
        )
    shifted = None if mask is None else mask.shift(q_start=index)
    if num_written is None:
        return shifted
    return (full() if shifted is None else shifted) & lengths(kv_lengths=index + num_written)


def nan_unless_room(output: jax.Array, index: jax.Array, num_cells: int) -> jax.Array:
    """`output` [B, T, ...], NaN in the examples whose T tokens from `index` on pass the last cell.

    Under jit no error can be raised; numbers computed without some of the keys would go unnoticed.
    """
    room = index + output.shape[1] <= num_cells
    return jnp.where(room.reshape((-1,) + (1,) * (output.ndim - 1)), output, jnp.nan)
