"""Sequences made of one token after another, without going back; greedy search."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from flaxattn.search.arguments import check_ids, check_state, make_rules
from flaxattn.search.hypotheses import (
    Hypotheses,
    Rules,
    Step,
    call_step,
    log_normaliser,
    no_hypotheses,
)

__all__ = ["follow", "greedy", "path_hypotheses"]

Choose = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
"""`choose(log_probs, so_far, index) -> tokens`: float32 [R, V], of each next token, -inf where it
is not allowed; float32 [R], of what was generated; int32 [] -> int [R]."""


class Path(NamedTuple):
    """Where the rows stand before token `at` is read."""

    at: jax.Array
    """int32 []."""
    tokens: jax.Array
    """int32 [R, T]: what has been generated."""
    last: jax.Array
    """int32 [R]: the tokens read next."""
    log_probs: jax.Array
    """float32 [R]: of what has been generated; NaN where that cannot be told."""
    lengths: jax.Array
    """int32 [R]: how much has been generated."""
    done: jax.Array
    """bool [R]."""
    state: Any


def greedy(
    step: Step,
    state: Any,
    *,
    batch: int,
    bos_id: int,
    eos_id: int,
    pad_id: int,
    max_length: int,
    limits: jax.Array | None = None,
    minimums: jax.Array | None = None,
    length_penalty: float | jax.Array = 0.6,
) -> Hypotheses:
    """The most likely token, one after another: what `beam_search` with one beam finds, n = 1.

    Args and errors are those of `beam_search`; `step` reads R = B rows, and the length penalty
    is for the scores alone.

    >>> step = lambda tokens, index, state: (jnp.log(jnp.array([[0, 0.2, 0.8], [0, 0.7, 0.3]])), ())
    >>> ids = {"bos_id": 0, "eos_id": 1, "pad_id": 0}
    >>> greedy(step, (), batch=2, **ids, max_length=3).tokens.tolist()
    [[[2, 2, 1]], [[1, 0, 0]]]
    """
    rules = make_rules(
        batch,
        bos_id=bos_id,
        eos_id=eos_id,
        pad_id=pad_id,
        max_length=max_length,
        limits=limits,
        minimums=minimums,
        length_penalty=length_penalty,
    )
    path = follow(step, check_state(state, batch), _most_likely, rules)
    return path_hypotheses(path, (batch, 1), rules)


def _most_likely(log_probs: jax.Array, so_far: jax.Array, index: jax.Array) -> jax.Array:
    # The sum is what beams compare: where rounding makes equals, both take the first.
    return (log_probs + so_far[:, None]).argmax(axis=-1)


def follow(step: Step, state: Any, choose: Choose, rules: Rules) -> Path:
    """Takes steps until every row has ended; state, rules and rows have the leading axis R."""
    rows = rules.limits.shape
    path = Path(
        at=jnp.zeros((), jnp.int32),
        tokens=jnp.full((*rows, rules.max_length), rules.pad_id, jnp.int32),
        last=jnp.full(rows, rules.bos_id, jnp.int32),
        log_probs=jnp.where(rules.limits == 0, -jnp.inf, jnp.zeros(rows, jnp.float32)),
        lengths=jnp.zeros(rows, jnp.int32),
        done=rules.limits == 0,
        state=state,
    )
    return jax.lax.while_loop(
        lambda path: ~path.done.all(),
        lambda path: _advance(step, path, choose, rules),
        path,
    )


def _advance(step: Step, path: Path, choose: Choose, rules: Rules) -> Path:
    """Reads one token of every row and generates the next."""
    logits, state = call_step(step, path.last, path.at, path.state)
    check_ids(rules, logits.shape[-1])
    top, rest = log_normaliser(logits)
    known = (jnp.isfinite(top) & jnp.isfinite(rest))[:, 0]
    allowed = rules.allowed(path.at, logits.shape[-1])
    log_probs = jnp.where(allowed, (logits - top) - rest, -jnp.inf)
    token = choose(log_probs, path.log_probs, path.at).astype(jnp.int32)
    total = jnp.take_along_axis(log_probs, token[:, None], axis=1)[:, 0] + path.log_probs
    total = jnp.where(path.done, path.log_probs, jnp.where(known, total, jnp.nan))
    token = jnp.where(path.done, rules.pad_id, token)
    ended = (token == rules.eos_id) | rules.must_end(path.at) | ~jnp.isfinite(total)
    return Path(
        at=path.at + 1,
        tokens=path.tokens.at[:, path.at].set(token),
        last=token,
        log_probs=total,
        lengths=path.lengths + (~path.done).astype(jnp.int32),
        done=path.done | ended,
        state=state,
    )


def path_hypotheses(path: Path, shape: tuple[int, int], rules: Rules) -> Hypotheses:
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
