"""Dropout with cheap random bits."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from flaxattn.attention.dropout import check_rate, check_varies, keep

__all__ = ["Dropout"]


class Dropout(nn.Module):
    """Elements set to zero at random, the others scaled up (Srivastava et al. 2014).

    As `flax.linen.Dropout`, with one integer hash for an element in place of a random-number
    generator, and with bits that depend on the key and the element's index alone, not on sharding.

    Attributes:
      rate: the probability of zero, at least 0 and less than 1.

    >>> x = jnp.ones((2, 4, 8))
    >>> y = Dropout(0.5).apply({}, x, deterministic=False, rngs={"dropout": jax.random.key(0)})
    >>> sorted(set(y.ravel().tolist()))
    [0.0, 2.0]
    """

    rate: float

    @nn.compact
    def __call__(self, x: jax.Array, *, deterministic: bool) -> jax.Array:
        """[..., D] -> [..., D]; draws a key from the "dropout" stream unless `deterministic`.

        Raises ValueError for a rate that is not at least 0 and less than 1, and inside `shard_map`
        for a key that is the same on all devices.
        """
        check_rate("rate", self.rate)
        if deterministic or self.rate == 0:
            return x
        key = self.make_rng("dropout")
        check_varies('the key of the "dropout" stream', key, x)
        seeds = jax.random.bits(key, (2,), jnp.uint32)
        rows = jnp.arange(math.prod(x.shape[:-1]))
        kept = keep(seeds, rows, jnp.arange(x.shape[-1]), self.rate).reshape(x.shape)
        return jnp.where(kept, x / (1.0 - self.rate), 0.0)
