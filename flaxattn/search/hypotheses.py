"""What every search is given and gives back: a step, rules of what may come where, hypotheses.

A hypothesis is a whole sequence: its last token, and no other, is `eos_id`. Where the longest
length is reached, `eos_id` is the only token that may come. So every hypothesis is compared with
every other by the probability of a whole sequence, and none is cut short.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

__all__ = [
    "Hypotheses",
    "Rules",
    "Step",
    "call_step",
    "length_penalties",
    "log_normaliser",
    "no_hypotheses",
    "repeat_rows",
    "take_rows",
]

Step = Callable[[jax.Array, jax.Array, Any], tuple[jax.Array, Any]]
"""`step(tokens, index, state) -> (logits, state)`: a model that reads one token of every row.

tokens: int32 `[R]`; index: int32 `[]`, which token of its sequence each is: 0 for `bos_id`;
state: a pytree whose leaves have a leading axis R; logits: floating `[R, V]`, of the next token.
With n rows to an example, R = B * n and those of an example stand together: r // n is its number.
"""


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


class Rules(NamedTuple):
    """Which token may come where, and how whole sequences are compared."""

    bos_id: int
    eos_id: int
    pad_id: int
    max_length: int
    """T."""
    exponent: float | jax.Array
    """Of the length penalty."""
    limits: jax.Array
    """int32 [B]: the longest length; 0 where nothing is asked for."""
    minimums: jax.Array
    """int32 [B]: the shortest length; a limit below it wins."""

    @property
    def never(self) -> tuple[int, ...]:
        """Tokens that are not generated."""
        return tuple(sorted({self.bos_id, self.pad_id} - {self.eos_id}))

    def must_end(self, index: jax.Array) -> jax.Array:
        """bool [B]: whether the token after token `index` can only be `eos_id`."""
        return index + 1 >= self.limits

    def may_end(self, index: jax.Array) -> jax.Array:
        """bool [B]: whether the token after token `index` can be `eos_id`."""
        return (index + 1 >= self.minimums) | self.must_end(index)

    def allowed(self, index: jax.Array, vocab_size: int) -> jax.Array:
        """bool [B, V]: whether the token after token `index` can be this one."""
        tokens = jnp.arange(vocab_size)[None]
        never = jnp.isin(tokens, jnp.array(self.never, tokens.dtype))
        ends, goes_on = self.may_end(index)[:, None], ~self.must_end(index)[:, None]
        return jnp.where(tokens == self.eos_id, ends, goes_on & ~never)

    def scores(self, log_probs: jax.Array, lengths: jax.Array) -> jax.Array:
        """Log-probabilities of whole sequences, made comparable between lengths."""
        return log_probs / length_penalties(lengths, self.exponent)


def length_penalties(lengths: Any, exponent: float | jax.Array) -> jax.Array:
    """((5 + length) / 6) ** exponent: equation 14 of Wu et al. (2016, arXiv:1609.08144).

    >>> length_penalties(np.array([1, 7]), 1.0).tolist()
    [1.0, 2.0]
    """
    return ((5 + jnp.asarray(lengths, jnp.float32)) / 6) ** jnp.asarray(exponent, jnp.float32)


def no_hypotheses(shape: tuple[int, ...], rules: Rules, score: float = -math.inf) -> Hypotheses:
    """As many as `shape` says, none of which is there."""
    scores = jnp.full(shape, score, jnp.float32)
    tokens = jnp.full((*shape, rules.max_length), rules.pad_id, jnp.int32)
    return Hypotheses(tokens, scores, scores, jnp.zeros(shape, jnp.int32))


def log_normaliser(logits: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(top, rest), each [..., 1], such that log_softmax(logits) = (logits - top) - rest.

    `top` or `rest` is not finite just where no log-probability can be told.
    """
    top = logits.max(axis=-1, keepdims=True)
    return top, jnp.log(jnp.exp(logits - top).sum(axis=-1, keepdims=True))


def repeat_rows(tree: Any, times: int) -> Any:
    """Every leaf [B, ...] -> [B * times, ...], the rows of an example beside each other."""
    return jax.tree.map(lambda x: jnp.repeat(x, times, axis=0), tree)


def take_rows(tree: Any, rows: jax.Array) -> Any:
    """Every leaf x [R, ...] -> x[rows]."""
    return jax.tree.map(lambda x: x[rows], tree)


def call_step(step: Step, tokens: jax.Array, index: jax.Array, state: Any) -> tuple[jax.Array, Any]:
    """Takes a step and checks what comes back: float32 logits [R, V] and the state.

    Raises:
      ValueError or TypeError if the logits are not floating [R, V] or the state changed its shape.
    """
    logits, new_state = step(tokens, index, state)
    if logits.ndim != 2 or logits.shape[0] != tokens.shape[0]:
        raise ValueError(
            f"step gave logits of shape {logits.shape}; expected [R, V] with R = {tokens.shape[0]} "
            "rows, as many as tokens."
        )
    if not jnp.issubdtype(logits.dtype, jnp.floating):
        raise TypeError(f"step gave logits of dtype {logits.dtype}; expected a floating dtype.")
    before, after = (jax.tree.map(_kind, x) for x in (state, new_state))
    if jax.tree.flatten(before) != jax.tree.flatten(after):
        raise ValueError(
            f"step was given a state of {before} but gave back {after}; expected the same "
            "structure, shapes and dtypes."
        )
    return logits.astype(jnp.float32), new_state


def _kind(x: Any) -> str:
    return f"{jnp.result_type(x)}{list(jnp.shape(x))}"
