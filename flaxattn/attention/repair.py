"""Rows that are not finite, taken out of products and put back where they are seen.

0 * NaN is NaN, so a NaN in a hidden key or value would reach every query through a matrix product.
Rows that hold anything not finite are therefore zero in the products, and come back as NaN added
to the logits: where the mask hides them, they are gone. A key and its value are one such row.
Kernels that do so in the tiles that they look at are given the rows as they are, and told which.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

__all__ = ["Repaired", "bounded", "finite", "marked", "not_finite", "repair", "unless_nan"]


class Repaired(NamedTuple):
    """Queries, keys and values that are finite, and NaN or 0 for each row: what was taken out."""

    query: jax.Array  # [..., H]
    key: jax.Array
    value: jax.Array
    q_nan: jax.Array  # [...]
    kv_nan: jax.Array  # of a key or of its value


def repair(query: jax.Array, key: jax.Array, value: jax.Array, dtype: DTypeLike) -> Repaired:
    """The three [..., H] with zeros in rows that are not finite, and NaN for these in `dtype`."""
    q_broken, kv_broken = _broken(query, key, value)
    return Repaired(
        _without(query, q_broken),
        _without(key, kv_broken),
        _without(value, kv_broken),
        _nan_where(q_broken, dtype),
        _nan_where(kv_broken, dtype),
    )


def marked(query: jax.Array, key: jax.Array, value: jax.Array, dtype: DTypeLike) -> Repaired:
    """The same, and the three as they are."""
    q_broken, kv_broken = _broken(query, key, value)
    return Repaired(query, key, value, _nan_where(q_broken, dtype), _nan_where(kv_broken, dtype))


def _broken(query: jax.Array, key: jax.Array, value: jax.Array) -> tuple[jax.Array, jax.Array]:
    return not_finite(query), not_finite(key) | not_finite(value)


def finite(rows: jax.Array) -> jax.Array:
    """Zeros for what is not finite."""
    return jnp.where(jnp.isfinite(rows), rows, jnp.zeros_like(rows))


def unless_nan(rows: jax.Array, nan: jax.Array) -> jax.Array:
    """Zeros for the rows [..., H] that `nan` [...] tells: they have no derivative."""
    return jnp.where(jnp.isnan(nan)[..., None], jnp.zeros_like(rows), rows)


def not_finite(rows: jax.Array) -> jax.Array:
    """Which rows hold anything that is not finite: [..., H] -> bool [...].

    Not found by a maximum: on a CPU XLA's drops NaN, in arrays of some 4,096 elements and more.
    """
    return ~jnp.isfinite(rows).all(axis=-1)


@jax.custom_jvp
def _without(rows: jax.Array, broken: jax.Array) -> jax.Array:
    """Rows [..., H] with zeros for what is not finite; no derivative of rows that are `broken`.

    Element by element, so that it can be done where rows are made or looked at. A value next to a
    broken key may stay as it is: what sees them becomes NaN by its logit.
    """
    # It varies over devices as both do.
    return jnp.where((broken & False)[..., None], rows, finite(rows))


@_without.defjvp
def _without_jvp(
    primals: tuple[jax.Array, jax.Array], tangents: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    (rows, broken), (d_rows, _) = primals, tangents
    return _without(rows, broken), jnp.where(broken[..., None], 0.0, d_rows).astype(d_rows.dtype)


def _nan_where(broken: jax.Array, dtype: DTypeLike) -> jax.Array:
    """NaN where `broken`, else 0."""
    return jnp.where(broken, jnp.nan, 0.0).astype(dtype)


def bounded(x: jax.Array) -> jax.Array:
    """`x` with the largest finite numbers in place of inf; unlike in a clip, NaN stays NaN."""
    limit = jnp.asarray(jnp.finfo(x.dtype).max, x.dtype)
    return jnp.where(jnp.isinf(x), jnp.sign(x) * limit, x)
