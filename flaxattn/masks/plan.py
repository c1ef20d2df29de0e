"""Block plans: which blocks of a mask hold work, known from its bounds and not from its cells.

A block of `block_q` queries and `block_kv` keys is empty (nothing is seen), full (all is seen) or
partial. Attention need only visit the live blocks, those that are not empty, and ask the mask only
about the partial ones.
"""

import dataclasses
import functools
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from flaxattn import checks
from flaxattn.masks.blocks import Blocks, Bounds
from flaxattn.masks.values import register_for_export
from flaxattn.types import Array

if TYPE_CHECKING:
    from flaxattn.masks.mask import Mask

__all__ = ["BlockPlan", "LiveBlocks", "make_plan"]


class LiveBlocks(NamedTuple):
    """The columns of every row of blocks: first the full ones, then the partial, then the empty."""

    blocks: Array
    """int32 `[*lead, rows, columns]`, each of the three kinds in ascending order."""
    num_full: Array
    """int32 `[*lead, rows]`."""
    num_live: Array
    """int32 `[*lead, rows]`, full and partial."""


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["mask", "bounds", "live"],
    meta_fields=["q_len", "kv_len", "block_q", "block_kv"],
)
@dataclasses.dataclass(frozen=True, eq=False)
class BlockPlan:
    """A mask drawn on blocks of a given size; `attend` takes it in place of the mask.

    One plan serves every layer of a step. Its leading axes are those of the mask's leaves: `()`,
    `(B,)` or `(B, N)`, 1 where shared: what examples or heads share is stored once.

    >>> plan = causal().plan(6, 6, block_q=2, block_kv=2)
    >>> plan.state.tolist()  # 0 empty, 1 partial, 2 full
    [[1, 0, 0], [2, 1, 0], [2, 2, 1]]
    >>> plan.live.blocks.tolist(), plan.live.num_full.tolist(), plan.live.num_live.tolist()
    ([[0, 1, 2], [0, 1, 2], [0, 1, 2]], [0, 1, 2], [1, 2, 3])
    """

    mask: "Mask"
    """The `Mask` it was drawn from."""
    bounds: Bounds
    """bool `[*lead, Q, K]` each: not empty, full."""
    live: LiveBlocks
    """The key blocks of every query block."""
    q_len: int
    kv_len: int
    block_q: int
    block_kv: int

    @property
    def state(self) -> Array:
        """int8 `[*lead, Q, K]`: 0 empty, 1 partial, 2 full."""
        return self.bounds.some.astype(np.int8) + self.bounds.every.astype(np.int8)

    def transpose(self) -> LiveBlocks:
        """The query blocks of every key block: what a pass over keys visits."""
        return _live(Bounds(*(b.swapaxes(-1, -2) for b in self.bounds)))


register_for_export(BlockPlan)
for _part in (Bounds, LiveBlocks):
    export.register_namedtuple_serialization(
        _part, serialized_name=f"{_part.__module__}.{_part.__qualname__}"
    )


def make_plan(mask: "Mask", q_len: int, kv_len: int, block_q: int, block_kv: int) -> BlockPlan:
    """The plan of `mask`; see `Mask.plan`."""
    checks.check_known(q_len=q_len, kv_len=kv_len)
    q_len, kv_len = checks.check_size("q_len", q_len), checks.check_size("kv_len", kv_len)
    block_q = checks.check_size("block_q", block_q, minimum=1)
    block_kv = checks.check_size("block_kv", block_kv, minimum=1)
    mask.check_length(q_len, kv_len)
    kv_blocks = Blocks.of(kv_len, block_kv)
    some, every = mask.bounds(Blocks.of(q_len, block_q), kv_blocks)
    # A short last key block is not full: the keys past the end are hidden.
    whole = kv_blocks.lengths == block_kv
    bounds = Bounds(some, every & whole.reshape((1,) * (every.ndim - 1) + (-1,)))
    return BlockPlan(mask, bounds, _live(bounds), q_len, kv_len, block_q, block_kv)


def _live(bounds: Bounds) -> LiveBlocks:
    """The lists of `bounds`: one sort of integers orders columns by kind, then by index."""
    xp = np if isinstance(bounds.some, np.ndarray) else jnp
    columns = bounds.some.shape[-1]
    kind = 2 - bounds.some.astype(np.int32) - bounds.every.astype(np.int32)
    position = np.arange(columns, dtype=np.int32).reshape((1,) * (kind.ndim - 1) + (-1,))
    order = xp.sort(kind * columns + position, axis=-1)
    counts = (b.sum(axis=-1, dtype=np.int32) for b in (bounds.every, bounds.some))
    return LiveBlocks(order % max(columns, 1), *counts)
