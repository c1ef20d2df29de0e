"""Arrays inside a mask: declared as its fields, checked, and mapped over examples and heads.

A mask is a frozen dataclass and a pytree. A field made by `leaf` holds an array, or a number,
which is static; one made by `child` holds another mask. Scores are made of the same.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Any, ClassVar, NamedTuple, Protocol, TypeAlias, TypeVar, dataclass_transform

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import GetAttrKey as Key
from jax.typing import DTypeLike

from flaxattn import checks
from flaxattn.masks.indices import FIRST
from flaxattn.masks.values import register_for_export
from flaxattn.types import Array, Indices, PyTree

__all__ = [
    "HasLeaves",
    "Leaf",
    "Span",
    "array_leaf",
    "check_leaf",
    "child",
    "fields_of",
    "index_leaf",
    "lead_of",
    "leaf",
    "map_leaves",
    "mask_type",
    "over_heads",
    "parts_of",
    "static_index",
]


class Leaf(NamedTuple):
    """An array inside a mask: what to call it in an error, and what its last axes are."""

    name: str
    array: Array
    axes: tuple[str, ...]  # for one example and head: positions "q", "kv" or "both", or others

    @property
    def lead(self) -> tuple[int, ...]:
        """The sizes of the leading axes: (), batch, or batch and head."""
        return tuple(self.array.shape[: self.array.ndim - len(self.axes)])


class Span(NamedTuple):
    """A range of positions; `start` is None where it is not known while tracing."""

    start: int | None
    length: int

    def shifted(self, by: Indices) -> "Span":
        """The range `by` positions later; an array's values are not known while tracing."""
        if self.start is None or not isinstance(by, int):
            return Span(None, self.length)
        return Span(self.start + by, self.length)


class HasLeaves(Protocol):
    """A dataclass and pytree that describes its arrays: a mask."""

    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]
    kind: ClassVar[str]
    leading: ClassVar[str]

    def leaves(self) -> Iterator[Leaf]:
        """The arrays in the order of `jax.tree.leaves`."""


SomeMask = TypeVar("SomeMask", bound=HasLeaves)
Result = TypeVar("Result")  # a pytree
Static: TypeAlias = tuple[tuple[str, ...], tuple[tuple[str, Any], ...]]
"""What jax hashes of a mask: the names of its children, and its other fields."""


def leaf(*axes: str, default: Any = dataclasses.MISSING) -> Any:
    """A dataclass field for an array whose axes, for one example and head, are `axes`."""
    return dataclasses.field(default=default, metadata={"axes": axes})


def child() -> Any:
    """A dataclass field that is a pytree of its own: a mask, or a tuple of masks or arrays."""
    return dataclasses.field(metadata={"child": True})


@dataclass_transform(frozen_default=True, eq_default=False)
def mask_type(cls: type[SomeMask]) -> type[SomeMask]:
    """Makes `cls` a frozen dataclass and a pytree: arrays are leaves, all else is static."""
    cls = dataclasses.dataclass(frozen=True, eq=False, repr=False)(cls)

    def dynamic_names(mask: SomeMask) -> tuple[str, ...]:
        if "_dynamic" in vars(mask):  # made by unflatten, perhaps with placeholders for arrays
            names: tuple[str, ...] = vars(mask)["_dynamic"]
            return names
        fields = fields_of(mask)
        return tuple(f.name for f, v in fields if "child" in f.metadata or _is_dynamic(f, v))

    def flatten_with_keys(mask: SomeMask) -> tuple[list[tuple[Key, PyTree]], Static]:
        names = dynamic_names(mask)
        static = tuple((f.name, v) for f, v in fields_of(mask) if f.name not in names)
        children = [(Key(n), getattr(mask, n)) for n in names]
        return children, (names, static)

    def unflatten(aux: Static, children: Iterable[PyTree]) -> SomeMask:
        mask = object.__new__(cls)  # no checks: jax puts placeholders in leaves
        for name, value in (*zip(aux[0], children, strict=True), *aux[1]):
            object.__setattr__(mask, name, value)
        object.__setattr__(mask, "_dynamic", aux[0])
        return mask

    jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten)
    register_for_export(cls)
    cls._is_mask_type = True  # type: ignore[attr-defined]  # this class, not one derived from it: see `parts_of`
    return cls


def fields_of(mask: HasLeaves) -> Iterator[tuple[dataclasses.Field[Any], Any]]:
    """The fields of a mask and what they hold."""
    for field in dataclasses.fields(mask):
        yield field, getattr(mask, field.name)


def parts_of(mask: SomeMask) -> Iterator[Leaf | SomeMask]:
    """The arrays, as `Leaf`, and the child masks of a mask, in the order of its fields.

    Raises TypeError for a mask whose class is no `mask_type`: jax would see no parts in it.
    """
    if "_is_mask_type" not in vars(type(mask)):
        name = type(mask).__name__
        raise TypeError(f"{name} is not registered: put @{mask.kind}_type above `class {name}`.")
    for field, value in fields_of(mask):
        if "child" in field.metadata:
            yield from value if isinstance(value, tuple) else (value,)
        elif _is_dynamic(field, value):
            yield Leaf(f"{type(mask).__name__}: {field.name}", value, field.metadata["axes"])


def _is_dynamic(field: dataclasses.Field[Any], value: object) -> bool:
    return "axes" in field.metadata and not isinstance(value, int | float | None)


def index_leaf(mask: HasLeaves, name: str, *, minimum: int = FIRST) -> None:
    """Checks and stores field `name`: an integer stays static, an array becomes int32.

    Raises TypeError unless it holds integers, ValueError for a rank too high, or for values below
    `minimum` or beyond int32 where they are known.
    """
    if checks.is_static(getattr(mask, name)):
        static_index(mask, name, minimum=minimum)
        return
    array = array_leaf(mask, name, checks.check_integer, np.int32)
    _check_least(_owner(mask, name), array, minimum)
    object.__setattr__(mask, name, array)


def static_index(mask: HasLeaves, name: str, *, minimum: int = FIRST) -> None:
    """Checks and stores field `name`, an integer; raises as `index_leaf`."""
    size = checks.check_size(_owner(mask, name), getattr(mask, name), minimum=minimum)
    object.__setattr__(mask, name, size)


def _owner(mask: HasLeaves, name: str) -> str:
    return f"{type(mask).__name__}: {name}"


def _check_least(owner: str, array: Array, minimum: int) -> None:
    """Raises ValueError where a value that is known is less; what is traced is not known."""
    if minimum > FIRST and checks.is_known(array) and np.size(array):
        least = np.min(array)
        if least < minimum:
            raise ValueError(f"{owner} holds {least}; expected at least {minimum}.")


def array_leaf(
    mask: HasLeaves, name: str, check: Callable[[str, Array], None], dtype: DTypeLike | None
) -> Array:
    """Field `name` as a checked array of `dtype`, None: its own; of NumPy unless it was of jax."""
    owner, array = _owner(mask, name), checks.as_array(_owner(mask, name), getattr(mask, name))
    check(owner, array)
    dtype = array.dtype if dtype is None else dtype
    if not np.can_cast(array.dtype, dtype) and checks.is_known(array):
        known = np.asarray(array)  # jax would compare uint32 as int32
        if (known.astype(dtype) != known).any():
            raise ValueError(f"{owner} has values beyond {np.dtype(dtype)}.")
    axes = {f.name: f for f in dataclasses.fields(mask)}[name].metadata["axes"]
    if not len(axes) <= array.ndim <= len(axes) + 2:
        shape = f"[{', '.join(axes)}]"
        raise ValueError(
            f"{owner} has shape {tuple(array.shape)}; expected {shape} for one example and head, "
            f"or the same with leading {mask.leading} axes."
        )
    return array.astype(dtype)


def check_leaf(leaf: Leaf, q: Span, kv: Span) -> None:
    """Raises ValueError where an array has fewer positions than the spans ask for."""
    name, array, axes = leaf
    spans = {"q": [q], "kv": [kv], "both": [q, kv]}
    for axis, size in zip(axes, array.shape[array.ndim - len(axes) :], strict=True):
        for start, length in spans.get(axis, ()):  # others are of no positions
            if start is not None and size < start + length:
                raise ValueError(
                    f"{name} has shape {tuple(array.shape)}, that is {size} positions, "
                    f"but positions {start} to {start + length - 1} were asked for."
                )


def lead_of(leaves: list[Leaf]) -> tuple[int, ...]:
    """The leading axes of leaves together, 1 where shared; ValueError where they disagree."""
    lead: list[tuple[int, str]] = []
    for leaf in leaves:
        for i, size in enumerate(leaf.lead):
            if i == len(lead):
                lead.append((size, leaf.name))
            elif lead[i][0] == 1:
                lead[i] = (size, leaf.name)
            elif size not in (1, lead[i][0]):
                raise ValueError(
                    f"{leaf.name} has shape {tuple(leaf.array.shape)}, so "
                    f"{('batch', 'head')[i]} is {size}; but {lead[i][1]} has {lead[i][0]} there."
                )
    return tuple(size for size, _ in lead)


def over_heads(fn: Callable[[SomeMask], Result], mask: SomeMask) -> Result:
    """`fn` of the mask of one example and head, vmapped over the axes its leaves carry.

    Returns `[*mask.lead, ...]`; an axis that no leaf needs is not vmapped over.
    """
    described = list(mask.leaves())
    lead = lead_of(described)
    arrays, treedef = jax.tree.flatten(mask)
    # An axis of size 1 is shared: dropped here, None in in_axes, put back at the end.
    mapped = [{i for i, size in enumerate(d.lead) if size != 1} for d in described]
    if any(mapped) or any(isinstance(a, jax.Array) for a in arrays):
        # XLA of jax 0.7 folds sums of a constant over blocks into wrong numbers, and slowly.
        arrays = [jax.lax.optimization_barrier(jnp.asarray(a)) for a in arrays]
    squeezed = [
        a.reshape([n for i, n in enumerate(a.shape) if i >= len(d.lead) or i in kept])
        for a, d, kept in zip(arrays, described, mapped, strict=True)
    ]

    def call(arrays: list[Array]) -> Result:
        return fn(jax.tree.unflatten(treedef, arrays))

    for axis in reversed(range(len(lead))):
        in_axes = [0 if axis in kept else None for kept in mapped]
        if any(a is not None for a in in_axes):
            call = jax.vmap(call, in_axes=(in_axes,))
    shared = [i for i, size in enumerate(lead) if size == 1]
    result = call(squeezed)
    if shared:
        result = jax.tree.map(lambda x: jnp.expand_dims(x, shared), result)
    return result


def map_leaves(fn: Callable[[Array, int], Array], mask: SomeMask) -> SomeMask:
    """The mask with `fn(array, number of leading axes)` in place of each of its arrays."""
    arrays, treedef = jax.tree.flatten(mask)
    leads = [len(leaf.lead) for leaf in mask.leaves()]
    mapped: SomeMask = jax.tree.unflatten(treedef, map(fn, arrays, leads))
    return mapped
