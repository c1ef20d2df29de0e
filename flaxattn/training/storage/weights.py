"""Parameters as named arrays: one safetensors file, which holds numbers and nothing else."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors import SafetensorError
from safetensors.flax import load_file, save

from flaxattn.training.parameters.freezing import path_of
from flaxattn.training.storage.files import check_regular, write_whole
from flaxattn.training.storage.json_data import some
from flaxattn.training.trees import Params

__all__ = ["check_weights", "named", "nested", "read_header", "read_weights", "write_weights"]

MOST_HEADER = 100_000_000  # bytes, as in safetensors itself
MALFORMED = (AttributeError, IndexError, KeyError, RecursionError, TypeError, ValueError)
DTYPES = {
    f"{letters}{bits}": f"{name}{bits}"
    for letters, name in {"F": "float", "BF": "bfloat", "I": "int", "U": "uint"}.items()
    for bits in (8, 16, 32, 64)
} | {"BOOL": "bool"}  # by their names in a header; others, as 8-bit floats, are shown as they stand


def named(params: Params) -> dict[str, jax.Array]:
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


def write_weights(path: Path, params: Params) -> None:
    """Writes parameters to a safetensors file, each in its own dtype, named by its path."""
    write_whole(path, save(named(jax.device_get(params)), metadata={"format": "flax"}))


def read_weights(path: Path, like: Params) -> Params:
    """The parameters in a file, bit by bit as they were written.

    Args:
      like: a tree of the paths, shapes and dtypes that are expected.

    Raises:
      ValueError if the file is damaged, holds other arrays, which are named, or NaN.
    """
    check_weights(path, read_header(path), like)
    try:
        found = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path}: not a whole safetensors file: {error}") from error
    _check_finite(path, found)
    return nested(found)


def read_header(path: Path) -> dict[str, str]:
    """What a file says that its arrays are, by name: `float32 [3, 4]`. No array is read.

    Raises:
      ValueError if it is no safetensors file, or its size is not what it says.
    """
    size = check_regular(path)
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > min(size, MOST_HEADER):
                raise ValueError(f"its header has {length:,} bytes")
            entries = json.loads(file.read(length))
        entries.pop("__metadata__", None)
        found = {name: _kind(_dtype(e), e["shape"]) for name, e in entries.items()}
        end = 8 + length + max((e["data_offsets"][1] for e in entries.values()), default=0)
    except MALFORMED as error:
        raise ValueError(f"{path}: not a whole safetensors file: {error!r}") from error
    if size != end:
        raise ValueError(f"{path}: not a whole safetensors file: {size:,} bytes, expected {end:,}.")
    return found


def check_weights(path: Path, found: Mapping[str, str], like: Params) -> None:
    """Raises ValueError unless a header is that of these arrays.

    Args:
      path: the file, for errors.
      found: its header.
      like: as in `read_weights`.
    """
    wanted = {name: _kind(x.dtype, x.shape) for name, x in named(like).items()}
    problems = [
        *(f"{name} is missing" for name in sorted(wanted.keys() - found.keys())),
        *(f"{name} is of no use" for name in sorted(found.keys() - wanted.keys())),
        *(
            f"{name} is {found[name]}, expected {wanted[name]}"
            for name in sorted(wanted.keys() & found.keys())
            if found[name] != wanted[name]
        ),
    ]
    if problems:
        raise ValueError(f"{path}: other arrays than the architecture has: {some(problems, '; ')}.")


def _check_finite(path: Path, arrays: Mapping[str, jax.Array]) -> None:
    """Raises ValueError that names the first array which holds what is no number."""
    for name, array in sorted(arrays.items()):
        if not np.isfinite(np.asarray(array, np.float32)).all():
            raise ValueError(f"{path}: {name} holds NaN or infinity; no translation comes of it.")


def _dtype(entry: Mapping[str, Any]) -> str:
    return DTYPES.get(entry["dtype"], entry["dtype"])


def _kind(dtype: object, shape: Sequence[int]) -> str:
    return f"{dtype} {list(shape)}"
