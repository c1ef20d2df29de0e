"""The implementations of attention, by name, and the place that chooses among them.

All have one signature: `(query, key, value, mask or plan, options) -> (output, log-sum-exp)`, with
the shapes of `attend_with_stats`. A new one is a file with that function, and a line here.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax

from flaxattn.attention.blockwise import attend_blockwise
from flaxattn.attention.dense import attend_dense
from flaxattn.attention.options import Options
from flaxattn.masks import BlockPlan, Mask
from flaxattn.masks.plan import plan_pays

__all__ = ["IMPLEMENTATIONS", "Implementation", "ImplementationName", "choose"]

ImplementationName = Literal["auto", "dense", "blockwise"]

Attend = Callable[
    [jax.Array, jax.Array, jax.Array, Mask | BlockPlan | None, Options],
    tuple[jax.Array, jax.Array],
]


def _always(query: jax.Array, value: jax.Array, mask: Mask | BlockPlan | None) -> str | None:
    return None


class Implementation(NamedTuple):
    """One way to attend."""

    attend: Attend
    why_not: Callable[[jax.Array, jax.Array, Mask | BlockPlan | None], str | None] = _always
    """Of query, value and mask: why it cannot serve a call; None: it can."""


IMPLEMENTATIONS = {
    "dense": Implementation(attend_dense),
    "blockwise": Implementation(attend_blockwise),
}


def choose(
    name: str, query: jax.Array, key: jax.Array, value: jax.Array, mask: Mask | BlockPlan | None
) -> str:
    """The name of the implementation that serves a call: the one asked for, or the best.

    Raises:
      ValueError if there is none of that name, or it cannot serve the call: it says why.
    """
    if name == "auto":
        pays, _ = plan_pays(query.shape[1], key.shape[1])
        name = "blockwise" if pays or isinstance(mask, BlockPlan) else "dense"
        return name if IMPLEMENTATIONS[name].why_not(query, value, mask) is None else "dense"
    if name not in IMPLEMENTATIONS:
        choices = ("auto", *IMPLEMENTATIONS)
        raise ValueError(f"implementation is {name!r}; expected one of {choices}.")
    if why := IMPLEMENTATIONS[name].why_not(query, value, mask):
        raise ValueError(f'implementation="{name}" cannot serve this call: {why}.')
    return name
