"""The logical names of a parameter's axes, for those who ask for them."""

from typing import Any

import flax.linen as nn
import jax
from jax.typing import DTypeLike

__all__ = ["named"]


def named(init: nn.initializers.Initializer, axes: tuple[str, ...]) -> nn.initializers.Initializer:
    """`init`, with the names of the parameter's axes where flax has rules for such names.

    Within `flax.linen.logical_axis_rules(rules)` parameters are made in a box of flax's that holds
    the names; else as they are, as by flax's own layers, whose transformations then need know
    nothing of names. An `init` that gives a box of its own keeps it.
    """

    def initial(key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike) -> Any:
        value = init(key, shape, dtype)
        if isinstance(value, nn.meta.AxisMetadata) or not nn.get_logical_axis_rules():
            return value
        return nn.LogicallyPartitioned(value, axes)

    return initial
