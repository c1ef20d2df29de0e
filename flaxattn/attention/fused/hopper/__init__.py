"""Attention on Hopper GPUs, by kernels of Mosaic GPU.

Two warpgroups compute, 64 rows of a tile each, and a third copies, by the plan's lists of live
blocks, as in FlashAttention-3 (arXiv:2407.08608). Products of a warpgroup go on while it computes
weights. Only partial tiles ask the mask, by its rule in registers.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.experimental.pallas import mosaic_gpu as plgpu
from jax.typing import DTypeLike

from flaxattn.attention.fused.hopper.forward import forward as forward
from flaxattn.attention.fused.hopper.keys import backward_keys as backward_keys
from flaxattn.attention.fused.hopper.queries import backward_query as backward_query

REPAIRS = True  # rows that are not finite, in the tiles that it looks at
LANES = 64  # what the widths of heads are multiples of
WIDEST, WIDEST_WITH_GRADIENT = 256, 128  # as registers and shared memory allow


def block_sizes(q_len: int, kv_len: int, lead: Sequence[int] = (1, 1)) -> tuple[int, int]:
    """How many queries and keys a block of plans has."""
    return 128, 128


def why_not(
    dtype: DTypeLike, widths: tuple[int, int], lengths: tuple[int, int], lead: Sequence[int]
) -> str | None:
    """Why there is no kernel for arrays of a dtype, and heads so wide; None: there is one."""
    width = max(widths)
    if not hasattr(plgpu, "wgmma_accumulator_load"):
        return f"jax is {jax.__version__}, and kernels for Hopper GPUs need 0.10 or newer"
    if dtype not in (jnp.bfloat16, jnp.float16):
        return f"the arrays are {jnp.dtype(dtype)}, and its tensor cores take bfloat16 and float16"
    if width > WIDEST:
        return f"heads have {width} features, and its shared memory holds tiles of up to {WIDEST}"
    if width > WIDEST_WITH_GRADIENT and -(-widths[0] // LANES) != -(-widths[1] // LANES):
        return (
            f"queries have {widths[0]} features and values {widths[1]}; so wide, they must be alike"
        )
    return None
