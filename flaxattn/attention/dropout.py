"""Dropout of attention weights whose bits depend on indices alone.

Whether weight (batch, head, query, key) is kept is a function of these four numbers and the key
given by the user: no implementation, block size or sharding changes it.
"""

import functools
import numbers

import chex
import jax
import jax.numpy as jnp
import numpy as np

from flaxattn.types import Array
from flaxattn.varying import zero_varying_like

__all__ = [
    "check_rate",
    "check_varies",
    "dropout_keys",
    "each_key",
    "keep",
    "keep_pair",
    "seeds_for",
]

HIGHEST_RATE = 1 - 2**-32  # above it none of the 2**32 numbers that a weight may draw keeps it


def check_rate(name: str, rate: float | Array) -> float:
    """The rate as a number.

    Raises TypeError for one that is not known while tracing, or no number; ValueError unless it is
    0 <= rate <= 1 - 2**-32.
    """
    if isinstance(rate, jax.core.Tracer):
        raise TypeError(
            f"{name} is traced; expected a number that is known while tracing: make it a static "
            "argument, or a constant of the function."
        )
    if isinstance(rate, jax.Array | np.ndarray) and rate.ndim == 0:
        rate = rate.item()
    if not isinstance(rate, numbers.Real) or isinstance(rate, bool):
        raise TypeError(f"{name} is {rate!r}; expected a number.")
    if not 0.0 <= rate < 1.0:
        raise ValueError(f"{name} is {rate}; expected 0 <= {name} < 1.")
    if rate > HIGHEST_RATE:
        raise ValueError(f"{name} is {rate}; expected at most 1 - 2**-32: nothing would be left.")
    return float(rate)


def check_varies(name: str, key: jax.Array, array: jax.Array, but: jax.Array | None = None) -> None:
    """Raises ValueError in `shard_map` where a key is the same on devices but an array is not.

    Over devices that `but` varies over it may be.
    """
    if not jax.sharding.get_abstract_mesh().manual_axes:
        return
    seed = jax.random.key_data(key).reshape(-1)[0]
    seed = seed if but is None else seed + zero_varying_like(but, seed.dtype)
    if jax.typeof(seed) != jax.typeof(seed + zero_varying_like(array, seed.dtype)):
        raise ValueError(
            f"{name} is the same on devices whose arrays are not, {jax.typeof(array)}: each would "
            "drop the same of its own. Fold the device in, jax.random.fold_in(key, "
            "jax.lax.axis_index(axis)); or, to drop what one device does, give attend a key for "
            "each example and head: dropout_keys outside shard_map, spread as the query is."
        )


def dropout_keys(key: jax.Array, batch: int, num_heads: int) -> jax.Array:
    """A key for every example and head, which `attend` takes as `dropout_key`.

    A single key given to `attend` stands for these. Inside `jax.shard_map` a device sees but its
    own examples and heads: make them outside, and spread them as the query is.

    >>> dropout_keys(jax.random.key(0), batch=2, num_heads=4).shape
    (2, 4)
    """

    def one(b: jax.Array, n: jax.Array) -> jax.Array:
        return jax.random.fold_in(jax.random.fold_in(key, b), n)

    over_b = jax.vmap(jax.vmap(one, in_axes=(None, 0)), in_axes=(0, None))
    keys: jax.Array = over_b(jnp.arange(batch), jnp.arange(num_heads))
    return keys


def each_key(key: jax.Array, batch: int, num_heads: int) -> jax.Array:
    """One key, or [B, N] of them, as [B, N]."""
    typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    return dropout_keys(key, batch, num_heads) if key.ndim == (0 if typed else 1) else key


def seeds_for(key: jax.Array, batch: int, num_heads: int) -> jax.Array:
    """Two 32-bit seeds for every example and head, of one key or [B, N] -> uint32 [B, N, 2]."""
    keys = each_key(key, batch, num_heads)
    bits = functools.partial(jax.random.bits, shape=(2,), dtype=jnp.uint32)
    seeds: jax.Array = jax.vmap(jax.vmap(bits))(keys)
    return seeds


def keep(seeds: jax.Array, q_idx: jax.Array, kv_idx: jax.Array, rate: float) -> jax.Array:
    """Which weights stay, each with probability 1 - rate: seeds [2], indices [T], [S] -> [T, S].

    Query and key indices are hashed apart, combined and hashed again, so that each of the T·S
    weights costs one short integer hash instead of a full random-number generator.
    """
    chex.assert_shape(seeds, (2,))
    chex.assert_rank([q_idx, kv_idx], 1)
    return keep_pair(seeds, q_idx[:, None], kv_idx[None, :], rate)


def keep_pair(seeds: jax.Array, q_idx: jax.Array, kv_idx: jax.Array, rate: float) -> jax.Array:
    """`keep` of indices that are broadcast against each other."""
    rows = _hash(q_idx.astype(jnp.uint32) ^ seeds[0])
    columns = _hash(kv_idx.astype(jnp.uint32) ^ seeds[1])
    bits = _hash(rows ^ columns)
    return bits >= np.uint32(round(rate * 2**32))


def _hash(x: jax.Array) -> jax.Array:
    """The integer hash "lowbias32" (C. Wellons, hash-prospector, 2018): uint32 -> uint32."""
    x = x ^ (x >> np.uint32(16))
    x = x * np.uint32(0x7FEB352D)
    x = x ^ (x >> np.uint32(15))
    x = x * np.uint32(0x846CA68B)
    return x ^ (x >> np.uint32(16))
