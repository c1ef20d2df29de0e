"""Where the work is done: each device attends for the examples and heads that it holds.

Axes are named by letters: "b" examples, "n" query heads, "k" key/value heads, None all others. Work
is divided over examples and heads alone; what is spread over other axes is gathered first.
"""

import functools
import itertools
import math
import warnings
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from flaxattn.attention.options import Options
from flaxattn.masks import BlockPlan, Mask
from flaxattn.types import Array

__all__ = [
    "OUTPUT_AXES",
    "QKV_AXES",
    "Axes",
    "Flat",
    "head_axes",
    "in_place",
    "lead_axes",
    "mask_axes",
    "partitioned",
]

Axes: TypeAlias = tuple[str | None, ...]
"""The letter of each axis of an array."""

Flat: TypeAlias = Callable[..., Sequence[jax.Array]]
"""A function of arrays that gives arrays."""

Attend: TypeAlias = Callable[
    [jax.Array, jax.Array, jax.Array, Mask | BlockPlan | None, Options],
    tuple[jax.Array, jax.Array],
]
"""An implementation: see `table.py`."""


class Spread(NamedTuple):
    """The axes of a mesh that each letter is spread over."""

    b: tuple[str, ...]
    n: tuple[str, ...]
    k: tuple[str, ...]
    shared: int = 1  # how many devices have the query heads of one key head; they all hold all keys

    def spec(self, axes: Axes) -> PartitionSpec:
        """Where an array with these axes is."""
        return PartitionSpec(*((a and getattr(self, a)) or None for a in axes))

    def own(self, x: jax.Array, axes: Axes) -> jax.Array:
        """The key heads of the device's query heads: the one that several devices share."""
        if self.shared == 1 or "k" not in axes:
            return x
        return jax.lax.dynamic_slice_in_dim(x, self._head(), 1, axes.index("k"))

    def put_back(self, x: jax.Array, axes: Axes, kv_heads: int) -> jax.Array:
        """All key heads: zeros but for those of `own`."""
        if self.shared == 1 or "k" not in axes:
            return x
        shape = tuple(kv_heads if a == "k" else n for a, n in zip(axes, x.shape, strict=True))
        zeros = jnp.zeros(shape, x.dtype)
        return jax.lax.dynamic_update_slice_in_dim(zeros, x, self._head(), axes.index("k"))

    def _head(self) -> jax.Array:
        return jax.lax.axis_index(self.n) // self.shared


QKV_AXES: tuple[Axes, ...] = (("b", None, "n", None), *(("b", None, "k", None),) * 2)
OUTPUT_AXES: tuple[Axes, ...] = (("b", None, "n", None), ("b", None, "n"))


def in_place(attend: Attend) -> Attend:
    """`attend`, by each device for what it holds where the mesh of the query has Explicit axes.

    There no loop may cross an axis that is spread, and all types say where arrays are; so the
    output is spread as the query is. On other meshes `attend` is left as it is.
    """

    def on_mesh(
        query: jax.Array,
        key: jax.Array,
        value: jax.Array,
        mask: Mask | BlockPlan | None,
        options: Options,
    ) -> tuple[jax.Array, jax.Array]:
        sharding = jax.typeof(query).sharding
        mesh = sharding.mesh
        if not mesh.explicit_axes:
            return attend(query, key, value, mask, options)
        spread = _spread(sharding.spec, mesh, key.shape[2])
        arrays, tree = jax.tree.flatten((query, key, value, mask, options))
        axes = (*QKV_AXES, *_mask_or_plan_axes(mask), *_option_axes(options))
        specs = [*map(spread.spec, axes)]
        moved = [
            jax.sharding.reshard(x, NamedSharding(mesh, spec))
            for x, spec in zip(arrays, specs, strict=True)
        ]

        def of_device(*arrays: jax.Array) -> tuple[jax.Array, jax.Array]:
            return attend(*jax.tree.unflatten(tree, map(spread.own, arrays, axes)))

        local: Callable[..., tuple[jax.Array, jax.Array]] = jax.shard_map(
            of_device,
            mesh=mesh,
            in_specs=tuple(specs),
            out_specs=tuple(map(spread.spec, OUTPUT_AXES)),
            axis_names=set(mesh.explicit_axes),
        )
        return local(*moved)

    return on_mesh


def partitioned(fn: Flat, in_axes: Sequence[Axes], out_axes: Sequence[Axes]) -> Flat:
    """`fn`, done by each device for what it holds, where the program is one for several devices.

    The compiler asks how to divide it once it knows where the arrays are, so nobody has to name a
    mesh. An output without a letter whose axis is divided is added up over the devices.

    Args:
      fn: of any number of examples and heads; its first argument is the query `[b, _, n, _]`.
      in_axes, out_axes: of its arguments and outputs.
    """

    def divided(*arrays: jax.Array) -> Sequence[jax.Array]:
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

    return divided


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
    kv_heads = next(
        x.shape[axes.index("k")] for x, axes in zip(arguments, in_axes, strict=True) if "k" in axes
    )
    spread = _spread(arguments[0].sharding.spec, mesh, kv_heads)
    used = {*spread.b, *spread.n}

    def of_device(*arrays: jax.Array) -> list[jax.Array]:
        outputs = fn(*map(spread.own, arrays, in_axes))
        return [added_up(x, axes) for x, axes in zip(outputs, out_axes, strict=True)]

    def added_up(x: jax.Array, axes: Axes) -> jax.Array:
        held = {name for letter in axes if letter for name in getattr(spread, letter)}
        x = spread.put_back(x, axes, kv_heads)
        return jax.lax.psum(x, tuple(used - held)) if used - held else x

    places = [NamedSharding(mesh, spread.spec(axes)) for axes in (*in_axes, *out_axes)]
    return mesh, of_device, places[len(in_axes) :], tuple(places[: len(in_axes)])


def _spread(spec: PartitionSpec, mesh: Mesh | AbstractMesh, kv_heads: int) -> Spread:
    """How the query is spread, and key/value heads with its heads."""
    batch, positions, heads, features = map(_names, spec)
    elsewhere = (*positions, *features)
    parts = math.prod(mesh.shape[name] for name in heads)
    shared = parts // kv_heads if parts % kv_heads == 0 else 1
    if kv_heads % parts and shared == 1:
        heads, elsewhere = (), (*elsewhere, *heads)
    if elsewhere:
        _warn(elsewhere, kv_heads)
    return Spread(batch, heads, heads if kv_heads % parts == 0 else (), shared)


def _names(entry: str | tuple[str, ...] | None) -> tuple[str, ...]:
    """The mesh axes of an entry of a `PartitionSpec`."""
    return () if entry is None else entry if isinstance(entry, tuple) else (entry,)


def _warn(names: tuple[str, ...], kv_heads: int) -> None:
    warnings.warn(
        f"attention: the query is spread over mesh axes {names} in a way that blockwise attention "
        f"cannot follow, so each device of these does the work of all. It follows examples, and "
        f"heads where the devices divide the {kv_heads} key/value heads: spread these instead.",
        stacklevel=2,
    )


def lead_axes(array: Array, lead: int) -> Axes:
    """Those of an array `[B, N, ...]` of which `lead` axes are there, 1 where shared."""
    letters = zip("bn"[:lead], array.shape, strict=False)
    return (*(a if size != 1 else None for a, size in letters), *(None,) * (array.ndim - lead))


def head_axes(array: jax.Array) -> Axes:
    """Those of an array `[N]`, 1 where shared, or `[]`."""
    return tuple("n" if size != 1 else None for size in array.shape)


def _mask_or_plan_axes(mask: Mask | BlockPlan | None) -> tuple[Axes, ...]:
    if mask is None:
        return ()
    if isinstance(mask, Mask):
        return mask_axes(mask)
    lead = mask.live.num_live.ndim - 1
    return (*mask_axes(mask.mask), *(lead_axes(x, lead) for x in (*mask.bounds, *mask.live)))


def _option_axes(options: Options) -> tuple[Axes, ...]:
    bias, scale, seeds = options.bias, options.scale, options.seeds
    return (
        *(() if bias is None else (lead_axes(bias, 2),)),
        *(() if scale is None else (head_axes(jnp.asarray(scale)),)),
        *(() if seeds is None else (lead_axes(seeds, 2),)),
    )


def mask_axes(mask: Mask) -> tuple[Axes, ...]:
    """Those of the arrays in a mask, in the order of `jax.tree.leaves`."""
    return tuple(lead_axes(leaf.array, len(leaf.lead)) for leaf in mask.leaves())
