"""Sums over the tokens of packed rows, from logits."""

import jax
import jax.numpy as jnp

__all__ = ["nll_of"]


def nll_of(logits: jax.Array, targets: jax.Array, where: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The negative log-likelihood in nats, and how many targets have the highest logit.

    Args:
      logits: float32 `[R, L, V]`.
      targets: int `[R, L]`.
      where: bool `[R, L]`, which count.

    Returns:
      float32 `[]` each, summed up.
    """
    # A comparison instead of an index: its gradient is elementwise, not a scatter.
    ids = jnp.arange(logits.shape[-1], dtype=targets.dtype)
    at_target = ids[None, None] == targets[..., None]
    told = jnp.where(at_target, logits, 0.0).sum(axis=-1)
    nll = jax.nn.logsumexp(logits, axis=-1) - told
    correct = (told >= logits.max(axis=-1)).astype(jnp.float32)
    return jnp.sum(nll, where=where), jnp.sum(correct, where=where)
