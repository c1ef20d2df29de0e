"""Masks that depend on positions alone. Every argument is an integer or an integer array.

Integers are static; arrays `[]`, `[B]` or `[B, N]` are leaves, so that a window may differ from
example to example and from head to head.
"""

from typing import Literal

from flaxattn.masks.blocks import Blocks, Bounds
from flaxattn.masks.indices import (
    FIRST,
    LAST,
    add,
    makes_sense,
    positive,
    subtract,
    true_like,
)
from flaxattn.masks.leaves import index_leaf, leaf, mask_type
from flaxattn.masks.mask import Mask
from flaxattn.types import Booleans, Indices

__all__ = ["causal", "chunked", "dilated", "full", "prefix", "sliding_window"]


@mask_type
class full(Mask):
    """Every query sees every key.

    >>> full().dense(2, 3).astype(int).tolist()
    [[1, 1, 1], [1, 1, 1]]
    """

    def __call__(self, q_idx: Indices, kv_idx: Indices) -> Booleans:
        return true_like(q_idx, kv_idx)

    def head_bounds(self, q: Blocks, kv: Blocks) -> Bounds:
        always = true_like(q.first, kv.first)
        return Bounds(always, always)


@mask_type
class causal(Mask):
    """A query sees itself and the keys before it: key index <= query index.

    >>> causal().dense(3, 3).astype(int).tolist()
    [[1, 0, 0], [1, 1, 0], [1, 1, 1]]
    """

    def __call__(self, q_idx: Indices, kv_idx: Indices) -> Booleans:
        return kv_idx <= q_idx

    def head_bounds(self, q: Blocks, kv: Blocks) -> Bounds:
        return Bounds(some=kv.first <= q.last, every=kv.last <= q.first)


@mask_type
class sliding_window(Mask):
    """A query sees the keys from `left` before it to `right` after it, both included.

    `sliding_window(2)` is 2 to both sides, as the integer window of `jax.nn.dot_product_attention`;
    `causal() & sliding_window(2)` and `sliding_window(2, 0)` look back only.

    Args:
      left: integer, or int `[]`, `[B]`, `[B, N]`; None: without limit.
      right: likewise; "same": that of `left`.

    >>> sliding_window(1, 0).dense(3, 3).astype(int).tolist()
    [[1, 0, 0], [1, 1, 0], [0, 1, 1]]
    >>> sliding_window(0, None).dense(3, 3).astype(int).tolist()
    [[1, 1, 1], [0, 1, 1], [0, 0, 1]]
    """

    left: Indices | None = leaf()
    right: Indices | Literal["same"] | None = leaf(default="same")

    def __post_init__(self) -> None:
        if isinstance(self.right, str) and self.right == "same":
            object.__setattr__(self, "right", self.left)
        for name in ("left", "right"):
            if isinstance(given := getattr(self, name), list | tuple):  # both sides, or examples?
                raise TypeError(
                    f"sliding_window: {name} is a {type(given).__name__}; give the sides as two "
                    "arguments, sliding_window(left, right), windows of examples as an array."
                )
            if getattr(self, name) is not None:
                index_leaf(self, name, minimum=0)

    def __call__(self, q_idx: Indices, kv_idx: Indices) -> Booleans:
        seen = (kv_idx >= self._first_key(q_idx)) & (kv_idx <= self._last_key(q_idx))
        return seen & self._makes_sense()

    def head_bounds(self, q: Blocks, kv: Blocks) -> Bounds:
        some = (kv.last >= self._first_key(q.first)) & (kv.first <= self._last_key(q.last))
        every = (kv.first >= self._first_key(q.last)) & (kv.last <= self._last_key(q.first))
        sense = self._makes_sense()
        return Bounds(some & sense, every & sense)

    def _first_key(self, q_idx: Indices) -> Indices:
        return add(q_idx * 0, FIRST) if self.left is None else subtract(q_idx, self.left)

    def _last_key(self, q_idx: Indices) -> Indices:
        return add(q_idx * 0, LAST) if self._right is None else add(q_idx, self._right)

    def _makes_sense(self) -> Booleans:
        return makes_sense(self.left, 0) & makes_sense(self._right, 0)

    @property
    def _right(self) -> Indices | None:
        return None if isinstance(self.right, str) else self.right  # "same" was replaced


@mask_type
class prefix(Mask):
    """Keys with index below `length` are seen by every query; others by none.

    `causal() | prefix(n)` is the prefix language model's mask (T5, arXiv:1910.10683, figure 4).

    >>> (causal() | prefix(2)).dense(3, 3).astype(int).tolist()
    [[1, 1, 0], [1, 1, 0], [1, 1, 1]]
    """

    length: Indices = leaf()

    def __post_init__(self) -> None:
        index_leaf(self, "length", minimum=0)

    def __call__(self, q_idx: Indices, kv_idx: Indices) -> Booleans:
        return (kv_idx < self.length) & true_like(q_idx)

    def head_bounds(self, q: Blocks, kv: Blocks) -> Bounds:
        always = true_like(q.first)
        return Bounds((kv.first < self.length) & always, (kv.last < self.length) & always)


@mask_type
class chunked(Mask):
    """A query sees the keys of its own chunk; chunks are consecutive runs of `size` positions.

    >>> chunked(2).dense(3, 3).astype(int).tolist()
    [[1, 1, 0], [1, 1, 0], [0, 0, 1]]
    """

    size: Indices = leaf()

    def __post_init__(self) -> None:
        index_leaf(self, "size", minimum=1)

    def __call__(self, q_idx: Indices, kv_idx: Indices) -> Booleans:
        size = positive(self.size)
        return (q_idx // size == kv_idx // size) & makes_sense(self.size, 1)

    def head_bounds(self, q: Blocks, kv: Blocks) -> Bounds:
        size, sense = positive(self.size), makes_sense(self.size, 1)
        q_low, q_high, kv_low, kv_high = (i // size for i in (q.first, q.last, kv.first, kv.last))
        some = (q_low <= kv_high) & (kv_low <= q_high)
        every = (q_low == kv_high) & (kv_low == q_high)
        return Bounds(some & sense, every & sense)


@mask_type
class dilated(Mask):
    """A query sees every `dilation`-th key counted from itself, in both directions.

    With a window it is the dilated sliding window of Longformer (arXiv:2004.05150, section 3.1).

    >>> dilated(2).dense(3, 3).astype(int).tolist()
    [[1, 0, 1], [0, 1, 0], [1, 0, 1]]
    """

    dilation: Indices = leaf()

    def __post_init__(self) -> None:
        index_leaf(self, "dilation", minimum=1)

    def __call__(self, q_idx: Indices, kv_idx: Indices) -> Booleans:
        step = positive(self.dilation)
        return (q_idx % step == kv_idx % step) & makes_sense(self.dilation, 1)

    def head_bounds(self, q: Blocks, kv: Blocks) -> Bounds:
        step, sense = positive(self.dilation), makes_sense(self.dilation, 1)
        # Distances, key minus query, go from kv.first - q.last on, as far as both blocks are wide.
        width = add(subtract(q.last, q.first), subtract(kv.last, kv.first))
        some = (q.last % step - kv.first % step) % step <= width
        every = ((width == 0) & some) | (step == 1)
        return Bounds(some & sense, every & sense)
