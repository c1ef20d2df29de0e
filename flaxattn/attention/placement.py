"""Where the work is done: each device attends for the examples and heads that it holds.

Work is divided over the axes that have letters, see `axes.py`; what is spread over others is
gathered first.
"""

import functools
import itertools
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from flaxattn.attention.axes import OUTPUT_AXES, Axes, call_axes
from flaxattn.attention.options import Attend, Call

__all__ = ["Flat", "divided", "in_place", "on_explicit_mesh", "warn_unless_single"]

Flat: TypeAlias = Callable[..., Sequence[jax.Array]]
"""A function of arrays that gives arrays."""


class Spread(NamedTuple):
    """The axes of a mesh that each letter is spread over."""

    names: Mapping[str | None, tuple[str, ...]]
    kv_heads: int
    shared: int  # how many devices have the query heads of one key head; they all hold all keys

    def spec(self, axes: Axes) -> PartitionSpec:
        """Where an array with these axes is."""
        return PartitionSpec(*(self.names.get(letter) or None for letter in axes))

    def own(self, x: jax.Array, axes: Axes) -> jax.Array:
        """The key heads of the device's query heads: the one that several devices share."""
        if self.shared == 1 or "k" not in axes:
            return x
        return jax.lax.dynamic_slice_in_dim(x, self._head(), 1, axes.index("k"))

    def whole(self, x: jax.Array, axes: Axes) -> jax.Array:
        """An output of a device as one of all: added up where it has no letter that is spread."""
        if self.shared > 1 and "k" in axes:  # zeros but for those of `own`
            axis = axes.index("k")
            zeros = jnp.zeros((*x.shape[:axis], self.kv_heads, *x.shape[axis + 1 :]), x.dtype)
            x = jax.lax.dynamic_update_slice_in_dim(zeros, x, self._head(), axis)
        held = {name for letter in axes for name in self.names.get(letter, ())}
        missing = {name for names in self.names.values() for name in names} - held
        return jax.lax.psum(x, tuple(missing)) if missing else x

    def _head(self) -> jax.Array:
        return jax.lax.axis_index(self.names["n"]) // self.shared


def in_place(attend: Attend) -> Attend:
    """`attend`, by each device for what it holds where the mesh of the query has Explicit axes.

    There no loop may cross an axis that is spread, and all types say where arrays are; so the
    output is spread as the query is. On other meshes `attend` is left as it is.
    """

    def on_mesh(*call: *Call) -> tuple[jax.Array, jax.Array]:
        arrays, tree = jax.tree.flatten(call)

        def flat(*arrays: jax.Array) -> tuple[jax.Array, jax.Array]:
            return attend(*jax.tree.unflatten(tree, arrays))

        output, lse = on_explicit_mesh(flat, call_axes(*call), OUTPUT_AXES)(*arrays)
        return output, lse

    return on_mesh


def on_explicit_mesh(fn: Flat, in_axes: Sequence[Axes], out_axes: Sequence[Axes]) -> Flat:
    """`fn`, done by each device for what it holds where arrays are spread over Explicit axes."""

    def on_mesh(*arrays: jax.Array) -> Sequence[jax.Array]:
        types = [jax.typeof(x) for x in arrays]
        meshes = [t.sharding.mesh for t in types if t.sharding.mesh.explicit_axes]
        if not meshes:
            return fn(*arrays)
        mesh, spread = meshes[0], _spread(in_axes, meshes[0], types)
        specs = [*map(spread.spec, in_axes)]
        moved = (
            jax.sharding.reshard(x, NamedSharding(mesh, spec))
            for x, spec in zip(arrays, specs, strict=True)
        )
        if not any(spread.names.values()):
            return fn(*moved)
        local: Flat = jax.shard_map(
            _of_device(fn, in_axes, out_axes, spread),
            mesh=mesh,
            in_specs=tuple(specs),
            out_specs=[*map(spread.spec, out_axes)],
            axis_names={name for names in spread.names.values() for name in names},
        )
        return local(*moved)

    return on_mesh


def _of_device(fn: Flat, in_axes: Sequence[Axes], out_axes: Sequence[Axes], spread: Spread) -> Flat:
    """`fn` of what a device holds: its own key heads, and outputs added up."""

    def local(*arrays: jax.Array) -> list[jax.Array]:
        outputs = fn(*map(spread.own, arrays, in_axes))
        return [*map(spread.whole, outputs, out_axes)]

    return local


def divided(fn: Flat, in_axes: Sequence[Axes], out_axes: Sequence[Axes]) -> Flat:
    """`fn`, done by each device for what it holds, where the program is one for several devices.

    Where types do not say how arrays are spread the compiler asks, once it knows: nobody has to
    name a mesh. An output without a letter that is spread is added up over the devices.

    Args:
      fn: of arrays of any number of examples and heads, the query first.
      in_axes, out_axes: of its arguments and outputs.
    """

    def by_compiler(*arrays: jax.Array) -> Sequence[jax.Array]:
        mesh = jax.sharding.get_abstract_mesh()
        if mesh.manual_axes:  # inside shard_map, perhaps of some axes alone
            _warn_of_rest([name for name in mesh.auto_axes if mesh.shape[name] > 1])
            return fn(*arrays)
        closed = jax.make_jaxpr(fn)(*arrays)
        consts: list[jax.Array] = list(closed.consts)  # of a rule of one's own: every device's
        axes = [*in_axes, *((None,) * x.ndim for x in consts)]

        def whole(*operands: jax.Array) -> list[jax.Array]:
            arrays, consts = operands[: len(in_axes)], operands[len(in_axes) :]
            outputs: list[jax.Array] = jax.core.eval_jaxpr(closed.jaxpr, consts, *arrays)
            return outputs

        def part(*operands: jax.Array) -> Sequence[jax.Array]:
            return fn(*operands[: len(in_axes)])  # its constants are made anew

        call = custom_partitioning(whole)
        call.def_partition(
            functools.partial(_partition, part, axes, out_axes),
            sharding_rule=_rule(axes, out_axes),
        )
        outputs: Sequence[jax.Array] = call(*arrays, *consts)
        return outputs

    return on_explicit_mesh(by_compiler, in_axes, out_axes)


def _rule(in_axes: Sequence[Axes], out_axes: Sequence[Axes]) -> str:
    """The letters as a sharding rule: axes with the same name are spread alike."""
    numbers = itertools.count()

    def side(sides: Sequence[Axes]) -> str:
        return ", ".join(" ".join(a or f"x{next(numbers)}" for a in axes) for axes in sides)

    return f"{side(in_axes)} -> {side(out_axes)}"


def _partition(
    fn: Flat,
    in_axes: Sequence[Axes],
    out_axes: Sequence[Axes],
    mesh: Mesh,
    arguments: Sequence[jax.ShapeDtypeStruct],
    outputs: Sequence[jax.ShapeDtypeStruct],
) -> tuple[Mesh, Flat, list[NamedSharding], tuple[NamedSharding, ...]]:
    """What the compiler asks for: the function of one device, and where it has what."""
    spread = _spread(in_axes, mesh, arguments)
    local = _of_device(fn, in_axes, out_axes, spread)
    places = [NamedSharding(mesh, spread.spec(axes)) for axes in (*in_axes, *out_axes)]
    return mesh, local, places[len(in_axes) :], tuple(places[: len(in_axes)])


def _spread(
    in_axes: Sequence[Axes], mesh: Mesh | AbstractMesh, arguments: Sequence[jax.ShapeDtypeStruct]
) -> Spread:
    """How each letter is spread, by the first of the arrays in which it is; the query comes first.

    Warns, once, where the query is spread in another way.
    """
    found: dict[str | None, tuple[str, ...]] = {}
    for axes, x in zip(in_axes, arguments, strict=True):
        for letter, entry, size in zip(axes, x.sharding.spec, x.shape, strict=True):
            names = _names(entry)
            taken = {name for others in found.values() for name in others}.intersection(names)
            if letter in (None, "k") or letter in found or taken or size % _count(mesh, names):
                continue
            if names:
                found[letter] = names
    kv_heads = next(
        x.shape[axes.index("k")] for axes, x in zip(in_axes, arguments, strict=True) if "k" in axes
    )
    parts = _count(mesh, found.get("n", ()))
    if kv_heads % parts and parts % kv_heads:
        del found["n"]
    elif kv_heads % parts == 0:
        found["k"] = found.get("n", ())
    asked = {name for entry in arguments[0].sharding.spec for name in _names(entry)}
    lost = asked.difference(*found.values())
    if lost:
        _warn(lost, kv_heads)
    shared = parts // kv_heads if "n" in found and kv_heads % parts else 1
    return Spread(found, kv_heads, shared)


def _count(mesh: Mesh | AbstractMesh, names: tuple[str, ...]) -> int:
    """How many parts an axis is in that is spread over these."""
    return math.prod(mesh.shape[name] for name in names)


def _names(entry: str | tuple[str, ...] | None) -> tuple[str, ...]:
    """The mesh axes of an entry of a `PartitionSpec`."""
    return () if entry is None else entry if isinstance(entry, tuple) else (entry,)


def _warn(names: set[str], kv_heads: int) -> None:
    warnings.warn(
        f"attention: the query is spread over mesh axes {sorted(names)} in a way that the work "
        "cannot follow, so each of these devices does the work of all. It follows examples, "
        f"and heads where devices and the {kv_heads} key/value heads divide: spread these instead.",
        stacklevel=2,
    )


def warn_unless_single(num_devices: int) -> None:
    """Warns where a program for several devices is one that no compiler asks about."""
    if num_devices > 1:
        warnings.warn(
            f"attention: in a program for {num_devices} TPUs, or for as many devices and exported, "
            "attention by blocks is not divided where types do not say how, and each of them may "
            "do the work of all. Use a mesh with Explicit axes, or jax.shard_map.",
            stacklevel=2,
        )


def _warn_of_rest(names: list[str]) -> None:
    if names:
        warnings.warn(
            f"attention: inside a shard_map that leaves the mesh axes {names} to the compiler, "
            "attention by blocks is not divided over these, and each of their devices may do the "
            "work of all. Give the shard_map all axes that examples and heads are spread over.",
            stacklevel=2,
        )
