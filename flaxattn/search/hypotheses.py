"""What every search gives back.

A hypothesis is a whole sequence: its last token, and no other, is `eos_id`. Where `max_length` is
reached, `eos_id` is the only token that may come. So every hypothesis is compared with every other
by the probability of a whole sequence, and none is cut short.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from flaxattn.search.rules import Rules

__all__ = ["Hypotheses", "no_hypotheses"]


class Hypotheses(NamedTuple):
    """n whole sequences for each example.

    Where there are fewer than n, or none is allowed, a hypothesis has no tokens, length 0, and -inf
    for its score and log-probability. Where the logits of an example were NaN or +inf, or all -inf,
    it has no tokens either, and NaN for both.
    """

    tokens: jax.Array
    """int32 [B, n, T]: up to and including `eos_id`, then `pad_id`."""
    scores: jax.Array
    """float32 [B, n]: log-probabilities divided by `length_penalties`."""
    log_probs: jax.Array
    """float32 [B, n]: what the model gives the whole sequence, `eos_id` included."""
    lengths: jax.Array
    """int32 [B, n]: how many tokens, `eos_id` included."""


def no_hypotheses(shape: tuple[int, ...], rules: Rules, score: float = -math.inf) -> Hypotheses:
    """Empty places for as many hypotheses as `shape` says."""
    scores = jnp.full(shape, score, jnp.float32)
    tokens = jnp.full((*shape, rules.padded_length), rules.special_tokens.pad_id, jnp.int32)
    return Hypotheses(tokens, scores, scores, jnp.zeros(shape, jnp.int32))
