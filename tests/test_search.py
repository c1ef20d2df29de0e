"""Beam search, greedy search and sampling against plain lists, all sequences, and statistics."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from search_cases import (
    BOS,
    EOS,
    IDS,
    PAD,
    PRIME,
    TABLE,
    WORDS,
    V,
    all_sequences,
    assert_found,
    assert_same,
    int32,
    next_log_probs,
    penalty,
    read,
    run,
    search,
    start,
    step,
    whole,
)

from flaxattn.search import (
    Groups,
    Lengths,
    SpecialTokens,
    beam_search,
    greedy,
    length_penalties,
    sample,
)
from flaxattn.search.top_k import top_k


def plain_beam_search(example, limit, minimum, exponent, beam_size, n_best):
    """The search as documented, never stopping early; also, how many steps were needed."""
    live, kept, needed = [(0.0, [])], [], None
    for length in range(1, limit + 1):
        candidates = []
        for log_prob, words in live:
            more = next_log_probs(example, words)
            ways = [EOS] if length == limit else WORDS + ([EOS] if length >= minimum else [])
            candidates += [(log_prob + more[t], [*words, t]) for t in ways]
        candidates.sort(reverse=True)
        ends = [c for c in candidates[:beam_size] if c[1][-1] == EOS]
        kept += [(lp / penalty(length, exponent), lp, tokens) for lp, tokens in ends]
        kept = sorted(kept, reverse=True)[:n_best]
        live = [c for c in candidates if c[1][-1] != EOS][:beam_size]
        if not live or len(ends) == beam_size:
            return kept, needed or length
        best = live[0][0] / penalty(limit, exponent)
        if not needed and len(kept) == n_best and best <= kept[-1][0]:
            needed = length
    return kept, needed or limit


# ---- Beam search -----------------------------------------------------------------------------


@pytest.mark.parametrize("exponent", [0.0, 0.6, 1.0, 2.5])
def test_with_beams_for_all_prefixes_the_best_of_all_sequences_is_found(exponent):
    examples, limits, minimums = [5, 6, 7, 8, 9], [5, 4, 1, 5, 3], [0, 3, 0, 5, 7]
    found = search(
        start(examples),
        max_length=int32(*limits),
        min_length=int32(*minimums),
        length_penalty=exponent,
        beam_size=200,
        padded_length=5,
        n_best=130,
    )
    for i, rules in enumerate(zip(examples, limits, minimums, strict=True)):
        assert_found(found, i, all_sequences(*rules, exponent))


@pytest.mark.thorough
@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, PRIME - 1),
    beam_and_n=st.sampled_from([(1, 1), (2, 1), (3, 2), (5, 5)]),
    exponent=st.sampled_from([0.0, 0.6, 1.3, 4.0]),
)
def test_small_beams_find_what_plain_lists_find(seed, beam_and_n, exponent):
    rng = np.random.default_rng(seed)
    examples, limits, minimums = (rng.integers(0, top, 4) for top in (PRIME, 10, 6))
    beam_size, n_best = beam_and_n
    found = search(
        start(examples),
        max_length=int32(*limits),
        min_length=int32(*minimums),
        length_penalty=exponent,
        beam_size=beam_size,
        padded_length=9,
        n_best=n_best,
    )
    for i, rules in enumerate(zip(examples, limits, minimums, strict=True)):
        assert_found(found, i, plain_beam_search(*rules, exponent, beam_size, n_best)[0])


def test_the_n_best_are_sorted_and_different_and_begin_with_the_fewer_best():
    options = {"max_length": int32(*[9] * 16), "beam_size": 5, "padded_length": 9}
    five, two = (search(start(range(16)), n_best=n, **options) for n in (5, 2))
    assert (np.diff(np.asarray(five.scores)) < 0).all()
    assert all(len({tuple(row) for row in rows}) == 5 for rows in np.asarray(five.tokens).tolist())
    assert_same(jax.tree.map(lambda x: np.asarray(x)[:, :2], five), two)


def counting(of=step):
    """A step that notes the index of every call that is run, and the notes."""
    calls = []

    def counted(tokens, index, state):
        jax.debug.callback(lambda i: calls.append(int(i)), index)
        return of(tokens, index, state)

    return counted, calls


@pytest.mark.thorough(quick=2)
@pytest.mark.parametrize("exponent, n_best", [(0.0, 1), (1.0, 1), (1.0, 3)])
def test_the_loop_stops_as_soon_as_no_live_beam_can_win(exponent, n_best):
    counted, calls = counting()
    options = {"special_tokens": IDS, "lengths": Lengths(40, length_penalty=exponent)}
    options |= {"batch_size": 1, "beam_size": 3, "n_best": n_best}
    find = jax.jit(functools.partial(beam_search, counted, **options))
    needed = []
    for example in range(12):
        calls.clear()
        jax.block_until_ready(find(start([example])))
        jax.effects_barrier()
        needed.append(plain_beam_search(example, 40, 0, exponent, 3, n_best)[1])
        assert sorted(calls) == list(range(needed[-1]))
    assert min(needed) < max(needed) < 40


def test_rows_of_which_nothing_is_asked_cost_no_step():
    counted, calls = counting()
    options = {"of": counted, "max_length": int32(-3, 0), "padded_length": 7}
    found = search(start([1, 2]), beam_size=2, **options)
    one = run(greedy, start([1, 2]), **options)
    jax.effects_barrier()
    assert calls == []
    for hypotheses in (found, one):
        assert_found(hypotheses, 0, [])
        assert_found(hypotheses, 1, [])


def test_a_cache_may_stay_where_it_is():
    """Each row reads its own past out of rows that are never moved."""

    def remember(tokens, index, state):
        rows = jnp.arange(tokens.shape[0])
        cache = state["cache"].at[:, index].set(tokens)
        where = state["where"].at[:, index].set(rows)
        past = cache[where, jnp.arange(cache.shape[1])]
        seen = jnp.arange(cache.shape[1]) <= index
        history = jax.lax.fori_loop(
            0,
            cache.shape[1],
            lambda i, h: jnp.where(seen[i], read(h, past[:, i]), h),
            state["example"],
        )
        return jnp.asarray(TABLE)[history], {**state, "cache": cache, "where": where}

    def reorder(state, rows):
        return {**state, "where": state["where"][rows]}

    blank = jnp.zeros((3, 8), jnp.int32)
    state = {"example": int32(3, 4, 5), "cache": blank, "where": blank}
    options = {"beam_size": 4, "n_best": 4, "padded_length": 8, "reorder": reorder}
    found = search(state, of=remember, max_length=int32(8, 8, 8), **options)
    for i, example in enumerate([3, 4, 5]):
        assert_found(found, i, plain_beam_search(example, 8, 0, 0.6, 4, 4)[0])


def plain_groups(example, limit, beam_size, groups, diversity):
    """Diverse beam search over plain lists, never stopping early but where all beams end."""
    size, kept = beam_size // groups, set()
    live = [[(0.0, ())] for _ in range(groups)]
    for length in range(1, limit + 1):
        taken, ended = np.zeros(V), []
        for group in range(groups):
            candidates = []
            for log_prob, words in live[group]:
                more = next_log_probs(example, words)
                candidates += [(log_prob + more[t], (*words, t)) for t in [*WORDS, EOS]]
            going = [c for c in candidates if c[1][-1] != EOS and length < limit]
            going.sort(key=lambda c: c[0] - diversity * taken[c[1][-1]], reverse=True)
            live[group] = going[:size]
            ends = [c for c in candidates if c[1][-1] == EOS]
            ended += [c for c in ends if c in sorted(ends + live[group], reverse=True)[:size]]
            for _, words in live[group]:
                taken[words[-1]] += 1
        kept |= {(lp / penalty(length, 0.6), lp, words) for lp, words in ended}
        if len(ended) == beam_size:
            break
    return [(score, lp, [*words]) for score, lp, words in sorted(kept, reverse=True)]


@pytest.mark.parametrize("groups, diversity", [(2, 1.0), (4, 0.3), (2, 0.0)])
def test_groups_of_beams_find_what_plain_lists_find(groups, diversity):
    examples, limits = range(12), [7, 6, 5, 4] * 3
    found = search(
        start(examples),
        max_length=int32(*limits),
        beam_size=4,
        n_best=4,
        padded_length=7,
        groups=groups,
        diversity=diversity,
    )
    for i, limit in enumerate(limits):
        assert_found(found, i, plain_groups(i, limit, 4, groups, diversity))


# ---- What holds for all three ----------------------------------------------------------------

KEYS = jax.random.split(jax.random.key(7), 8)
METHODS = {
    "beam_search": functools.partial(run, beam_search, beam_size=3, n_best=2, padded_length=8),
    "groups": functools.partial(
        run, beam_search, beam_size=4, n_best=2, padded_length=8, groups=2, diversity=0.5
    ),
    "greedy": functools.partial(run, greedy, padded_length=8),
    "sample": functools.partial(run, sample, num_samples=2, padded_length=8, top_p=0.9),
}


def with_keys(name, rows):
    return (KEYS[np.array(rows)],) if name == "sample" else ()


@pytest.mark.thorough(quick=1)
@pytest.mark.parametrize("name", METHODS)
def test_a_batch_of_any_composition_is_one_at_a_time(name):
    limits, minimums = np.array([8, 3, 0, 5, 8, 1]), np.array([0, 2, 0, 5, 7, 0])
    found = {}
    for rows in ([0, 1, 2, 3, 4, 5], [5, 3, 2, 4, 0, 1], [3], [2], [4]):
        hypotheses = METHODS[name](
            start(rows),
            *with_keys(name, rows),
            max_length=int32(*limits[rows]),
            min_length=int32(*minimums[rows]),
        )
        for i, row in enumerate(rows):
            mine = jax.tree.map(lambda x, i=i: np.asarray(x)[i], hypotheses)
            assert_same(mine, found.setdefault(row, mine))
    assert len({tuple(x.tokens[0]) for x in found.values()}) > 3


@pytest.mark.thorough(quick=1)
@pytest.mark.parametrize("name", METHODS)
def test_one_number_for_all_examples_is_an_array_of_it(name):
    keys = with_keys(name, range(3))
    arrays = METHODS[name](
        start(range(3)), *keys, max_length=int32(5, 5, 5), min_length=int32(4, 4, 4)
    )
    method, options = METHODS[name].args[0], METHODS[name].keywords
    others = {key: value for key, value in options.items() if key != "padded_length"}
    if "groups" in others:
        others["groups"] = Groups(others["groups"], others.pop("diversity"))
    numbers = method(
        step,
        start(range(3)),
        *keys,
        batch_size=3,
        special_tokens=IDS,
        lengths=Lengths(max_length=5, min_length=4),
        **others,
    )
    assert numbers.tokens.shape[-1] == 5
    assert_same(numbers, arrays._replace(tokens=arrays.tokens[..., :5]))


@pytest.mark.thorough(quick=1)
@pytest.mark.parametrize("name", METHODS)
def test_scores_are_those_of_whole_sequences_within_the_limits(name):
    limits, minimums = [8, 6, 2, 1], [0, 5, 1, 0]
    found = METHODS[name](
        start(range(4)),
        *with_keys(name, range(4)),
        max_length=int32(*limits),
        min_length=int32(*minimums),
        length_penalty=1.5,
    )
    for example in range(4):
        for row, score, log_prob, length in zip(*(x[example] for x in found), strict=True):
            tokens = np.asarray(row).tolist()[:length]
            assert (row[length:] == PAD).all() and np.isfinite(score) == (length > 0)
            if length:
                assert minimums[example] <= length <= limits[example]
                assert tokens[-1] == EOS and set(tokens[:-1]) <= set(WORDS)
                np.testing.assert_allclose(log_prob, whole(example, tokens), rtol=2e-6)
                np.testing.assert_allclose(score, log_prob / penalty(length, 1.5), rtol=2e-6)
    assert (found.lengths[:, 0] > 0).all()


def broken(tokens, index, state):
    """Wrong logits for the second example from its third token on, and for the third always."""
    logits, new = step(tokens, index, {"history": state["history"]})
    bad = state["example"] >= jnp.where(index >= 2, 1, 2)
    return jnp.where(bad[:, None], state["wrong"], logits), {**state, **new}


@pytest.mark.thorough(quick=1)
@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(
    "wrong", [[np.nan, 0, 0, 0, 0, 0], [0, 0, 0, np.inf, 0, 0], [-np.inf] * V], ids=str
)
def test_logits_that_are_not_numbers_are_told_and_stay_in_their_example(name, wrong):
    state = {
        **start([0, 1, 2]),
        "example": int32(0, 1, 2),
        "wrong": jnp.tile(jnp.array(wrong, jnp.float32), (3, 1)),
    }
    options = {"max_length": int32(8, 8, 0), "min_length": int32(4, 4, 0)}
    keys = with_keys(name, range(3))
    found = METHODS[name](state, *keys, of=broken, **options)
    right = METHODS[name](start(range(3)), *keys, **options)
    found, right = (jax.tree.map(np.asarray, x) for x in (found, right))
    for i in (0, 2):
        assert_same(*(jax.tree.map(lambda x, i=i: x[i], x) for x in (found, right)))
    assert np.isnan(found.scores[1]).all() and np.isnan(found.log_probs[1]).all()
    assert (found.tokens[1] == PAD).all() and (found.lengths[1] == 0).all()
    assert np.isfinite(right.scores[1]).all()


@pytest.mark.thorough(quick=2)
@pytest.mark.parametrize("name", METHODS)
def test_new_values_compile_nothing_anew(name):
    traced = []

    def noting(tokens, index, state):
        traced.append(index)
        return step(tokens, index, state)

    lengths = set()
    for i in (1, 4, 8):
        found = METHODS[name](
            start([i, 5]),
            *with_keys(name, [i - 1, 0]),
            of=noting,
            max_length=int32(i, 3),
            min_length=int32(i, 0),
            length_penalty=i / 2,
        )
        lengths.add(int(found.lengths[0, 0]))
    assert len(traced) == 1 and lengths == {1, 4, 8}


@pytest.mark.thorough(quick=1)
@pytest.mark.parametrize("name", METHODS)
def test_where_padding_begins_and_ends_sequences_it_still_ends_them(name):
    def two(tokens, index, state):
        return jnp.zeros((tokens.shape[0], 2)), state

    options = {"of": two, "max_length": int32(8), "special_tokens": SpecialTokens(0, 0, 0)}
    found = METHODS[name]((), *with_keys(name, [0]), **options)
    assert found.lengths.min() >= 1
    only = METHODS[name](
        (), *with_keys(name, [0]), **{**options, "special_tokens": SpecialTokens(1, 0, 0)}
    )
    assert only.lengths[0, 0] == 1


# ---- Greedy search ---------------------------------------------------------------------------


@pytest.mark.parametrize("exponent", [0.0, 0.6, 5.0])
def test_one_beam_is_greedy_search(exponent):
    rng = np.random.default_rng(3)
    options = {
        "max_length": int32(*rng.integers(0, 13, 50)),
        "min_length": int32(*rng.integers(0, 8, 50)),
        "length_penalty": exponent,
        "padded_length": 12,
    }
    one = run(greedy, start(range(50)), **options)
    assert_same(one, search(start(range(50)), beam_size=1, **options))
    assert len(np.unique(one.lengths)) > 6


@pytest.mark.thorough(quick=1)
@pytest.mark.parametrize("ids", [IDS, SpecialTokens(3, 5, 4)])
def test_of_equals_greedy_search_and_one_beam_take_the_first(ids):
    def equals(tokens, index, state):
        return jnp.round(jnp.asarray(TABLE)[state["history"]]), step(tokens, index, state)[1]

    options = {"of": equals, "max_length": int32(*[9] * 30), "padded_length": 9}
    options["special_tokens"] = ids
    one = run(greedy, start(range(30)), **options)
    assert_same(one, search(start(range(30)), beam_size=1, **options))


# ---- Sampling --------------------------------------------------------------------------------

DRAWS = 20_000


def shares(**options):
    """How often each token is drawn first."""
    found = run(
        sample,
        start([11]),
        KEYS[:1],
        max_length=int32(2),
        padded_length=2,
        num_samples=DRAWS,
        **options,
    )
    return np.bincount(found.tokens[0, :, 0], minlength=V) / DRAWS


def chances(temperature=1.0, keep=lambda probs: probs > 0):
    """The probabilities of the first token of example 11, by the definition."""
    powers = next_log_probs(11, []) / temperature
    powers[[PAD, BOS]] = -np.inf
    probs = np.exp(powers) / np.exp(powers).sum()
    return np.where(keep(probs), probs, 0) / probs[keep(probs)].sum()


def assert_drawn(found, expected):
    """By chi-square; 25 has a chance of a ten-thousandth with three degrees of freedom."""
    assert (found[expected == 0] == 0).all()
    at = expected > 0
    assert (DRAWS * (found[at] - expected[at]) ** 2 / expected[at]).sum() < 25


@pytest.mark.parametrize("temperature", [1.0, 0.5, 3.0])
def test_temperature(temperature):
    assert_drawn(shares(temperature=temperature), chances(temperature))


@pytest.mark.thorough(quick=2)
@pytest.mark.parametrize("k", [1, 2, 3, 100])
def test_top_k(k):
    expected = chances(2.0, lambda probs: probs >= np.sort(probs)[::-1][min(k, V) - 1])
    assert (expected > 0).sum() == min(k, 4)
    assert_drawn(shares(temperature=2.0, top_k=k), expected)


def nucleus(p):
    def keep(probs):
        order = np.argsort(-probs)
        count = 1 + np.searchsorted(np.cumsum(probs[order]), p)
        return np.isin(np.arange(V), order[:count]) & (probs > 0)

    return keep


def test_top_p_keeps_the_nucleus():
    kept = []
    for p in (0.01, 0.7, 0.85, 1.0):
        expected = chances(2.0, nucleus(p))
        kept.append(int((expected > 0).sum()))
        assert_drawn(shares(temperature=2.0, top_p=p), expected)
    assert sorted(set(kept)) == [1, 2, 3, 4]


def test_top_p_is_of_what_top_k_leaves():
    def keep(probs):
        left = np.where(probs >= np.sort(probs)[::-1][2], probs, 0)
        return nucleus(0.83)(left / left.sum())

    assert (chances(2.0, keep) > 0).sum() == 2 < (chances(2.0, nucleus(0.83)) > 0).sum()
    assert_drawn(shares(temperature=2.0, top_k=3, top_p=0.83), chances(2.0, keep))


def test_near_zero_temperature_is_greedy_search():
    limits = int32(*[12] * 8)
    for temperature in (1e-5, 1e-30):
        cold = run(
            sample,
            start(range(8)),
            KEYS,
            max_length=limits,
            padded_length=12,
            temperature=temperature,
        )
        chex.assert_trees_all_equal(
            cold, run(greedy, start(range(8)), max_length=limits, padded_length=12)
        )


@pytest.mark.thorough
def test_the_keys_alone_decide():
    draw = functools.partial(
        run, sample, start([1] * 8), max_length=int32(*[8] * 8), padded_length=8
    )
    three, again, five = (
        draw(KEYS, num_samples=3),
        draw(KEYS, num_samples=3),
        draw(KEYS, num_samples=5),
    )
    chex.assert_trees_all_equal(three, again)
    assert_same(three, jax.tree.map(lambda x: np.asarray(x)[:, :3], five))
    assert len({tuple(row) for rows in np.asarray(five.tokens).tolist() for row in rows}) > 15


# ---- Parts -----------------------------------------------------------------------------------


@pytest.mark.thorough(quick=2)
@pytest.mark.parametrize("size, k", [(1000, 3), (1001, 3), (4099, 5), (64 * 31, 4), (300, 7)])
def test_top_k_is_that_of_jax_also_of_equals(size, k):
    x = np.random.default_rng(size).integers(0, 40, (7, size)).astype(np.float32)
    x[x < 30] = -np.inf
    x[0], x[1, 1:], x[2, -1] = -np.inf, -np.inf, 100.0
    chex.assert_trees_all_equal(list(top_k(jnp.asarray(x), k)), list(jax.lax.top_k(x, k)))


def test_length_penalties():
    found = length_penalties(np.array([1, 13]), 0.6)
    np.testing.assert_allclose(found, [1.0, 3.0**0.6], rtol=1e-6)


GOOD = {"batch_size": 2, "special_tokens": IDS, "lengths": Lengths(4)}


def ids(**change):
    return {"special_tokens": IDS._replace(**change)}


def lengths(*values, **others):
    return {"lengths": Lengths(*values, **others)}


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"batch_size": 3}, ValueError, r"state\['history'\] has shape \(2,\).*batch_size = 3"),
        ({"beam_size": 0}, ValueError, "beam_size is 0; expected 1 or more"),
        ({"beam_size": 2.0}, TypeError, "beam_size is 2.0; expected an int"),
        ({"groups": Groups(2)}, ValueError, "groups.number is 2; .* divides beam_size, 3"),
        ({"groups": Groups(3, -1.0)}, ValueError, "groups.diversity is -1.0"),
        ({"n_best": 4}, ValueError, "n_best is 4; expected 1 or more, at most 3"),
        ({"lengths": 5}, TypeError, r"lengths is a int; expected Lengths"),
        ({"special_tokens": {}}, TypeError, r"special_tokens is a dict; expected SpecialTokens"),
        (lengths(0), ValueError, "max_length is 0"),
        (lengths(4, padded_length=0), ValueError, "padded_length is 0"),
        (lengths(4, padded_length=4.0), TypeError, "padded_length is 4.0; expected an int"),
        (lengths(np.array([4, 2])), TypeError, "max_length is .*an int for padded_length"),
        (ids(eos_id=-1), ValueError, "eos_id is -1"),
        (ids(pad_id=6), ValueError, "V = 6 tokens, but .* pad_id is 6"),
        (lengths(np.array([1.0, 2.0]), padded_length=4), TypeError, "max_length has dtype float"),
        (
            lengths(4, np.array([1, 2, 3])),
            ValueError,
            "min_length has shape .*batch_size has B = 2",
        ),
        (lengths(4, length_penalty=-0.5), ValueError, "length_penalty is -0.5; .* 0.0 or more"),
        (lengths(4, length_penalty=np.ones(2)), ValueError, "length_penalty has shape"),
    ],
)
def test_what_does_not_fit_is_named(change, error, message):
    with pytest.raises(error, match=message):
        beam_search(step, start([0, 1]), **{**GOOD, "beam_size": 3, **change})


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"temperature": 0.0}, ValueError, "temperature is 0.0; .*above 0.0"),
        ({"top_p": 1.5}, ValueError, "top_p is 1.5; .*above 0.0, at most 1.0"),
        ({"top_k": 0}, ValueError, "top_k is 0"),
        ({"num_samples": 0}, ValueError, "num_samples is 0"),
        ({"keys": KEYS[:3]}, ValueError, "keys has shape .*batch_size has B = 2"),
        ({"keys": 5}, TypeError, "keys is a int; expected an array of keys"),
    ],
)
def test_what_does_not_fit_a_sample_is_named(change, error, message):
    with pytest.raises(error, match=message):
        options = {**GOOD, "keys": KEYS[:2], **change}
        sample(step, start([0, 1]), options.pop("keys"), **options)


@pytest.mark.parametrize(
    "wrong, error, message",
    [
        (lambda t, i, s: (jnp.zeros((3, V)), s), ValueError, r"shape \(3, 6\); .*R = 2"),
        (lambda t, i, s: (jnp.zeros((2, V), int), s), TypeError, "dtype int32"),
        (lambda t, i, s: (jnp.zeros((2, V)), ()), ValueError, r"{'history': 'int32\[2\]'}"),
    ],
)
def test_a_step_that_gives_something_else_is_told(wrong, error, message):
    with pytest.raises(error, match=message):
        greedy(wrong, start([0, 1]), **GOOD)
