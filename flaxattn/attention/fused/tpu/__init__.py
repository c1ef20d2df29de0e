"""Attention on TPUs, by Pallas kernels: one for each pass.

A kernel walks through tiles of logits, by the plan's lists of live blocks alone. Only partial tiles
ask the mask, by its rule on the tile.
"""

from collections.abc import Sequence

import jax.numpy as jnp
from jax.typing import DTypeLike

from flaxattn.attention.fused.tpu.grid import why_no_grid
from flaxattn.attention.fused.tpu.kernels import backward_keys as backward_keys
from flaxattn.attention.fused.tpu.kernels import backward_query as backward_query
from flaxattn.attention.fused.tpu.kernels import forward as forward

REPAIRS = False  # rows that are not finite, in the tiles that it looks at
LANES = 1  # what the widths of heads are multiples of: blocks have whole rows, of any width
WIDEST = WIDEST_WITH_GRADIENT = 512  # as fast memory allows
BLOCKS = (512, 512), (512, 1024), (1024, 1024)
"""The most queries and keys of a block: a logit takes as few bundles of instructions in all."""

LONG = 8192
"""From so many keys on the second are taken. Fewer steps cost less; in short sequences larger
blocks hold more that is hidden. The last are taken where there are too many of them."""


def block_sizes(q_len: int, kv_len: int, lead: Sequence[int] = (1, 1)) -> tuple[int, int]:
    """How many queries and keys a block of plans has; blocks are as even as they can be.

    Args:
      lead: how many examples and heads have masks of their own.
    """
    found = BLOCKS[-1]
    for most in reversed(BLOCKS[kv_len >= LONG :]):
        q_blocks, kv_blocks = -(-q_len // most[0]), -(-kv_len // most[1])
        if why_no_grid(lead, q_blocks, kv_blocks) is None:
            found = most
    (most_q, most_kv), unit = found, 128 if q_len > 128 else 16
    return _even(q_len, most_q, unit), _even(kv_len, most_kv, 128)


def _even(length: int, most: int, unit: int) -> int:
    """The size of blocks, a multiple of `unit` up to `most`, that as few of them need."""
    size = -(-length // -(-length // most))
    return -(-size // unit) * unit


def why_not(
    dtype: DTypeLike, widths: tuple[int, int], lengths: tuple[int, int], lead: Sequence[int]
) -> str | None:
    """Why there is no kernel for a call; None: there is one.

    Args:
      dtype: of the arrays.
      widths: how many features queries and values have.
      lengths: how many queries and keys there are.
      lead: how many examples and heads have masks of their own.
    """
    if dtype not in (jnp.bfloat16, jnp.float32):
        return f"the arrays are {jnp.dtype(dtype)}, and its kernels take bfloat16 and float32"
    width = max(widths)
    if width > WIDEST:
        return f"heads have {width} features, and its fast memory holds tiles of up to {WIDEST}"
    q_blocks, kv_blocks = (
        -(-length // size)
        for length, size in zip(lengths, block_sizes(*lengths, lead), strict=True)
    )
    return why_no_grid(lead, q_blocks, kv_blocks)
