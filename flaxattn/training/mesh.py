"""One mesh of all devices, and one table that says what of a run lies where on it."""

import contextlib
import math
import re
from collections.abc import Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from flaxattn.logical import spec_of
from flaxattn.ranges import FieldError
from flaxattn.training.trees import Tree
from flaxattn.types import PyTree

__all__ = [
    "AXES",
    "RULES",
    "check_batch_size",
    "data_mesh",
    "describe_mesh",
    "make_mesh",
    "mesh_sizes",
    "on_mesh",
    "place",
    "place_batch",
    "place_like",
    "shardings_like",
]

AXES = ("data", "fsdp", "context", "model")
"""Rows are spread over data and fsdp, their positions over context; parameters over fsdp, and over
model by heads, hidden units and words."""

RULES = (
    ("batch", ("data", "fsdp")),
    ("length", "context"),
    ("embed", "fsdp"),
    ("heads", "model"),
    ("mlp", "model"),
    ("vocab", "model"),
)
"""The mesh axes of each logical name that layers give; the one place that knows both."""

MOST = 10_000_000  # devices


def mesh_sizes(text: str) -> dict[str, int]:
    """The sizes of the axes that are named, as `--mesh` gives them.

    Raises:
      FieldError that says what is expected.

    >>> mesh_sizes("data=2,model=4")
    {'data': 2, 'model': 4}
    """
    sizes: dict[str, int] = {}
    for word in filter(None, text.replace(" ", "").split(",")):
        name, _, size = word.partition("=")
        known = name in AXES and name not in sizes
        if not known or not re.fullmatch(r"[0-9]+", size) or not 1 <= int(size) <= MOST:
            raise FieldError(
                "mesh",
                f"has {word!r}; expected sizes, from 1 on, of {', '.join(AXES)}, each at most "
                "once, such as data=2,fsdp=4.",
            )
        sizes[name] = int(size)
    return sizes


def make_mesh(text: str = "", devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh of all devices of all processes, or of those given, as `--mesh` says.

    What is not named is 1, but for data, which takes what is left.

    Raises:
      ValueError if there are not so many devices.
    """
    sizes, count = mesh_sizes(text), len(devices or jax.devices())
    named = math.prod(sizes.values())
    sizes = {"data": max(count // named, 1)} | sizes
    if math.prod(sizes.values()) != count:
        raise ValueError(
            f"--mesh {text}: is of {math.prod(sizes.values())} devices; there are {count}. Name "
            "sizes whose product that is; what data is not given, it takes."
        )
    shape = [sizes.get(axis, 1) for axis in AXES]
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)


def describe_mesh(mesh: Mesh) -> str:
    """What to say of a mesh that is more than the devices of a process in a line; else nothing."""
    sizes = {axis: mesh.shape[axis] for axis in AXES if mesh.shape[axis] > 1}
    processes = len({device.process_index for device in mesh.devices.flat})
    told = f"; {processes} processes" if processes > 1 else ""
    if processes > 1 or sizes.keys() - {"data"}:
        told += f"; mesh {','.join(f'{axis}={size}' for axis, size in sizes.items())}"
    return told


def data_mesh(devices: list[jax.Device] | None = None) -> Mesh:
    """The devices of this process, or those given, in one line called "data"."""
    return make_mesh(devices=devices or jax.local_devices())


def check_batch_size(batch_size: int, microbatches: int, mesh: Mesh) -> None:
    """Raises ValueError unless as many rows are everywhere, in every microbatch."""
    parts = mesh.shape["data"] * mesh.shape["fsdp"]
    if batch_size % (parts * microbatches):
        raise ValueError(
            f"--batch-size is {batch_size}; expected a multiple of {parts} devices times "
            f"{microbatches} microbatches."
        )


@contextlib.contextmanager
def on_mesh(mesh: Mesh) -> Iterator[None]:
    """While the block is traced, what layers name lies on the mesh as the table says."""
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh), nn.logical_axis_rules(RULES):
        yield


def place(tree: Tree, mesh: Mesh, *axes: str) -> Tree:
    """`tree` on the devices: spread over `axes`, or, without any, the same on all."""
    return jax.tree.map(lambda x: _placed(x, NamedSharding(mesh, PartitionSpec(*axes))), tree)


def place_batch(batch: Tree, mesh: Mesh) -> Tree:
    """A batch whose arrays are `[rows, positions, ...]` or `[rows]`, spread by both.

    Every process gives the whole batch, of which its devices take their part.
    """

    def placed(x: Any) -> jax.Array:
        spec = spec_of(("batch", "length"), x.shape, RULES, mesh)
        return _placed(x, NamedSharding(mesh, spec))

    return jax.tree.map(placed, batch)


def shardings_like(tree: PyTree, axes: PyTree, mesh: Mesh) -> PyTree:
    """Where each array of a tree lies that holds parameters, and others of their paths and shapes.

    Args:
      tree: of arrays; what is no parameter, and no moment or average of one, is on all devices.
      axes: for each parameter the logical names of its axes, a tuple or `PartitionSpec`.
    """
    is_names = lambda x: isinstance(x, tuple)  # noqa: E731
    named = {_names(path): x for path, x in jax.tree_util.tree_leaves_with_path(axes, is_names)}
    shortest = min(map(len, named), default=0)

    def sharding(path: jax.tree_util.KeyPath, x: Any) -> NamedSharding:
        names = _names(path)
        of_parameter = (names[i:] for i in range(len(names) - shortest + 1))
        found = next((named[end] for end in of_parameter if end in named), ())
        return NamedSharding(mesh, spec_of(tuple(found), x.shape, RULES, mesh))

    return jax.tree_util.tree_map_with_path(sharding, tree)


def place_like(tree: Tree, shardings: PyTree) -> Tree:
    """`tree` on the devices that a tree of shardings says."""
    return jax.tree.map(_placed, tree, shardings)


def _placed(x: Any, sharding: NamedSharding) -> jax.Array:
    if sharding.is_fully_addressable:
        return jax.device_put(x, sharding)
    array = np.asarray(x)  # each process has all of it
    return jax.make_array_from_callback(array.shape, sharding, lambda part: array[part])


def _names(path: jax.tree_util.KeyPath) -> tuple[str, ...]:
    return tuple(str(getattr(key, "key", key)) for key in path)
