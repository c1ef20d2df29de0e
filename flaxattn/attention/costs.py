"""What attention costs, measured: where blocks pay, and block sizes that suit a mask."""

import jax
import numpy as np
from jax.export import is_symbolic_dim

from flaxattn.attention.fused.chip import chip
from flaxattn.checks import check_known
from flaxattn.masks import BlockPlan, Mask

__all__ = ["blocks_pay", "draw_plan", "kernels_pay", "live_lengths"]

# Measured on two CPU cores (benchmarks/attention.py): a visit takes about as long as its cells and
# this many more queries, which is what fetching the keys of the visit costs.
BLOCK_Q, TALL_BLOCK_Q, BLOCK_KV, FETCH = 256, 512, 256, 100
# Up to so many logits per head the dense definition is taken. On a CPU it is as fast or faster
# there, on the same machine; elsewhere XLA's products are, as long as the memory is borne.
DENSE_CELLS, DENSE_CELLS_OFF_CPU = 2**17, 2**24
# Kernels are taken unasked on chips on which they were timed (benchmarks/accelerator.py).
TIMED, FUSED_CELLS, FEWEST_QUERIES = ("hopper",), 2**16, 128
# Of a cache, runs of cells no longer than this are not told apart: each is a program to compile.
LIVE_CELLS = 256


def live_lengths(q_len: int, kv_len: int) -> tuple[int, ...]:
    """The numbers of first keys of `kv_len` that attention is made for, where few may be live.

    >>> live_lengths(1, 1500)
    (375, 750, 1500)
    """
    ends = [kv_len]
    if not is_symbolic_dim(q_len) and not is_symbolic_dim(kv_len):
        while ends[0] // 2 >= max(LIVE_CELLS, q_len):
            ends.insert(0, -(-ends[0] // 2))
    return tuple(ends)


def blocks_pay(q_len: int, kv_len: int) -> tuple[bool, str]:
    """Whether attention by blocks pays at these lengths, and why."""
    cells = f"{q_len} x {kv_len} logits per head"
    if jax.default_backend() != "cpu":
        pays = q_len * kv_len > DENSE_CELLS_OFF_CPU
        return pays, f"{cells}; off the CPU blocks are for memory alone, above 4096 x 4096"
    return q_len * kv_len > DENSE_CELLS, f"{cells}; blocks are faster above about 360 x 360"


def kernels_pay(q_len: int, kv_len: int) -> tuple[bool, str]:
    """Whether kernels of the chip have been timed and pay at these lengths, and why."""
    cells, name = f"{q_len} x {kv_len} logits per head", chip()
    if name not in TIMED:
        return False, f"{cells}; kernels have not been timed on this device"
    pays = q_len >= FEWEST_QUERIES and q_len * kv_len > FUSED_CELLS
    return pays, f"{cells}; kernels are faster from 128 queries and above 256 x 256"


def draw_plan(mask: Mask, q_len: int, kv_len: int) -> BlockPlan:
    """The plan of `mask` in blocks that suit it, or most masks if it is not known while tracing."""
    check_known(q_len=q_len, kv_len=kv_len)
    plan = _plan(mask, q_len, kv_len, BLOCK_Q)
    if not isinstance(plan.bounds.some, np.ndarray):
        return plan
    return min(plan, _plan(mask, q_len, kv_len, TALL_BLOCK_Q), key=_cost)


def _plan(mask: Mask, q_len: int, kv_len: int, block_q: int) -> BlockPlan:
    """In blocks no longer than what they cut."""
    sizes = {"block_q": max(min(block_q, q_len), 1), "block_kv": max(min(BLOCK_KV, kv_len), 1)}
    return mask.plan(q_len, kv_len, **sizes)


def _cost(plan: BlockPlan) -> int:
    return int(plan.bounds.some.sum()) * (plan.block_q + FETCH)
