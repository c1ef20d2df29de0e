"""Masks that read arrays: lengths, flags, segment ids, a dense array, a rule of one's own.

Arrays have the shape stated for one example, or carry leading batch, or batch and head, axes.
A position outside an array is hidden.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from flaxattn import checks
from flaxattn.masks.blocks import Blocks, Bounds, all_in, any_in, range_in, within
from flaxattn.masks.indices import at, clip, indexable, shared, true_like
from flaxattn.masks.leaves import Leaf, Span, array_leaf, child, index_leaf, leaf, mask_type
from flaxattn.masks.mask import Mask
from flaxattn.types import Array, Booleans, Indices

__all__ = ["from_dense", "global_tokens", "lengths", "same_segment", "valid", "where"]

Rule: TypeAlias = Callable[..., ArrayLike]  # of two indices and arrays, a boolean


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
    """A query sees the keys that carry its own segment id; id 0 is padding and sees nothing.

    Args:
      q_ids: int `[T]`, `[B, T]` or `[B, N, T]`.
      kv_ids: int `[S]`, ...; None: those of the queries.

    >>> same_segment(np.array([1, 1, 2, 0])).dense(4, 4).astype(int).tolist()
    [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]
    """

    q_ids: Array = leaf("q")
    kv_ids: Array = leaf("kv", default=None)

    def __post_init__(self) -> None:
        if self.kv_ids is None:
            object.__setattr__(self, "kv_ids", self.q_ids)
        for name in ("q_ids", "kv_ids"):
            array = array_leaf(self, name, checks.check_integer, np.int32)
            object.__setattr__(self, name, array)

    def __call__(self, q_idx: Indices, kv_idx: Indices) -> Booleans:
        q_id, kv_id = at(self.q_ids, q_idx, 0), at(self.kv_ids, kv_idx, 0)
        return (q_id == kv_id) & (q_id != 0)

    def head_bounds(self, q: Blocks, kv: Blocks) -> Bounds:
        """Exact where the ids that are not padding are sorted."""
        q_low, q_high = range_in(self.q_ids, q, self.q_ids != 0)
        kv_low, kv_high = range_in(self.kv_ids, kv, self.kv_ids != 0)
        some = (q_low <= kv_high) & (kv_low <= q_high) & (q_low <= q_high) & (kv_low <= kv_high)
        one_id = (q_low == q_high) & (kv_low == kv_high) & (q_low == kv_low)
        return Bounds(some, one_id & all_in(self.q_ids != 0, q) & all_in(self.kv_ids != 0, kv))


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
            index_leaf(self, "which", minimum=0)
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
      array: bool `[T, S]`, `[B, T, S]` or `[B, N, T, S]`, True = attend: what `jax.nn` and
        `flax.linen` take as `mask`.

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


@mask_type
class where(Mask):
    """A rule of one's own: `fn(q_idx, kv_idx, *arrays)` gives a boolean for one query and key.

    Arrays are handed to `fn`, not closed over, so that they are leaves like any other: new
    values never recompile. Define `fn` once, outside loops, for the same reason.

    Args:
      fn: of two integer scalars and the arrays of one example and head; jax-traceable.
      *arrays: arrays of any shape and dtype, or with leading batch, or batch and head, axes.
      ranks: the rank of each array for one example and head. By default as few
        leading axes are taken for batch and head as let `fn` give a single boolean.

    Raises TypeError if `fn` gives no single boolean.

    >>> ages = jnp.array([30, 7, 41])
    >>> older = where(lambda q, k, age: age[q] >= age[k], ages)
    >>> older.dense(3, 3).astype(int).tolist()
    [[1, 1, 0], [0, 1, 0], [1, 1, 1]]
    """

    fn: Rule
    arrays: tuple[jax.Array, ...] = child()
    ranks: tuple[int, ...] = ()

    def __init__(self, fn: Rule, *arrays: ArrayLike, ranks: Sequence[int] | None = None) -> None:
        object.__setattr__(self, "fn", fn)
        object.__setattr__(self, "arrays", tuple(jnp.asarray(a) for a in arrays))
        object.__setattr__(self, "ranks", _find_ranks(fn, self.arrays, ranks))

    def __call__(self, q_idx: Indices, kv_idx: Indices) -> Booleans:
        rule = jnp.vectorize(lambda q, kv: self.fn(q, kv, *self.arrays))
        seen: jax.Array = rule(jnp.asarray(q_idx), jnp.asarray(kv_idx))
        return seen

    def head_bounds(self, q: Blocks, kv: Blocks) -> Bounds:
        """Nothing is known of `fn`: every block is partial."""
        always = true_like(q.first, kv.first)
        return Bounds(some=always, every=always ^ True)

    def leaves(self) -> Iterator[Leaf]:
        for i, (array, rank) in enumerate(zip(self.arrays, self.ranks, strict=True)):
            yield Leaf(f"where: array {i}", array, ("any",) * rank)

    def _check_spans(self, q: Span, kv: Span) -> None:
        """Checks nothing: only `fn` knows what the axes of its arrays stand for."""


def _find_ranks(
    fn: Rule, arrays: tuple[jax.Array, ...], ranks: Sequence[int] | None
) -> tuple[int, ...]:
    """The given ranks if `fn` accepts them; by default those that leave the fewest leading axes."""
    if ranks is not None and len(ranks) != len(arrays):
        raise ValueError(f"where: ranks has {len(ranks)} entries for {len(arrays)} arrays.")
    for array, rank in zip(arrays, ranks or (), strict=False):
        if not rank <= array.ndim <= rank + 2:
            raise ValueError(
                f"where: ranks has {rank} for an array of shape {array.shape}; expected its rank "
                "for one example and head, leaving at most batch and head."
            )
    choices = [
        [rank] if ranks is not None else range(a.ndim, max(a.ndim - 3, -1), -1)
        for a, rank in zip(arrays, ranks or [0] * len(arrays), strict=True)
    ]
    answers = []
    for choice in sorted(itertools.product(*choices), key=sum, reverse=True):
        answer = _answer(fn, arrays, choice)
        if isinstance(answer, jax.ShapeDtypeStruct) and answer.shape == () and answer.dtype == bool:
            return tuple(choice)
        answers.append(answer)
    raise TypeError(
        "where: fn(q_idx, kv_idx, *arrays) must give one boolean for one query and one key; "
        f"with arrays of shapes {[a.shape for a in arrays]} it gave {answers[0]}."
    )


def _answer(fn: Rule, arrays: tuple[jax.Array, ...], ranks: Sequence[int]) -> object:
    """The shape and dtype, or trees of such, that `fn` gives, or what it raises."""
    index = jax.ShapeDtypeStruct((), jnp.int32)
    one = [
        jax.ShapeDtypeStruct(a.shape[a.ndim - r :], a.dtype)
        for a, r in zip(arrays, ranks, strict=True)
    ]
    try:
        answer: object = jax.eval_shape(fn, index, index, *one)
    except Exception as error:  # whatever fn raises, these ranks are not the right ones
        return error
    return answer
