"""Arithmetic with indices: integers, or arrays of NumPy, which stay known, or of jax."""

import functools
import operator
from types import ModuleType
from typing import overload

import jax
import jax.numpy as jnp
import numpy as np

from flaxattn.types import Array, Booleans, Indices

__all__ = ["at", "clip", "indexable", "namespace", "shared", "true_like"]


def namespace(*arrays: Indices) -> ModuleType:
    """jnp if any array is jax's, else np: what is known while tracing stays in NumPy."""
    return jnp if any(isinstance(array, jax.Array) for array in arrays) else np


@overload
def true_like(*indices: Array) -> Array: ...
@overload
def true_like(*indices: Indices) -> Booleans: ...
def true_like(*indices: Indices) -> Booleans:
    """True everywhere, in the shape that the indices have when broadcast against each other.

    Each is compared with itself, because this serves integers and both kinds of arrays, and because
    the answer then varies over devices as the indices do, which `shard_map` asks for.

    >>> true_like(7), true_like(np.arange(3), np.zeros((2, 1), int)).tolist()
    (True, [[True, True, True], [True, True, True]])
    """
    return functools.reduce(operator.and_, (x == x for x in indices))  # noqa: PLR0124


def indexable(array: Array, *indices: Indices) -> Array:
    """`array` of jax if an index is of jax: a traced index cannot index an array of NumPy."""
    return jnp.asarray(array) if namespace(*indices) is jnp else array


def clip(index: Indices, size: int) -> tuple[Array, Booleans]:
    """`index` moved into [0, size), and whether it was inside."""
    return namespace(index).clip(index, 0, max(size - 1, 0)), (index >= 0) & (index < size)


def shared(index: Indices) -> tuple[Indices, Booleans]:
    """Index 0 for every position, always inside: how an axis of size 1 is read."""
    return index * 0, true_like(index)


def at(array: Array, index: Indices, outside: bool | int) -> Array:
    """`array[index]`, or `outside` where the index is outside the array."""
    xp = namespace(array, index)
    inside_index, inside = clip(index, array.shape[0])
    found = indexable(array, index)[inside_index]
    result: Array = xp.where(inside, found, xp.asarray(outside, array.dtype))
    return result
