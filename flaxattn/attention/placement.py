"""Where the work is done: each device attends for the examples and heads that it holds.

Axes are named by letters: "b" examples, "n" query heads, "k" key/value heads, None all others. Work
is divided over examples and heads alone; what is spread over other axes is gathered first.
"""

import functools
import itertools
import math
import warnings
from collections.abc import Callable, Sequence
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec
from jax.typing import DTypeLike

from flaxattn.attention.options import Options
from flaxattn.masks import BlockPlan, Mask
from flaxattn.types import PyTree

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
    "zero_varying_like",
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

Spread: TypeAlias = dict[str | None, tuple[str, ...]]
"""The axes of a mesh that the axes of a letter are spread over."""

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
        specs = [_spec(own, spread) for own in axes]
        arrays = [jax.sharding.reshard(x, spec) for x, spec in zip(arrays, specs, strict=True)]
        local = jax.shard_map(
            lambda *arrays: attend(*jax.tree.unflatten(tree, arrays)),
            mesh=mesh,
            in_specs=tuple(specs),
            out_specs=tuple(_spec(own, spread) for own in OUTPUT_AXES),
            axis_names=set(mesh.explicit_axes),
        )
        outputs: tuple[jax.Array, jax.Array] = local(*arrays)
        return outputs

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

        call = custom_partitioning(whole)
        call.def_partition(
            functools.partial(_partition, fn, axes, out_axes),
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
    used = [name for letter in "bn" for name in spread[letter]]

    def place(axes: Axes) -> NamedSharding:
        return NamedSharding(mesh, _spec(axes, spread))

    def of_device(*arrays: jax.Array) -> list[jax.Array]:
        own = fn(*arrays[: len(in_axes)])
        return [_added_up(x, axes) for x, axes in zip(own, out_axes, strict=True)]

    def _added_up(x: jax.Array, axes: Axes) -> jax.Array:
        held = [name for letter in axes for name in spread.get(letter, ())]
        missing = tuple(name for name in used if name not in held)
        return jax.lax.psum(x, missing) if missing else x

    return mesh, of_device, [*map(place, out_axes)], tuple(map(place, in_axes))


def _spec(axes: Axes, spread: Spread) -> PartitionSpec:
    return PartitionSpec(*(spread.get(a) or None for a in axes))


def _spread(spec: PartitionSpec, mesh: Mesh | AbstractMesh, kv_heads: int) -> Spread:
    """How examples and heads are spread, by the spec of the query, and key/value heads with these."""
    batch, positions, heads, features = map(_names, spec)
    elsewhere = (*positions, *features)
    parts = math.prod(mesh.shape[name] for name in heads)
    shared = kv_heads == 1
    if kv_heads % parts and not shared:
        heads, elsewhere = (), (*elsewhere, *heads)
    if elsewhere:
        _warn(elsewhere, kv_heads)
    return {"b": batch, "n": heads, "k": () if shared else heads}


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


def lead_axes(array: jax.Array, lead: int) -> Axes:
    """Those of an array `[B, N, ...]` of which `lead` axes are there, 1 where shared."""
    letters = zip("bn"[:lead], array.shape, strict=False)
    return (*(a if size != 1 else None for a, size in letters), *(None,) * (array.ndim - lead))


def head_axes(array: jax.Array) -> Axes:
    """Those of an array `[N]`, 1 where shared, or `[]`."""
    return tuple("n" if size != 1 else None for size in array.shape)


def zero_varying_like(arrays: PyTree, dtype: DTypeLike) -> jax.Array:
    """0 that varies over devices as the arrays do: what `shard_map` asks of the start of a loop."""
    never = jnp.zeros((), bool)
    for x in jax.tree.leaves(arrays):
        never |= (x.reshape(-1)[0] != x.reshape(-1)[0]) & False
    return never.astype(dtype)


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
