"""The "cache" collection of a module: cells read from it, and written to it."""

from typing import Any

import flax.linen as nn
import jax

from flaxattn.attention.arguments import check_is_score
from flaxattn.layers.cache import (
    CachePosition,
    Cells,
    Kept,
    cells_for,
    in_slot,
    write_in_line,
)
from flaxattn.layers.ring import write_in_ring

__all__ = ["keep", "store", "stored"]


def stored(
    module: nn.Module, inputs_k: str, inputs_v: jax.Array | None, position: CachePosition | None
) -> tuple[jax.Array, jax.Array]:
    """The keys and values that an earlier call kept; ValueError if none did, or none are meant."""
    if position is None or inputs_k != "cached" or inputs_v is not None:
        raise ValueError(
            f"inputs_k is {inputs_k!r} and cache_position {position}; expected an array, or "
            '"cached" with a cache_position and no inputs_v.'
        )
    cells = _cells(module, position)
    if cells is None:
        raise ValueError('inputs_k is "cached", but no earlier call has kept any.')
    return cells.key, cells.value


def keep(
    module: nn.Module,
    position: CachePosition | None,
    new: Kept,
    index: jax.Array | None,
    start: jax.Array | None,
) -> Kept:
    """`new`, or with a cache all that it holds, once what is new from `start` on is written.

    Mask and score come as those of the whole sequence, and are given back for queries from `index`
    on, int [] or [B]. `start` is None where the keys are not those of the queries.
    """
    if position is None or index is None:
        return new
    check_is_score(new.score)
    if start is None:
        return new.shifted(index)
    if position.ring and new.bias is not None:
        raise ValueError("bias is given, but the cells of a ring stand in no order.")
    cells = cells_for(position, new.key, new.value, _cells(module, position))
    write = write_in_ring if position.ring else write_in_line
    cells, kept = write(cells, new, start)
    store(module, position, cells)
    return kept


def store(module: nn.Module, position: CachePosition, cells: Cells) -> None:
    """Puts these in place of what the cache held; ValueError if it cannot be written."""
    if not module.is_mutable_collection("cache"):
        raise ValueError(
            'cache_position is given, but the "cache" collection cannot be written; call '
            'apply(..., mutable=["cache"]), which returns the new cache beside the output.'
        )
    for name, array in cells._asdict().items():
        if array is not None:
            module.put_variable("cache", in_slot(f"cached_{name}", position), array)


def _cells(module: nn.Module, position: CachePosition) -> Cells | None:
    """What the cache holds; None: there is none yet."""
    names = (in_slot(f"cached_{name}", position) for name in Cells._fields)
    cells: Any = [module.get_variable("cache", name) for name in names]
    return None if cells[0] is None else Cells(*cells)
