"""A model that is a table, all its sequences, and searches over it, for tests of these."""

import functools
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np

from flaxattn.search import Groups, Lengths, SpecialTokens, beam_search

PAD, BOS, EOS, V, PRIME = 0, 1, 2, 6, 1009
IDS = SpecialTokens(bos_id=BOS, eos_id=EOS, pad_id=PAD)
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


def whole(example, tokens):
    """The log-probability of the whole sequence."""
    return sum(next_log_probs(example, tokens[:i])[token] for i, token in enumerate(tokens))


def penalty(length, exponent):
    return ((5 + length) / 6) ** exponent


def all_sequences(example, limit, minimum, exponent):
    """Every (score, log-probability, tokens) within the limits, best first."""
    found = []
    for count in range(min(minimum, limit) - 1 if minimum else 0, limit):
        for words in itertools.product(WORDS, repeat=count):
            tokens = [*words, EOS]
            log_prob = whole(example, tokens)
            found.append((log_prob / penalty(len(tokens), exponent), log_prob, tokens))
    return sorted(found, reverse=True)


STATIC = "reorder beam_size padded_length n_best num_samples top_k special_tokens groups".split()


@functools.partial(jax.jit, static_argnames=("method", "of", *STATIC))
def run(
    method,
    state,
    *keys,
    max_length,
    min_length=0,
    length_penalty=0.6,
    padded_length,
    of=step,
    special_tokens=IDS,
    groups=1,
    diversity=0.0,
    **options,
):
    lengths = Lengths(max_length, min_length, length_penalty, padded_length)
    if groups > 1:
        options["groups"] = Groups(groups, diversity)
    ids = {"special_tokens": special_tokens, "lengths": lengths}
    return method(of, state, *keys, batch_size=len(max_length), **ids, **options)


search = functools.partial(run, beam_search)


def int32(*values):
    return jnp.array(values, jnp.int32)


def assert_same(found, expected):
    """The same tokens, and the same scores but for what programs of other shapes round."""
    exact = [(x.tokens, x.lengths, jnp.isfinite(x.scores)) for x in (found, expected)]
    chex.assert_trees_all_equal(*exact)
    chex.assert_trees_all_close(found, expected, rtol=2e-6)


def assert_found(found, example, expected):
    """`found`'s example has the (score, log-probability, tokens) `expected`, and no more."""
    tokens, scores, log_probs, lengths = (np.asarray(x[example]) for x in found)
    n, padded_length = tokens.shape
    expected = expected[:n]
    there = len(expected)
    rows = [row + [PAD] * (padded_length - len(row)) for _, _, row in expected]
    rows += [[PAD] * padded_length] * (n - there)
    assert tokens.tolist() == rows
    assert lengths.tolist() == [len(row) for _, _, row in expected] + [0] * (n - there)
    np.testing.assert_allclose(scores[:there], [x[0] for x in expected], rtol=2e-6)
    np.testing.assert_allclose(log_probs[:there], [x[1] for x in expected], rtol=2e-6)
    assert np.isneginf(scores[there:]).all() and np.isneginf(log_probs[there:]).all()
