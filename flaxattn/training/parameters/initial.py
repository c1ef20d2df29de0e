"""Parameters that nothing has been learned by yet, and the names of their axes."""

from collections.abc import Callable

import flax.linen as nn
import jax

from flaxattn.training.trees import Params
from flaxattn.types import PyTree

__all__ = ["Init", "axes_of", "fresh_params", "shapes_of"]

Init = Callable[[jax.Array], Params]
"""Makes parameters from a random key; it is traced."""


def fresh_params(init: Init, seed: int) -> Params:
    """Fresh parameters: a pure function of `init` and the seed."""
    return jax.jit(init)(jax.random.key(seed))


def shapes_of(init: Init) -> Params:
    """Their shapes and dtypes, without making any."""
    return jax.eval_shape(init, jax.random.key(0))


def axes_of(init: Init) -> PyTree:
    """For each the logical names of its axes, without making any."""
    with nn.logical_axis_rules([("embed", None)]):  # any rule: layers then tell the names
        boxed = shapes_of(init)
    return nn.get_partition_spec(boxed)
