"""Cells that form a ring: position p takes cell p % S, in place of what was there.

So a mask that sees only the last few positions needs only so many cells, however long the sequence.
Each cell knows the position that it holds: what a query sees and no cell holds is not missed
silently.
"""

import jax
import jax.numpy as jnp

from flaxattn.layers.cache import Cells, Kept, index_positions, mask_or_full, write_cells
from flaxattn.masks import Blocks, Bounds, Mask, leaf, mask_type, valid
from flaxattn.masks.leaves import child
from flaxattn.types import Indices

__all__ = ["write_in_ring"]


def write_in_ring(cells: Cells, new: Kept, index: jax.Array) -> tuple[Cells, Kept]:
    """The cells with the T `new` keys and values from `index` on, and what is attended to.

    A single token is written first, and attends to the cells. Several may take cells that the first
    of them still see: they attend to the cells as they were, and to each other.
    """
    q_len = new.key.shape[1]
    positions = index_positions(index, q_len)  # [1 or B, T], of the queries
    fresh = Cells(new.key, new.value, jnp.broadcast_to(positions, new.key.shape[:2]))
    written = jax.tree.map(lambda cells, fresh: _write(cells, fresh, index), cells, fresh)
    if q_len == 1:
        wanted, held = _wanted(written, positions[:, -1:]), written
    else:
        wanted = jnp.concatenate([_wanted(cells, positions[:, :1] - 1), positions], axis=1)
        held = jax.tree.map(lambda *parts: jnp.concatenate(parts, axis=1), cells, fresh)
    mask = mask_or_full(new.mask)
    seen, known = mask.at(positions, wanted), wanted >= 0
    found = known & (held.positions == wanted)
    lost = (seen & valid(known & ~found)).dense(q_len, wanted.shape[1]).any(-1)
    lost = _rows(lost) | _rows(_sees_before(mask, index, q_len, wanted.min(axis=1)))
    score = None if new.score is None else new.score.at(positions, wanted)
    return written, Kept(held.key, held.value, seen & valid(found), score=score, lost=lost)


def _wanted(cells: Cells, last: jax.Array) -> jax.Array:
    """The positions that the cells hold if `last` is the newest, int [1 or B, 1] -> [1 or B, S]."""
    num_cells = cells.key.shape[1]
    return last - (last - jnp.arange(num_cells, dtype=jnp.int32)[None, :]) % num_cells


def _write(cells: jax.Array, new: jax.Array, index: jax.Array) -> jax.Array:
    """`cells` [B, S, ...] with the last S of `new` [B, T, ...], which begin at position `index`."""
    num_cells, surplus = cells.shape[1], max(new.shape[1] - cells.shape[1], 0)
    if new.shape[1] == 1:
        return write_cells(cells, new, index % num_cells)
    places = index_positions(index + surplus, new.shape[1] - surplus) % num_cells
    rows = jnp.arange(cells.shape[0], dtype=jnp.int32)[:, None]
    return cells.at[rows, places].set(new[:, surplus:], unique_indices=True)


def _rows(lost: jax.Array) -> jax.Array:
    """bool [T], [B, T] or [B, N, T] -> [B, N, T], 1 where shared."""
    return jnp.expand_dims(lost, {1: (0, 1), 2: (1,), 3: ()}[lost.ndim])


def _sees_before(mask: Mask, index: jax.Array, q_len: int, start: jax.Array) -> jax.Array:
    """Which of the queries from `index` on may see any position below `start`: bool [*lead, T]."""
    longest = max((max(leaf.array.shape, default=1) for leaf in mask.leaves()), default=1)
    before = _Before(mask, index, start, longest)
    return jnp.asarray(before.bounds(Blocks.of(q_len, 1), Blocks.of(1, 1)).some)[..., 0]


@mask_type
class _Before(Mask):
    """A mask whose only key stands for all positions from 0 to `start` - 1 of another."""

    mask: Mask = child()
    q_start: Indices = leaf()
    start: Indices = leaf()
    longest: int = 1
    """No array inside has more positions."""

    def head_bounds(self, q: Blocks, kv: Blocks) -> Bounds:
        positions = Blocks(kv.first + self.start * 0, kv.last + self.start - 1, self.longest)
        bounds = self.mask.head_bounds(q.shift(self.q_start), positions)
        return Bounds(bounds.some & (self.start > 0), bounds.every)
