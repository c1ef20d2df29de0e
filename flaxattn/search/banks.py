"""Beams shared between candidates of several kinds, so that no kind crowds out another."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from flaxattn.search.top_k import top_k

__all__ = ["Shared", "share"]


class Shared(NamedTuple):
    """The candidates that were chosen, and the best of bank 0."""

    best: jax.Array
    """float32 [B, k], in order; -inf where there are fewer."""
    where: jax.Array
    """int32 [B, k]."""
    first: jax.Array
    """float32 [B, k]: the best of bank 0, in order."""
    first_where: jax.Array
    """int32 [B, k]."""


def share(scores: jax.Array, banks: jax.Array, count: int, k: int) -> Shared:
    """The best of each bank, then the second of each, and so on, until there are k.

    In each turn bank 0 comes first, and a bank that has no more is passed over.

    Args:
      scores: float32 `[B, M]`; banks: int32 `[B, M]`, 0 to `count` - 1.

    >>> found = share(jnp.array([[9.0, 8.0, 7.0, 1.0]]), jnp.array([[1, 1, 1, 0]]), 2, 3)
    >>> found.best.tolist(), found.where.tolist()
    ([[9.0, 8.0, 1.0]], [[0, 1, 3]])
    """
    of_bank = lambda number: top_k(jnp.where(banks == number, scores, -jnp.inf), k)  # noqa: E731
    best, where = jax.lax.map(of_bank, jnp.arange(count))  # [banks, B, k]
    in_turn, where_in_turn = (x.transpose(1, 2, 0).reshape(len(scores), -1) for x in (best, where))
    turns = jnp.argsort(jnp.isneginf(in_turn), axis=-1, stable=True)[:, :k]
    chosen, order = jax.lax.top_k(jnp.take_along_axis(in_turn, turns, axis=-1), k)
    places = jnp.take_along_axis(turns, order, axis=-1)
    return Shared(chosen, jnp.take_along_axis(where_in_turn, places, axis=-1), best[0], where[0])
