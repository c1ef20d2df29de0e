"""Shape and dtype checks whose errors name the argument, what it had and what it needed.

The letters of the shape alphabet (those of `jax.nn`):

    B batch · T query length · S key/value length · N query heads · K key/value heads ·
    G = N // K · H head_dim · D model dim · F feed-forward dim · V vocabulary
"""

from typing import TypeAlias, TypeGuard

import jax
import jax.numpy as jnp
import numpy as np
from jax.export import is_symbolic_dim

from flaxattn.types import Array

__all__ = [
    "MOST",
    "Sizes",
    "as_array",
    "check_array",
    "check_axes",
    "check_boolean",
    "check_even",
    "check_floating",
    "check_integer",
    "check_known",
    "check_length",
    "check_size",
    "is_known",
    "is_static",
    "type_of",
]

MOST = 2**31 - 1
"""The last integer of int32: of positions."""

Sizes: TypeAlias = dict[str, tuple[int, str]]
"""What each letter stands for, and the name of the argument that bound it."""


def check_array(name: str, array: object) -> None:
    """Raises TypeError unless `array` is one of jax or NumPy that jax reads as it is."""
    if isinstance(array, np.ma.MaskedArray) or not (
        isinstance(array, jax.Array | np.ndarray | np.generic) or hasattr(array, "__jax_array__")
    ):
        raise TypeError(
            f"{name} is a {type(array).__name__}; expected an array of jax or NumPy: "
            f"jnp.asarray({name})."
        )
    if isinstance(array, np.ndarray) and not array.dtype.isnative:
        raise TypeError(
            f"{name} has dtype {array.dtype.str}, whose bytes are in another order; expected "
            f"{array.dtype.newbyteorder('=')}."
        )


def check_axes(name: str, array: Array, axes: str, sizes: Sizes) -> None:
    """Checks `array` against `axes` such as "B T N H", binding each new letter in `sizes`.

    `sizes` is filled in turn, so that the error can name both sides of a disagreement. Raises
    ValueError; TypeError for what is no array.
    """
    check_array(name, array)
    letters = axes.split()
    shape = tuple(np.shape(array))
    if len(shape) != len(letters):
        raise ValueError(
            f"{name} has shape {shape} of rank {len(shape)}; "
            f"expected rank {len(letters)}: [{', '.join(letters)}]."
        )
    for letter, size in zip(letters, shape, strict=True):
        bound, owner = sizes.setdefault(letter, (size, name))
        if size != bound:
            raise ValueError(
                f"{name} has shape {shape} as [{', '.join(letters)}], so {letter} = {size}; "
                f"but {owner} has {letter} = {bound}."
            )


def check_size(name: str, size: object, *, minimum: int = 0) -> int:
    """`size` as an integer.

    Raises TypeError for what is none, ValueError unless it is from `minimum` to the last of int32.
    """
    if not is_static(size):
        raise TypeError(f"{name} is {size!r}, a {type(size).__name__}; expected an integer.")
    if not minimum <= size <= MOST:
        wanted = f"at least {minimum}" if size < minimum else f"at most {MOST}"
        raise ValueError(f"{name} is {int(size)}; expected {wanted}.")
    return int(size)


def check_length(name: str, length: int) -> None:
    """As `check_size`, but lengths may be symbolic, as `jax.export` has them."""
    if not is_symbolic_dim(length):
        check_size(name, length)


def check_floating(name: str, array: Array) -> None:
    """Raises TypeError unless `array` is of a floating dtype of at most 64 bits."""
    if not jnp.issubdtype(array.dtype, jnp.floating) or array.dtype.itemsize > 8:
        raise TypeError(f"{name} has dtype {array.dtype}; expected a floating dtype.")


def check_even(name: str, number: int) -> None:
    """Raises ValueError unless `number` is even."""
    if number % 2:
        raise ValueError(f"{name} is {number}; expected an even number.")


def check_integer(name: str, array: Array) -> None:
    """Raises TypeError unless `array` is of an integer dtype."""
    if not jnp.issubdtype(array.dtype, jnp.integer):
        raise TypeError(f"{name} has dtype {array.dtype}; expected integers.")


def check_known(**lengths: int) -> None:
    """Raises ValueError for a length by that name that is symbolic, as `jax.export` has them."""
    for name, length in lengths.items():
        if is_symbolic_dim(length):
            raise ValueError(
                f"{name} is {length}, a symbolic length, and blocks are drawn for known ones; give "
                "`attend` the mask itself, for which it then takes the dense definition."
            )


def check_boolean(name: str, array: Array) -> None:
    """Raises TypeError unless `array` is boolean."""
    if array.dtype != jnp.bool_:
        raise TypeError(
            f"{name} has dtype {array.dtype}; expected bool, True where attention is allowed. "
            "For an additive float mask compare it first (`x > -1e8`) or pass it as `bias`."
        )


def is_known(array: Array) -> bool:
    """Whether the values of `array` can be looked at: it is not traced, nor elsewhere in part."""
    if isinstance(array, jax.core.Tracer):
        return False
    return not isinstance(array, jax.Array) or array.is_fully_addressable


def as_array(name: str, value: object) -> Array:
    """`value` as an array: of NumPy unless it is one of jax.

    Raises TypeError for what no array can be made of, as of lists of different lengths.
    """
    if isinstance(value, jax.Array):
        return value
    try:
        return np.asarray(value)
    except Exception as error:  # of a foreign array: whatever its library raises
        raise TypeError(
            f"{name} is a {type_of(value)} that NumPy makes no array of; expected an array of jax "
            "or NumPy."
        ) from error


def type_of(value: object) -> str:
    """The name of its type, with that of the module unless it is Python's own."""
    kind = type(value)
    own = kind.__module__ == "builtins"
    return kind.__qualname__ if own else f"{kind.__module__}.{kind.__qualname__}"


def is_static(value: object) -> TypeGuard[int]:
    """Whether `value` is a Python or NumPy integer: known while tracing, never a leaf."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)
