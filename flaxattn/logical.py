"""From logical names of axes, by one table of rules, to where on a mesh an array lies."""

import math
from collections.abc import Sequence

from jax.sharding import AbstractMesh, Mesh, PartitionSpec

__all__ = ["Rules", "spec_of"]

Rules = Sequence[tuple[str, str | tuple[str, ...] | None]]
"""Logical names and the mesh axes each is spread over, as `flax.linen.logical_axis_rules`."""


def spec_of(
    names: Sequence[str | None], shape: Sequence[int], rules: Rules, mesh: Mesh | AbstractMesh
) -> PartitionSpec:
    """Where an array lies whose axes have these names, none where there are fewer of them.

    An axis is not spread where its size does not divide, or another axis of the array is spread
    over the same devices already; the first rule of a name is taken that can be.

    >>> mesh = AbstractMesh((2, 3), ("data", "model"))
    >>> rules = [("batch", "data"), ("heads", "model"), ("mlp", "model")]
    >>> tuple(spec_of(["batch", None, "heads"], (4, 5, 6), rules, mesh))
    ('data', None, 'model')
    >>> tuple(spec_of(["heads", "mlp"], (4, 6), rules, mesh))
    (None, 'model')
    """
    entries: list[str | tuple[str, ...] | None] = []
    taken: set[str] = set()
    for i, size in enumerate(shape):
        name = names[i] if i < len(names) else None
        wanted = (_axes(axes) for rule, axes in rules if rule == name)
        entry = next((axes for axes in wanted if _fits(axes, size, taken, mesh)), ())
        taken.update(entry)
        entries.append(entry[0] if len(entry) == 1 else entry or None)
    return PartitionSpec(*entries)


def _axes(entry: str | tuple[str, ...] | None) -> tuple[str, ...]:
    return () if entry is None else (entry,) if isinstance(entry, str) else entry


def _fits(axes: tuple[str, ...], size: int, taken: set[str], mesh: Mesh | AbstractMesh) -> bool:
    known = all(axis in mesh.shape for axis in axes)
    return known and not taken & {*axes} and size % math.prod(mesh.shape[a] for a in axes) == 0
