"""The beams of an example as one tree of prefixes, in one row of the key/value cache.

The K beams write their tokens at index t to cells t·K to t·K + K - 1 of their example's row, where
these stay. A beam sees the cells of its own ancestors: reordering beams changes a mask, and no
cache is copied. The source's keys and values are kept once for all beams, too.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from flaxattn.masks import Mask, from_dense
from flaxattn.types import PyTree

__all__ = ["PrefixTree", "ancestry", "descend", "reorder"]


class PrefixTree(NamedTuple):
    """The cache of all beams, and which of its cells each beam has passed through."""

    cache: PyTree
    """The "cache" collection of B rows with T·K cells."""
    ancestors: jax.Array
    """int32 [B, K, T]: which of the K cells at each index belongs to the beam."""


def ancestry(ancestors: jax.Array, index: jax.Array) -> Mask:
    """The mask of one token: beam j sees the cells of its ancestors. The cache's layers shift it.

    Args:
      ancestors: int32 `[B, K, T]`, those at `index` included.
      index: int32 `[]`, which token of its sequence each beam reads.
    """
    batch, beams, length = ancestors.shape
    mine = ancestors[..., None] == jnp.arange(beams).reshape(1, 1, 1, beams)  # [B, K, T, K]
    return from_dense(mine.reshape(batch, beams, length * beams)).shift(q_start=-index * beams)


def descend(tree: PrefixTree, index: jax.Array) -> jax.Array:
    """The ancestors once every beam has a cell of its own at `index`."""
    batch, beams, _ = tree.ancestors.shape
    own = jnp.broadcast_to(jnp.arange(beams, dtype=jnp.int32)[None, :, None], (batch, beams, 1))
    return jax.lax.dynamic_update_slice_in_dim(tree.ancestors, own, index, axis=2)


def reorder(tree: PrefixTree, rows: jax.Array) -> PrefixTree:
    """The tree whose beam i, counted over all examples, goes on from `rows[i]`; int32 [B·K]."""
    batch, beams, _ = tree.ancestors.shape
    parents = rows.reshape(batch, beams, 1) % beams
    return tree._replace(ancestors=jnp.take_along_axis(tree.ancestors, parents, axis=1))
