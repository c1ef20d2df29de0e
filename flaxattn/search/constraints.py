"""What else sequences must keep to: a given beginning, no repetition, terms that they must have.

A constraint narrows the tokens that may come next, and knows no more than the tokens so far: so
searches keep nothing for it, and what it says of one example depends on no other.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from flaxattn import checks
from flaxattn.search.rules import Rules
from flaxattn.types import Array

__all__ = ["Beginning", "Choice", "Constraint", "NoRepeats", "Prefixes", "last_tokens", "narrowed"]


class Prefixes(NamedTuple):
    """The sequences so far: N for each example."""

    tokens: jax.Array
    """int32 [B, N, T], of which the first `position` have been generated."""
    position: jax.Array
    """int32 []."""
    max_length: jax.Array
    """int32 [B, N] or [B, 1]: the most tokens, the last of them `eos_id`."""
    eos_id: int


class Choice(NamedTuple):
    """What may come next."""

    allowed: jax.Array
    """bool [B, N, V]."""
    missing: jax.Array | None = None
    """int32 [B, N, V]: how many tokens must still come at least after this one, before the end.
    Beams are shared between those that miss much and those that miss little."""
    most_missing: int = 0


Constraint = Callable[[Choice, Prefixes], Choice]
"""`constraint(choice, prefixes) -> choice`: what it leaves of a choice. Several are asked in turn,
so the last has the last word. Where nothing is left, there is no hypothesis."""


@dataclasses.dataclass(frozen=True)
class Beginning:
    """Sequences begin with given tokens; to be asked last, since these come in any case.

    What follows a beginning must have room: else there is no hypothesis.
    """

    tokens: Array
    """int [B, P]."""
    lengths: Array
    """int [B], how many of these; 0: nothing is given."""
    follow: Array | None = None
    """bool [V], which tokens may come next; `eos_id` may. None: all."""

    def __call__(self, choice: Choice, prefixes: Prefixes) -> Choice:
        batch, _, vocab_size = choice.allowed.shape
        sizes = {"B": (batch, "batch_size")}
        tokens, lengths = jnp.asarray(self.tokens), jnp.asarray(self.lengths)[:, None, None]
        checks.check_axes("Beginning.tokens", tokens, "B P", sizes)
        checks.check_axes("Beginning.lengths", lengths[:, 0, 0], "B", sizes)
        every, index = jnp.arange(vocab_size, dtype=tokens.dtype)[None, None], prefixes.position
        at = jnp.minimum(index, tokens.shape[1] - 1)
        given = jax.lax.dynamic_slice_in_dim(tokens, at, 1, axis=1)[..., None]
        goes_on = (index + 1 < prefixes.max_length)[..., None]
        allowed = jnp.where(index < lengths, (every == given) & goes_on, choice.allowed)
        if self.follow is not None:
            follow = jnp.asarray(self.follow)[None, None] | (every == prefixes.eos_id)
            allowed = allowed & (follow | (index != lengths) | (lengths == 0))
        return choice._replace(allowed=allowed)


@dataclasses.dataclass(frozen=True)
class NoRepeats:
    """No n tokens in a row come twice; a repetition that was given as a beginning may stand."""

    n: int
    """1 or more, static."""

    def __call__(self, choice: Choice, prefixes: Prefixes) -> Choice:
        tokens, index, before = prefixes.tokens, prefixes.position, self.n - 1
        batch, rows, length = tokens.shape
        if length < self.n:
            return choice
        last = last_tokens(tokens, index, before)
        count = length - before
        again = jnp.arange(count)[None, None] + before < index
        for j in range(before):
            again &= tokens[..., j : j + count] == last[..., j : j + 1]
        banned = jnp.zeros((batch, rows, choice.allowed.shape[-1]), bool)
        where = (jnp.arange(batch)[:, None, None], jnp.arange(rows)[None, :, None])
        banned = banned.at[(*where, tokens[..., before:])].max(again)
        return choice._replace(allowed=choice.allowed & ~banned)


def last_tokens(tokens: jax.Array, index: jax.Array, count: int) -> jax.Array:
    """int32 [B, N, count]: those before `index`; -1 where there are fewer."""
    padded = jnp.pad(tokens, ((0, 0), (0, 0), (count, 0)), constant_values=-1)
    return jax.lax.dynamic_slice_in_dim(padded, index, count, axis=-1)


def narrowed(
    constraints: Sequence[Constraint],
    rules: Rules,
    tokens: jax.Array,
    index: jax.Array,
    vocab_size: int,
) -> Choice:
    """What the rules and then the constraints leave after prefixes [B, N, T].

    Args:
      rules: of B examples or of B * N rows.
    """
    batch, rows, _ = tokens.shape
    shape = (batch, len(rules.max_length) // batch)
    allowed = rules.allowed(index, vocab_size).reshape(*shape, vocab_size)
    choice = Choice(jnp.broadcast_to(allowed, (batch, rows, vocab_size)))
    prefixes = Prefixes(tokens, index, rules.max_length.reshape(shape), rules.special_tokens.eos_id)
    for constraint in constraints:
        choice = constraint(choice, prefixes)
    return choice
