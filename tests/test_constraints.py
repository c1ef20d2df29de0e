"""What sequences must keep to, against all sequences and plain lists of beams."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from search_cases import (
    EOS,
    IDS,
    WORDS,
    V,
    all_sequences,
    assert_found,
    assert_same,
    int32,
    next_log_probs,
    penalty,
    start,
    step,
    whole,
)

from flaxattn.search import Beginning, Lengths, NoRepeats, Terms, beam_search, greedy, sample

LENGTH = 7
FOLLOW = np.isin(np.arange(V), [3, 5])  # token 4 goes on with a word


@functools.partial(jax.jit, static_argnames=("method", "n", "options"))
def found_by(method, options, examples, max_length, given, terms, follow, n):
    """Searches with every constraint, of which none may matter."""
    constraints = [NoRepeats(n)] if n else []
    constraints += [Terms(*terms, follow=follow)] if terms else []
    constraints += [Beginning(*given, follow=follow)] if given else []
    batch, keys = len(max_length), ()
    if method is sample:
        keys = (jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), examples),)
    lengths = Lengths(max_length, padded_length=LENGTH)
    return method(
        step,
        {"history": examples},
        *keys,
        batch_size=batch,
        special_tokens=IDS,
        lengths=lengths,
        constraints=constraints,
        **dict(options),
    )


def found(method, examples, limits, *, given=None, terms=None, follow=None, n=0, **options):
    return found_by(
        method,
        tuple(options.items()),
        start(examples)["history"],
        int32(*limits),
        given and padded(given),
        terms and padded_terms(terms),
        None if follow is None else jnp.asarray(follow),
        n,
    )


def padded(rows, count=4):
    """int32 [B, count] and [B]."""
    return (
        jnp.array([[*row, *[4] * (count - len(row))] for row in rows], jnp.int32),
        int32(*map(len, rows)),
    )


def padded_terms(rows, count=3):
    """int32 [B, count, 4] and [B, count]."""
    parts = [padded([*terms, *[()] * (count - len(terms))]) for terms in rows]
    return tuple(jnp.stack(x) for x in zip(*parts, strict=True))


# ---- By definition ---------------------------------------------------------------------------


def occurs(term, tokens, follow=None):
    """Whether tokens, the last of them the end, have the term where nothing goes on with it."""
    for at in range(len(tokens) - len(term)):
        after = tokens[at + len(term)]
        free = follow is None or after == EOS or follow[after]
        if tuple(tokens[at : at + len(term)]) == tuple(term) and free:
            return True
    return False


def repeats(tokens, n, given=0):
    """Whether n tokens come twice, the second time not only in what is given."""
    seen = [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
    return any(x in seen[:i] for i, x in enumerate(seen) if i + n > given)


def keeps(tokens, given=(), terms=(), follow=None, n=0):
    begins = tuple(tokens[: len(given)]) == tuple(given)
    after = tokens[len(given)] if len(tokens) > len(given) else None
    if given and begins and follow is not None:
        begins = after == EOS or bool(follow[after])
    return (
        begins
        and all(occurs(term, tokens, follow) for term in terms)
        and not (n and repeats(tokens, n, len(given)))
    )


EXAMPLES, LIMITS = [5, 6, 7, 8, 9, 10], [5, 4, 5, 5, 3, 5]
GIVEN = [(), (3,), (4, 4), (5, 3, 4), (3, 3), ()]
TERMS = [[(3,)], [(4, 5)], [], [(3,), (4,)], [(5,)], [(4, 4), (3,)]]


@pytest.mark.parametrize(
    "asked",
    [
        {"given": GIVEN},
        {"given": GIVEN, "follow": FOLLOW},
        {"n": 1},
        {"n": 2},
        {"n": 3},
        {"terms": TERMS},
        {"terms": [[(3,)], [(3, 4)], [(5, 4)], [(5,)], [], [(3, 4, 4)]], "follow": FOLLOW},
        {"given": [(), (5,), (3, 3), (), (4,), (4, 5, 5)], "n": 2},
    ],
    ids=lambda asked: "-".join(asked) + str(asked.get("n", "")),
)
def test_with_beams_for_all_prefixes_the_best_that_keep_to_it_are_found(asked):
    hypotheses = found(beam_search, EXAMPLES, LIMITS, beam_size=130, n_best=130, **asked)
    some = 0
    for i, (example, limit) in enumerate(zip(EXAMPLES, LIMITS, strict=True)):
        mine = {k: v[i] if k in ("given", "terms") else v for k, v in asked.items()}
        everything = all_sequences(example, limit, 0, 0.6)
        expected = [x for x in everything if keeps(x[2], **mine)]
        assert_found(hypotheses, i, expected)
        some += len(expected) < len(everything)
    assert some >= 4


def missing(tokens, terms, follow):
    """The tokens that terms lack, the one under way as far as it is."""
    begun = [*tokens, V]  # by which no term that has just come is proven yet
    open_ = [t for t in terms if not occurs(t, begun, [*follow, False])]
    under_way = [p for t in open_ for p in range(1, len(t) + 1) if tuple(tokens[-p:]) == t[:p]]
    return sum(map(len, open_)) - max(under_way, default=0)


def plain_shared_beams(example, limit, terms, follow, beam_size):
    """The search as documented, over plain lists, never stopping early."""
    live, kept, total = [(0.0, [])], [], sum(map(len, terms))
    for length in range(1, limit + 1):
        grown, ends = [], []
        for log_prob, words in live:
            more = next_log_probs(example, words)
            grown += [(log_prob + more[t], [*words, t]) for t in WORDS]
            if all(occurs(t, [*words, EOS], follow) for t in terms):
                ends.append((log_prob + more[EOS], [*words, EOS]))
        grown = [x for x in grown if length + missing(x[1], terms, follow) < limit]
        banks = [[] for _ in range(total + 1)]
        for candidate in sorted(grown, reverse=True):
            banks[missing(candidate[1], terms, follow)].append(candidate)
        rivals = sorted(ends + banks[0], reverse=True)[:beam_size]
        ended = [x for x in ends if x in rivals]
        kept += [(lp / penalty(length, 0.6), lp, tokens) for lp, tokens in ended]
        turns = [x for turn in itertools.zip_longest(*banks) for x in turn if x]
        live = turns[:beam_size]
        if len(ended) == beam_size:
            break
    return sorted(kept, reverse=True)


@pytest.mark.parametrize("beam_size", [2, 4])
def test_few_beams_are_shared_as_plain_lists_share_them(beam_size):
    rng = np.random.default_rng(beam_size)
    count = 24
    examples, limits = rng.integers(0, 1000, count).tolist(), rng.integers(5, 8, count).tolist()
    choices = [[(3,)], [(5, 4)], [], [(3,), (5,)], [(5, 4), (3,)], [(3, 4, 4)]]
    terms = [choices[i % 6] for i in range(count)]
    options = {"terms": terms, "follow": FOLLOW, "beam_size": beam_size, "n_best": beam_size}
    hypotheses = found(beam_search, examples, limits, **options)
    for i in range(count):
        expected = plain_shared_beams(examples[i], limits[i], terms[i], FOLLOW, beam_size)
        assert expected
        assert_found(hypotheses, i, expected[:beam_size])


METHODS = {
    "beam_search": (beam_search, {"beam_size": 3, "n_best": 2}),
    "greedy": (greedy, {}),
    "sample": (sample, {"num_samples": 3}),
}


@pytest.mark.thorough(quick=1)
@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("follow", [FOLLOW, None], ids=["words", "any"])
def test_random_terms_are_in_every_sequence_however_tight_its_limit(name, follow):
    rng = np.random.default_rng(4)
    count = 60
    draw = lambda most: tuple(rng.choice(WORDS, rng.integers(0, most + 1)).tolist())  # noqa: E731
    given = [draw(2) for _ in range(count)]
    terms = [[t for t in (draw(2), draw(1), draw(1)) if t] for _ in range(count)]
    if follow is not None:  # terms begin with words
        terms = [[(3 + 2 * (t[0] % 2), *t[1:]) for t in some] for some in terms]
    needed = [len(g) + sum(map(len, t)) + 1 for g, t in zip(given, terms, strict=True)]
    limits = [min(LENGTH, n + int(rng.integers(0, 3))) for n in needed]
    method, options = METHODS[name]
    hypotheses = found(
        method, range(count), limits, given=given, terms=terms, follow=follow, n=2, **options
    )
    tokens, _, log_probs, lengths = map(np.asarray, hypotheses)
    for i in range(count):
        if needed[i] > LENGTH:
            continue
        assert lengths[i, 0] > 0
        for row, log_prob, length in zip(tokens[i], log_probs[i], lengths[i], strict=True):
            if length:
                words = row[:length].tolist()
                assert words[-1] == EOS and length <= limits[i]
                assert keeps(words, given[i], terms[i], follow)
                np.testing.assert_allclose(log_prob, whole(i, words), rtol=2e-6)
    assert sum(n <= LENGTH for n in needed) > 40


def test_one_beam_is_greedy_search_after_a_beginning_and_without_repeats():
    examples, given = range(30), [WORDS[: i % 4] for i in range(30)]
    options = {"given": given, "n": 2}
    one = found(beam_search, examples, [LENGTH] * 30, beam_size=1, **options)
    assert_same(one, found(greedy, examples, [LENGTH] * 30, **options))


@pytest.mark.thorough
@pytest.mark.parametrize("name", METHODS)
def test_a_batch_of_any_composition_is_one_at_a_time(name):
    method, options = METHODS[name]
    seen = {}
    for rows in ([0, 1, 2, 3, 4, 5], [5, 3, 2, 4, 0, 1], [3], [2]):
        pick = lambda values, rows=rows: [values[i] for i in rows]  # noqa: E731
        hypotheses = found(
            method,
            pick(EXAMPLES),
            [LENGTH] * len(rows),
            given=pick(GIVEN),
            terms=pick(TERMS),
            n=2,
            **options,
        )
        for i, row in enumerate(rows):
            mine = jax.tree.map(lambda x, i=i: np.asarray(x)[i], hypotheses)
            assert_same(mine, seen.setdefault(row, mine))


def test_without_room_or_without_anything_left_there_is_no_hypothesis():
    no_room = found(beam_search, [1, 2], [3, 3], given=[(3, 4, 5), (3, 4)], beam_size=2)
    assert no_room.lengths.tolist() == [[0], [3]]
    too_many = found(beam_search, [1, 2], [3, 4], terms=[[(3,), (4, 5)]] * 2, beam_size=2)
    assert too_many.lengths.tolist() == [[0], [4]]
    assert np.isneginf(too_many.scores[0]).all()


def test_shapes_that_do_not_fit_are_told():
    with pytest.raises(ValueError, match=r"Beginning.tokens has shape \(1, 4\).*batch_size"):
        found(beam_search, [1, 2], [5, 5], given=[(3,)], beam_size=2)
    with pytest.raises(ValueError, match=r"Terms.tokens has shape .*batch_size"):
        found(greedy, [1, 2], [5, 5], terms=[[(3,)]])
    with pytest.raises(ValueError, match=r"Terms.follow has shape \(2,\).*V = 6"):
        found(greedy, [1], [5], terms=[[(3,)]], follow=np.ones(2, bool))
