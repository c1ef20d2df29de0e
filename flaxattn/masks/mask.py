"""The mask algebra: a mask is a pure function of a query index and a key index.

Masks combine with `&`, `|` and `~`. Arrays inside a mask are leaves of a pytree, so new values
never recompile; Python integers are static. No mask knows a shape: `dense` draws one.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any, ClassVar

import chex
import jax
import jax.numpy as jnp

from flaxattn.masks.blocks import Blocks, Bounds
from flaxattn.masks.leaves import (
    Leaf,
    Span,
    check_leaf,
    child,
    fields_of,
    index_leaf,
    lead_of,
    leaf,
    mask_type,
    over_heads,
    parts_of,
)
from flaxattn.masks.plan import BlockPlan, make_plan
from flaxattn.masks.values import equal, hash_of
from flaxattn.types import Booleans, Indices

__all__ = ["And", "Mask", "Not", "Or", "Shifted"]


class Mask:
    """What each query may attend to: True = attend.

    Called with integer index arrays, a mask gives the rule for one example and one head:

    >>> mask = causal() & sliding_window(2)
    >>> bool(mask(5, 4)), bool(mask(5, 2)), bool(mask(5, 6))
    (True, False, False)

    It is a value: equal parts make equal masks, and those without arrays can be hashed.

    >>> mask == causal() & sliding_window(2), len({causal(), causal(), full()})
    (True, 2)
    """

    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]  # made by `mask_type`
    __array_ufunc__ = None  # `numpy_array & mask` asks `Mask.__rand__`, not each element

    def __call__(self, q_idx: Indices, kv_idx: Indices) -> Booleans:
        """The rule: integer arrays in, broadcast against each other, booleans out."""
        raise TypeError(f"{type(self).__name__} gives no rule; define __call__(q_idx, kv_idx).")

    def __and__(self, other: "Mask") -> "Mask":
        return And(self, _operand("&", other))

    def __or__(self, other: "Mask") -> "Mask":
        return Or(self, _operand("|", other))

    def __invert__(self) -> "Mask":
        return Not(self)

    def __rand__(self, other: object) -> "Mask":
        return And(_operand("&", other), self)

    def __ror__(self, other: object) -> "Mask":
        return Or(_operand("|", other), self)

    def __bool__(self) -> bool:
        raise TypeError(
            "a mask has no single truth value; combine masks with & | ~ instead of and, or, not."
        )

    def __eq__(self, other: object) -> bool:
        return equal(self, other) if isinstance(other, Mask) else NotImplemented

    def __hash__(self) -> int:
        return hash_of(self, (leaf.name for leaf in self.leaves()))

    def shift(self, q_start: Indices = 0, kv_start: Indices = 0) -> "Mask":
        """The same mask seen from later positions: index 0 stands for `q_start`, `kv_start`.

        So one mask serves training, prefill, one-token decoding and a shard of a long sequence.
        Starts are integers, or integer arrays `[]`, `[B]` or `[B, N]`.
        """
        return Shifted(self, q_start, kv_start)

    def dense(
        self, q_len: int, kv_len: int, *, q_start: Indices = 0, kv_start: Indices = 0
    ) -> jax.Array:
        """The mask as booleans `[T, S]`, with axes B, or B and N, in front if its leaves have them.

        Raises ValueError if an array inside is shorter than the positions asked for.
        """
        mask = self.shift(q_start, kv_start)
        mask.check_length(q_len, kv_len)
        return mask.outer(jnp.arange(q_len, dtype=jnp.int32), jnp.arange(kv_len, dtype=jnp.int32))

    def outer(self, q_idx: jax.Array, kv_idx: jax.Array) -> jax.Array:
        """The rule for all pairs of indices: int `[T]`, int `[S]` -> bool `[*lead, T, S]`."""
        chex.assert_rank([q_idx, kv_idx], 1)
        q_idx, kv_idx = q_idx.astype(jnp.int32), kv_idx.astype(jnp.int32)

        def one_head(mask: Mask) -> jax.Array:
            seen = jnp.asarray(mask(q_idx[:, None], kv_idx[None, :]))
            chex.assert_type(seen, bool)
            return jnp.broadcast_to(seen, (q_idx.size, kv_idx.size))

        return over_heads(one_head, self)

    def bounds(self, q_blocks: Blocks, kv_blocks: Blocks) -> Bounds:
        """What the mask proves of each pair of blocks: bool `[*lead, Q, K]` each.

        They are NumPy's, and so known while tracing, only if all arrays inside are NumPy's and none
        has batch or head axes, which jax maps over.
        """
        q, kv = q_blocks.reshape(-1, 1), kv_blocks.reshape(1, -1)
        return over_heads(lambda mask: mask.head_bounds(q, kv), self)

    def plan(self, q_len: int, kv_len: int, *, block_q: int, block_kv: int) -> BlockPlan:
        """Which blocks are empty, partial and full; `attend` takes the plan in place of the mask.

        Args:
          q_len, kv_len: T and S.
          block_q, block_kv: queries and keys of a block. Where blocks pay, `flaxattn.prepare`
            draws the plan in sizes that suit the mask.

        Raises ValueError if an array inside is shorter than the positions asked for.
        """
        return make_plan(self, q_len, kv_len, block_q, block_kv)

    def head_bounds(self, q: Blocks, kv: Blocks) -> Bounds:
        """The bounds of one example and head; blocks are `[Q, 1]` and `[1, K]`."""
        raise TypeError(f"{type(self).__name__} gives no bounds; define head_bounds(q, kv).")

    def check_length(self, q_len: int, kv_len: int) -> None:
        """Raises ValueError if an array inside has fewer positions than `q_len`, `kv_len`."""
        self._check_spans(Span(0, q_len), Span(0, kv_len))

    @property
    def lead(self) -> tuple[int, ...]:
        """The leading axes of the leaves together: (), (B,) or (B, N), 1 where shared."""
        return lead_of(list(self.leaves()))

    def leaves(self) -> Iterator[Leaf]:
        """Descriptions of the arrays inside, in the order of `jax.tree.leaves`."""
        for part in parts_of(self):
            if isinstance(part, Leaf):
                yield part
            else:
                yield from part.leaves()

    def _check_spans(self, q: Span, kv: Span) -> None:
        """Raises ValueError where an array has fewer positions than the spans ask for."""
        for part in parts_of(self):
            if isinstance(part, Leaf):
                check_leaf(part, q, kv)
            else:
                part._check_spans(q, kv)

    def __repr__(self) -> str:
        if not dataclasses.is_dataclass(self):  # its use will ask for `mask_type`
            return object.__repr__(self)
        parts = (f"{f.name}={_short(v)}" for f, v in fields_of(self) if v is not f.default)
        return f"{type(self).__name__}({', '.join(parts)})"


def _operand(symbol: str, other: object) -> Mask:
    if not isinstance(other, Mask):
        raise TypeError(
            f"{symbol} combines masks with masks, not with {type(other).__name__}; "
            "wrap a boolean array in from_dense(array) or, one per key, valid(array)."
        )
    return other


def _short(value: object) -> str:
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{value.dtype}{list(value.shape)}"
    return repr(value)


@mask_type
class And(Mask):
    """Seen where both masks see."""

    left: Mask = child()
    right: Mask = child()

    def __call__(self, q_idx: Indices, kv_idx: Indices) -> Booleans:
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

    def __call__(self, q_idx: Indices, kv_idx: Indices) -> Booleans:
        return self.left(q_idx, kv_idx) | self.right(q_idx, kv_idx)

    def head_bounds(self, q: Blocks, kv: Blocks) -> Bounds:
        return self.left.head_bounds(q, kv) | self.right.head_bounds(q, kv)

    def __repr__(self) -> str:
        return f"({self.left} | {self.right})"


@mask_type
class Not(Mask):
    """Seen where the mask does not see."""

    mask: Mask = child()

    def __call__(self, q_idx: Indices, kv_idx: Indices) -> Booleans:
        return self.mask(q_idx, kv_idx) ^ True  # `~True` is -2

    def head_bounds(self, q: Blocks, kv: Blocks) -> Bounds:
        return ~self.mask.head_bounds(q, kv)

    def __repr__(self) -> str:
        return f"~{self.mask}"


@mask_type
class Shifted(Mask):
    """A mask read from `q_start` and `kv_start` on; see `Mask.shift`."""

    mask: Mask = child()
    q_start: Indices = leaf(default=0)
    kv_start: Indices = leaf(default=0)

    def __post_init__(self) -> None:
        index_leaf(self, "q_start")
        index_leaf(self, "kv_start")

    def __call__(self, q_idx: Indices, kv_idx: Indices) -> Booleans:
        return self.mask(q_idx + self.q_start, kv_idx + self.kv_start)

    def head_bounds(self, q: Blocks, kv: Blocks) -> Bounds:
        return self.mask.head_bounds(q.shift(self.q_start), kv.shift(self.kv_start))

    def _check_spans(self, q: Span, kv: Span) -> None:
        self.mask._check_spans(q.shifted(self.q_start), kv.shifted(self.kv_start))
