"""A mask is a value: equal parts make equal masks, and `jax.export` can serialise them.

Masks without arrays are hashable, so one may be a static argument of `jax.jit`: a mask made again
is the same mask, and nothing is compiled again.
"""

import json
from collections.abc import Iterable

import jax
import numpy as np
from jax import export

from flaxattn.types import Array, PyTree

__all__ = ["equal", "hash_of", "register_for_export", "short"]

_registered: dict[str, int] = {}  # how many classes of each name


def equal(mask: PyTree, other: PyTree) -> bool:
    """Whether two masks have the same structure, the same static parts and the same arrays."""
    structures: list[object] = [jax.tree.structure(m) for m in (mask, other)]
    leaves, others = (jax.tree.leaves(m) for m in (mask, other))
    return structures[0] == structures[1] and all(map(_same, leaves, others))


def _same(x: Array, y: Array) -> bool:
    if x is y:
        return True
    if any(isinstance(a, jax.core.Tracer) or not hasattr(a, "dtype") for a in (x, y)):
        return False  # the values of a traced array are not known
    return x.dtype == y.dtype and np.array_equal(x, y)


def hash_of(mask: PyTree, kind: str, arrays: Iterable[str]) -> int:
    """The hash of its structure and static parts.

    Raises TypeError for one with arrays, whose names are `arrays`; `kind` is what it is called.
    """
    leaves, structure = jax.tree.flatten(mask)
    if leaves:
        raise TypeError(
            f"a {kind} with arrays has no hash ({', '.join(arrays)}): their values may change or "
            "be traced. Pass it as an ordinary argument, not as a static one; new values do not "
            "recompile."
        )
    return hash(structure)


def short(value: object) -> str:
    """A part of a mask in words: of an array its dtype and shape, of a function its name.

    >>> short((np.arange(3), len))
    '(int64[3], len)'
    """
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{value.dtype}{list(value.shape)}"
    if isinstance(value, tuple):
        return f"({', '.join(map(short, value))}{',' * (len(value) == 1)})"
    return getattr(value, "__name__", None) or repr(value)


def register_for_export(cls: type) -> None:
    """Lets `jax.export` serialise functions that take or give masks, or plans, of this class.

    A rule of one's own is a function and cannot be serialised: trying raises TypeError.
    """
    name = f"{cls.__module__}.{cls.__qualname__}"
    count = _registered[name] = _registered.get(name, 0) + 1
    export.register_pytree_node_serialization(
        cls,
        # A class may be defined again, as when a cell of a notebook is run again.
        serialized_name=name if count == 1 else f"{name}:{count}",
        serialize_auxdata=lambda aux: _written(cls, aux),
        deserialize_auxdata=_read,
    )


def _written(cls: type, aux: object) -> bytes:
    try:
        return json.dumps(aux).encode()
    except TypeError as error:
        raise TypeError(
            f"{cls.__name__} holds what cannot be written down: {error}; export a function that "
            "makes the mask itself."
        ) from error


def _read(data: bytes) -> object:
    return _tuples(json.loads(data))


def _tuples(value: object) -> object:
    """JSON's lists as the tuples that they were."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
