"""Which devices of a `jax.shard_map` hold the same array, as its type says.

Only types are compared: what they say has another name in every version of jax.
"""

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from flaxattn.types import PyTree

__all__ = ["shape_varying_like", "varying_like", "zero_varying_like"]


def zero_varying_like(arrays: PyTree, dtype: DTypeLike) -> jax.Array:
    """0 that varies over devices as the arrays do: what `shard_map` asks of the start of a loop."""
    never = jnp.zeros((), bool)
    for x in jax.tree.leaves(arrays):
        first = x.reshape(-1)[:1]  # none of an array of size 0, which varies all the same
        never |= ((first != first) & False).any()  # noqa: PLR0124
    return never.astype(dtype)


def varying_like(x: jax.Array, arrays: PyTree) -> jax.Array:
    """`x`, varying over devices as it and the arrays do; what compilers see is `x`."""
    zero = zero_varying_like(arrays, x.dtype)
    moved = x | zero if x.dtype == bool else x + zero
    return x if jax.typeof(moved) == jax.typeof(x) else moved


def shape_varying_like(
    arrays: PyTree, shape: tuple[int, ...], dtype: DTypeLike
) -> jax.ShapeDtypeStruct:
    """The type of an array that varies over devices as the arrays do: what Pallas is to be told."""
    varying = jax.typeof(zero_varying_like(arrays, dtype))
    names = ("vma", "manual_axis_type")  # of older and newer versions
    return jax.ShapeDtypeStruct(
        shape, dtype, **{name: getattr(varying, name) for name in names if hasattr(varying, name)}
    )
