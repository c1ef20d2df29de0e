"""What a call of attention is: queries, keys, values, the mask, and a bundle of all else."""

import dataclasses
import functools
from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jax.export import is_symbolic_dim
from jax.typing import DTypeLike

from flaxattn.masks import BlockPlan, Mask

__all__ = ["Attend", "Call", "Options", "default_scale"]


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["bias", "scale", "seeds"],
    meta_fields=["dropout_rate"],
)
@dataclasses.dataclass(frozen=True, eq=False)
class Options:
    """Those of a call, checked; every implementation is given them as they are."""

    bias: jax.Array | None = None
    """Floating `[B, N, T, S]`, 1 where shared; added to the logits."""
    scale: float | jax.Array | None = None
    """`[]` or `[N]`, multiplies the logits. None: `H**-0.5`."""
    seeds: jax.Array | None = None
    """uint32 `[B, N, 2]`, of `dropout.keep`. None: nothing is dropped."""
    dropout_rate: float = 0.0
    """The share of weights that is dropped; known while tracing."""

    def scale_for(self, head_dim: int, dtype: DTypeLike) -> jax.Array:
        """The scale in `dtype`, for queries of `head_dim` features."""
        return jnp.asarray(default_scale(head_dim) if self.scale is None else self.scale, dtype)


Call: TypeAlias = tuple[jax.Array, jax.Array, jax.Array, Mask | BlockPlan | None, Options]
"""Query, key, value, mask or plan, and options: checked."""

Attend: TypeAlias = Callable[[*Call], tuple[jax.Array, jax.Array]]
"""An implementation: the output and the log-sum-exp of a call, see `attend_with_stats`."""


def default_scale(head_dim: int) -> float:
    """`H**-0.5`; 1 for H = 0, where all logits are 0. Raises ValueError for a symbolic H."""
    if is_symbolic_dim(head_dim):
        raise ValueError(
            f"query has H = {head_dim}, a symbolic size; pass scale, which is H**-0.5 by default."
        )
    return float(head_dim**-0.5) if head_dim else 1.0
