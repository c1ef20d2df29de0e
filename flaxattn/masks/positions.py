"""Masks that depend on positions alone. Every argument is an integer or an integer array.

Integers are static; arrays `[]`, `[B]` or `[B, N]` are leaves, so that a window may differ from
example to example and from head to head.
"""

from flaxattn.masks.blocks import Blocks, Bounds
from flaxattn.masks.indices import true_like
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

    `right` defaults to `left`, as the integer window of `jax.nn.dot_product_attention`;
    `causal() & sliding_window(left)` looks back only.

    >>> sliding_window(1, 0).dense(3, 3).astype(int).tolist()
    [[1, 0, 0], [1, 1, 0], [0, 1, 1]]
    """

    left: Indices = leaf()
    right: Indices = leaf(default=None)

    def __post_init__(self) -> None:
        index_leaf(self, "left", minimum=0)
        if self.right is None:
            object.__setattr__(self, "right", self.left)
        index_leaf(self, "right", minimum=0)

    def __call__(self, q_idx: Indices, kv_idx: Indices) -> Booleans:
        return (q_idx - kv_idx <= self.left) & (kv_idx - q_idx <= self.right)

    def head_bounds(self, q: Blocks, kv: Blocks) -> Bounds:
        nearest, farthest = kv.first - q.last, kv.last - q.first  # distances, key minus query
        some = (farthest >= -self.left) & (nearest <= self.right)
        return Bounds(some, every=(nearest >= -self.left) & (farthest <= self.right))


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
        return q_idx // self.size == kv_idx // self.size

    def head_bounds(self, q: Blocks, kv: Blocks) -> Bounds:
        q_low, q_high = q.first // self.size, q.last // self.size
        kv_low, kv_high = kv.first // self.size, kv.last // self.size
        some = (q_low <= kv_high) & (kv_low <= q_high)
        return Bounds(some, every=(q_low == kv_high) & (kv_low == q_high))


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
        return (q_idx - kv_idx) % self.dilation == 0

    def head_bounds(self, q: Blocks, kv: Blocks) -> Bounds:
        nearest, farthest = q.first - kv.last, q.last - kv.first  # distances, query minus key
        some = farthest // self.dilation * self.dilation >= nearest
        every = ((nearest == farthest) & some) | (self.dilation == 1)
        return Bounds(some, every)
