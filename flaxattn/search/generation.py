"""Sequences generated token by token, without going back: the loop, and greedy search."""

from collections.abc import Callable, Sequence
from typing import Generic, NamedTuple

import jax
import jax.numpy as jnp

from flaxattn.search.arguments import check_ids, check_state, make_rules
from flaxattn.search.constraints import Constraint, narrowed
from flaxattn.search.decode_step import DecodeStep, State, call_decode_step, log_normaliser
from flaxattn.search.hypotheses import Hypotheses, no_hypotheses
from flaxattn.search.rules import Lengths, Rules, SpecialTokens

__all__ = ["generate", "greedy"]

Choose = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
"""`choose(log_probs, so_far, index) -> tokens`: float32 [R, V], of each next token, -inf where it
is not allowed; float32 [R], of what was generated; int32 [] -> int [R]."""


class Path(NamedTuple, Generic[State]):
    """Where the rows stand before token `position` is read."""

    position: jax.Array
    """int32 []."""
    tokens: jax.Array
    """int32 [R, T]: what has been generated."""
    last: jax.Array
    """int32 [R]: the tokens read next."""
    log_probs: jax.Array
    """float32 [R]: of what has been generated; NaN where that cannot be computed."""
    lengths: jax.Array
    """int32 [R]: how much has been generated."""
    done: jax.Array
    """bool [R]."""
    state: State


def greedy(
    decode_step: DecodeStep[State],
    state: State,
    *,
    batch_size: int,
    special_tokens: SpecialTokens,
    lengths: Lengths,
    constraints: Sequence[Constraint] = (),
) -> Hypotheses:
    """The most likely token, one after another: what `beam_search` with one beam finds, n = 1.

    Args and errors are those of `beam_search`; `decode_step` reads R = B rows, and the length
    penalty affects only the scores.

    >>> table = jnp.log(jnp.array([[0, 0.2, 0.8], [0, 0.7, 0.3]]))
    >>> decode_step = lambda tokens, index, state: (table, state)
    >>> ids, lengths = SpecialTokens(bos_id=0, eos_id=1, pad_id=0), Lengths(max_length=3)
    >>> found = greedy(decode_step, (), batch_size=2, special_tokens=ids, lengths=lengths)
    >>> found.tokens.tolist()
    [[[2, 2, 1]], [[1, 0, 0]]]
    """
    rules = make_rules(batch_size, special_tokens, lengths)
    state = check_state(state, batch_size)
    shape = (batch_size, 1)
    return generate(decode_step, state, _most_likely, rules, shape=shape, constraints=constraints)


def _most_likely(log_probs: jax.Array, so_far: jax.Array, index: jax.Array) -> jax.Array:
    # Beams compare these sums: where rounding makes two equal, both searches take the first.
    return (log_probs + so_far[:, None]).argmax(axis=-1)


def generate(
    decode_step: DecodeStep[State],
    state: State,
    choose: Choose,
    rules: Rules,
    *,
    shape: tuple[int, int],
    constraints: Sequence[Constraint] = (),
) -> Hypotheses:
    """Reads and chooses tokens until every row has ended.

    Args:
      state, rules: with the leading axis R.
      shape: (B, n) of the hypotheses that the R rows are.
      constraints: as in `beam_search`.
    """

    def allowed(path: Path[State], vocab_size: int) -> jax.Array:
        if not constraints:
            return rules.allowed(path.position, vocab_size)
        tokens = path.tokens.reshape(*shape, -1)
        choice = narrowed(constraints, rules, tokens, path.position, vocab_size)
        return choice.allowed.reshape(-1, vocab_size)

    path = jax.lax.while_loop(
        lambda path: ~path.done.all(),
        lambda path: _advance(decode_step, path, choose, rules, allowed),
        _start(state, rules),
    )
    return _hypotheses(path, shape, rules)


def _start(state: State, rules: Rules) -> Path[State]:
    rows, (bos_id, _, pad_id) = rules.max_length.shape, rules.special_tokens
    nothing_sought = rules.max_length == 0
    return Path(
        position=jnp.zeros((), jnp.int32),
        tokens=jnp.full((*rows, rules.padded_length), pad_id, jnp.int32),
        last=jnp.full(rows, bos_id, jnp.int32),
        log_probs=jnp.where(nothing_sought, -jnp.inf, jnp.zeros(rows, jnp.float32)),
        lengths=jnp.zeros(rows, jnp.int32),
        done=nothing_sought,
        state=state,
    )


def _advance(
    decode_step: DecodeStep[State],
    path: Path[State],
    choose: Choose,
    rules: Rules,
    allowed: Callable[[Path[State], int], jax.Array],
) -> Path[State]:
    """Reads one token of every row and generates the next."""
    _, eos_id, pad_id = rules.special_tokens
    logits, state = call_decode_step(decode_step, path.last, path.position, path.state)
    check_ids(rules.special_tokens, logits.shape[-1])
    top, rest = log_normaliser(logits)
    known = (jnp.isfinite(top) & jnp.isfinite(rest))[:, 0]
    log_probs = jnp.where(allowed(path, logits.shape[-1]), (logits - top) - rest, -jnp.inf)
    token = choose(log_probs, path.log_probs, path.position).astype(jnp.int32)
    total = jnp.take_along_axis(log_probs, token[:, None], axis=1)[:, 0] + path.log_probs
    total = jnp.where(path.done, path.log_probs, jnp.where(known, total, jnp.nan))
    token = jnp.where(path.done, pad_id, token)
    ended = (token == eos_id) | rules.must_end(path.position) | ~jnp.isfinite(total)
    return Path(
        position=path.position + 1,
        tokens=path.tokens.at[:, path.position].set(token),
        last=token,
        log_probs=total,
        lengths=path.lengths + (~path.done).astype(jnp.int32),
        done=path.done | ended,
        state=state,
    )


def _hypotheses(path: Path[State], shape: tuple[int, int], rules: Rules) -> Hypotheses:
    """The paths' rows as [B, n] hypotheses, without those that are impossible or unknown."""
    there = jnp.isfinite(path.log_probs)
    none = no_hypotheses(path.log_probs.shape, rules)
    found = Hypotheses(
        tokens=jnp.where(there[:, None], path.tokens, none.tokens),
        scores=rules.scores(path.log_probs, path.lengths),
        log_probs=path.log_probs,
        lengths=jnp.where(there, path.lengths, 0),
    )
    return jax.tree.map(lambda x: x.reshape(*shape, *x.shape[1:]), found)
