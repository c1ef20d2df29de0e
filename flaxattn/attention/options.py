"""What a call of attention is: queries, keys, values, the mask, and a bundle of all else."""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax.export import is_symbolic_dim
from jax.typing import DTypeLike

from flaxattn.masks import BlockPlan, Mask
from flaxattn.scores import Score
from flaxattn.types import Array

__all__ = ["Attend", "Call", "OfHeads", "Options"]


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["bias", "scale", "score", "sinks", "seeds", "places"],
    meta_fields=["dropout_rate", "wide"],
)
@dataclasses.dataclass(frozen=True, eq=False)
class Options:
    """Those of a call, checked; every implementation is given them as they are."""

    bias: jax.Array | None = None
    """Floating `[B, N, T, S]`, 1 where shared; added to the logits."""
    scale: float | jax.Array | None = None
    """`[]` or `[N]`, multiplies the logits. None: `H**-0.5`."""
    score: Score | None = None
    """What becomes of the logits then; its arrays are `[B, N, ...]`, 1 where shared."""
    sinks: float | jax.Array | None = None
    """`[]` or `[N]`: a logit of each head that takes part in the sum of its softmax alone."""
    seeds: jax.Array | None = None
    """uint32 `[B, N, 2]`, of `dropout.keep`. None: nothing is dropped."""
    places: tuple[Array, Array] | None = None
    """int32 `[T]`, `[S]`: where queries and keys stand, to `dropout.keep`. None: 0, 1, 2, ..."""
    dropout_rate: float = 0.0
    """The share of weights that is dropped; known while tracing."""
    wide: bool = False
    """Whether the output is given in the dtype of logits, as a part of one is to be."""

    def for_heads(self, num_heads: int) -> "Options":
        """The same, with a score as it was given made one for so many heads."""
        score = None if self.score is None else self.score.for_heads(num_heads)
        return dataclasses.replace(self, score=score)

    def of_heads(self, head_dim: int, dtype: DTypeLike) -> "OfHeads":
        """Those for logits in `dtype`, of queries of `head_dim` features."""
        scale = _default_scale(head_dim) if self.scale is None else self.scale
        sinks = None if self.sinks is None else jnp.asarray(self.sinks, dtype).reshape(1, -1)

        score = None if self.score is None else self.score.astype(dtype)
        return OfHeads(self.bias, jnp.asarray(scale, dtype).reshape(1, -1), score, sinks)


class OfHeads(NamedTuple):
    """What the logits of heads are made with, beside queries and keys; or those of one head."""

    bias: jax.Array | None  # [B, N, T, S], 1 where shared
    scale: jax.Array  # [1, N], 1 where shared
    score: Score | None = None  # [B, N, ...], 1 where shared
    sinks: jax.Array | None = None  # [1, N], 1 where shared

    def of_one(self) -> "OfHeads":
        """Those of a single head, which has no axes of examples and heads."""
        scale, sinks = (None if x is None else x[0, 0] for x in (self.scale, self.sinks))
        assert scale is not None
        return self._replace(scale=scale, sinks=sinks)


Call: TypeAlias = tuple[jax.Array, jax.Array, jax.Array, Mask | BlockPlan | None, Options]
"""Query, key, value, mask or plan, and options: checked."""

Attend: TypeAlias = Callable[[*Call], tuple[jax.Array, jax.Array]]
"""An implementation: the output and the log-sum-exp of a call, see `attend_with_stats`."""


def _default_scale(head_dim: int) -> float:
    """`H**-0.5`; 1 for H = 0, where all logits are 0. Raises ValueError for a symbolic H."""
    if is_symbolic_dim(head_dim):
        raise ValueError(
            f"query has H = {head_dim}, a symbolic size; pass scale, which is H**-0.5 by default."
        )
    return float(head_dim**-0.5) if head_dim else 1.0
