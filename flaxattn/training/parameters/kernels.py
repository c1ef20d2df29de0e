"""Which parameters are matrices that map inputs to outputs, and which of their axes are which."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from flax.traverse_util import flatten_dict

from flaxattn.training.trees import Params
from flaxattn.types import PyTree

__all__ = ["Path", "Sides", "kernels_of"]

Path = tuple[str, ...]


class Sides(NamedTuple):
    """The shape of a kernel, parted into its inputs and its outputs."""

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


def kernels_of(params: Params, axes: PyTree) -> dict[Path, Sides]:
    """The sides of each kernel, and of each table of embeddings.

    Args:
      params: a nested dictionary of arrays, of which only the shapes are read.
      axes: the logical names of their axes: `embed` tells the inputs of a kernel, where it is the
        first axis, or its outputs, where it is the last.
    """
    names: dict[Path, Any] = flatten_dict(axes)
    return {
        path: sides
        for path, x in flatten_dict(params).items()
        if (sides := _sides(path[-1], tuple(names.get(path, ())), x.shape))
    }


def _sides(name: str, axes: Sequence[str | None], shape: tuple[int, ...]) -> Sides | None:
    """The inputs and outputs of a kernel; None if it is none, but a bias or a norm's scale."""
    unnamed = name == "kernel" and len(shape) == 2 and not any(axes)
    if len(shape) < 2 or not ("embed" in axes or unnamed):
        return None
    inputs = 1 if unnamed or axes[0] == "embed" else len(shape) - 1
    return Sides(shape[:inputs], shape[inputs:])
