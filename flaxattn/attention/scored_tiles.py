"""Scores in the tiles of blockwise attention, for all heads of a chunk, and their derivatives.

The letters are those of `tiles.py`.
"""

import jax
import jax.numpy as jnp

from flaxattn.attention.chunks import Chunk
from flaxattn.attention.scoring import Pairs, scored, whole
from flaxattn.attention.tiles import Tiling
from flaxattn.scores import Score

__all__ = ["before_score", "score_tile"]


def score_tile(
    tiling: Tiling,
    chunk: Chunk,
    logits: jax.Array,
    pairs: Pairs,
    seen: jax.Array | None,
    *,
    derived: bool,
) -> jax.Array:
    """What the score of a chunk makes of logits [u·k, g·t, W·s], of hidden ones anything.

    Args:
      seen: bool [u, t, W·s]; None: all.
      derived: whether derivatives are taken of it. Then hidden pairs, and what stands past the last
        query, must not be asked about where the score is not defined there.
    """
    floating, others = chunk.inputs.score, chunk.fixed.score
    assert floating is not None and others is not None
    score = whole(floating, others)
    if not derived:
        seen = None
    elif not score.defined:
        seen = _of_queries(tiling, pairs, seen)
    arrays, tree = jax.tree.flatten(score)  # [k, g, ...], 1 where shared
    shared = [tuple(axis for axis in (0, 1) if x.shape[axis] == 1) for x in arrays]

    def of_head(logits: jax.Array, *arrays: jax.Array) -> jax.Array:
        return scored(jax.tree.unflatten(tree, arrays), logits, pairs, seen)

    over = of_head
    for level in (1, 0):  # query heads of a group, key heads
        axes = [None if level in axes else 0 for axes in shared]
        over = jax.vmap(over, in_axes=(1, *axes), out_axes=1)
    own = (x.squeeze(axes) for x, axes in zip(arrays, shared, strict=True))
    return tiling.fold(over(tiling.unfold(logits), *own))


def before_score(
    tiling: Tiling,
    chunk: Chunk,
    unscored: jax.Array,
    pairs: Pairs,
    seen: jax.Array | None,
    d_logits: jax.Array,
) -> tuple[jax.Array, Score | None]:
    """Gradients of the logits before the score, and of its floating arrays, from those after it."""
    if chunk.inputs.score is None:
        return d_logits, None

    def of_both(floating: Score, unscored: jax.Array) -> jax.Array:
        own = chunk._replace(inputs=chunk.inputs._replace(score=floating))
        return score_tile(tiling, own, unscored, pairs, seen, derived=True)

    d_score, d_logits = jax.vjp(of_both, chunk.inputs.score, unscored)[1](d_logits)
    return d_logits, d_score


def _of_queries(tiling: Tiling, pairs: Pairs, seen: jax.Array | None) -> jax.Array | None:
    """What is seen by queries, and not by what stands past the last: nobody is to see its score."""
    if tiling.rows * tiling.q_per_row * tiling.block_q == tiling.q_len:
        return seen
    shape = (*pairs.q_idx.shape[:2], pairs.kv_idx.shape[2])
    inside = jnp.broadcast_to(pairs.q_idx < tiling.q_len, shape)
    return inside if seen is None else seen & inside
