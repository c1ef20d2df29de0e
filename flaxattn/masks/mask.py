"""The mask algebra: a mask is a pure function of a query index and a key index.

Masks combine with `&`, `|` and `~`. Arrays inside a mask are leaves of a pytree, so new values
never recompile; Python integers are static. No mask knows a shape: `dense` draws one.
"""

import functools
import operator
from typing import Any, ClassVar

import chex
import jax
import jax.numpy as jnp

from flaxattn import checks
from flaxattn.masks.blocks import Blocks, Bounds
from flaxattn.masks.composed import Composed, OfPositions, OfShift
from flaxattn.masks.indices import add, lookup
from flaxattn.masks.leaves import (
    child,
    leaf,
    mask_type,
    over_heads,
)
from flaxattn.masks.plan import BlockPlan, make_plan
from flaxattn.types import Array, Booleans, Indices

__all__ = ["And", "Mask", "Not", "Or", "Positioned", "Shifted"]


class Mask(Composed):
    """What each query may attend to: True = attend.

    Called with integer index arrays, a mask gives the rule for one example and one head:

    >>> mask = causal() & sliding_window(2)
    >>> bool(mask(5, 4)), bool(mask(5, 2)), bool(mask(5, 6))
    (True, False, False)

    It is a value: equal parts make equal masks, and those without arrays can be hashed.

    >>> mask == causal() & sliding_window(2), len({causal(), causal(), full()})
    (True, 2)
    """

    kind, leading = "mask", "batch, or batch and head,"
    __array_ufunc__ = None  # `numpy_array & mask` asks `Mask.__rand__`, not each element

    def __call__(self, q_idx: Indices, kv_idx: Indices) -> Booleans:
        """The rule: integer arrays in, broadcast against each other, booleans out."""
        raise TypeError(f"{type(self).__name__} gives no rule; define __call__(q_idx, kv_idx).")

    def __and__(self, other: "Mask") -> "Mask":
        return And.of(self, _operand("&", other))

    def __or__(self, other: "Mask") -> "Mask":
        return Or.of(self, _operand("|", other))

    def __invert__(self) -> "Mask":
        return Not(self)

    def __rand__(self, other: object) -> "Mask":
        return And.of(_operand("&", other), self)

    def __ror__(self, other: object) -> "Mask":
        return Or.of(_operand("|", other), self)

    def __bool__(self) -> bool:
        raise TypeError(
            "a mask has no single truth value; combine masks with & | ~ instead of and, or, not."
        )

    def shift(self, q_start: Indices = 0, kv_start: Indices = 0) -> "Mask":
        """The same mask seen from later positions: index 0 stands for `q_start`, `kv_start`.

        So one mask serves training, prefill, one-token decoding and a shard of a long sequence.
        Starts are integers, or integer arrays `[]`, `[B]` or `[B, N]`.
        """
        return Shifted(self, q_start, kv_start)

    def at(self, q_positions: Array | None, kv_positions: Array | None) -> "Mask":
        """The same mask of queries and keys that stand at given positions, in any order.

        Query `q` and key `k` of it are `q_positions[q]` and `kv_positions[k]` of this one: rows may
        be permuted, padded on the left, or count each of their segments from zero. Plans skip what
        they would skip in order, as far as the positions of a block lie close together.

        Args:
          q_positions: int `[T]`, `[B, T]` or `[B, N, T]`; None: those that they stand at, 0, 1, ...
          kv_positions: int `[S]`, ..., or None.

        >>> order = np.array([0, 3, 1, 2])
        >>> causal().at(order, order).dense(4, 4).astype(int).tolist()
        [[1, 0, 0, 0], [1, 1, 1, 1], [1, 0, 1, 0], [1, 0, 1, 1]]
        """
        return Positioned(self, q_positions, kv_positions)

    def dense(
        self, q_len: int, kv_len: int, *, q_start: Indices = 0, kv_start: Indices = 0
    ) -> jax.Array:
        """The mask as booleans `[T, S]`, with axes B, or B and N, in front if its leaves have them.

        Raises ValueError if an array inside is shorter than the positions asked for.
        """
        checks.check_length("q_len", q_len)
        checks.check_length("kv_len", kv_len)
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


def _operand(symbol: str, other: object) -> Mask:
    if not isinstance(other, Mask):
        raise TypeError(
            f"{symbol} combines masks with masks, not with {type(other).__name__}; "
            "wrap a boolean array in from_dense(array) or, one per key, valid(array)."
        )
    return other


@mask_type
class Joined(Mask):
    """Several masks, joined by one operator; long expressions are so no deep ones."""

    parts: tuple[Mask, ...] = child()
    symbol: ClassVar[str]
    join: ClassVar[Any]  # of two booleans, arrays of booleans, or bounds

    @classmethod
    def of(cls, *masks: Mask) -> "Joined":
        """The masks joined; of one that is of this kind, its parts."""
        return cls(sum((m.parts if isinstance(m, cls) else (m,) for m in masks), ()))

    def __call__(self, q_idx: Indices, kv_idx: Indices) -> Booleans:
        seen: Booleans = functools.reduce(self.join, (m(q_idx, kv_idx) for m in self.parts))
        return seen

    def head_bounds(self, q: Blocks, kv: Blocks) -> Bounds:
        bounds: Bounds = functools.reduce(self.join, (m.head_bounds(q, kv) for m in self.parts))
        return bounds

    def __repr__(self) -> str:
        return f"({f' {self.symbol} '.join(map(repr, self.parts))})"


@mask_type
class And(Joined):
    """Seen where all masks see."""

    symbol, join = "&", operator.and_


@mask_type
class Or(Joined):
    """Seen where any of the masks sees."""

    symbol, join = "|", operator.or_


@mask_type
class Not(Mask):
    """Seen where the mask does not see."""

    mask: Mask = child()

    def __invert__(self) -> Mask:
        return self.mask

    def __call__(self, q_idx: Indices, kv_idx: Indices) -> Booleans:
        return self.mask(q_idx, kv_idx) ^ True  # `~True` is -2

    def head_bounds(self, q: Blocks, kv: Blocks) -> Bounds:
        return ~self.mask.head_bounds(q, kv)

    def __repr__(self) -> str:
        return f"~{self.mask}"


@mask_type
class Shifted(OfShift, Mask):
    """A mask read from `q_start` and `kv_start` on; see `Mask.shift`."""

    mask: Mask = child()
    q_start: Indices = leaf(default=0)
    kv_start: Indices = leaf(default=0)

    def __call__(self, q_idx: Indices, kv_idx: Indices) -> Booleans:
        return self.mask(add(q_idx, self.q_start), add(kv_idx, self.kv_start))

    def head_bounds(self, q: Blocks, kv: Blocks) -> Bounds:
        return self.mask.head_bounds(q.shift(self.q_start), kv.shift(self.kv_start))


@mask_type
class Positioned(OfPositions, Mask):
    """A mask of positions that are given; see `Mask.at`. An index that has none sees nothing."""

    mask: Mask = child()
    q_positions: Array | None = leaf("q")
    kv_positions: Array | None = leaf("kv")

    def __call__(self, q_idx: Indices, kv_idx: Indices) -> Booleans:
        q_idx, q_inside = lookup(self.q_positions, q_idx)
        kv_idx, kv_inside = lookup(self.kv_positions, kv_idx)
        return self.mask(q_idx, kv_idx) & q_inside & kv_inside

    def head_bounds(self, q: Blocks, kv: Blocks) -> Bounds:
        q, q_inside = q.at(self.q_positions)
        kv, kv_inside = kv.at(self.kv_positions)
        return self.mask.head_bounds(q, kv) & q_inside & kv_inside
