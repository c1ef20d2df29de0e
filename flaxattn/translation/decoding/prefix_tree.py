"""The beams of an example as one tree of prefixes, in one row of the key/value cache.

At step t the K beams write their tokens to cells t·K to t·K + K - 1 of their example's row, and
stay there. A beam sees the cells of its own ancestors: reordering beams changes a mask, and no
cache is copied. The source's keys and values are kept once for all beams, too.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from flaxattn.masks import Mask, from_dense

__all__ = ["PrefixTree", "ancestry", "descend", "reorder"]


class PrefixTree(NamedTuple):
    """The cache of all beams, and which of its cells each beam has come through."""

    cache: Any
    """The "cache" collection of B rows with T·K cells."""
    ancestors: jax.Array
    """int32 [B, K, T]: which of the K cells of each step belongs to the beam."""


def ancestry(ancestors: jax.Array, step: jax.Array) -> Mask:
    """Who sees what at a step: beam j the cells of its ancestors, as the cache's layers shift it.

    Args:
      ancestors: int32 `[B, K, T]`, those of `step` included.
      step: int32 `[]`.
    """
    batch, beams, steps = ancestors.shape
    mine = ancestors[..., None] == jnp.arange(beams).reshape(1, 1, 1, beams)  # [B, K, T, K]
    return from_dense(mine.reshape(batch, beams, steps * beams)).shift(q_start=-step * beams)


def descend(tree: PrefixTree, step: jax.Array) -> jax.Array:
    """The ancestors once every beam has a cell of its own at `step`."""
    batch, beams, _ = tree.ancestors.shape
    own = jnp.broadcast_to(jnp.arange(beams, dtype=jnp.int32)[None, :, None], (batch, beams, 1))
    return jax.lax.dynamic_update_slice_in_dim(tree.ancestors, own, step, axis=2)


def reorder(tree: PrefixTree, rows: jax.Array) -> PrefixTree:
    """The tree whose beam i, counted over all examples, goes on from `rows[i]`; int32 [B·K]."""
    batch, beams, _ = tree.ancestors.shape
    parents = rows.reshape(batch, beams, 1) % beams
    return tree._replace(ancestors=jnp.take_along_axis(tree.ancestors, parents, axis=1))
