"""What goes into a call of attention besides queries, keys, values and the mask: one bundle."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

__all__ = ["Options"]


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
        return jnp.asarray(head_dim**-0.5 if self.scale is None else self.scale, dtype)
