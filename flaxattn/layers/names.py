"""The logical names of axes of parameters and activations, for those who have rules for them."""

from typing import Any

import flax.linen as nn
import jax
from jax.sharding import NamedSharding
from jax.typing import DTypeLike

from flaxattn.logical import spec_of

__all__ = ["constrained", "named"]


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


def constrained(x: jax.Array) -> jax.Array:
    """`x` `[*lead, T, D]`, its examples and positions where rules put "batch" and "length".

    Left alone a compiler would rather move activations than the parameters that are spread over the
    same devices. Without `flax.linen.logical_axis_rules` and a mesh around, whose axes are Auto and
    not those of a `shard_map`, nothing is done.
    """
    rules, mesh = nn.get_logical_axis_rules(), jax.sharding.get_abstract_mesh()
    if not rules or x.ndim < 3 or mesh.empty or {*mesh.auto_axes} != {*mesh.axis_names}:
        return x
    names = ("batch", *(None,) * (x.ndim - 3), "length")
    place = NamedSharding(mesh, spec_of(names, x.shape, rules, mesh))
    placed: jax.Array = jax.lax.with_sharding_constraint(x, place)
    return placed
