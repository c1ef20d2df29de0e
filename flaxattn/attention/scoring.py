"""What a score makes of logits where they are seen; of what is hidden it makes nothing."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.export import is_symbolic_dim

from flaxattn.scores import Score

__all__ = ["Pairs", "halves", "scored", "whole"]


class Pairs(NamedTuple):
    """The queries and keys that meet in a tile of logits [u, t, s]."""

    q_idx: jax.Array  # int32 [u, t, 1]
    kv_idx: jax.Array  # int32 [u, 1, s]
    run: int | None
    """Queries follow each other, and runs of so many keys; None: they stand in any order."""

    @classmethod
    def of(cls, q_idx: jax.Array, kv_idx: jax.Array, run: int | None = None) -> "Pairs":
        """All pairs of indices [T] and [S]."""
        return cls(q_idx.reshape(1, -1, 1), kv_idx.reshape(1, 1, -1), run)

    @classmethod
    def all(cls, q_len: int, kv_len: int) -> "Pairs":
        """All pairs of so many queries and keys."""
        known = not is_symbolic_dim(q_len) and not is_symbolic_dim(kv_len)
        q_idx, kv_idx = (jnp.arange(n, dtype=jnp.int32) for n in (q_len, kv_len))
        return cls.of(q_idx, kv_idx, kv_len if known else None)


def halves(score: Score, chosen: Sequence[bool]) -> tuple[Score, Score]:
    """The score with the chosen of its arrays alone, and with the others."""
    arrays, tree = jax.tree.flatten(score)
    pairs = [
        (x, None) if is_chosen else (None, x) for x, is_chosen in zip(arrays, chosen, strict=True)
    ]
    some, others = (jax.tree.unflatten(tree, [pair[i] for pair in pairs]) for i in range(2))
    return some, others


def whole(some: Score, others: Score) -> Score:
    """What `halves` took apart."""
    score: Score = jax.tree.map(
        lambda x, y: y if x is None else x, some, others, is_leaf=lambda x: x is None
    )
    return score


def scored(score: Score, logits: jax.Array, pairs: Pairs, seen: jax.Array | None) -> jax.Array:
    """New logits of one example and head; those of hidden pairs are anything.

    Args:
      score: its arrays being those of the example and head.
      logits: [u, t, s].
      pairs: where they stand.
      seen: bool [u, t, s]; None: all.
    """
    q_idx, kv_idx, run = pairs
    if 0 in logits.shape:
        return logits
    if seen is not None and not score.defined:
        score, arrays = _of_seen(score, (logits, q_idx, kv_idx), seen)
        return score(*arrays)
    if seen is not None:  # or products that overflow reach gradients
        logits = jnp.where(seen, logits, 0.0)
    if run is None:
        return score(logits, q_idx, kv_idx)
    return score.tile(logits, q_idx, kv_idx, run)


def _of_seen(
    score: Score, arrays: tuple[jax.Array, jax.Array, jax.Array], seen: jax.Array
) -> tuple[Score, tuple[jax.Array, jax.Array, jax.Array]]:
    """The score, and what it is asked about: a pair that is seen in place of each that is not.

    Else a derivative of a hidden pair that is not finite, times a gradient of zero, would be NaN in
    the gradients of the score's arrays.
    """
    pair, any_seen = jnp.argmax(seen), seen.any()

    def in_place(x: jax.Array) -> jax.Array:
        other = jnp.broadcast_to(x, seen.shape).reshape(-1)[pair]
        return jnp.where(seen, x, jax.lax.stop_gradient(other))

    def unless_none(x: jax.Array) -> jax.Array:  # is seen: then the pair is a hidden one
        return jnp.where(any_seen, x, jax.lax.stop_gradient(x))

    logits, q_idx, kv_idx = map(in_place, arrays)
    return jax.tree.map(unless_none, score), (logits, q_idx, kv_idx)
