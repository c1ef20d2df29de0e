"""Beam search over the whole batch at once, in one loop on the device."""

import math
from collections.abc import Callable, Sequence
from typing import Generic, NamedTuple

import jax
import jax.numpy as jnp

from flaxattn.search.arguments import check_count, check_groups, check_ids, check_state, make_rules
from flaxattn.search.candidates import Candidates
from flaxattn.search.constraints import Constraint, narrowed
from flaxattn.search.decode_step import (
    DecodeStep,
    State,
    call_decode_step,
    repeat_rows,
    take_rows,
)
from flaxattn.search.groups import expand_groups
from flaxattn.search.hypotheses import Hypotheses, no_hypotheses
from flaxattn.search.rules import TOGETHER, Groups, Lengths, Rules, SpecialTokens

__all__ = ["beam_search"]


class Search(NamedTuple, Generic[State]):
    """Where the search stands before token `position` is read."""

    position: jax.Array
    """int32 []."""
    tokens: jax.Array
    """int32 [B, K, T]: what the live beams have generated."""
    last: jax.Array
    """int32 [B, K]: the tokens read next."""
    live: jax.Array
    """float32 [B, K]: the live beams' log-probabilities, in order; -inf: none."""
    kept: Hypotheses
    """The n best that have ended, in order."""
    done: jax.Array
    """bool [B]: nothing that comes can change what is kept."""
    broken: jax.Array
    """bool [B]: log-probabilities could not be computed."""
    state: State


def beam_search(
    decode_step: DecodeStep[State],
    state: State,
    *,
    batch_size: int,
    special_tokens: SpecialTokens,
    lengths: Lengths,
    beam_size: int,
    n_best: int = 1,
    spread: Callable[[State, int], State] = repeat_rows,
    reorder: Callable[[State, jax.Array], State] = take_rows,
    constraints: Sequence[Constraint] = (),
    groups: Groups = TOGETHER,
) -> Hypotheses:
    """The best whole sequences that beam search finds, best first.

    A live beam is a prefix that has not ended. Each of an example's K live beams is extended by
    every token. The K best extensions that do not end are the next live beams. Those that end are
    finished if they are among the K best of all; the `n_best` with the highest scores are kept. A
    score is the log-probability divided by `length_penalties`. An example is done

    - when no live beam can beat the last of the kept: its log-probability only falls, so its score
      ends at most at that log-probability divided by the penalty of the longest length;
    - or when all of the K best end: so one beam is greedy search.

    The loop stops when all examples are done. The first rule never changes the result. With
    beams for all prefixes the result is exact: the best of all sequences within the limits.
    What is found for an example does not depend on the others of its batch, if that holds for
    `decode_step`.

    It is a plain function to be called in a jitted one: `decode_step` may close over traced arrays.

    Args:
      decode_step: as `DecodeStep` says; it reads R = B * K rows.
      state: a pytree with leaves `[B, ...]`, before `bos_id` is read; it is spread over the beams
        and reordered with them.
      batch_size: B.
      special_tokens: the ids of the tokens that begin, end and pad.
      lengths: the fewest and the most tokens, and the length penalty.
      beam_size: K, may be larger than V.
      n_best: n, at most K.
      spread: `spread(state, beam_size) -> state` for R rows. The default repeats the rows of every
        leaf, those of one example beside each other.
      reorder: `reorder(state, rows) -> state`, where row i goes on from row `rows[i]`, one of the
        same example; rows int32 `[R]`. The default takes those rows of every leaf, so it copies the
        whole state for every token. A large cache can stay where it is if the state also holds
        the row that each token was written to, and only that is reordered.
      constraints: what else sequences must keep to, asked in turn: `NoRepeats`, `Terms`,
        `Beginning`, or functions of one's own. With `Terms` the K beams are shared between prefixes
        that miss more and fewer tokens of them, and those that end compete with those that miss
        none.
      groups: how the beams are divided into groups that differ.

    Raises:
      TypeError or ValueError naming the argument that does not fit.

    >>> table = jnp.log(jnp.array([[0, 0, 0.6, 0.4], [0, 0, 0.6, 0.4], [0, 0.3, 0.4, 0.3],
    ...     [0, 0.9, 0.1, 0]]))  # from each of 4 tokens to the next; 0 begins and pads, 1 ends
    >>> decode_step = lambda tokens, index, state: (table[tokens], state)
    >>> ids = SpecialTokens(bos_id=0, eos_id=1, pad_id=0)
    >>> lengths = Lengths(max_length=4, length_penalty=0.0)
    >>> found = beam_search(decode_step, None, batch_size=1, special_tokens=ids, lengths=lengths,
    ...     beam_size=2, n_best=2)
    >>> found.tokens.tolist()
    [[[3, 1, 0, 0], [2, 3, 1, 0]]]
    >>> np.exp(found.log_probs).round(3).tolist()
    [[0.36..., 0.16...]]
    """
    rules = make_rules(batch_size, special_tokens, lengths)
    check_count("beam_size", beam_size)
    check_count("n_best", n_best, most=beam_size)
    state = spread(check_state(state, batch_size), beam_size)
    check_groups(groups, beam_size)
    start = _start(state, beam_size, n_best, rules, groups.number)
    search = jax.lax.while_loop(
        lambda search: ~search.done.all(),
        lambda search: _advance(decode_step, search, rules, reorder, constraints, groups),
        start,
    )
    unknown = no_hypotheses((batch_size, n_best), rules, score=math.nan)
    return _choose(search.broken, unknown, search.kept)


def _start(state: State, beam_size: int, n_best: int, rules: Rules, groups: int) -> Search[State]:
    (batch,), (bos_id, _, pad_id) = rules.max_length.shape, rules.special_tokens
    shape, size = (batch, beam_size), beam_size // groups
    return Search(
        position=jnp.zeros((), jnp.int32),
        tokens=jnp.full((*shape, rules.padded_length), pad_id, jnp.int32),
        last=jnp.full(shape, bos_id, jnp.int32),
        live=jnp.full(shape, -jnp.inf, jnp.float32).at[:, ::size].set(0.0),  # nothing yet
        kept=no_hypotheses((batch, n_best), rules),
        done=rules.max_length == 0,
        broken=jnp.zeros((batch,), bool),
        state=state,
    )


def _advance(
    decode_step: DecodeStep[State],
    search: Search[State],
    rules: Rules,
    reorder: Callable[[State, jax.Array], State],
    constraints: Sequence[Constraint],
    groups: Groups,
) -> Search[State]:
    """Reads one token of every beam."""
    batch, beam_size = search.live.shape
    logits, state = call_decode_step(
        decode_step, search.last.reshape(-1), search.position, search.state
    )
    check_ids(rules.special_tokens, vocab_size := logits.shape[-1])
    choice = None
    if constraints:
        choice = narrowed(constraints, rules, search.tokens, search.position, vocab_size)
    logits = logits.reshape(batch, beam_size, vocab_size)
    found = expand_groups(logits, search.live, search.position, rules, choice, groups)
    ends, divided = found.ends, groups.number > 1
    if divided:
        found = found._replace(ends=_different(search, found))
    kept = _keep(search, found, rules)
    best = found.log_probs.max(axis=-1) if divided else found.log_probs[:, 0]
    bound = rules.scores(best, rules.max_length)
    rows = (jnp.arange(batch)[:, None] * beam_size + found.parents).reshape(-1)
    last = jnp.where(jnp.isneginf(found.log_probs), rules.special_tokens.pad_id, found.tokens)
    tokens = jnp.take_along_axis(search.tokens, found.parents[..., None], axis=1)
    over = rules.must_end(search.position) | (~jnp.isneginf(ends)).all(axis=-1)
    return Search(
        position=search.position + 1,
        tokens=tokens.at[:, :, search.position].set(last),
        last=last,
        live=found.log_probs,
        kept=kept,
        done=search.done | found.broken | over | (bound <= kept.scores[:, -1]),
        broken=search.broken | (found.broken & ~search.done),
        state=reorder(state, rows),
    )


def _different(search: Search[State], found: Candidates) -> jax.Array:
    """The ends [B, K] without those of beams that an earlier one, of another group, is as well."""
    same = (search.tokens[:, :, None] == search.tokens[:, None]).all(axis=-1)  # [B, K, K]
    beams = jnp.arange(same.shape[1])
    earlier = (beams[None, :] < beams[:, None])[None] & ~jnp.isneginf(found.ends)[:, None]
    return jnp.where((same & earlier).any(axis=-1), -jnp.inf, found.ends)


def _keep(search: Search[State], found: Candidates, rules: Rules) -> Hypotheses:
    """The best of those kept and those that end here; of equals, those kept."""
    length = search.position + 1
    ended = Hypotheses(
        tokens=search.tokens.at[:, :, search.position].set(rules.special_tokens.eos_id),
        scores=rules.scores(found.ends, length),
        log_probs=found.ends,
        lengths=jnp.broadcast_to(length, found.ends.shape),
    )
    both = jax.tree.map(lambda *x: jnp.concatenate(x, axis=1), search.kept, ended)
    _, best = jax.lax.top_k(both.scores, search.kept.scores.shape[1])
    merged = jax.tree.map(
        lambda x: jnp.take_along_axis(x, best.reshape(*best.shape, *[1] * (x.ndim - 2)), axis=1),
        both,
    )
    return _choose(search.done, search.kept, merged)


def _choose(which: jax.Array, a: Hypotheses, b: Hypotheses) -> Hypotheses:
    """Of each example `a` where `which` [B], else `b`."""
    return jax.tree.map(lambda x, y: jnp.where(which.reshape(-1, *[1] * (x.ndim - 1)), x, y), a, b)
