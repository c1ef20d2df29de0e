"""Terms that sequences must have, each of one token or more, anywhere and in any order.

A prefix is allowed if all its missing terms still find room, one after another: then one of the
tokens that lead there always is, too, and no sequence ends without its terms. Beams are shared
between prefixes that miss more and fewer tokens of them, after Post & Vilar (2018,
arXiv:1804.06609), so that a term comes where the model thinks best.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from flaxattn import checks
from flaxattn.search.constraints import Choice, Prefixes, last_tokens
from flaxattn.types import Array

__all__ = ["Terms"]


@dataclasses.dataclass(frozen=True)
class Terms:
    """Each sequence has all the terms of its example; to be asked before `Beginning`.

    A term is there if its tokens are, one after another, and what follows may follow a term. Terms
    may overlap. Their lengths and one more must not exceed `max_length`, less that of a given
    beginning: else there may be no hypothesis. One beam has them as soon as it can; greedy search
    and sampling, that have no beams to share, at the end if not by chance.
    """

    tokens: Array
    """int [B, C, L]."""
    lengths: Array
    """int [B, C], tokens of each term; 0: none."""
    follow: Array | None = None
    """bool [V], which tokens may follow a term, those among them that begin one; `eos_id` may in
    any case. None: all."""
    most: int | None = None
    """The most tokens that all terms of an example have together, static. None: C * L."""

    def __call__(self, choice: Choice, prefixes: Prefixes) -> Choice:
        batch, _, vocab_size = choice.allowed.shape
        terms, lengths = jnp.asarray(self.tokens, jnp.int32), jnp.asarray(self.lengths, jnp.int32)
        sizes: checks.Sizes = {"B": (batch, "batch_size")}
        checks.check_axes("Terms.tokens", terms, "B C L", sizes)
        checks.check_axes("Terms.lengths", lengths, "B C", sizes)
        follow = jnp.asarray(np.ones(vocab_size, bool) if self.follow is None else self.follow)
        checks.check_axes("Terms.follow", follow, "V", {"V": (vocab_size, "the logits")})
        there, just_there = _found(terms, lengths, follow, prefixes)
        open_ = ~there & ~just_there
        credit = _credit(terms, lengths, open_, prefixes, vocab_size)
        lengths = lengths[:, None]
        if_followed = jnp.where(open_, lengths, 0).sum(axis=-1)[..., None]
        if_not = jnp.where(there, 0, lengths).sum(axis=-1)[..., None]
        missing = jnp.where(follow[None, None], if_followed, if_not) - credit
        fits = prefixes.position + 2 + missing <= prefixes.max_length[..., None]
        is_eos = (jnp.arange(vocab_size) == prefixes.eos_id)[None, None]
        allowed = jnp.where(
            is_eos, choice.allowed & (if_followed == 0), (choice.allowed | (credit > 0)) & fits
        )
        most = terms.shape[1] * terms.shape[2] if self.most is None else self.most
        return Choice(allowed, jnp.where(is_eos, if_followed, missing), most)


def _found(
    terms: jax.Array, lengths: jax.Array, follow: jax.Array, prefixes: Prefixes
) -> tuple[jax.Array, jax.Array]:
    """bool [B, N, C] each: which terms are there, and which others end with the last token."""
    batch, rows, length = prefixes.tokens.shape
    count = terms.shape[2]
    tokens = jnp.pad(prefixes.tokens, ((0, 0), (0, 0), (count, 0)), constant_values=-1)
    ends = jnp.ones((batch, rows, terms.shape[1], length + 1), bool)  # whether one ends before t
    for j in range(count):  # from the last token of a term to its first
        at = jnp.maximum(lengths - 1 - j, 0)[..., None]
        wanted = jnp.take_along_axis(terms, at, axis=2)[:, None]  # [B, 1, C, 1]
        here = tokens[:, :, None, count - 1 - j : count + length - j]
        ends &= (here == wanted) | (j >= lengths)[:, None, :, None]
    follows = follow[prefixes.tokens][:, :, None]
    before = (jnp.arange(length) < prefixes.position)[None, None, None]
    there = (ends[..., :-1] & follows & before).any(axis=-1) | (lengths == 0)[:, None]
    last = jax.lax.dynamic_index_in_dim(ends, prefixes.position, axis=3, keepdims=False)
    return there, last & ~there


def _credit(
    terms: jax.Array, lengths: jax.Array, open_: jax.Array, prefixes: Prefixes, vocab_size: int
) -> jax.Array:
    """int32 [B, N, V]: how many tokens of one open term the prefix would end with after each."""
    batch, rows, _ = prefixes.tokens.shape
    count = terms.shape[2]
    steps = jnp.arange(count)
    last = last_tokens(prefixes.tokens, prefixes.position, count)  # [B, N, L]
    j, p = steps[None, :], steps[:, None]  # the last p tokens are a term's first p
    same = last[:, :, (count - p + j) % count][:, :, None] == terms[:, None, :, None]
    begun = (same | (j >= p)[None, None, None]).all(axis=-1)  # [B, N, C, L]
    begun &= open_[..., None] & (steps[None, None] < lengths[..., None])[:, None]
    gained = jnp.where(begun, steps[None, None, None] + 1, 0).reshape(batch, rows, -1)
    where = (jnp.arange(batch)[:, None, None], jnp.arange(rows)[None, :, None])
    tokens = terms.reshape(batch, 1, -1)
    credit = jnp.zeros((batch, rows, vocab_size), gained.dtype)
    return credit.at[(*where, tokens)].max(gained)
