"""The loss of a batch: a sum over tokens, to be divided once by the number of tokens."""

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from flaxattn.models import EncoderDecoder, shift_right

__all__ = ["Sums", "TokenLoss", "batch_loss", "cross_entropy"]


class Sums(NamedTuple):
    """Sums over the tokens of a batch; they add up over microbatches and devices."""

    loss: jax.Array  # label-smoothed, what is minimised
    nll: jax.Array  # negative log-likelihood in nats, what is reported
    correct: jax.Array  # tokens that had the highest logit
    tokens: jax.Array  # how many tokens were predicted


class TokenLoss(NamedTuple):
    """What `Sums` adds up."""

    loss: jax.Array
    nll: jax.Array
    correct: jax.Array


def cross_entropy(logits: jax.Array, target: jax.Array, label_smoothing: float) -> TokenLoss:
    """Cross-entropy of one token, smoothed and plain (Szegedy et al. 2016, section 7).

    Args:
      logits: float32 `[V]`; target: int `[]`.
      label_smoothing: the share of probability spread evenly over all V tokens.

    Returns:
      float32 `[]` each: the smoothed and the plain loss in nats, and 1 if the logit was highest.
    """
    chex.assert_rank([logits, target], [1, 0])
    log_normaliser = jax.nn.logsumexp(logits)
    # A comparison instead of an index: its gradient is elementwise, not a scatter.
    at_target = jnp.arange(logits.shape[0], dtype=target.dtype) == target
    target_logit = jnp.where(at_target, logits, 0.0).sum()
    nll = log_normaliser - target_logit
    uniform = log_normaliser - logits.mean()
    loss = (1.0 - label_smoothing) * nll + label_smoothing * uniform
    return TokenLoss(loss, nll, (target_logit >= logits.max()).astype(jnp.float32))


def batch_loss(
    model: EncoderDecoder,
    params: Any,
    batch: Any,
    *,
    bos_id: int,
    label_smoothing: float = 0.0,
    dropout_key: jax.Array | None = None,
) -> Sums:
    """The loss of a packed batch under teacher forcing.

    Args:
      batch: `flaxattn.translation.packing.Batch` of int `[R, L]`.
      dropout_key: None switches dropout off.
    """
    logits: Any = model.apply(
        {"params": params},
        batch.source,
        shift_right(batch.target, batch.target_segment_ids, bos_id),
        source_segment_ids=batch.source_segment_ids,
        target_segment_ids=batch.target_segment_ids,
        deterministic=dropout_key is None,
        rngs=None if dropout_key is None else {"dropout": dropout_key},
    )
    one_token = jax.vmap(jax.vmap(cross_entropy, (0, 0, None)), (0, 0, None))
    losses = one_token(logits, batch.target, label_smoothing)
    is_token = batch.target_segment_ids != 0
    loss, nll, correct = (jnp.sum(x, where=is_token) for x in losses)
    return Sums(loss, nll, correct, is_token.astype(jnp.float32).sum())
