"""Rows that are not finite, in the tiles of kernels for Hopper.

What `attention/repair.py` does to whole arrays, done in shared memory where a tile may hide
something, and only if there is anything to repair. Warpgroups that share a tile write the same.
"""

from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from flaxattn.attention.fused.given import Broken, Given
from flaxattn.attention.fused.hopper.machine import (
    ROW,
    ROWS,
    Here,
    Ref,
    across,
    vector,
    whole,
)

__all__ = [
    "Mend",
    "clean",
    "clean_if_broken",
    "if_broken",
    "leave",
    "spoil",
    "unless_broken",
]

Mend: TypeAlias = Callable[[Any], None]
"""Repairs a tile, or those of a step."""


def if_broken(given: Given, mend: Callable[[Broken], None]) -> None:
    """Does `mend` if anything that the kernel is given is not finite."""
    broken = given.broken
    if broken is not None:
        pl.when(broken.any[0] != 0)(lambda: mend(broken))


def leave(_: Any) -> None:
    """Repairs nothing: full tiles hide nothing, and none is full where anything is broken."""


def clean_if_broken(given: Given, tile: Ref) -> None:
    """`clean` if anything that the kernel is given is not finite."""
    if_broken(given, lambda _: clean(tile))


def clean(tile: Ref) -> None:
    """Zeros for what is not finite in [rows, width]: a weight of zero is to hide it."""
    for _, part in _parts(tile):
        x = whole(part).astype(jnp.float32)
        part[...] = jnp.where(x - x == 0.0, x, 0.0).astype(tile.dtype)
    plgpu.commit_smem()


def spoil(tile: Ref, at: Here, nan: Ref, first: jax.Array) -> None:
    """NaN in the rows [rows, width] of a tile for which `nan` [b, n, positions] has it.

    So what sees them is NaN, also where a product with infinity would be -inf, and gone. `first` is
    the position of the tile.
    """
    for i, part in _parts(tile):
        x = whole(part).astype(jnp.float32)
        of_rows = vector(nan, at, pl.ds(first + i, ROWS), ROW)
        part[...] = (x + across(of_rows, (ROWS, tile.shape[1]))).astype(tile.dtype)
    plgpu.commit_smem()


def unless_broken(given: Given, at: Here, where: Any, rows: jax.Array) -> jax.Array:
    """The derivative of keys or values, zero where they are not finite."""
    if given.broken is None:
        return rows
    nan = vector(given.broken.key, at, where, ROW)
    return jnp.where(across(nan, (rows.shape[0], rows.shape[1])) == 0.0, rows, 0.0)


def _parts(tile: Ref) -> Iterator[tuple[int, Any]]:
    """Parts of as many rows as a warpgroup has registers for, and where they begin."""
    for i in range(0, tile.shape[0], ROWS):
        yield i, tile.at[pl.ds(i, ROWS)]
