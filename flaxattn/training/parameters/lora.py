"""Low-rank adapters (LoRA, Hu et al. 2021, arXiv:2106.09685): what is learned beside kernels.

A kernel W becomes W + scale * A B, whose rank is small. The letter R stands for that rank.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from flaxattn.training.parameters.freezing import matches
from flaxattn.training.parameters.kernels import Path, Sides, kernels_of
from flaxattn.training.trees import Params
from flaxattn.types import PyTree

__all__ = ["adapter_axes", "fresh_adapters", "merged"]


def fresh_adapters(
    params: Params, axes: PyTree, patterns: Sequence[str], rank: int, key: jax.Array
) -> Params:
    """Adapters that change nothing yet: for each kernel that a pattern matches, `a` and `b`.

    `a` is `[inputs..., R]`, drawn so that an output of unit inputs has variance one, and `b`
    `[R, outputs...]`, zero. Both are float32.

    Args:
      params: a nested dictionary of arrays, of which only the shapes are read.
      axes: the logical names of their axes: `embed` tells the inputs of a kernel, where it is the
        first axis, or its outputs, where it is the last.
      patterns: of paths as in `freezing.labels`, from any step on: `query` is `*/query` as well;
        `query|value` are two.
      rank: at most as many as a kernel has inputs, and outputs.

    Raises:
      ValueError if a pattern matches no kernel, or the rank is above what one allows.
    """
    kernels = _adapted(params, axes, patterns)
    keys = jax.random.split(key, len(kernels))
    made: dict[Path, jax.Array] = {}
    for key, (path, (inputs, outputs)) in zip(keys, sorted(kernels.items()), strict=True):
        most = min(math.prod(inputs), math.prod(outputs))
        if not 1 <= rank <= most:
            raise ValueError(
                f"--lora {rank}: {'/'.join(path)} is of {math.prod(inputs)} inputs and "
                f"{math.prod(outputs)} outputs; expected a rank of 1 to {most}."
            )
        drawn = jax.random.normal(key, (*inputs, rank), jnp.float32)
        made[*path, "a"] = drawn / math.sqrt(math.prod(inputs))
        made[*path, "b"] = jnp.zeros((rank, *outputs), jnp.float32)
    return unflatten_dict(made)


def adapter_axes(adapters: Params, axes: PyTree) -> PyTree:
    """The logical names of the axes of adapters: those of their kernels; the rank has none."""
    names: dict[Path, Any] = flatten_dict(axes)

    def of(path: Path, x: Any) -> tuple[str | None, ...]:
        found, here = names[path[:-1]], x.ndim - 1
        return (*found[:here], None) if path[-1] == "a" else (None, *found[-here:])

    return unflatten_dict({path: of(path, x) for path, x in flatten_dict(adapters).items()})


def merged(params: Params, adapters: Params, scale: float) -> Params:
    """Parameters whose kernels have become W + scale * A B, added up in float32.

    Args:
      params: a nested dictionary of arrays.
      adapters: as `fresh_adapters` made them, or as they have been trained since.
      scale: of what they add.
    """
    found, low = dict(flatten_dict(params)), flatten_dict(adapters)
    for path in {path[:-1] for path in low}:
        change = jnp.tensordot(low[*path, "a"], low[*path, "b"], 1, precision="highest")
        kernel = jnp.asarray(found[path])
        found[path] = (kernel.astype(jnp.float32) + scale * change).astype(kernel.dtype)
    return unflatten_dict(found)


def _adapted(params: Params, axes: PyTree, patterns: Sequence[str]) -> dict[Path, Sides]:
    """The sides of each kernel that a pattern matches."""
    kernels, adapted = kernels_of(params, axes), dict[Path, Sides]()
    for pattern in _alternatives(patterns):
        found = {path: sides for path, sides in kernels.items() if _names(pattern, path)}
        if not found:
            raise ValueError(
                f"--lora-on: no kernel matches {pattern!r}; there are "
                f"{', '.join(sorted({path[-2] if path[1:] else path[0] for path in kernels}))}, "
                "and --dry-run without --lora shows all paths."
            )
        adapted |= found
    if not adapted:
        raise ValueError("--lora-on: names no kernel; expected some, such as query|value.")
    return adapted


def _alternatives(patterns: Sequence[str]) -> Iterator[str]:
    for pattern in patterns:
        yield from pattern.split("|")


def _names(pattern: str, path: Path) -> bool:
    text = "/".join(path)
    return bool(pattern) and (matches(text, pattern) or matches(text, f"*/{pattern}"))
