"""Masks that read arrays: lengths, flags, segment ids, a dense array.

Arrays have the shape stated for one example, or carry leading batch, or batch and head, axes.
A position outside an array is hidden.
"""

from collections.abc import Callable

import numpy as np

from flaxattn import checks
from flaxattn.masks.blocks import Blocks, Bounds, all_in, any_in, range_in, within
from flaxattn.masks.indices import at, clip, indexable, lookup, shared, true_like
from flaxattn.masks.leaves import (
    Span,
    array_leaf,
    index_leaf,
    leaf,
    mask_type,
    static_index,
)
from flaxattn.masks.mask import Mask
from flaxattn.types import Array, Booleans, Indices

__all__ = ["from_dense", "global_tokens", "lengths", "same_segment", "valid"]


@mask_type
class lengths(Mask):
    """Queries with index below `q_lengths` see keys with index below `kv_lengths`.

    Args:
      q_lengths: integer or int `[]`, `[B]`, `[B, N]`; None: every query sees.
      kv_lengths: likewise for keys.

    >>> lengths(kv_lengths=np.array([1, 2])).dense(1, 3).astype(int).tolist()
    [[[1, 0, 0]], [[1, 1, 0]]]
    """

    q_lengths: Indices | None = leaf(default=None)
    kv_lengths: Indices | None = leaf(default=None)

    def __post_init__(self) -> None:
        for name in ("q_lengths", "kv_lengths"):
            if getattr(self, name) is not None:
                index_leaf(self, name, minimum=0)

    def __call__(self, q_idx: Indices, kv_idx: Indices) -> Booleans:
        q_seen = true_like(q_idx) if self.q_lengths is None else q_idx < self.q_lengths
        kv_seen = true_like(kv_idx) if self.kv_lengths is None else kv_idx < self.kv_lengths
        return q_seen & kv_seen

    def head_bounds(self, q: Blocks, kv: Blocks) -> Bounds:
        always = true_like(q.first, kv.first)
        bounds = Bounds(always, always)
        if self.q_lengths is not None:
            bounds &= Bounds(q.first < self.q_lengths, q.last < self.q_lengths)
        if self.kv_lengths is not None:
            bounds &= Bounds(kv.first < self.kv_lengths, kv.last < self.kv_lengths)
        return bounds


@mask_type
class valid(Mask):
    """Keys whose flag is True are seen by every query.

    Args:
      kv_valid: bool `[S]`, `[B, S]` or `[B, N, S]`.

    >>> valid(np.array([True, False, True])).dense(2, 3).astype(int).tolist()
    [[1, 0, 1], [1, 0, 1]]
    """

    kv_valid: Array = leaf("kv")

    def __post_init__(self) -> None:
        array = array_leaf(self, "kv_valid", checks.check_boolean, np.bool_)
        object.__setattr__(self, "kv_valid", array)

    def __call__(self, q_idx: Indices, kv_idx: Indices) -> Booleans:
        return true_like(q_idx) & at(self.kv_valid, kv_idx, False)

    def head_bounds(self, q: Blocks, kv: Blocks) -> Bounds:
        always = true_like(q.first)
        return Bounds(any_in(self.kv_valid, kv) & always, all_in(self.kv_valid, kv) & always)


@mask_type
class same_segment(Mask):
    """A query sees the keys that carry its own segment id; padding sees nothing and is not seen.

    Args:
      q_ids: int `[T]`, `[B, T]` or `[B, N, T]`.
      kv_ids: int `[S]`, ...; None: those of the queries.
      padding: the id of padding; None: no id is padding, as where ids count documents from 0.

    >>> same_segment(np.array([1, 1, 2, 0])).dense(4, 4).astype(int).tolist()
    [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]
    >>> same_segment(np.array([0, 0, 1]), padding=None).dense(3, 3).astype(int).tolist()
    [[1, 1, 0], [1, 1, 0], [0, 0, 1]]
    """

    q_ids: Array = leaf("q")
    kv_ids: Array = leaf("kv", default=None)
    padding: int | None = 0

    def __post_init__(self) -> None:
        if self.kv_ids is None:
            object.__setattr__(self, "kv_ids", self.q_ids)
        for name in ("q_ids", "kv_ids"):
            array = array_leaf(self, name, checks.check_integer, np.int32)
            object.__setattr__(self, name, array)
        if self.padding is not None:
            static_index(self, "padding")

    def __call__(self, q_idx: Indices, kv_idx: Indices) -> Booleans:
        (q_id, q_inside), (kv_id, kv_inside) = (
            lookup(self.q_ids, q_idx),
            lookup(self.kv_ids, kv_idx),
        )
        return (q_id == kv_id) & (q_inside & self._counts(q_id)) & kv_inside

    def head_bounds(self, q: Blocks, kv: Blocks) -> Bounds:
        """Exact where the ids that are not padding are sorted."""
        q_counts, kv_counts = self._counts(self.q_ids), self._counts(self.kv_ids)
        q_low, q_high = range_in(self.q_ids, q, q_counts)
        kv_low, kv_high = range_in(self.kv_ids, kv, kv_counts)
        some = (q_low <= kv_high) & (kv_low <= q_high) & (q_low <= q_high) & (kv_low <= kv_high)
        one_id = (q_low == q_high) & (kv_low == kv_high) & (q_low == kv_low)
        return Bounds(some, one_id & all_in(q_counts, q) & all_in(kv_counts, kv))

    def _counts(self, ids: Array) -> Array:
        """Which ids are none of padding."""
        return true_like(ids) if self.padding is None else ids != self.padding


@mask_type
class global_tokens(Mask):
    """A global position sees everything and is seen by everything (Longformer, section 3.1).

    Combine with `|`: `sliding_window(256) | global_tokens(1)`.

    Args:
      which: bool `[T]`, `[B, T]` or `[B, N, T]`, True where a position is global; or an integer
        n, which makes the first n positions global.

    >>> global_tokens(1).dense(3, 3).astype(int).tolist()
    [[1, 1, 1], [1, 0, 0], [1, 0, 0]]
    """

    which: Indices = leaf("both")

    def __post_init__(self) -> None:
        if checks.is_static(self.which):
            static_index(self, "which", minimum=0)
        else:
            array = array_leaf(self, "which", checks.check_boolean, np.bool_)
            object.__setattr__(self, "which", array)

    def __call__(self, q_idx: Indices, kv_idx: Indices) -> Booleans:
        return self._is_global(q_idx) | self._is_global(kv_idx)

    def head_bounds(self, q: Blocks, kv: Blocks) -> Bounds:
        if isinstance(self.which, int):
            return within(self.which, q) | within(self.which, kv)
        some = any_in(self.which, q) | any_in(self.which, kv)
        return Bounds(some, every=all_in(self.which, q) | all_in(self.which, kv))

    def _is_global(self, index: Indices) -> Booleans:
        if isinstance(self.which, int):
            return (index >= 0) & (index < self.which)
        return at(self.which, index, False)


@mask_type
class from_dense(Mask):
    """A mask from its boolean array; an axis of size 1 is shared by all positions.

    Args:
      array: bool `[T, S]`, `[B, T, S]` or `[B, N, T, S]`, True = attend. Here the axes in front
        are batch, then head, as in all masks; `jax.nn` and flax read rank 3 as `[N, T, S]`.

    >>> from_dense(np.eye(2, dtype=bool)).dense(2, 2).astype(int).tolist()
    [[1, 0], [0, 1]]
    """

    array: Array = leaf("q", "kv")

    def __post_init__(self) -> None:
        array = array_leaf(self, "array", checks.check_boolean, np.bool_)
        object.__setattr__(self, "array", array)

    def __call__(self, q_idx: Indices, kv_idx: Indices) -> Booleans:
        q_size, kv_size = self.array.shape
        q_idx, q_inside = clip(q_idx, q_size) if q_size != 1 else shared(q_idx)
        kv_idx, kv_inside = clip(kv_idx, kv_size) if kv_size != 1 else shared(kv_idx)
        return indexable(self.array, q_idx, kv_idx)[q_idx, kv_idx] & q_inside & kv_inside

    def head_bounds(self, q: Blocks, kv: Blocks) -> Bounds:
        """Exact, but reads the whole array."""
        return Bounds(*(self._in_both(found, q, kv) for found in (any_in, all_in)))

    def _in_both(self, found: Callable[[Array, Blocks], Array], q: Blocks, kv: Blocks) -> Array:
        """`any_in` or `all_in` of queries and then of keys; a shared axis is the same for all."""
        of_queries = self.array if self.array.shape[0] == 1 else found(self.array, q)
        of_both = of_queries.T if self.array.shape[1] == 1 else found(of_queries.T, kv)
        return of_both.T & true_like(q.first, kv.first)

    def _check_spans(self, q: Span, kv: Span) -> None:
        q_size, kv_size = self.array.shape[-2:]
        super()._check_spans(
            q if q_size != 1 else Span(None, 1), kv if kv_size != 1 else Span(None, 1)
        )
