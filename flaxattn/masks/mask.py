"""The mask algebra: a mask is a pure function of a query index and a key index.

Masks combine with `&`, `|` and `~`. Arrays inside a mask are leaves of a pytree, so new values
never recompile; Python integers are static. No mask knows a shape: `dense` draws one.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar, dataclass_transform

import chex
import jax
import jax.numpy as jnp
import numpy as np

from flaxattn import checks
from flaxattn.masks.blocks import Blocks, Bounds
from flaxattn.masks.explain import explain_plan
from flaxattn.masks.plan import BlockPlan, make_plan, plan_pays

__all__ = [
    "And",
    "Mask",
    "Not",
    "Or",
    "Shifted",
    "child",
    "index_leaf",
    "leaf",
    "map_leaves",
    "mask_type",
    "over_heads",
]

SomeMask = TypeVar("SomeMask", bound="Mask")


class Leaf(NamedTuple):
    """An array inside a mask: what to call it in an error, and what its last axes are."""

    name: str
    array: Any
    axes: tuple[str, ...]  # for one example and head: positions "q", "kv" or "both", or "any"

    @property
    def lead(self) -> tuple[int, ...]:
        """The sizes of the leading axes: (), batch, or batch and head."""
        return tuple(self.array.shape[: self.array.ndim - len(self.axes)])


class Span(NamedTuple):
    """A range of positions; None where it is not known while tracing."""

    start: int | None
    length: int

    def shifted(self, by: Any) -> "Span":
        known = self.start is not None and isinstance(by, int)
        return Span(self.start + by if known else None, self.length)


def leaf(*axes: str, default: Any = dataclasses.MISSING) -> Any:
    """A dataclass field for an array whose axes, for one example and head, are `axes`."""
    return dataclasses.field(default=default, metadata={"axes": axes})


def child() -> Any:
    """A dataclass field that is a pytree of its own: a mask, or a tuple of arrays."""
    return dataclasses.field(metadata={"child": True})


class Mask:
    """What each query may attend to: True = attend.

    Called with integer index arrays, a mask gives the rule for one example and one head:

    >>> mask = causal() & sliding_window(2)
    >>> bool(mask(5, 4)), bool(mask(5, 2)), bool(mask(5, 6))
    (True, False, False)
    """

    __array_ufunc__ = None  # so that `numpy_array & mask` asks `Mask.__rand__`

    def __call__(self, q_idx: Any, kv_idx: Any) -> Any:
        """The rule: integer arrays in, broadcast against each other, booleans out."""
        raise TypeError(f"{type(self).__name__} gives no rule; define __call__(q_idx, kv_idx).")

    def __and__(self, other: "Mask") -> "Mask":
        return And(self, _operand("&", other))

    def __or__(self, other: "Mask") -> "Mask":
        return Or(self, _operand("|", other))

    def __invert__(self) -> "Mask":
        return Not(self)

    def __rand__(self, other: Any) -> "Mask":
        return And(_operand("&", other), self)

    def __ror__(self, other: Any) -> "Mask":
        return Or(_operand("|", other), self)

    def __bool__(self) -> bool:
        raise TypeError(
            "a mask has no single truth value; combine masks with & | ~ instead of and, or, not."
        )

    def shift(self, q_start: Any = 0, kv_start: Any = 0) -> "Mask":
        """The same mask seen from later positions: index 0 stands for `q_start`, `kv_start`.

        One mask so serves training, prefill, one-token decoding and a shard of a long sequence.
        Starts are integers, or integer arrays `[]`, `[B]` or `[B, N]`.
        """
        return Shifted(self, q_start, kv_start)

    def dense(self, q_len: int, kv_len: int, *, q_start: Any = 0, kv_start: Any = 0) -> jax.Array:
        """The mask as booleans `[T, S]`, or `[B, T, S]` or `[B, N, T, S]` if its leaves are so.

        Raises ValueError if an array inside is shorter than the positions asked for.
        """
        mask = self.shift(q_start, kv_start)
        mask.check_length(q_len, kv_len)
        return mask.outer(jnp.arange(q_len, dtype=jnp.int32), jnp.arange(kv_len, dtype=jnp.int32))

    def outer(self, q_idx: jax.Array, kv_idx: jax.Array) -> jax.Array:
        """The rule for every pair of the given indices: int [T], int [S] -> bool [*lead, T, S]."""
        chex.assert_rank([q_idx, kv_idx], 1)
        q_idx, kv_idx = q_idx.astype(jnp.int32), kv_idx.astype(jnp.int32)

        def one_head(mask: Mask) -> jax.Array:
            seen = jnp.asarray(mask(q_idx[:, None], kv_idx[None, :]))
            chex.assert_type(seen, bool)
            return jnp.broadcast_to(seen, (q_idx.size, kv_idx.size))

        return over_heads(one_head, self)

    def bounds(self, q_blocks: Blocks, kv_blocks: Blocks) -> Bounds:
        """What the mask proves of each pair of blocks: bool `[*lead, Q, K]` each.

        NumPy where nothing is traced, so that it is known while tracing.
        """
        q, kv = q_blocks.reshape(-1, 1), kv_blocks.reshape(1, -1)
        return over_heads(lambda mask: mask.head_bounds(q, kv), self)

    def plan(
        self, q_len: int, kv_len: int, *, block_q: int | None = None, block_kv: int | None = None
    ) -> BlockPlan:
        """Which blocks are empty, partial and full; `attend` takes the plan in place of the mask.

        Args:
          q_len, kv_len: T and S.
          block_q, block_kv: queries and keys of a block; by default sizes that suit the mask if
            it is known while tracing, else sizes that suit most.

        Raises ValueError if an array inside is shorter than the positions asked for.
        """
        return make_plan(self, q_len, kv_len, block_q, block_kv)

    def prepare(self, q_len: int, kv_len: int) -> "Mask | BlockPlan":
        """The plan if `implementation="auto"` would use one, else the mask: shared by layers."""
        return self.plan(q_len, kv_len) if plan_pays(q_len, kv_len)[0] else self

    def explain(self, q_len: int, kv_len: int) -> str:
        """A map of the blocks, the share of work skipped, and what "auto" chooses and why.

        >>> print(causal().explain(1024, 1024))
        causal(): 1024 queries, 1024 keys, blocks of 256 x 256
        ▒···
        █▒··
        ██▒·
        ███▒
        · empty 37.5%   ▒ partial 25.0%   █ full 37.5%
        skipped: 37.5% of the blocks, 37.5% of the FLOPs of dense attention
        implementation="auto" chooses "blockwise": 1024 x 1024 logits per head; blocks are
        faster above about 360 x 360
        """
        return explain_plan(self.plan(q_len, kv_len))

    def head_bounds(self, q: Blocks, kv: Blocks) -> Bounds:
        """The bounds of one example and head; blocks are `[Q, 1]` and `[1, K]`."""
        raise TypeError(f"{type(self).__name__} gives no bounds; define head_bounds(q, kv).")

    def check_length(self, q_len: int, kv_len: int) -> None:
        """Raises ValueError if an array inside has fewer positions than `q_len`, `kv_len`."""
        self._check_spans(Span(0, q_len), Span(0, kv_len))

    @property
    def lead(self) -> tuple[int, ...]:
        """The leading axes of the leaves together: (), (B,) or (B, N), 1 where shared."""
        return _lead(list(self._leaves()))

    def _fields(self) -> Iterator[tuple[dataclasses.Field, Any]]:
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            yield field, getattr(self, field.name)

    def _leaves(self) -> Iterator[Leaf]:
        """The leaves in the order of `jax.tree.leaves`."""
        for field, value in self._fields():
            if "child" in field.metadata:
                yield from value._leaves()
            elif _is_dynamic(field, value):
                yield Leaf(f"{type(self).__name__}: {field.name}", value, field.metadata["axes"])

    def _check_spans(self, q: Span, kv: Span) -> None:
        """Raises ValueError where an array has fewer positions than the spans ask for."""
        for field, value in self._fields():
            if "child" in field.metadata:
                value._check_spans(q, kv)
            elif _is_dynamic(field, value):
                spans = {"q": [q], "kv": [kv], "both": [q, kv]}
                _check_leaf(type(self).__name__, field, value, spans)

    def __repr__(self) -> str:
        parts = (f"{f.name}={_short(v)}" for f, v in self._fields() if v is not f.default)
        return f"{type(self).__name__}({', '.join(parts)})"


def _operand(symbol: str, other: Any) -> Mask:
    if not isinstance(other, Mask):
        raise TypeError(
            f"{symbol} combines masks with masks, not with {type(other).__name__}; "
            "wrap a boolean array in from_dense(array) or, one per key, valid(array)."
        )
    return other


def _short(value: Any) -> str:
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{value.dtype}{list(value.shape)}"
    return repr(value)


def _is_dynamic(field: dataclasses.Field, value: Any) -> bool:
    return "axes" in field.metadata and not isinstance(value, int | None)


def _check_leaf(
    owner: str, field: dataclasses.Field, value: Any, spans: dict[str, list[Span]]
) -> None:
    axes = field.metadata["axes"]
    for axis, size in zip(axes, value.shape[value.ndim - len(axes) :], strict=True):
        for start, length in spans[axis]:
            if start is not None and size < start + length:
                raise ValueError(
                    f"{owner}: {field.name} has shape {tuple(value.shape)}, that is {size} "
                    f"positions, but positions {start} to {start + length - 1} were asked for."
                )


def _lead(leaves: list[Leaf]) -> tuple[int, ...]:
    lead: list[tuple[int, str]] = []
    for name, array, axes in leaves:
        for i, size in enumerate(Leaf(name, array, axes).lead):
            if i == len(lead):
                lead.append((size, name))
            elif lead[i][0] == 1:
                lead[i] = (size, name)
            elif size not in (1, lead[i][0]):
                raise ValueError(
                    f"{name} has shape {tuple(array.shape)}, so {('batch', 'head')[i]} is {size}; "
                    f"but {lead[i][1]} has {lead[i][0]} there."
                )
    return tuple(size for size, _ in lead)


def over_heads(fn: Callable[[Mask], Any], mask: Mask) -> Any:
    """`fn` of the mask of one example and head, vmapped over the axes its leaves carry.

    Returns `[*mask.lead, ...]`; an axis that no leaf needs is never materialised.
    """
    described = list(mask._leaves())
    lead = _lead(described)
    arrays, treedef = jax.tree.flatten(mask)
    # An axis of size 1 is shared: dropped here, None in in_axes, put back at the end.
    mapped = [{i for i, size in enumerate(d.lead) if size != 1} for d in described]
    squeezed = [
        a.reshape([n for i, n in enumerate(a.shape) if i >= len(d.lead) or i in kept])
        for a, d, kept in zip(arrays, described, mapped, strict=True)
    ]

    def call(arrays: list[Any]) -> Any:
        return fn(jax.tree.unflatten(treedef, arrays))

    for axis in reversed(range(len(lead))):
        in_axes = [0 if axis in kept else None for kept in mapped]
        if any(a is not None for a in in_axes):
            call = jax.vmap(call, in_axes=(in_axes,))
    shared = [i for i, size in enumerate(lead) if size == 1]
    result = call(squeezed)
    return jax.tree.map(lambda x: jnp.expand_dims(x, shared), result) if shared else result


def map_leaves(fn: Callable[[Any, int], Any], mask: SomeMask) -> SomeMask:
    """The mask with `fn(array, number of leading axes)` in place of each of its arrays."""
    arrays, treedef = jax.tree.flatten(mask)
    leads = [len(leaf.lead) for leaf in mask._leaves()]
    return jax.tree.unflatten(treedef, map(fn, arrays, leads))


@dataclass_transform(frozen_default=True, eq_default=False)
def mask_type(cls: type[SomeMask]) -> type[SomeMask]:
    """Makes `cls` a frozen dataclass and a pytree: arrays are leaves, all else is static."""
    cls = dataclasses.dataclass(frozen=True, eq=False, repr=False)(cls)

    def dynamic_names(mask: Mask) -> tuple[str, ...]:
        if "_dynamic" in vars(mask):  # made by unflatten, perhaps with placeholders for arrays
            return vars(mask)["_dynamic"]
        fields = mask._fields()
        return tuple(f.name for f, v in fields if "child" in f.metadata or _is_dynamic(f, v))

    def flatten_with_keys(mask: Mask) -> tuple[Any, Any]:
        names = dynamic_names(mask)
        static = tuple((f.name, v) for f, v in mask._fields() if f.name not in names)
        children = [(jax.tree_util.GetAttrKey(n), getattr(mask, n)) for n in names]
        return children, (names, static)

    def unflatten(aux: Any, children: Any) -> SomeMask:
        mask = object.__new__(cls)  # no checks: jax puts placeholders in leaves
        for name, value in (*zip(aux[0], children, strict=True), *aux[1]):
            object.__setattr__(mask, name, value)
        object.__setattr__(mask, "_dynamic", aux[0])
        return mask

    jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten)
    return cls


def index_leaf(mask: Mask, name: str, *, minimum: int | None = None) -> None:
    """Checks and stores field `name`: an integer stays static, an array becomes int32.

    Raises TypeError unless it holds integers, ValueError for too high a rank or too low a value.
    """
    value, owner = getattr(mask, name), f"{type(mask).__name__}: {name}"
    if checks.is_static(value):
        value = int(value)
        if minimum is not None and value < minimum:
            raise ValueError(f"{owner} is {value}; expected at least {minimum}.")
    else:
        value = array_leaf(mask, name, checks.check_integer, np.int32)
    object.__setattr__(mask, name, value)


def array_leaf(mask: Mask, name: str, check: Callable[[str, Any], None], dtype: Any) -> Any:
    """Field `name` as a checked array of `dtype`, NumPy if it was not a jax array."""
    value, owner = getattr(mask, name), f"{type(mask).__name__}: {name}"
    array = value if isinstance(value, jax.Array) else np.asarray(value)
    check(owner, array)
    if isinstance(array, np.ndarray) and (array.astype(dtype) != array).any():
        raise ValueError(f"{owner} has values beyond {np.dtype(dtype)}.")
    fields = {f.name: f for f in dataclasses.fields(mask)}  # type: ignore[arg-type]
    axes = fields[name].metadata["axes"]
    if not len(axes) <= array.ndim <= len(axes) + 2:
        shape = f"[{', '.join(axes)}]"
        raise ValueError(
            f"{owner} has shape {tuple(array.shape)}; expected {shape} for one example, "
            "or the same with leading batch, or batch and head, axes."
        )
    return array.astype(dtype)


@mask_type
class And(Mask):
    """Seen where both masks see."""

    left: Mask = child()
    right: Mask = child()

    def __call__(self, q_idx: Any, kv_idx: Any) -> Any:
        return self.left(q_idx, kv_idx) & self.right(q_idx, kv_idx)

    def head_bounds(self, q: Blocks, kv: Blocks) -> Bounds:
        return self.left.head_bounds(q, kv) & self.right.head_bounds(q, kv)

    def __repr__(self) -> str:
        return f"({self.left} & {self.right})"


@mask_type
class Or(Mask):
    """Seen where either mask sees."""

    left: Mask = child()
    right: Mask = child()

    def __call__(self, q_idx: Any, kv_idx: Any) -> Any:
        return self.left(q_idx, kv_idx) | self.right(q_idx, kv_idx)

    def head_bounds(self, q: Blocks, kv: Blocks) -> Bounds:
        return self.left.head_bounds(q, kv) | self.right.head_bounds(q, kv)

    def __repr__(self) -> str:
        return f"({self.left} | {self.right})"


@mask_type
class Not(Mask):
    """Seen where the mask does not see."""

    mask: Mask = child()

    def __call__(self, q_idx: Any, kv_idx: Any) -> Any:
        return self.mask(q_idx, kv_idx) ^ True  # `~` of a Python bool is not its opposite

    def head_bounds(self, q: Blocks, kv: Blocks) -> Bounds:
        return ~self.mask.head_bounds(q, kv)

    def __repr__(self) -> str:
        return f"~{self.mask}"


@mask_type
class Shifted(Mask):
    """A mask read from `q_start` and `kv_start` on; see `Mask.shift`."""

    mask: Mask = child()
    q_start: Any = leaf(default=0)
    kv_start: Any = leaf(default=0)

    def __post_init__(self) -> None:
        index_leaf(self, "q_start")
        index_leaf(self, "kv_start")

    def __call__(self, q_idx: Any, kv_idx: Any) -> Any:
        return self.mask(q_idx + self.q_start, kv_idx + self.kv_start)

    def head_bounds(self, q: Blocks, kv: Blocks) -> Bounds:
        return self.mask.head_bounds(q.shift(self.q_start), kv.shift(self.kv_start))

    def _check_spans(self, q: Span, kv: Span) -> None:
        self.mask._check_spans(q.shifted(self.q_start), kv.shifted(self.kv_start))
