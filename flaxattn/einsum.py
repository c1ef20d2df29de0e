"""Matrix products that add up in a wider dtype than that of their factors, on every backend."""

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

__all__ = ["wide_einsum"]


def wide_einsum(spec: str, x: jax.Array, y: jax.Array, dtype: DTypeLike) -> jax.Array:
    """`jnp.einsum(spec, x, y)` added up and returned in `dtype`, no narrower than `x` and `y`."""

    def product(x: jax.Array, y: jax.Array) -> jax.Array:
        return jnp.einsum(spec, x, y, preferred_element_type=dtype)

    def widened(x: jax.Array, y: jax.Array) -> jax.Array:
        return product(x.astype(dtype), y.astype(dtype))

    if x.dtype == dtype:
        return product(x, y)
    # XLA of jax 0.7 cannot multiply batches of half floats into float32 on the CPU.
    products: jax.Array = jax.lax.platform_dependent(x, y, cpu=widened, default=product)
    return products
