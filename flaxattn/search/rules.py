"""Which token may come where, how long a sequence may be, and how whole ones are compared."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from flaxattn.types import Array

__all__ = ["TOGETHER", "Groups", "Lengths", "Rules", "SpecialTokens", "length_penalties"]


class SpecialTokens(NamedTuple):
    """The ids of the tokens that begin, end and pad sequences; ints.

    `bos_id` and `pad_id` are never generated, unless one of them is `eos_id`.
    """

    bos_id: int
    eos_id: int
    pad_id: int


class Lengths(NamedTuple):
    """How long sequences may be, counted with `eos_id` and without `bos_id`.

    New values of arrays, and of a traced `length_penalty`, compile nothing anew. To be made inside
    `jit`, not passed through it: `padded_length` is static.
    """

    max_length: int | Array
    """The most tokens: an int for all examples, or int `[B]`, cut to `padded_length`. The last of
    so many is always `eos_id`. 0, beside `padded_length`: nothing is sought."""
    min_length: int | Array = 0
    """The fewest tokens: an int, or int `[B]`; `max_length` wins where it is less."""
    length_penalty: float | Array = 0.6
    """The exponent in `length_penalties`, 0 or more. 0: scores are log-probabilities."""
    padded_length: int | None = None
    """T, the length of the arrays of tokens, static. None: `max_length`, which is then an int."""


class Groups(NamedTuple):
    """How the beams of a search are divided."""

    number: int = 1
    """G, as many beams in each; static. 1: all together."""
    diversity: float | Array = 0.5
    """What a token costs, in nats, for each beam of an earlier group that goes on with it here. It
    decides which beams go on, and is no part of their log-probabilities."""


TOGETHER = Groups()


class Rules(NamedTuple):
    """What a search was asked for, checked, with one value for every example."""

    special_tokens: SpecialTokens
    padded_length: int
    """T."""
    max_length: jax.Array
    """int32 [B], 0 to T."""
    min_length: jax.Array
    """int32 [B]."""
    length_penalty: float | Array

    @property
    def never_generated(self) -> tuple[int, ...]:
        """Special tokens that no sequence has."""
        bos_id, eos_id, pad_id = self.special_tokens
        return tuple(sorted({bos_id, pad_id} - {eos_id}))

    def must_end(self, index: jax.Array) -> jax.Array:
        """bool [B]: whether the token after token `index` can only be `eos_id`."""
        return index + 1 >= self.max_length

    def may_end(self, index: jax.Array) -> jax.Array:
        """bool [B]: whether the token after token `index` can be `eos_id`."""
        return (index + 1 >= self.min_length) | self.must_end(index)

    def allowed(self, index: jax.Array, vocab_size: int) -> jax.Array:
        """bool [B, V]: whether the token after token `index` can be this one."""
        tokens = jnp.arange(vocab_size)[None]
        never = jnp.isin(tokens, jnp.array(self.never_generated, tokens.dtype))
        ends, goes_on = self.may_end(index)[:, None], ~self.must_end(index)[:, None]
        return jnp.where(tokens == self.special_tokens.eos_id, ends, goes_on & ~never)

    def scores(self, log_probs: jax.Array, lengths: jax.Array) -> jax.Array:
        """Log-probabilities of whole sequences, made comparable between lengths."""
        return log_probs / length_penalties(lengths, self.length_penalty)


def length_penalties(lengths: int | Array, exponent: float | Array) -> jax.Array:
    """((5 + length) / 6) ** exponent: equation 14 of Wu et al. (2016, arXiv:1609.08144).

    >>> length_penalties(np.array([1, 7]), 1.0).tolist()
    [1.0, 2.0]
    """
    return ((5 + jnp.asarray(lengths, jnp.float32)) / 6) ** jnp.asarray(exponent, jnp.float32)
