"""Averages of parameters: along training, and of several models."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from flaxattn.training.trees import Tree

__all__ = ["mean", "update_average"]


def update_average(average: Tree, params: Tree, step: jax.Array, decay: float) -> Tree:
    """The moving average of parameters after one more step: `average` moved towards `params`.

    The decay begins small, (1 + step) / (10 + step), so that the random start is soon forgotten.

    Args:
      average, params: trees of arrays.
      step: int `[]`, updates made before this one.
      decay: 0 to 1, the share of the old average that is kept later on.
    """
    count = jnp.asarray(step, jnp.float32)
    kept = jnp.minimum(decay, (1.0 + count) / (10.0 + count))
    return jax.tree.map(lambda a, p: a + (1.0 - kept).astype(a.dtype) * (p - a), average, params)


def mean(models: Sequence[Tree]) -> Tree:
    """The mean of trees of arrays, each element in its own dtype, added up in float32.

    >>> mean([{"w": jnp.array([1.0])}, {"w": jnp.array([2.0])}])["w"].tolist()
    [1.5]
    """

    def of_arrays(*arrays: jax.Array) -> jax.Array:
        total = functools.reduce(jnp.add, (x.astype(jnp.float32) for x in arrays))
        return (total / len(arrays)).astype(arrays[0].dtype)

    return jax.tree.map(of_arrays, *models)
