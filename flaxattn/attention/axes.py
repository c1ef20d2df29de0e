"""What the axes of the arrays of a call are, as far as work can be divided over them.

Letters stand for them: "b" examples, "n" query heads, "k" key/value heads, others for axes that
were vmapped over, and None for all that remain. Those of trees are in the order of their leaves.
"""

from typing import TypeAlias

import jax
import jax.numpy as jnp

from flaxattn.attention.options import Call, Options
from flaxattn.masks import BlockPlan, Mask
from flaxattn.scores import Score
from flaxattn.types import Array

__all__ = [
    "OUTPUT_AXES",
    "QKV_AXES",
    "Axes",
    "call_axes",
    "head_axes",
    "lead_axes",
    "mask_axes",
    "option_axes",
    "tree_axes",
]

Axes: TypeAlias = tuple[str | None, ...]
"""The letter of each axis of an array."""

QKV_AXES: tuple[Axes, ...] = (("b", None, "n", None), *(("b", None, "k", None),) * 2)
OUTPUT_AXES: tuple[Axes, ...] = (("b", None, "n", None), ("b", None, "n"))


def lead_axes(array: Array, lead: int) -> Axes:
    """Those of an array `[B, N, ...]` of which `lead` axes are there, 1 where shared."""
    letters = zip("bn"[:lead], array.shape, strict=False)
    return (*(a if size != 1 else None for a, size in letters), *(None,) * (array.ndim - lead))


def head_axes(array: jax.Array) -> Axes:
    """Those of an array `[N]`, 1 where shared, or `[]`."""
    return tuple("n" if size != 1 else None for size in array.shape)


def mask_axes(mask: Mask | BlockPlan | None) -> tuple[Axes, ...]:
    """Those of the arrays in a mask or plan."""
    if mask is None:
        return ()
    if isinstance(mask, Mask):
        return tree_axes(mask)
    lead = mask.live.num_live.ndim - 1
    return (*mask_axes(mask.mask), *(lead_axes(x, lead) for x in (*mask.bounds, *mask.live)))


def tree_axes(tree: Mask | Score) -> tuple[Axes, ...]:
    """Those of the arrays in a mask, or in a score `for_heads`."""
    return tuple(lead_axes(leaf.array, len(leaf.lead)) for leaf in tree.leaves())


def option_axes(options: Options) -> tuple[Axes, ...]:
    """Those of the arrays of a call besides its mask."""
    bias, scale, seeds = options.bias, options.scale, options.seeds
    score, sinks = options.score, options.sinks
    return (
        *(() if bias is None else (lead_axes(bias, 2),)),
        *(() if scale is None else (head_axes(jnp.asarray(scale)),)),
        *(() if score is None else tree_axes(score)),
        *(() if sinks is None else (head_axes(jnp.asarray(sinks)),)),
        *(() if seeds is None else (lead_axes(seeds, 2),)),
        *(() if options.places is None else ((None,),) * 2),
    )


def call_axes(*call: *Call) -> tuple[Axes, ...]:
    """Those of all arrays of a call."""
    *_, mask, options = call
    return (*QKV_AXES, *mask_axes(mask), *option_axes(options))
