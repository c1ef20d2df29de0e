"""From one head to all of them: vmap over query groups, key heads and batch.

Grouped-query attention falls out of it: keys and values are mapped over their own K heads and
are not repeated for the G = N // K query heads that share them.
"""

from collections.abc import Callable
from typing import TypeVar

import jax

from flaxattn.types import PyTree

__all__ = ["over_batch_and_heads"]

Result = TypeVar("Result")


def over_batch_and_heads(
    fn: Callable[..., Result], of_query: PyTree, of_key: PyTree, *shared: PyTree
) -> Result:
    """`fn` of one head, mapped over batch and heads.

    Args:
      fn: takes the three below without their batch and head axes; returns `[T, ...]`, or a tuple
        of such.
      of_query: arrays `[B, T, N, ...]`; of_key: arrays `[B, S, K, ...]`.
      *shared: arrays `[B, N, ...]`, where an axis of 1 is the same for all; or trees of such.

    Returns:
      `[B, T, N, ...]` for each.
    """
    # Heads before positions: on CPU the gradient is up to 1.5 times faster than mapping in place.
    of_query, of_key = jax.tree.map(lambda x: x.swapaxes(1, 2), (of_query, of_key))
    n, k = (jax.tree.leaves(x)[0].shape[1] for x in (of_query, of_key))
    of_query = jax.tree.map(lambda x: x.reshape(x.shape[0], k, n // k, *x.shape[2:]), of_query)
    leaves, tree = jax.tree.flatten(shared)
    arrays, axes = zip(*(_split(x, k, n // k) for x in leaves), strict=True) if leaves else ((), ())

    def of_one(of_query: PyTree, of_key: PyTree, *arrays: jax.Array) -> Result:
        return fn(of_query, of_key, *jax.tree.unflatten(tree, arrays))

    over: Callable[..., Result] = of_one
    if n == k:  # no groups: one axis less, for which XLA has faster programs
        of_query = jax.tree.map(lambda x: x.squeeze(2), of_query)
    else:
        over = jax.vmap(over, in_axes=(0, None, *(a[2] for a in axes)))
    for level in (1, 0):  # key heads, batch
        over = jax.vmap(over, in_axes=(0, 0, *(a[level] for a in axes)))
    outputs = over(of_query, of_key, *arrays)
    if n != k:
        outputs = jax.tree.map(lambda x: x.reshape(x.shape[0], n, *x.shape[3:]), outputs)
    outputs = jax.tree.map(lambda x: x.swapaxes(1, 2), outputs)
    return outputs


def _split(x: jax.Array, k: int, g: int) -> tuple[jax.Array, tuple[int | None, ...]]:
    """[B, N, ...] -> [B, K, G, ...] less the axes of 1, and the vmap axis of B, K and G."""
    b, n, *rest = x.shape
    x = x.reshape(b, *((k, g) if n == k * g else (1, 1)), *rest)
    shared = [axis for axis in range(3) if x.shape[axis] == 1]
    return x.squeeze(shared), tuple(None if axis in shared else 0 for axis in range(3))
