"""Masks: literal drawings, the algebra, and law 1: what is drawn is what the rule says."""

import functools
import operator

import chex
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from attention_cases import older
from hypothesis import given, settings
from hypothesis import strategies as st
from mask_cases import (
    LEADS,
    LONGEST,
    PATTERNS,
    B,
    N,
    Pair,
    both,
    either,
    integer,
    one_of_many,
    opposite,
    positioned,
    shifted,
)

import flaxattn
from flaxattn import (
    Mask,
    causal,
    chunked,
    dilated,
    from_dense,
    full,
    global_tokens,
    lengths,
    prefix,
    same_segment,
    sliding_window,
    valid,
    where,
)


def examples(count):
    return settings(max_examples=count, deadline=None, derandomize=True)


@functools.partial(jax.jit, static_argnums=(1, 2))
def draw(masks, q_len, kv_len):
    """The dense array of a mask, or of each in a list, compiled whole: quicker for few drawings."""

    def is_mask(x):
        return isinstance(x, Mask)

    return jax.tree.map(lambda mask: mask.dense(q_len, kv_len), masks, is_leaf=is_mask)


def drawn(mask, q_len, kv_len, **starts):
    """The mask as the literals of this file: "#" is seen, "." is hidden, one string per query."""

    def rows(dense):
        if dense.ndim > 2:
            return [rows(inner) for inner in dense]
        return ["".join("#" if seen else "." for seen in row) for row in dense]

    dense = draw(mask.shift(**starts), q_len, kv_len)
    assert dense.dtype == bool
    return rows(np.asarray(dense))


def flags(text):
    return np.array([letter == "#" for letter in text])


def related(q, k, table, threshold):
    return table[q, k] > threshold


# Literal drawings: one example, one head.

DRAWINGS = {
    "full": (full(), ["###", "###"]),
    "causal": (causal(), ["#...", "##..", "###.", "####"]),
    "causal with more keys than queries": (causal(), ["#....", "##..."]),
    "causal with more queries than keys": (causal(), ["#.", "##", "##"]),
    "window of one to each side": (sliding_window(1), ["##..", "###.", ".###", "..##"]),
    "window of two back": (sliding_window(2, 0), ["#....", "##...", "###..", ".###.", "..###"]),
    "window of two ahead": (sliding_window(0, 2), ["###..", ".###.", "..###", "...##", "....#"]),
    "window of one back, two ahead": (sliding_window(1, 2), ["###..", "####.", ".####", "..###"]),
    "window of nothing but oneself": (sliding_window(0), ["#..", ".#.", "..#"]),
    "window without end ahead": (sliding_window(1, None), ["####", "####", ".###", "..##"]),
    "window without end back": (sliding_window(None, 1), ["##..", "###.", "####", "####"]),
    "window without ends": (sliding_window(None), ["###", "###"]),
    "prefix": (prefix(2), ["##..", "##..", "##.."]),
    "prefix of nothing": (prefix(0), ["...", "..."]),
    "prefix longer than the keys": (prefix(9), ["###", "###"]),
    "prefix language model": (causal() | prefix(2), ["##..", "##..", "###.", "####"]),
    "lengths of keys": (lengths(kv_lengths=2), ["##..", "##..", "##.."]),
    "lengths of queries": (lengths(q_lengths=2), ["###", "###", "..."]),
    "lengths of both": (lengths(2, 1), ["#..", "#..", "..."]),
    "lengths of neither": (lengths(), ["##", "##"]),
    "lengths of zero": (lengths(kv_lengths=0), ["..", ".."]),
    "valid": (valid(flags("#.#")), ["#.#", "#.#"]),
    "same segment": (
        same_segment(np.array([1, 1, 2, 2, 0])),
        ["##...", "##...", "..##.", "..##.", "....."],
    ),
    "same segment, unsorted ids": (same_segment(np.array([7, -3, 7])), ["#.#", ".#.", "#.#"]),
    "same segment of two sequences": (
        same_segment(np.array([1, 2, 0]), np.array([2, 1, 1, 0])),
        [".##.", "#...", "...."],
    ),
    "same segment, ids from 0 on": (
        same_segment(np.array([0, 0, 1]), padding=None),
        ["##.", "##.", "..#"],
    ),
    "same segment, padding of -1": (
        same_segment(np.array([0, 0, -1]), np.array([-1, 0]), padding=-1),
        [".#", ".#", ".."],
    ),
    "chunked": (chunked(2), ["##...", "##...", "..##.", "..##.", "....#"]),
    "chunks of one": (chunked(1), ["#..", ".#.", "..#"]),
    "dilated": (dilated(2), ["#.#.#", ".#.#.", "#.#.#"]),
    "dilated by three": (dilated(3), ["#..#.", ".#..#", "..#..", "#..#."]),
    "dilated by one": (dilated(1), ["###", "###"]),
    "dilated causal": (causal() & dilated(2), ["#....", ".#...", "#.#..", ".#.#.", "#.#.#"]),
    "first token global": (global_tokens(1), ["####", "#...", "#..."]),
    "no token global": (global_tokens(0), ["..", ".."]),
    "flagged tokens global": (global_tokens(flags(".#..")), [".#..", "####", ".#..", ".#.."]),
    "Longformer": (
        sliding_window(1) | global_tokens(1),
        ["#####", "###..", "####.", "#.###", "#..##"],
    ),
    "from_dense": (from_dense(np.array([flags("#.#"), flags(".#.")])), ["#.#", ".#."]),
    "from_dense, one row for all": (from_dense(flags("#.#")[None, :]), ["#.#", "#.#"]),
    "from_dense, one column for all": (from_dense(flags("#.")[:, None]), ["####", "...."]),
    "from_dense, one cell for all": (from_dense(flags("#")[None, :]), ["###", "###"]),
    "where": (where(older, jnp.array([30, 7, 41])), ["##.", ".#.", "###"]),
    "where without arrays": (where(lambda q, k: q + k == 2), ["..#", ".#.", "#.."]),
    "and": (causal() & sliding_window(1), ["#...", "##..", ".##.", "..##"]),
    "or": (causal() | chunked(2), ["##..", "##..", "####", "####"]),
    "not": (~causal(), [".###", "..##", "...#"]),
    "not not": (~~causal(), ["#..", "##.", "###"]),
    "and not": (full() & ~sliding_window(1), ["..##", "...#", "#...", "##.."]),
    "shifted queries": (causal().shift(q_start=2), ["###.", "####"]),
    "shifted keys": (causal().shift(kv_start=1), ["...", "#..", "##."]),
    "in another order": (
        causal().at(np.array([0, 3, 1, 2]), np.array([0, 3, 1, 2])),
        ["#...", "####", "#.#.", "#.##"],
    ),
    "queries in another order": (causal().at(np.array([2, 0]), None), ["###.", "#..."]),
    "keys in another order": (causal().at(None, np.array([2, 0])), [".#", ".#", "##"]),
    "positions that begin again": (
        sliding_window(1, 0).at(np.array([0, 1, 2, 0, 1]), np.array([0, 1, 2, 0, 1])),
        ["#..#.", "##.##", ".##.#", "#..#.", "##.##"],
    ),
    "at positions, shifted": (causal().at(np.array([5, 2, 0]), None).shift(1), ["###", "#.."]),
    "shifted, at positions": (causal().shift(1).at(np.array([2, 0]), None), ["####", "##.."]),
    "at positions of positions": (
        causal().at(np.array([3, 1]), None).at(np.array([1, 0, 7]), None),
        ["##..", "####", "...."],
    ),
    "shifted twice": (causal().shift(q_start=1).shift(q_start=1), ["###.", "####"]),
}


@pytest.mark.parametrize("name", DRAWINGS)
def test_pattern_is_drawn_as_in_the_literal(name):
    mask, expected = DRAWINGS[name]
    assert drawn(mask, len(expected), len(expected[0])) == expected


# Literal drawings: batches and heads.


def test_lengths_of_a_batch():
    mask = lengths(kv_lengths=np.array([0, 1, 3]))
    assert drawn(mask, 2, 3) == [["...", "..."], ["#..", "#.."], ["###", "###"]]


def test_lengths_of_a_batch_and_its_heads():
    mask = lengths(kv_lengths=np.array([[1, 2], [3, 0]]))
    assert drawn(mask, 1, 3) == [[["#.."], ["##."]], [["###"], ["..."]]]


def test_window_of_every_head_shared_by_the_batch():
    mask = causal() & sliding_window(np.array([[0, 1, 9]]))
    assert drawn(mask, 3, 3) == [
        [["#..", ".#.", "..#"], ["#..", "##.", ".##"], ["#..", "##.", "###"]]
    ]


def test_segments_of_a_batch():
    mask = same_segment(np.array([[1, 1, 0], [1, 2, 2]]))
    assert drawn(mask, 3, 3) == [["##.", "##.", "..."], ["#..", ".##", ".##"]]


def test_flags_of_every_head():
    mask = valid(np.array([[flags("#."), flags(".#")]]))
    assert drawn(mask, 1, 2) == [[["#."], [".#"]]]


def test_leaves_of_batch_and_of_heads_are_combined():
    mask = lengths(kv_lengths=np.array([1, 3])) & sliding_window(np.array([[0, 2]]))
    assert mask.lead == (2, 2)
    assert drawn(mask, 2, 3) == [
        [["#..", "..."], ["#..", "#.."]],
        [["#..", ".#."], ["###", "###"]],
    ]


def test_batch_of_one_is_shared_with_a_larger_batch():
    mask = valid(flags("##.")[None]) & lengths(kv_lengths=np.array([1, 3]))
    assert drawn(mask, 1, 3) == [["#.."], ["##."]]


def test_dense_arrays_of_rank_two_three_and_four():
    array = np.array([[flags("#."), flags(".#")], [flags("##"), flags("..")]])
    assert drawn(from_dense(array[0]), 2, 2) == ["#.", ".#"]
    assert drawn(from_dense(array), 2, 2) == [["#.", ".#"], ["##", ".."]]
    assert drawn(from_dense(array[None]), 2, 2) == [[["#.", ".#"], ["##", ".."]]]


def test_where_takes_the_leading_axes_that_its_rule_leaves_for_batch_and_head():
    ages = np.array([[30, 7], [7, 30]])
    one, other = ["##", ".#"], ["#.", "##"]
    assert drawn(where(older, ages[0]), 2, 2) == one
    assert drawn(where(older, ages), 2, 2) == [one, other]
    assert drawn(where(older, ages[None]), 2, 2) == [[one, other]]


def test_where_infers_the_axes_of_each_of_its_arrays():
    table = np.array([[[1, 5], [3, 2]], [[9, 0], [9, 0]]])
    assert drawn(where(related, table[0], 2), 2, 2) == [".#", "#."]
    assert drawn(where(related, table, 2), 2, 2) == [[".#", "#."], ["#.", "#."]]
    assert drawn(where(related, table[0], np.array([0, 4])), 2, 2) == [["##", "##"], [".#", ".."]]


def test_where_reads_batch_axes_as_its_ranks_say():
    def among(q, k, friends):
        return (friends == k).any()

    friends = np.array([[0, 2], [1, 1]])
    assert drawn(where(among, friends), 1, 3) == ["###"]
    assert drawn(where(among, friends, ranks=[1]), 1, 3) == [["#.#"], [".#."]]
    assert drawn(where(among, friends, ranks=(0,)), 1, 3) == [
        [["#.."], ["..#"]],
        [[".#."], [".#."]],
    ]


# Starts.


def test_one_mask_serves_training_prefill_and_decoding():
    mask = causal() & sliding_window(2)
    whole = drawn(mask, 7, 7)
    assert drawn(mask, 3, 7, q_start=4) == whole[4:]
    assert [drawn(mask, 1, 7, q_start=t)[0] for t in range(7)] == whole
    assert drawn(mask, 7, 4, kv_start=3) == [row[3:] for row in whole]


def test_start_of_every_example():
    assert drawn(causal(), 1, 4, q_start=np.array([0, 2])) == [["#..."], ["###."]]
    assert drawn(causal(), 1, 3, kv_start=np.array([[1, 0]])) == [[["..."], ["#.."]]]


def test_position_outside_an_array_is_hidden():
    one = jnp.array(1)
    assert drawn(valid(flags("###")), 1, 3, kv_start=one) == ["##."]
    assert drawn(same_segment(np.array([1, 1, 1])), 2, 3, kv_start=one) == ["##.", "##."]
    assert drawn(same_segment(np.array([1, 1])), 2, 2, q_start=one) == ["##", ".."]
    assert drawn(global_tokens(flags("..#")), 3, 3, kv_start=one) == [".#.", ".#.", "###"]
    assert drawn(from_dense(np.ones((2, 3), bool)), 2, 3, q_start=one, kv_start=one) == [
        "##.",
        "...",
    ]


def test_position_outside_an_array_is_hidden_also_where_no_id_is_padding():
    mask = same_segment(np.zeros(3, int), padding=None)
    assert drawn(mask, 2, 3, q_start=jnp.array(2), kv_start=-1) == [".##", "..."]


def test_position_before_an_array_is_hidden():
    assert drawn(valid(flags("##")), 1, 3, kv_start=-1) == [".##"]
    assert drawn(same_segment(np.array([1, 1])), 3, 2, q_start=-1) == ["..", "##", "##"]
    assert drawn(from_dense(np.ones((2, 2), bool)), 3, 2, q_start=-1) == ["..", "##", "##"]


def test_patterns_of_positions_go_on_before_position_zero():
    assert drawn(causal(), 2, 3, kv_start=-1) == ["##.", "###"]
    assert drawn(sliding_window(1), 2, 4, kv_start=-2) == [".###", "..##"]
    assert drawn(chunked(2), 2, 4, kv_start=-2) == ["..##", "..##"]
    assert drawn(dilated(2), 2, 4, kv_start=-3) == [".#.#", "#.#."]


def test_first_tokens_and_flagged_tokens_agree_before_position_zero():
    flagged, counted = global_tokens(flags("#.")), global_tokens(1)
    assert drawn(flagged, 2, 3, kv_start=-1) == ["###", ".#."]
    assert drawn(counted, 2, 3, kv_start=-1) == ["###", ".#."]


# The ends of int32, past which nothing wraps.

FAR = [-(2**31), -(2**31) + 1, -3, 0, 2, 2**31 - 2, 2**31 - 1]
WIDTHS = [n for n in FAR if n >= 0]
FAR_PATTERNS = {
    "causal": [()],
    "sliding_window": [(left, right) for left in [*WIDTHS, None] for right in [*WIDTHS, None]],
    "prefix": [(n,) for n in WIDTHS],
    "chunked": [(n,) for n in [1, 3, *WIDTHS[1:]]],
    "dilated": [(n,) for n in [1, 3, *WIDTHS[1:]]],
    "lengths": [(n, None) for n in WIDTHS],
    "global_tokens": [(n,) for n in WIDTHS],
    "valid": [(flags("#.#"),)],
    "same_segment": [(np.array([1, 1, 2]),), (np.array([0, 0, 1]), None, None)],
}
ARRAYS = {"sliding_window", "prefix", "chunked", "dilated", "lengths"}


def far_pairs(name):
    """The mask of each of the arguments, static and of arrays, and its plain rule."""
    for arguments in FAR_PATTERNS[name]:
        rule = getattr(oracle, name)(*arguments)
        yield getattr(flaxattn, name)(*arguments), rule
        if name in ARRAYS:
            arrays = [n if n is None else np.array(n) for n in arguments]
            yield getattr(flaxattn, name)(*arrays), rule


@pytest.mark.parametrize("name", FAR_PATTERNS)
def test_nothing_wraps_at_the_ends_of_int32(name):
    at = np.array(FAR)
    pairs = list(far_pairs(name))
    masks = [mask.at(at, at) for mask, _ in pairs]
    sees = draw(masks, len(FAR), len(FAR))
    for (_, rule), mask, dense in zip(pairs, masks, sees, strict=True):
        expected = oracle.draw(oracle.at(rule, FAR, FAR), len(FAR), len(FAR))
        np.testing.assert_array_equal(dense, expected, err_msg=repr(mask.mask))
        for blocks in (1, 2, 7):
            state = mask.plan(len(FAR), len(FAR), block_q=blocks, block_kv=blocks).state
            for (i, j), kind in np.ndenumerate(np.asarray(state)):
                cells = expected[i * blocks : (i + 1) * blocks, j * blocks : (j + 1) * blocks]
                assert kind or not cells.any()
                assert kind < 2 or cells.all()


@pytest.mark.parametrize("start", FAR)
def test_shift_past_the_ends_of_int32_stays_there(start):
    for q_start in (start, np.array(start)):
        mask = (causal() & sliding_window(3) | chunked(2)).shift(q_start, start)
        mask = mask.at(np.array(FAR), np.array(FAR))
        window = oracle.both(oracle.causal(), oracle.sliding_window(3))
        rule = oracle.shifted(oracle.either(window, oracle.chunked(2)), start, start)
        expected = oracle.draw(oracle.at(rule, FAR, FAR), len(FAR), len(FAR))
        np.testing.assert_array_equal(draw(mask, len(FAR), len(FAR)), expected)


BEYOND = {
    "window": lambda n: sliding_window(n),
    "window ahead": lambda n: sliding_window(0, n),
    "prefix": prefix,
    "chunk": chunked,
    "dilation": dilated,
    "lengths": lambda n: lengths(kv_lengths=n),
    "global tokens": global_tokens,
    "shift": lambda n: causal().shift(n),
    "shift of keys": lambda n: causal().shift(0, n),
    "padding": lambda n: same_segment(np.ones(2, int), padding=n),
}


@pytest.mark.parametrize("name", BEYOND)
def test_integer_beyond_int32_is_refused_by_name(name):
    with pytest.raises(ValueError, match=r"\w+: \w+ is 2147483648; expected at most 2147483647"):
        BEYOND[name](2**31)
    with pytest.raises(ValueError, match=r"\w+: \w+ is -2147483649; expected at least"):
        BEYOND[name](-(2**31) - 1)


@pytest.mark.parametrize("module", [np, jnp])
def test_array_beyond_int32_is_refused_by_name(module):
    """jax compares uint32 with int32 as int32, and would see no difference."""
    beyond = module.full(3, 2**31, module.uint32)
    with pytest.raises(ValueError, match="q_positions has values beyond int32"):
        causal().at(beyond, None)


@pytest.mark.usefixtures("standard_promotion")
@pytest.mark.parametrize("dtype", ["int8", "int16", "uint8", "uint32"])
@pytest.mark.parametrize("module", [np, jnp])
@pytest.mark.parametrize(
    "mask",
    [sliding_window(2), sliding_window(2, None), causal().shift(-3, -1), causal().shift(2**31 - 1)],
    ids=repr,
)
def test_indices_of_any_integer_dtype_never_wrap(mask, module, dtype):
    narrow = module.arange(6, dtype=dtype)
    np.testing.assert_array_equal(mask(narrow[:, None], narrow[None]), mask.dense(6, 6))


# Values that make no sense: refused where they are known.

SENSELESS = {
    "window": (sliding_window, "sliding_window: left", -1, 0),
    "window ahead": (lambda n: sliding_window(2, n), "sliding_window: right", -1, 0),
    "window without end": (lambda n: sliding_window(n, None), "sliding_window: left", -1, 0),
    "chunk": (chunked, "chunked: size", 0, 1),
    "chunk below nothing": (chunked, "chunked: size", -2, 1),
    "dilation": (dilated, "dilated: dilation", 0, 1),
    "dilation below nothing": (dilated, "dilated: dilation", -2, 1),
    "prefix": (prefix, "prefix: length", -1, 0),
    "lengths": (lambda n: lengths(kv_lengths=n), "lengths: kv_lengths", -1, 0),
    "lengths of queries": (lambda n: lengths(n), "lengths: q_lengths", -1, 0),
}


@pytest.mark.parametrize("kind", [int, np.array, jnp.array, lambda n: np.array([[3], [n]])])
@pytest.mark.parametrize("name", SENSELESS)
def test_value_that_makes_no_sense_is_refused_where_it_is_known(name, kind):
    make, owner, value, least = SENSELESS[name]
    with pytest.raises(ValueError, match=rf"{owner} \w+ {value}; expected at least {least}"):
        make(kind(value))


@pytest.mark.parametrize("name", SENSELESS)
def test_value_that_makes_no_sense_sees_nothing_where_it_is_not_known(name):
    make, _, value, _ = SENSELESS[name]
    traced = draw(jax.jit(lambda n: make(n))(np.array([3, value])), 5, 5)
    assert np.asarray(traced[0]).any() and not np.asarray(traced[1]).any()
    mapped = jax.tree.map(lambda n: np.full_like(n, value), make(np.array(3)))  # stays NumPy's
    assert not mapped.dense(5, 5).any() and not mapped.plan(5, 5, block_q=2, block_kv=2).state.any()


# Law 1: what is drawn is what the rule says, for random expressions.

SHAPES = [(5, 7), (7, 5)]


@st.composite
def patterns(draw, names=tuple(PATTERNS)):
    rng = np.random.default_rng(draw(st.integers(0, 999)))
    leads = draw(st.sampled_from(LEADS)), draw(st.sampled_from(LEADS))
    return PATTERNS[draw(st.sampled_from(names))](rng, *leads)


@st.composite
def starts(draw):
    rng = np.random.default_rng(draw(st.integers(0, 999)))
    return integer(rng, draw(st.sampled_from(LEADS)), 0, 8)[0]


@st.composite
def positions(draw):
    """None now and then, else any order of positions, some of which no array has."""
    rng = np.random.default_rng(draw(st.integers(0, 999)))
    lead = draw(st.sampled_from([None, *LEADS]))
    return None if lead is None else rng.integers(-2, LONGEST + 2, (*lead, LONGEST))


def expressions(depth):
    """Expressions of at most `depth` operators above each pattern, rarely of fewer."""
    if depth == 0:
        return patterns()
    inner = expressions(depth - 1)
    return st.one_of(
        st.builds(both, inner, inner),
        st.builds(either, inner, inner),
        st.builds(opposite, inner),
        st.builds(shifted, inner, starts(), starts()),
        st.builds(positioned, inner, positions(), positions()),
        patterns(),
    )


def expected_dense(rule, q_len, kv_len):
    """The plain rule for every example and head: [B, N, T, S]."""
    return np.array([[oracle.draw(rule(b, n), q_len, kv_len) for n in range(N)] for b in range(B)])


def four_axes(dense):
    """What a mask draws, as [B, N, T, S]."""
    missing = {2: (0, 1), 3: (1,), 4: ()}[dense.ndim]
    return np.broadcast_to(np.expand_dims(dense, missing), (B, N, *dense.shape[-2:]))


@pytest.mark.thorough
@examples(60)
@given(expressions(3), st.sampled_from(SHAPES))
def test_dense_is_the_plain_definition(expression, shape):
    dense = draw(expression.mask, *shape)
    assert dense.shape == (*expression.mask.lead, *shape)
    np.testing.assert_array_equal(four_axes(dense), expected_dense(expression.rule, *shape))


@pytest.mark.thorough
@examples(30)
@given(expressions(1), starts(), starts(), st.sampled_from(SHAPES))
def test_dense_from_any_start_is_the_plain_definition_there(expression, q_start, kv_start, shape):
    dense = draw(expression.mask.shift(q_start, kv_start), *shape)
    rule = shifted(expression, q_start, kv_start).rule
    np.testing.assert_array_equal(four_axes(dense), expected_dense(rule, *shape))


@pytest.mark.thorough
@examples(30)
@given(patterns(), patterns(), st.sampled_from(SHAPES))
def test_drawing_commutes_with_the_algebra(a, b, shape):
    masks = [a.mask, b.mask, a.mask & b.mask, a.mask | b.mask, ~a.mask]
    x, y, x_and_y, x_or_y, not_x = map(four_axes, draw(masks, *shape))
    np.testing.assert_array_equal(x_and_y, x & y)
    np.testing.assert_array_equal(x_or_y, x | y)
    np.testing.assert_array_equal(not_x, ~x)


@pytest.mark.thorough(quick=11)
@pytest.mark.parametrize("name", PATTERNS)
def test_every_pattern_with_leaves_of_every_kind_is_its_plain_definition(name):
    leads = zip(LEADS, LEADS[2:] + LEADS[:2], strict=True)
    pairs = [PATTERNS[name](np.random.default_rng(i), *lead) for i, lead in enumerate(leads)]
    for (_, rule), dense in zip(pairs, draw([p.mask for p in pairs], 5, 7), strict=True):
        np.testing.assert_array_equal(four_axes(dense), expected_dense(rule, 5, 7))


def one_example(mask, rank, b, n):
    """The mask of one example and head, by slicing its leaves; all have the same `rank` there."""
    return jax.tree.map(lambda leaf: one_of_many(leaf, rank, b, n), mask)


@examples(60)
@given(patterns(("valid", "segments", "two segments", "flagged global")), st.data())
def test_rule_called_with_integers_numpy_or_jax_indices_is_the_plain_definition(expression, data):
    b, n = data.draw(st.integers(0, B - 1)), data.draw(st.integers(0, N - 1))
    mask, rule = one_example(expression.mask, 1, b, n), expression.rule(b, n)
    t, s = np.arange(3, 8)[:, None], np.arange(1, 8)[None, :]
    expected = oracle.draw(oracle.shifted(rule, 3, 1), 5, 7)
    np.testing.assert_array_equal(mask(t, s), expected)
    np.testing.assert_array_equal(mask(jnp.asarray(t), jnp.asarray(s)), expected)
    assert bool(mask(4, 5)) == rule(4, 5)


STATIC = [
    Pair(full() & causal(), lambda: oracle.both(oracle.full(), oracle.causal())),
    Pair(~sliding_window(1, 2), lambda: oracle.opposite(oracle.sliding_window(1, 2))),
    Pair(causal() | prefix(4), lambda: oracle.either(oracle.causal(), oracle.prefix(4))),
    Pair(lengths(3, 5), lambda: oracle.lengths(3, 5)),
    Pair(chunked(3), lambda: oracle.chunked(3)),
    Pair(~dilated(2), lambda: oracle.opposite(oracle.dilated(2))),
    Pair(global_tokens(2), lambda: oracle.global_tokens(2)),
    Pair(causal().shift(3, 1), lambda: oracle.shifted(oracle.causal(), 3, 1)),
]


@pytest.mark.parametrize("expression", STATIC, ids=lambda e: str(e.mask))
def test_static_rule_called_with_integers_is_the_plain_definition(expression):
    rule = expression.rule()
    for t, s in np.ndindex(7, 7):
        assert bool(expression.mask(t, s)) == rule(t, s)


def test_rule_broadcasts_its_indices():
    for mask in (
        full(),
        prefix(2),
        valid(flags("###")),
        global_tokens(1),
        where(older, np.ones(5)),
    ):
        assert np.shape(mask(np.zeros((5, 1), int), np.zeros((1, 3), int))) == (5, 3)


def test_outer_is_the_rule_at_any_pairs_of_indices():
    mask = causal() & lengths(kv_lengths=np.array([3, 5]))
    q_idx, kv_idx = np.array([4, 0, 4]), np.array([3, 2, 0, 4])
    picked = mask.dense(5, 5)[:, q_idx][:, :, kv_idx]
    np.testing.assert_array_equal(mask.outer(jnp.asarray(q_idx), jnp.asarray(kv_idx)), picked)


def test_empty_axes_are_drawn_empty():
    mask = causal() & lengths(kv_lengths=np.array([1, 2])) & valid(np.zeros((1, 3), bool))
    assert mask.dense(0, 3).shape == (2, 0, 3)
    assert mask.dense(3, 0).shape == (2, 3, 0)
    assert lengths(kv_lengths=np.zeros(0, int)).dense(2, 3).shape == (0, 2, 3)


# A mask is a pytree.

MANY = (
    causal()
    & ~sliding_window(np.array([1, 2]), 3)
    & (same_segment(np.array([[1, 1, 2, 2, 0]])) | global_tokens(2))
    & where(older, np.arange(5)).shift(q_start=jnp.array(0))
)


def test_integers_are_static_and_no_leaves():
    mask = causal() & sliding_window(np.int64(3), 1) | prefix(2).shift(4) | ~lengths(3)
    mask = mask & chunked(2) & dilated(2) & global_tokens(1) & full()
    assert jax.tree.leaves(mask) == []


def test_arrays_are_leaves():
    shapes = [leaf.shape for leaf in jax.tree.leaves(MANY)]
    assert sorted(shapes) == sorted([(2,), (1, 5), (1, 5), (5,), ()])


def test_flatten_and_unflatten_give_the_same_mask_back():
    leaves, treedef = jax.tree.flatten(MANY)
    again = jax.tree.unflatten(treedef, leaves)
    assert jax.tree.structure(again) == treedef
    assert repr(again) == repr(MANY)
    assert drawn(again, 5, 5) == drawn(MANY, 5, 5)


def test_static_integers_tell_masks_apart():
    assert jax.tree.structure(prefix(2)) == jax.tree.structure(prefix(2))
    assert jax.tree.structure(prefix(2)) != jax.tree.structure(prefix(3))
    assert jax.tree.structure(prefix(2)) != jax.tree.structure(prefix(np.array(2)))


def test_tree_map_reaches_every_leaf():
    mask = lengths(kv_lengths=np.array([1, 2])) | prefix(1)
    longer = jax.tree.map(lambda n: n + 1, mask)
    assert drawn(longer, 1, 4) == [["##.."], ["###."]]


def test_tree_map_to_integers_keeps_the_structure():
    mask = lengths(kv_lengths=np.array([1, 2]))
    assert jax.tree.structure(jax.tree.map(np.ndim, mask)) == jax.tree.structure(mask)


def test_vmap_takes_axes_given_as_a_mask_of_integers():
    mask = lengths(kv_lengths=np.array([1, 2]))
    axes = jax.tree.map(lambda _: 0, mask)
    dense = jax.vmap(lambda m: m.dense(1, 3), in_axes=(axes,))(mask)
    np.testing.assert_array_equal(dense, mask.dense(1, 3))


def test_vmap_over_masks_is_a_batch():
    ids = jnp.array([[1, 1, 2], [1, 2, 2], [0, 3, 3]])
    mask = causal() & same_segment(ids) & sliding_window(jnp.array([0, 1, 2]))
    np.testing.assert_array_equal(jax.vmap(lambda m: m.dense(3, 3))(mask), mask.dense(3, 3))


def test_vmap_over_where_is_a_batch():
    mask = where(older, jnp.array([[3, 1, 2], [1, 2, 3]]))
    np.testing.assert_array_equal(jax.vmap(lambda m: m.dense(3, 3))(mask), mask.dense(3, 3))


def test_mask_passes_through_jit_and_scan():
    mask = jax.jit(lambda m: ~m)(MANY)
    assert drawn(mask, 5, 5) == drawn(~MANY, 5, 5)
    carried, _ = jax.lax.scan(lambda m, _: (m, None), jax.tree.map(jnp.asarray, MANY), length=2)
    assert drawn(carried, 5, 5) == drawn(MANY, 5, 5)


def test_masks_may_be_built_and_drawn_under_jit():
    @jax.jit
    def dense(ids, window, start):
        mask = causal() & same_segment(ids) & sliding_window(window, 0)
        return (mask | ~lengths(kv_lengths=window)).dense(3, 3, q_start=start)

    ids, window, start = np.array([[1, 1, 1, 1], [1, 1, 2, 2]]), np.array([1, 2]), np.array([0, 1])
    with jax.disable_jit():
        expected = dense(ids, window, start)
    np.testing.assert_array_equal(dense(ids, window, start), expected)
    rules = [
        oracle.either(
            oracle.both(
                oracle.both(oracle.causal(), oracle.same_segment(ids[b])),
                oracle.sliding_window(window[b], 0),
            ),
            oracle.opposite(oracle.lengths(None, window[b])),
        )
        for b in range(2)
    ]
    for b, rule in enumerate(rules):
        np.testing.assert_array_equal(
            expected[b], oracle.draw(oracle.shifted(rule, start[b]), 3, 3)
        )


def test_new_values_of_leaves_cause_no_new_trace():
    @jax.jit
    @chex.assert_max_traces(n=1)
    def dense(mask):
        return mask.dense(4, 4)

    for seed in range(4):
        rng = np.random.default_rng(seed)
        mask = causal() & lengths(kv_lengths=rng.integers(0, 4, 2)).shift(
            q_start=rng.integers(0, 3, 2)
        )
        mask = mask | same_segment(rng.integers(0, 3, (2, 9))) & where(older, rng.integers(0, 9, 9))
        np.testing.assert_array_equal(dense(mask), mask.dense(4, 4))


# Errors name the argument.

FLOATS = np.ones(3)

ERRORS = {
    "float flags": (lambda: valid(FLOATS), TypeError, "valid: kv_valid has dtype float"),
    "integer flags": (lambda: valid(np.ones(3, int)), TypeError, "valid: kv_valid has dtype int"),
    "float dense mask": (
        lambda: from_dense(np.zeros((2, 2), np.float32)),
        TypeError,
        "from_dense: array has dtype float32",
    ),
    "float global flags": (lambda: global_tokens(FLOATS), TypeError, "global_tokens: which"),
    "float global count": (lambda: global_tokens(2.0), TypeError, "global_tokens: which"),
    "float segments": (lambda: same_segment(FLOATS), TypeError, "same_segment: q_ids"),
    "float key segments": (
        lambda: same_segment(np.ones(3, int), FLOATS),
        TypeError,
        "same_segment: kv_ids",
    ),
    "boolean segments": (lambda: same_segment(FLOATS > 0), TypeError, "same_segment: q_ids"),
    "float lengths": (lambda: lengths(kv_lengths=FLOATS), TypeError, "lengths: kv_lengths"),
    "boolean lengths": (lambda: lengths(flags("##")), TypeError, "lengths: q_lengths"),
    "float window": (lambda: sliding_window(1.5), TypeError, "sliding_window: left"),
    "float window ahead": (lambda: sliding_window(1, 1.5), TypeError, "sliding_window: right"),
    "boolean prefix": (lambda: prefix(True), TypeError, "prefix: length"),
    "float chunk": (lambda: chunked(2.0), TypeError, "chunked: size"),
    "float step": (lambda: dilated(2.0), TypeError, "dilated: dilation"),
    "float query start": (lambda: causal().shift(0.5), TypeError, "q_start"),
    "float key start": (lambda: causal().dense(2, 2, kv_start=0.5), TypeError, "kv_start"),
    "scalar flags": (lambda: valid(np.True_), ValueError, r"valid: kv_valid has shape \(\)"),
    "flags of rank four": (lambda: valid(np.ones((1, 1, 1, 2), bool)), ValueError, "kv_valid"),
    "scalar segments": (lambda: same_segment(3), ValueError, "same_segment: q_ids"),
    "key segments of rank four": (
        lambda: same_segment(np.ones(2, int), np.ones((1, 1, 1, 2), int)),
        ValueError,
        "same_segment: kv_ids",
    ),
    "lengths of rank three": (
        lambda: lengths(kv_lengths=np.ones((2, 2, 2), int)),
        ValueError,
        r"lengths: kv_lengths has shape \(2, 2, 2\)",
    ),
    "dense mask of rank one": (lambda: from_dense(flags("##")), ValueError, "from_dense: array"),
    "dense mask of rank five": (
        lambda: from_dense(np.ones((1, 1, 1, 2, 2), bool)),
        ValueError,
        "from_dense: array",
    ),
    "window of rank three": (
        lambda: sliding_window(np.ones((1, 1, 1), int)),
        ValueError,
        "sliding_window: left",
    ),
    "start of rank three": (lambda: full().shift(np.ones((1, 1, 1), int)), ValueError, "q_start"),
    "negative window": (lambda: sliding_window(-1), ValueError, "sliding_window: left is -1"),
    "negative window ahead": (
        lambda: sliding_window(1, -2),
        ValueError,
        "sliding_window: right is -2",
    ),
    "negative prefix": (lambda: prefix(-1), ValueError, "prefix: length is -1"),
    "negative lengths": (lambda: lengths(kv_lengths=-1), ValueError, "lengths: kv_lengths is -1"),
    "negative count": (lambda: global_tokens(-1), ValueError, "global_tokens: which is -1"),
    "chunks of nothing": (lambda: chunked(0), ValueError, "chunked: size is 0"),
    "steps of nothing": (lambda: dilated(0), ValueError, "dilated: dilation is 0"),
    "and": (lambda: causal() and full(), TypeError, "& | ~"),
    "or": (lambda: causal() or full(), TypeError, "& | ~"),
    "not": (lambda: not causal(), TypeError, "& | ~"),
    "truth of a mask": (lambda: bool(causal()), TypeError, "truth value"),
    "batches that differ": (
        lambda: (lengths(kv_lengths=np.ones(2, int)) & valid(np.ones((3, 4), bool))).dense(4, 4),
        ValueError,
        r"valid: kv_valid.*batch is 3.*lengths: kv_lengths has 2",
    ),
    "heads that differ": (
        lambda: (prefix(np.ones((1, 2), int)) | chunked(np.ones((1, 3), int))).dense(2, 2),
        ValueError,
        "chunked: size.*head is 3.*prefix: length has 2",
    ),
    "batch of a start that differs": (
        lambda: valid(np.ones((3, 4), bool)).dense(1, 4, q_start=np.arange(2)),
        ValueError,
        "q_start.*batch is 2.*kv_valid has 3",
    ),
    "flags too short": (
        lambda: valid(np.ones(3, bool)).dense(1, 4),
        ValueError,
        r"valid: kv_valid has shape \(3,\)",
    ),
    "flags too short from there on": (
        lambda: valid(np.ones(4, bool)).dense(1, 3, kv_start=2),
        ValueError,
        "kv_valid.*positions 2 to 4",
    ),
    "flags too short inside an expression": (
        lambda: (causal() & ~(valid(np.ones((2, 3), bool)) | full())).dense(1, 4),
        ValueError,
        "valid: kv_valid",
    ),
    "query segments too short": (
        lambda: same_segment(np.ones(3, int), np.ones(5, int)).dense(4, 5),
        ValueError,
        "same_segment: q_ids",
    ),
    "key segments too short": (
        lambda: same_segment(np.ones(5, int), np.ones(3, int)).dense(5, 4),
        ValueError,
        "same_segment: kv_ids",
    ),
    "segments of queries used for more keys": (
        lambda: same_segment(np.ones(3, int)).dense(3, 4),
        ValueError,
        "same_segment: kv_ids",
    ),
    "global flags too short for the queries": (
        lambda: global_tokens(flags("###")).dense(4, 3),
        ValueError,
        "global_tokens: which",
    ),
    "global flags too short for the keys": (
        lambda: global_tokens(flags("###")).dense(3, 4),
        ValueError,
        "global_tokens: which",
    ),
    "dense mask with too few rows": (
        lambda: from_dense(np.ones((2, 1), bool)).dense(3, 3),
        ValueError,
        "from_dense: array",
    ),
    "dense mask with too few columns": (
        lambda: from_dense(np.ones((1, 2), bool)).dense(3, 3),
        ValueError,
        "from_dense: array",
    ),
    "rule that gives integers": (
        lambda: where(lambda q, k: q - k),
        TypeError,
        r"where: fn\(q_idx, kv_idx, \*arrays\) must give one boolean",
    ),
    "rule that gives floats": (
        lambda: where(lambda q, k, x: x[q], np.zeros(3, np.float32)),
        TypeError,
        "where: fn",
    ),
    "rule that gives many booleans": (
        lambda: where(lambda q, k, x: x == 0, np.zeros((2, 2, 2, 2))),
        TypeError,
        "where: fn",
    ),
    "rule that raises": (lambda: where(lambda q, k, x: x.nothing, FLOATS), TypeError, "nothing"),
    "rule of too few arguments": (lambda: where(lambda q, k: q == k, FLOATS), TypeError, "fn"),
    "ranks of another number": (
        lambda: where(older, FLOATS, ranks=[1, 1]),
        ValueError,
        "where: ranks has 2 entries for 1 arrays",
    ),
    "rank the rule cannot use": (lambda: where(older, FLOATS, ranks=[0]), TypeError, "where: fn"),
    "rank above that of the array": (
        lambda: where(older, np.ones((2, 3)), ranks=[3]),
        ValueError,
        "ranks",
    ),
    "rank that leaves three leading axes": (
        lambda: where(older, np.ones((2, 2, 2, 3)), ranks=[1]),
        ValueError,
        "ranks",
    ),
    "mask without a rule": (lambda: Mask()(0, 0), TypeError, "Mask gives no rule"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_error_has_its_type_and_names_the_argument(name):
    fault, error, message = ERRORS[name]
    with pytest.raises(error, match=message):
        fault()


@pytest.mark.parametrize("join", [operator.and_, operator.or_])
@pytest.mark.parametrize(
    "other", [np.ones((2, 2), bool), np.ones((0, 2), bool), jnp.ones((2, 2), bool), np.True_, True]
)
def test_arrays_are_not_masks_on_either_side(join, other):
    """The array as a whole is refused, also an empty one: NumPy does not take it apart."""
    said = rf"combines masks with masks, not with {type(other).__name__}; .*from_dense.*valid"
    for sides in ((causal(), other), (other, causal())):
        with pytest.raises(TypeError, match=said):
            join(*sides)
    assert (other == causal()) is False


def test_segment_ids_beyond_32_bits_are_not_confused():
    ids = np.array([1, 1 + 2**32, 2**32, 0])
    try:
        dense = same_segment(ids).dense(4, 4)
    except (OverflowError, ValueError) as error:
        assert "q_ids" in str(error)
    else:
        np.testing.assert_array_equal(dense, oracle.draw(oracle.same_segment(ids), 4, 4))
