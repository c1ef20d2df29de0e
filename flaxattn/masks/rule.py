"""A rule of one's own as a mask, with arrays of its own."""

from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from flaxattn.masks.blocks import Blocks, Bounds
from flaxattn.masks.indices import true_like
from flaxattn.masks.leaves import Leaf, Span, child, mask_type
from flaxattn.masks.mask import Mask
from flaxattn.masks.ranks import Asked, find_ranks
from flaxattn.types import Booleans, Indices

__all__ = ["where"]

Rule: TypeAlias = Callable[..., ArrayLike]  # of two indices and arrays, a boolean
_INDEX = jax.ShapeDtypeStruct((), jnp.int32)
_ASKED = Asked(
    "where",
    "fn(q_idx, kv_idx, *arrays)",
    (_INDEX, _INDEX),
    "one boolean for one query and one key",
    lambda answer: answer.dtype == bool,
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
        object.__setattr__(self, "ranks", find_ranks(_ASKED, fn, self.arrays, ranks))

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
