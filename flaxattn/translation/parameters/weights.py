"""Parameters as named arrays: one safetensors file, which holds numbers and nothing else."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors import SafetensorError
from safetensors.flax import load_file, save

from flaxattn.translation.parameters.freezing import path_of

__all__ = ["named", "nested", "read_weights", "write_weights"]


def named(params: Any) -> dict[str, jax.Array]:
    """A tree of arrays as one table, by path.

    >>> named({"encoder": {"norm": {"scale": jnp.ones(3)}}})
    {'encoder.norm.scale': Array([1., 1., 1.], dtype=float32)}
    """
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {path_of(path, "."): x for path, x in leaves}


def nested(arrays: Mapping[str, jax.Array]) -> dict[str, Any]:
    """The tree that `named` made a table of."""
    tree: dict[str, Any] = {}
    for name, array in arrays.items():
        *folders, last = name.split(".")
        node = tree
        for folder in folders:
            node = node.setdefault(folder, {})
        node[last] = array
    return tree


def write_weights(path: Path, params: Any) -> None:
    """Writes parameters to a safetensors file, each in its own dtype, named by its path."""
    path.write_bytes(save(named(jax.device_get(params)), metadata={"format": "flax"}))


def read_weights(path: Path, like: Any) -> Any:
    """The parameters in a file, bit by bit as they were written.

    Args:
      like: a tree of the paths, shapes and dtypes that are expected.

    Raises:
      ValueError if the file is damaged, or holds other arrays, which are named.
    """
    try:
        found = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path}: not a whole safetensors file: {error}") from error
    wanted = named(like)
    problems = [
        *(f"{name} is missing" for name in sorted(wanted.keys() - found.keys())),
        *(f"{name} is of no use" for name in sorted(found.keys() - wanted.keys())),
        *(
            f"{name} is {_kind(found[name])}, expected {_kind(wanted[name])}"
            for name in sorted(wanted.keys() & found.keys())
            if _kind(found[name]) != _kind(wanted[name])
        ),
    ]
    if problems:
        raise ValueError(f"{path}: other arrays than the architecture has: {'; '.join(problems)}.")
    _check_finite(path, found)
    return nested(found)


def _check_finite(path: Path, arrays: Mapping[str, jax.Array]) -> None:
    """Raises ValueError that names the first array which holds what is no number."""
    for name, array in sorted(arrays.items()):
        if not np.isfinite(np.asarray(array, np.float32)).all():
            raise ValueError(f"{path}: {name} holds NaN or infinity; no translation comes of it.")


def _kind(array: Any) -> str:
    return f"{array.dtype} {list(array.shape)}"
