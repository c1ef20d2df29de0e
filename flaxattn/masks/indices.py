"""Arithmetic with indices: integers, or arrays of NumPy, which stay known, or of jax.

Positions are int32: a sum that lies beyond is the end that it passed, and never wraps.
"""

import functools
import operator
from types import ModuleType
from typing import overload

import jax
import jax.numpy as jnp
import numpy as np

from flaxattn.checks import MOST
from flaxattn.types import Array, Booleans, Indices

__all__ = [
    "FIRST",
    "LAST",
    "add",
    "at",
    "clip",
    "indexable",
    "lookup",
    "makes_sense",
    "namespace",
    "positive",
    "shared",
    "subtract",
    "true_like",
]

FIRST, LAST = -MOST - 1, MOST  # the ends of int32


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


@overload
def add(x: Array, y: Indices) -> Array: ...
@overload
def add(x: Indices, y: Indices) -> Indices: ...
def add(x: Indices, y: Indices) -> Indices:
    """`x + y`, or the end of int32 that it passes.

    >>> add(np.array([3, 2**31 - 2], np.int32), 5).tolist()
    [8, 2147483647]
    """
    x, (low, high) = _signed(x), _parts(y)
    total: Indices = namespace(x, y).clip(x, FIRST - low, LAST - high) + y
    return total


def subtract(x: Indices, y: Indices) -> Indices:
    """`x - y`, or the end of int32 that it passes.

    >>> subtract(np.array([3, 2 - 2**31], np.int32), 5).tolist()
    [-2, -2147483648]
    """
    x, (low, high) = _signed(x), _parts(y)
    difference: Indices = namespace(x, y).clip(x, FIRST + high, LAST + low) - y
    return difference


def _signed(x: Indices) -> Indices:
    """`x` as int32 if it is an array of a dtype that does not hold all of int32."""
    if isinstance(x, int) or np.can_cast(np.int32, x.dtype):
        return x
    xp = namespace(x)
    within: Array = xp.minimum(x, min(LAST, int(np.iinfo(x.dtype).max))).astype(np.int32)
    return within


def _parts(y: Indices) -> tuple[Indices, Indices]:
    """The negative and the positive part of `y`, whose sum it is."""
    if isinstance(y, int):  # stays Python's, which takes the dtype of what it meets
        return min(y, 0), max(y, 0)
    xp = namespace(y)
    return xp.minimum(y, 0), xp.maximum(y, 0)


def positive(size: Indices) -> Indices:
    """`size`, or 1 where it is less: what may divide."""
    return max(size, 1) if isinstance(size, int) else namespace(size).maximum(size, 1)


def makes_sense(value: Indices | None, minimum: int) -> Booleans:
    """Whether `value` is at least `minimum`: an integer is, since it was checked when given.

    A traced value cannot be checked; a mask sees nothing where it makes no sense.
    """
    return True if isinstance(value, int | None) else value >= minimum


def indexable(array: Array, *indices: Indices) -> Array:
    """`array` of jax if an index is of jax: a traced index cannot index an array of NumPy."""
    return jnp.asarray(array) if namespace(*indices) is jnp else array


def clip(index: Indices, size: int) -> tuple[Array, Booleans]:
    """`index` moved into [0, size), and whether it was inside."""
    return namespace(index).clip(index, 0, max(size - 1, 0)), (index >= 0) & (index < size)


def shared(index: Indices) -> tuple[Indices, Booleans]:
    """Index 0 for every position, always inside: how an axis of size 1 is read."""
    return index * 0, true_like(index)


@overload
def lookup(array: Array, index: Indices) -> tuple[Array, Booleans]: ...
@overload
def lookup(array: None, index: Indices) -> tuple[Indices, Booleans]: ...
def lookup(array: Array | None, index: Indices) -> tuple[Indices, Booleans]:
    """`array[index]`, or any entry, and whether the index was inside; without an array itself."""
    if array is None:
        return index, True
    inside_index, inside = clip(index, array.shape[0])
    if not array.shape[0]:  # nothing cannot be indexed
        array = np.zeros((1, *array.shape[1:]), array.dtype)
    return indexable(array, index)[inside_index], inside


def at(array: Array, index: Indices, outside: bool | int) -> Array:
    """`array[index]`, or `outside` where the index is outside; of several axes, along the first."""
    xp = namespace(array, index)
    found, inside = lookup(array, index)
    inside = xp.reshape(inside, np.shape(inside) + (1,) * (array.ndim - 1))
    result: Array = xp.where(inside, found, xp.asarray(outside, array.dtype))
    return result
