"""Beam search, greedy search and sampling against plain lists, all sequences, and statistics."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flaxattn.search import beam_search

PAD, BOS, EOS, V, PRIME = 0, 1, 2, 6, 1009
IDS = {"bos_id": BOS, "eos_id": EOS, "pad_id": PAD}
WORDS = [3, 4, 5]
TABLE = np.random.default_rng(0).normal(0, 1.5, (PRIME, V)).astype(np.float32)


# ---- A model whose logits depend on all that was read ----------------------------------------


def read(history, token):
    return (history * 31 + token + 7) % PRIME


def step(tokens, index, state):
    del index
    state = {"history": read(state["history"], tokens)}
    return jnp.asarray(TABLE)[state["history"]], state


def start(examples):
    return {"history": jnp.array(examples, jnp.int32)}


def next_log_probs(example, words):
    """float64 [V] after `bos_id` and `words`."""
    history = functools.reduce(read, [BOS, *words], example)
    logits = TABLE[history].astype(np.float64)
    return logits - np.log(np.exp(logits).sum())


def penalty(length, exponent):
    return ((5 + length) / 6) ** exponent


def all_sequences(example, limit, minimum, exponent):
    """Every (score, log-probability, tokens) within the limits, best first."""
    found = []
    for count in range(min(minimum, limit) - 1 if minimum else 0, limit):
        for words in itertools.product(WORDS, repeat=count):
            tokens = [*words, EOS]
            log_prob = sum(next_log_probs(example, tokens[:i])[t] for i, t in enumerate(tokens))
            found.append((log_prob / penalty(len(tokens), exponent), log_prob, tokens))
    return sorted(found, reverse=True)


def plain_beam_search(example, limit, minimum, exponent, beam_size, n_best):
    """The search as documented, never stopping early; also, the length that last changed it."""
    live, kept, needed = [(0.0, [])], [], 0
    for length in range(1, limit + 1):
        candidates = []
        for log_prob, words in live:
            more = next_log_probs(example, words)
            ways = [EOS] if length == limit else WORDS + ([EOS] if length >= minimum else [])
            candidates += [(log_prob + more[t], [*words, t]) for t in ways]
        candidates.sort(reverse=True)
        ends = [c for c in candidates[:beam_size] if c[1][-1] == EOS]
        before = [k[1:] for k in kept]
        kept += [(lp / penalty(length, exponent), lp, tokens) for lp, tokens in ends]
        kept = sorted(kept, reverse=True)[:n_best]
        needed = needed if before == [k[1:] for k in kept] else length
        live = [c for c in candidates if c[1][-1] != EOS][:beam_size]
        if len(ends) == beam_size:
            break
    return kept, needed


@functools.partial(jax.jit, static_argnames=("beam_size", "max_length", "n_best"))
def search(state, limits, minimums, exponent, *, beam_size, max_length, n_best):
    return beam_search(
        step,
        state,
        batch=limits.shape[0],
        beam_size=beam_size,
        max_length=max_length,
        limits=limits,
        minimums=minimums,
        length_penalty=exponent,
        n_best=n_best,
        **IDS,
    )


def int32(*values):
    return jnp.array(values, jnp.int32)


def assert_found(found, example, expected):
    """`found`'s example has the (score, log-probability, tokens) `expected`, and no more."""
    tokens, scores, log_probs, lengths = (np.asarray(x[example]) for x in found)
    n, max_length = tokens.shape
    expected = expected[:n]
    there = len(expected)
    rows = [row + [PAD] * (max_length - len(row)) for _, _, row in expected]
    rows += [[PAD] * max_length] * (n - there)
    assert tokens.tolist() == rows
    assert lengths.tolist() == [len(row) for _, _, row in expected] + [0] * (n - there)
    np.testing.assert_allclose(scores[:there], [x[0] for x in expected], rtol=2e-6)
    np.testing.assert_allclose(log_probs[:there], [x[1] for x in expected], rtol=2e-6)
    assert np.isneginf(scores[there:]).all() and np.isneginf(log_probs[there:]).all()


# ---- Beam search -----------------------------------------------------------------------------


@pytest.mark.parametrize("exponent", [0.0, 0.6, 1.0, 2.5])
def test_with_beams_for_all_prefixes_the_best_of_all_sequences_is_found(exponent):
    examples, limits, minimums = [5, 6, 7, 8, 9], [5, 4, 1, 5, 3], [0, 3, 0, 5, 7]
    found = search(
        start(examples),
        int32(*limits),
        int32(*minimums),
        exponent,
        beam_size=200,
        max_length=5,
        n_best=130,
    )
    for i, rules in enumerate(zip(examples, limits, minimums, strict=True)):
        assert_found(found, i, all_sequences(*rules, exponent))


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, PRIME - 1),
    beam_and_n=st.sampled_from([(1, 1), (2, 1), (2, 2), (3, 2), (5, 1), (5, 5)]),
    exponent=st.sampled_from([0.0, 0.6, 1.3, 4.0]),
)
def test_small_beams_find_what_plain_lists_find(seed, beam_and_n, exponent):
    rng = np.random.default_rng(seed)
    examples, limits, minimums = (rng.integers(0, top, 4) for top in (PRIME, 10, 6))
    beam_size, n_best = beam_and_n
    found = search(
        start(examples),
        int32(*limits),
        int32(*minimums),
        exponent,
        beam_size=beam_size,
        max_length=9,
        n_best=n_best,
    )
    for i, rules in enumerate(zip(examples, limits, minimums, strict=True)):
        assert_found(found, i, plain_beam_search(*rules, exponent, beam_size, n_best)[0])
