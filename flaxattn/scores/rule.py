"""A rule of one's own as a score, with arrays of its own."""

from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from flaxattn.masks.leaves import Leaf, Span, child
from flaxattn.masks.ranks import Asked, find_ranks
from flaxattn.scores.score import Score, dtype_beside, score_type
from flaxattn.types import Indices

__all__ = ["score"]

Rule: TypeAlias = Callable[..., ArrayLike]  # of a logit, two indices and arrays, a logit
_LOGIT = jax.ShapeDtypeStruct((), jnp.float32)
_INDEX = jax.ShapeDtypeStruct((), jnp.int32)
_ASKED = Asked(
    "score",
    "fn(logit, q_idx, kv_idx, *arrays)",
    (_LOGIT, _INDEX, _INDEX),
    "one floating number for one query and one key",
    lambda answer: bool(jnp.issubdtype(answer.dtype, jnp.floating)),
)


def _given(array: jax.Array) -> jax.ShapeDtypeStruct:
    """As `fn` is asked with it."""
    return jax.ShapeDtypeStruct(array.shape, dtype_beside(array, _LOGIT.dtype))


@score_type
class score(Score):
    """A rule of one's own: `fn(logit, q_idx, kv_idx, *arrays)` gives the new logit of a pair.

    Arrays are handed to `fn`, not closed over, so that they are leaves like any other: they have
    gradients, and new values never recompile. Define `fn` once, outside loops, for the same reason.
    What `fn` gives for pairs that the mask hides, be it NaN, is never seen.

    Args:
      fn: of a floating scalar, two integer scalars and the arrays of one example and head;
        jax-traceable.
      *arrays: arrays of any shape, or with leading head, or batch and head, axes. Floating ones
        come in the dtype of the logit.
      ranks: the rank of each array for one example and head. By default as few leading axes are
        taken for batch and head as let `fn` give a single number.

    Raises TypeError if `fn` gives no single floating number.

    >>> nearer = score(lambda logit, q, k, weight: logit - weight * jnp.log1p(q - k), jnp.ones(4))
    >>> print(nearer.dense(2, 1)[0, 0].round(2))  # of the first of four heads
    [[ 0.  ]
     [-0.69]]
    """

    fn: Rule
    arrays: tuple[jax.Array, ...] = child()
    ranks: tuple[int, ...] = ()

    def __init__(self, fn: Rule, *arrays: ArrayLike, ranks: Sequence[int] | None = None) -> None:
        object.__setattr__(self, "fn", fn)
        object.__setattr__(self, "arrays", tuple(jnp.asarray(a) for a in arrays))
        object.__setattr__(
            self, "ranks", find_ranks(_ASKED, fn, tuple(map(_given, self.arrays)), ranks)
        )

    def __call__(self, logit: jax.Array, q_idx: Indices, kv_idx: Indices) -> jax.Array:
        logit = jnp.asarray(logit)
        rule = jnp.vectorize(lambda x, q, kv: self.fn(x, q, kv, *self.arrays))
        new: jax.Array = rule(logit, jnp.asarray(q_idx), jnp.asarray(kv_idx))
        return new.astype(logit.dtype)

    def leaves(self) -> Iterator[Leaf]:
        for i, (array, rank) in enumerate(zip(self.arrays, self.ranks, strict=True)):
            if array is not None:  # the half that a pass holds elsewhere
                yield Leaf(f"score: array {i}", array, ("any",) * rank)

    def _check_spans(self, q: Span, kv: Span) -> None:
        """Checks nothing: only `fn` knows what the axes of its arrays stand for."""
