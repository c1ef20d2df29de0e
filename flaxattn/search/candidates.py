"""The best continuations of the beams of an example."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from flaxattn.search.banks import share
from flaxattn.search.constraints import Choice
from flaxattn.search.decode_step import log_normaliser
from flaxattn.search.rules import Rules
from flaxattn.search.top_k import top_k

__all__ = ["Candidates", "expand"]


class Candidates(NamedTuple):
    """How the beams of an example can continue; log-probabilities are those of whole prefixes."""

    log_probs: jax.Array
    """float32 [B, K]: of the best continuations, in order; -inf where there are fewer."""
    parents: jax.Array
    """int32 [B, K]: the beam that each continues."""
    tokens: jax.Array
    """int32 [B, K]: by which token."""
    ends: jax.Array
    """float32 [B, K]: of each beam ended here; -inf if that is not among the K best of all."""
    broken: jax.Array
    """bool [B]: whether there are log-probabilities that cannot be computed."""


def expand(
    logits: jax.Array,
    live: jax.Array,
    index: jax.Array,
    rules: Rules,
    choice: Choice | None = None,
    cost: jax.Array | None = None,
) -> Candidates:
    """The K best continuations of K beams, and their ends.

    Args:
      logits: float32 `[B, K, V]`; live: float32 `[B, K]`, the beams' log-probabilities, -inf where
        there is none; choice: what constraints leave, if there are any; cost: float32 `[B, V]`, by
        how much less each token is preferred.
    """
    vocab_size, eos_id = logits.shape[-1], rules.special_tokens.eos_id
    top, rest = log_normaliser(logits)
    known = (jnp.isfinite(top) & jnp.isfinite(rest))[..., 0]
    scores = jnp.where(
        jnp.isneginf(live)[..., None], -jnp.inf, (logits - top) - rest + live[..., None]
    )
    if choice is not None:
        scores = jnp.where(choice.allowed, scores, -jnp.inf)
    ends = jnp.where(rules.may_end(index)[:, None], scores[..., eos_id], -jnp.inf)
    scores = scores.at[..., jnp.array([eos_id, *rules.never_generated])].set(-jnp.inf)
    preferred = scores if cost is None else scores - cost[:, None]
    flat, beams = preferred.reshape(len(scores), -1), live.shape[1]
    if choice is None or choice.missing is None:
        best, where = top_k(flat, beams)
        rivals = None
    else:
        missing = choice.missing.reshape(flat.shape)
        best, where, *rivals = share(flat, missing, choice.most_missing + 1, beams)
    if cost is not None:
        best = jnp.take_along_axis(scores.reshape(flat.shape), where, axis=-1)
    best = jnp.where(rules.must_end(index)[:, None], -jnp.inf, best)
    ends_where = jnp.arange(beams) * vocab_size + eos_id
    return Candidates(
        log_probs=best,
        parents=where // vocab_size,
        tokens=where % vocab_size,
        ends=_among_best(
            ends, jnp.broadcast_to(ends_where, ends.shape), *(rivals or (best, where))
        ),
        broken=(~known & ~jnp.isneginf(live)).any(axis=-1),
    )


def _among_best(
    ends: jax.Array, ends_where: jax.Array, best: jax.Array, where: jax.Array
) -> jax.Array:
    """The ends [B, K] that are among the K best of ends and others; of equals, the earlier in V."""
    values = jnp.concatenate([ends, best], axis=-1)[:, None, :]
    places = jnp.concatenate([ends_where, where], axis=-1)[:, None, :]
    earlier = (values == ends[..., None]) & (places < ends_where[..., None])
    rank = ((values > ends[..., None]) | earlier).sum(axis=-1)
    return jnp.where(rank < ends.shape[-1], ends, -jnp.inf)
