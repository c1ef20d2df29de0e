"""The loss of a batch: a sum over tokens, to be divided once by the number of tokens."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from flaxattn.models import EncoderDecoder, shift_right
from flaxattn.text.packing import Batch
from flaxattn.training.task import Loss, Sums
from flaxattn.training.trees import Params
from flaxattn.translation.config import TranslationTraining

__all__ = ["Reported", "TokenLoss", "batch_loss", "cross_entropy", "divergence", "loss_of", "means"]


class Reported(NamedTuple):
    """What is added up over tokens besides the loss that is minimised."""

    nll: jax.Array
    """Negative log-likelihood in nats."""
    correct: jax.Array
    """Tokens that had the highest logit."""


class TokenLoss(NamedTuple):
    """The loss of one token, label-smoothed, and what is reported of it."""

    loss: jax.Array
    nll: jax.Array
    correct: jax.Array


def means(sums: Sums) -> dict[str, float]:
    """Loss and negative log-likelihood per token in nats, perplexity, and accuracy."""
    tokens, others = max(float(sums.units), 1.0), sums.others
    nll = float(others.nll) / tokens
    return {
        "loss": float(sums.loss) / tokens,
        "nll": nll,
        "perplexity": math.exp(min(nll, 100.0)),
        "accuracy": float(others.correct) / tokens,
    }


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


def divergence(logits: jax.Array, others: jax.Array) -> jax.Array:
    """The symmetric Kullback-Leibler divergence of two distributions, in nats.

    Args:
      logits, others: float32 `[V]`.
    """
    p, q = jax.nn.log_softmax(logits), jax.nn.log_softmax(others)
    return ((jnp.exp(p) - jnp.exp(q)) * (p - q)).sum()


def batch_loss(
    model: EncoderDecoder,
    params: Params,
    batch: Batch,
    *,
    bos_id: int,
    label_smoothing: float = 0.0,
    r_drop: float = 0.0,
    dropout_key: jax.Array | None = None,
) -> Sums:
    """The loss of a packed batch under teacher forcing.

    Args:
      batch: int `[R, L]` each.
      r_drop: the weight alpha of R-Drop (Liang et al. 2021, arXiv:2106.14448, equation 4, halved):
        each row passes twice, and the loss is the mean of both passes plus alpha / 4 times the
        symmetric divergence between them.
      dropout_key: None switches dropout off.
    """
    passes = 2 if r_drop else 1
    rows = jax.tree.map(lambda x: jnp.repeat(x, passes, axis=0), batch)
    logits: Any = model.apply(
        {"params": params},
        rows.source,
        shift_right(rows.target, rows.target_segment_ids, bos_id),
        source_segment_ids=rows.source_segment_ids,
        target_segment_ids=rows.target_segment_ids,
        deterministic=dropout_key is None,
        rngs=None if dropout_key is None else {"dropout": dropout_key},
    )
    losses = _over_tokens(cross_entropy, (0, 0, None))(logits, rows.target, label_smoothing)
    is_token = rows.target_segment_ids != 0
    loss, nll, correct = (jnp.sum(x, where=is_token) / passes for x in losses)
    if r_drop:
        differences = _over_tokens(divergence, (0, 0))(logits[::2], logits[1::2])
        loss += r_drop / 4 * jnp.sum(differences, where=is_token[::2])
    return Sums(loss, Reported(nll, correct), is_token.astype(jnp.float32).sum() / passes)


def loss_of(model: EncoderDecoder, training: TranslationTraining, bos_id: int) -> Loss:
    """The loss as training asks for it: under a random key smoothed and regularised, else plain."""

    def loss(params: Params, batch: Batch, key: jax.Array | None) -> Sums:
        of_batch = functools.partial(batch_loss, model, params, batch, bos_id=bos_id)
        if key is None:
            return of_batch()
        return of_batch(
            label_smoothing=training.label_smoothing, r_drop=training.r_drop, dropout_key=key
        )

    return loss


def _over_tokens(of_token: Callable[..., Any], axes: tuple[int | None, ...]) -> Callable[..., Any]:
    return jax.vmap(jax.vmap(of_token, axes), axes)
