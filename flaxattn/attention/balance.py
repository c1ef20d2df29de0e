"""Who computes what, where chunks of a sequence are spread: from the bounds of the mask alone."""

import jax
import numpy as np

from flaxattn.masks import Blocks, Mask
from flaxattn.types import Array

__all__ = [
    "blocks_of",
    "all_live",
    "cells_of",
    "live_hops",
    "live_of",
    "slowest",
    "slowest_in_step",
]


def blocks_of(starts: np.ndarray, chunk: int, size: int) -> Blocks:
    """Chunks [shards, chunks] in blocks of at most `size` positions, shard after shard."""
    size = min(size, chunk)
    first = starts.reshape(-1, 1) + np.arange(0, chunk, size)[None]
    last = np.minimum(first + size, starts.reshape(-1, 1) + chunk) - 1
    ends = [x.reshape(-1).astype(np.int32) for x in (first, last)]
    return Blocks(ends[0], ends[1], size)


def live_of(mask: Mask, q: Blocks, kv: Blocks, q_shards: int, kv_shards: int) -> Array:
    """bool [q_shards, kv_shards]: whether anything may be seen there; NumPy's where it is known."""
    some = mask.bounds(q, kv).some
    q_blocks, kv_blocks = some.shape[-2] // q_shards, some.shape[-1] // kv_shards
    live = some.reshape(-1, q_shards, q_blocks, kv_shards, kv_blocks)
    return live.max(axis=(0, 2, 4))


def cells_of(mask: Mask, q: Blocks, kv: Blocks, q_shards: int, kv_shards: int) -> np.ndarray:
    """float64 [q_shards, kv_shards]: the logits in live blocks, a mean over examples and heads.

    Raises ValueError for a mask whose arrays are traced.
    """
    some = mask.bounds(q, kv).some
    if isinstance(some, jax.core.Tracer):
        raise ValueError(
            f"mask {mask} holds traced arrays; expected known ones, as of a layout that is known."
        )
    live = np.asarray(some).reshape(-1, *some.shape[-2:]).mean(axis=0)
    live = live * np.outer(q.lengths, kv.lengths)
    shape = q_shards, -1, kv_shards, live.shape[-1] // kv_shards
    cells: np.ndarray = live.reshape(shape).sum(axis=(1, 3))
    return cells


def live_hops(live: np.ndarray) -> tuple[int, ...]:
    """The hops of a ring at which some device has work; 0 if none has any at all.

    At hop h device d has the keys of device d - h.
    """
    shards = np.arange(len(live))
    return tuple(h for h in shards.tolist() if live[shards, shards - h].any()) or (0,)


def all_live(live: np.ndarray) -> bool:
    """Whether at each of these hops all devices have work."""
    shards = np.arange(len(live))
    return all(live[shards, shards - h].all() for h in live_hops(live))


def slowest(cells: np.ndarray) -> float:
    """The work of the device that has most, over the mean; 1 where there is none."""
    work = cells.sum(axis=1)
    return float(work.max() / work.mean()) if work.any() else 1.0


def slowest_in_step(cells: np.ndarray) -> float:
    """The same of a ring whose devices wait for each other at each hop."""
    shards = np.arange(len(cells))
    hops = np.array([cells[shards, shards - h] for h in shards.tolist()])
    return float(hops.max(axis=1).sum() / hops.mean(axis=1).sum()) if hops.any() else 1.0
