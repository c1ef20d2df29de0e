"""Attention by blocks against float64 loops and against the dense definition."""

import contextlib
import functools
import re
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from attention_cases import (
    GARBAGE,
    Inputs,
    Shape,
    assert_close,
    assert_same,
    blind_rows,
    compilations,
    enable_x64,
    every,
    inputs,
    older,
    random_mask,
    unseen_keys,
    with_garbage,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from flaxattn import (
    attend,
    attend_with_stats,
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
from flaxattn.attention import tiles


class Answer(NamedTuple):
    """Output and log-sum-exp, and the gradients of the sum of both times their cotangents."""

    output: Any
    lse: Any
    query: Any
    key: Any
    value: Any
    bias: Any
    scale: Any


def both(query, key, value, mask, bias, scale, cotangents, implementation, **dropout):
    """Traced: an `Answer` of one implementation. Rows that see nothing give -inf, of no slope."""

    def call(query, key, value, bias, scale):
        return attend_with_stats(
            query,
            key,
            value,
            mask,
            bias=bias,
            scale=scale,
            implementation=implementation,
            **dropout,
        )

    results, pull = jax.vjp(call, query, key, value, bias, scale)
    return Answer(*results, *pull(cotangents))


@functools.partial(jax.jit, static_argnames=("sizes", "implementation", "rate"))
def differentiate(
    data, d_lse, mask, sizes=None, implementation="blockwise", scale=0.4, dropout_key=None, rate=0.0
):
    """`sizes` are those of the blocks of the plan; None: the mask itself is given."""
    if sizes is not None:
        (q_len, kv_len), (block_q, block_kv) = (x.shape[1] for x in data[:2]), sizes
        mask = mask.plan(q_len, kv_len, block_q=block_q, block_kv=block_kv)
    dropout = {} if dropout_key is None else dict(dropout_rate=rate, dropout_key=dropout_key)
    cotangents = data.cotangent, d_lse
    return both(*data[:3], mask, data.bias, scale, cotangents, implementation, **dropout)


def d_lse_of(data, seed=0):
    b, t, n, _ = data.query.shape
    return np.random.default_rng(seed + 1).standard_normal((b, t, n)).astype(data.query.dtype)


@contextlib.contextmanager
def geometry(cells, width):
    """Tiles of another size, in what is traced meanwhile: each with shapes of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiles, "CELLS", cells)
        patch.setattr(tiles, "WIDTH", width)
        yield


def answer(data, mask, sizes=(3, 4), tile=(1, 2), **options):
    """By default a tile has one block of queries: else a row has few steps of full blocks alone."""
    mask = from_dense(mask) if isinstance(mask, np.ndarray) and sizes is not None else mask
    with geometry(*tile):
        got = differentiate(data, d_lse_of(data), mask, sizes, **options)
    return Answer(*map(np.array, got))


def dense_answer(data, mask, **options):
    return answer(data, mask, None, implementation="dense", **options)


def oracle_answer(data, mask, scale=0.4, **options):
    query, key, value, bias, cotangent = data
    output = oracle.attend(query, key, value, mask, bias, scale, **options)
    lse = oracle.log_sum_exp(query, key, mask, bias, scale)
    slopes = oracle.gradients(
        cotangent,
        query,
        key,
        value,
        mask,
        bias,
        scale,
        **options,
        lse_cotangent=d_lse_of(data),
    )
    return Answer(output, lse, *slopes)


def assert_equal_to(expected, actual, tolerance=5e-5):
    """-inf at the same places, and otherwise within `tolerance` of the largest entry."""
    assert expected.lse.shape == actual.lse.shape
    blind = expected.lse == -np.inf
    np.testing.assert_array_equal(actual.lse == -np.inf, blind)
    a, e = (x._replace(lse=np.where(blind, 0, x.lse)) for x in (actual, expected))
    assert_close(a, e, tolerance)


# The oracle itself.


def test_gradients_of_the_log_sum_exp_of_the_oracle_are_differences_of_its_values():
    shape = Shape(2, 3, 5, 4, 2, 2, 3)
    data = inputs(shape, bias=(1, 4, 3, 1), dtype=np.float64)
    mask = random_mask(shape, 1)
    d_lse = d_lse_of(data)
    blind = blind_rows(mask)
    assert blind.any()

    def loss(query, key, value, bias, scale):
        lse = oracle.log_sum_exp(query, key, mask, bias, scale)
        np.testing.assert_array_equal(lse == -np.inf, blind)
        output = oracle.attend(query, key, value, mask, bias, scale)
        return (np.where(blind, 0, lse) * d_lse).sum() + (output * data.cotangent).sum()

    point = [*data[:4], np.array(0.4)]
    gradients = oracle.gradients(
        data.cotangent, *data[:3], mask, data.bias, 0.4, lse_cotangent=d_lse
    )
    for i, gradient in enumerate(gradients):
        for index in np.ndindex(np.shape(point[i])):
            step = np.zeros_like(point[i])
            step[index] = 1e-5
            up, down = (loss(*point[:i], point[i] + d, *point[i + 1 :]) for d in (step, -step))
            assert abs((up - down) / 2e-5 - np.asarray(gradient)[index]) < 1e-8


# Masks of every pattern and operator, all of whose arrays are traced, and their plain rules.


def leaf_causal(rng, b, n, t, s):
    start = rng.integers(0, s, b)
    return causal().shift(q_start=start), lambda i, j: oracle.shifted(oracle.causal(), start[i])


def leaf_window(rng, b, n, t, s):
    left, right = rng.integers(0, s, b), rng.integers(0, t, ())
    return sliding_window(left, right), lambda i, j: oracle.sliding_window(left[i], right)


def leaf_window_of_every_head(rng, b, n, t, s):
    left, right = rng.integers(0, s, (1, n)), rng.integers(0, 9, (b, n))
    return sliding_window(left, right), lambda i, j: oracle.sliding_window(left[0, j], right[i, j])


def leaf_prefix(rng, b, n, t, s):
    length = rng.integers(0, s + 1, b)
    return prefix(length), lambda i, j: oracle.prefix(length[i])


def leaf_chunked(rng, b, n, t, s):
    size, start = rng.integers(1, s, ()), rng.integers(0, 9, ())
    rule = oracle.shifted(oracle.chunked(size), 0, start)
    return chunked(size).shift(kv_start=start), lambda i, j: rule


def leaf_dilated(rng, b, n, t, s):
    step = rng.integers(1, 9, (1, n))
    return dilated(step), lambda i, j: oracle.dilated(step[0, j])


def leaf_lengths(rng, b, n, t, s):
    q, kv = rng.integers(0, t + 1, b), rng.integers(0, s + 1, b)
    return lengths(q, kv), lambda i, j: oracle.lengths(q[i], kv[i])


def leaf_valid(rng, b, n, t, s):
    flags = rng.random((b, s)) < rng.choice([0.1, 0.9, 1.0])
    return valid(flags), lambda i, j: oracle.valid(flags[i])


def leaf_segments(rng, b, n, t, s):
    q, kv = (np.sort(rng.integers(0, 5, (b, size)), axis=1)[:, ::-1] for size in (t, s))
    return same_segment(q, kv), lambda i, j: oracle.same_segment(q[i], kv[i])


def leaf_global(rng, b, n, t, s):
    which = rng.random((b, max(t, s))) < 0.1
    return global_tokens(which), lambda i, j: oracle.global_tokens(which[i])


def leaf_dense(rng, b, n, t, s):
    array = rng.random((b, 1, t, s)) < rng.choice([0.1, 0.9])
    return from_dense(array), lambda i, j: oracle.from_dense(array[i, 0])


def leaf_where(rng, b, n, t, s):
    ages = rng.integers(0, 9, max(t, s))
    return where(older, ages), lambda i, j: lambda q, k: ages[q] >= ages[k]


OF_EXAMPLES = [leaf_causal, leaf_window, leaf_prefix, leaf_chunked, leaf_lengths, leaf_valid]
OF_EXAMPLES += [leaf_segments, leaf_global, leaf_dense, leaf_where]
OF_HEADS = [leaf_window_of_every_head, leaf_dilated]


def structure(rng, leaves, depth=3):
    """An expression of up to `depth` operators over one another, as a builder of mask and rule."""
    kind = rng.choice(["&", "|", "~"]) if depth else "leaf"
    if kind == "leaf":
        return leaves[rng.integers(len(leaves))]
    operands = [
        structure(rng, leaves, depth - 1 if i == 0 else rng.integers(depth))
        for i in range(1 if kind == "~" else 2)
    ]

    def build(*arguments):
        built = [operand(*arguments) for operand in operands]
        masks, rules = zip(*built, strict=True)
        if kind == "~":
            return ~masks[0], lambda i, j: oracle.opposite(rules[0](i, j))
        if kind == "&":
            return masks[0] & masks[1], lambda i, j: oracle.both(rules[0](i, j), rules[1](i, j))
        return masks[0] | masks[1], lambda i, j: oracle.either(rules[0](i, j), rules[1](i, j))

    return build


def packed(rng, *shape):
    (a, rule), (b, other) = (leaf(rng, *shape) for leaf in (leaf_causal, leaf_segments))
    return a & b, lambda i, j: oracle.both(rule(i, j), other(i, j))


def random_expression(seed, heads=False):
    return structure(np.random.default_rng(seed), OF_EXAMPLES + OF_HEADS if heads else OF_EXAMPLES)


class Case(NamedTuple):
    """What decides on a program; every shape is used once, for its tiles are those it was traced
    with."""

    shape: Shape
    bias: tuple[int, ...]
    sizes: tuple[int, int]
    cells: int
    width: int
    build: Any


CASES = [
    Case(Shape(2, 13, 17, 4, 2, 5, 3), (2, 4, 13, 17), (3, 4), 2**20, 2, packed),
    Case(Shape(2, 61, 37, 2, 2, 3, 2), (1, 2, 61, 37), (8, 8), 300, 2, packed),
    Case(Shape(2, 29, 31, 6, 3, 2, 5), (1, 1, 29, 31), (4, 8), 2000, 3, leaf_segments),
    Case(Shape(2, 23, 19, 4, 2, 3, 7), (2, 1, 1, 19), (5, 2), 2**20, 1, leaf_window_of_every_head),
    Case(Shape(3, 11, 37, 3, 1, 5, 2), (1, 3, 1, 37), (2, 4), 300, 3, leaf_lengths),
    Case(Shape(2, 17, 23, 4, 4, 2, 3), (2, 4, 17, 1), (4, 3), 300, 1, random_expression(0)),
    Case(Shape(2, 23, 41, 4, 1, 3, 3), (1, 1, 23, 1), (7, 5), 2000, 2, random_expression(1)),
    Case(Shape(2, 19, 13, 2, 1, 7, 5), (1, 2, 1, 1), (16, 3), 2**20, 3, random_expression(2)),
    Case(Shape(2, 7, 43, 6, 2, 3, 5), (2, 6, 1, 1), (1, 8), 2000, 2, random_expression(3, True)),
    Case(Shape(2, 31, 11, 4, 2, 2, 2), (2, 1, 31, 11), (8, 1), 300, 2, random_expression(4, True)),
    Case(Shape(2, 17, 29, 3, 3, 5, 3), (2, 3, 1, 29), (6, 7), 2000, 1, random_expression(7)),
    Case(Shape(2, 5, 47, 8, 2, 3, 2), (1, 8, 5, 1), (5, 6), 2**20, 2, random_expression(10, True)),
    Case(Shape(2, 11, 23, 4, 2, 3, 2), (2, 1, 11, 1), (3, 4), 2000, 2, leaf_valid),
    Case(Shape(2, 13, 19, 2, 1, 3, 2), (2, 1, 1, 1), (4, 5), 300, 3, leaf_dense),
    Case(Shape(2, 19, 11, 2, 2, 3, 2), (1, 1, 1, 11), (5, 2), 300, 2, leaf_global),
    Case(Shape(2, 7, 13, 4, 2, 3, 2), (1, 1, 1, 1), (2, 3), 2**20, 2, leaf_where),
]


def test_axes_of_the_biases_are_shared_in_all_combinations():
    shared = {tuple(np.less(case.bias, case.shape.logits).tolist()) for case in CASES}
    assert len(shared) == 16


@pytest.mark.thorough
@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(0, len(CASES) - 1), st.integers(0, 9999), st.sampled_from([0.4, -1.0, 1.5]))
def test_values_and_gradients_are_those_of_the_oracle(case, seed, scale):
    shape, bias, sizes, *tile, build = CASES[case]
    mask, rule = build(np.random.default_rng(seed), *shape.logits)
    data = inputs(shape, seed, bias)
    got = answer(data, mask, sizes, tile, scale=scale)
    assert_equal_to(oracle_answer(data, every(shape, rule), scale=scale), got)


TILES = [(1, 1), (300, 3), (2000, 2), (2**20, 1)]  # cells and width


@pytest.mark.thorough(quick=1)
@pytest.mark.parametrize("tile", TILES, ids=str)
def test_bits_of_dropout_are_those_of_dense_attention_whatever_the_tiles(tile):
    shape = Shape(2, 13, 17, 4, 2, 5, 4 + TILES.index(tile))  # a program of its own
    mask = random_mask(shape, 1, 0.9)[:, :1] & np.tri(13, 17, 4, dtype=bool)
    data, key = inputs(shape, bias=(1, 4, 1, 17)), jax.random.key(3)
    got = answer(data, mask, (4, 4), tile, dropout_key=key, rate=0.3)
    keep = kept(shape, 0.3, key)
    assert 0.6 < keep.mean() < 0.8
    assert_equal_to(oracle_answer(data, mask, keep=keep, rate=0.3), got)


def kept(shape, rate, key):
    """bool [B, N, T, S]: what dropout keeps, read through equal weights and identity values."""
    b, t, s, n, k, h, _ = shape
    query, keys = np.zeros((b, t, n, h), np.float32), np.zeros((b, s, k, h), np.float32)
    identity = np.broadcast_to(np.eye(s, dtype=np.float32)[:, None], (b, s, k, s))
    options = dict(dropout_rate=rate, dropout_key=key, implementation="dense")
    return np.asarray(attend(query, keys, identity, **options)).swapaxes(1, 2) > 0


# Hidden = deleted.

SHAPE = Shape(2, 13, 17, 4, 2, 5, 3)
FULL_BLOCKS = np.tri(13, 17, 8, dtype=bool)[None, None]  # keys 4 to 11 are full for queries 3 to 8


def mask_with_full_blocks(seed):
    """bool [B, 1, T, S] with empty, partial and full blocks of 3 x 4: whole steps of full ones."""
    rng = np.random.default_rng(seed)
    mask = FULL_BLOCKS & (rng.random((2, 1, 1, 17)) < [[[[0.9]]], [[[1.0]]]])
    mask[:, :, 9:12] &= rng.random((2, 1, 3, 17)) < 0.5
    mask[0, 0, 4] = mask[1, 0, 12] = False
    mask[:, :, :, 2] = mask[:, :, :, 14] = False
    return mask


@functools.cache
def of_masks(seed):
    whole = np.broadcast_to(mask_with_full_blocks(seed), SHAPE.logits)
    return inputs(SHAPE, seed), mask_with_full_blocks(seed), whole


@pytest.mark.thorough
def test_row_that_sees_nothing_gives_zero_output_and_gradient_and_no_log_sum_exp():
    for seed in range(3):
        data, mask, whole = of_masks(seed)
        blind, got = blind_rows(whole), answer(data, mask)
        assert blind.any()
        assert not blind.all()
        assert not got.output[blind].any()
        assert not got.query[blind].any()
        assert (got.lse[blind] == -np.inf).all()
        assert np.isfinite(got.lse[~blind]).all()
        assert not got.bias[~whole].any()
        assert not got.key[unseen_keys(whole, SHAPE.K)].any()
        assert not got.value[unseen_keys(whole, SHAPE.K)].any()


@pytest.mark.thorough
def test_if_no_row_sees_anything_all_outputs_and_gradients_are_zero():
    data = inputs(SHAPE)
    for mask in (from_dense(np.zeros((13, 17), bool)), prefix(np.array([0, 0]))):
        got = answer(data, mask)
        assert (got.lse == -np.inf).all()
        assert not any(part.any() for part in got._replace(lse=np.zeros(1)))


@pytest.mark.thorough
def test_row_that_sees_nothing_passes_no_gradient_on_even_if_its_own_is_nan():
    data, mask, whole = of_masks(1)
    blind = blind_rows(whole)[..., None]
    zero = data._replace(cotangent=np.where(blind, 0, data.cotangent))
    nan = data._replace(cotangent=np.where(blind, np.nan, data.cotangent))
    assert_same(answer(nan, mask), answer(zero, mask))


@pytest.mark.parametrize("where_", ["key", "value", "query", "everywhere"])
def test_garbage_in_what_is_hidden_changes_nothing(where_):
    for seed in range(3):
        data, mask, whole = of_masks(seed)
        clean, dirty = data, data
        for name, hidden in (
            ("query", blind_rows(whole)),
            ("key", unseen_keys(whole, SHAPE.K)),
            ("value", unseen_keys(whole, SHAPE.K)),
        ):
            if where_ in (name, "everywhere"):
                array = getattr(data, name)
                finite = np.where(hidden[..., None], 7.0, array).astype(np.float32)
                clean = clean._replace(**{name: finite})
                dirty = dirty._replace(**{name: with_garbage(array, hidden, seed)})
        assert_same(answer(dirty, mask), answer(clean, mask), but=["scale"])
        np.testing.assert_allclose(answer(dirty, mask).scale, answer(clean, mask).scale, rtol=1e-4)


@pytest.mark.thorough
def test_garbage_that_a_scale_above_one_makes_infinite_changes_nothing():
    """A finite query of -3e38 that sees nothing: scaled, it is no longer finite."""
    data, mask, whole = of_masks(1)
    blind = blind_rows(whole)[..., None]
    clean = data._replace(query=np.where(blind, np.float32(7), data.query))
    dirty = data._replace(query=np.where(blind, np.float32(-3e38), data.query))
    assert_same(answer(dirty, mask, scale=2.0), answer(clean, mask, scale=2.0))


@pytest.mark.parametrize("garbage", GARBAGE)
def test_garbage_in_hidden_entries_of_the_bias_changes_nothing(garbage):
    data, mask, whole = of_masks(1)
    dirty = data._replace(bias=np.where(whole, data.bias, garbage))
    assert_same(answer(dirty, mask), answer(data, mask))


@pytest.mark.thorough(quick=1)
@pytest.mark.parametrize("what", ["key", "value", "both"])
@pytest.mark.parametrize("garbage", [np.nan, np.inf, -np.inf])
def test_key_that_is_not_finite_breaks_exactly_the_rows_that_see_it(what, garbage):
    """In a block that is full for later queries as well as in partial ones."""
    data, mask, whole = of_masks(1)
    b, s, k = 1, 5, 1
    broken = data
    for name in ("key", "value") if what == "both" else (what,):
        array = getattr(data, name).copy()
        array[b, s, k, 1] = garbage
        broken = broken._replace(**{name: array})
    state = np.asarray(from_dense(mask).plan(13, 17, block_q=3, block_kv=4).state)
    assert (state[b, 0, 1:3, s // 4] == 2).all()
    rows = np.zeros((2, 13, 4), bool)  # [B, T, N]
    rows[b, :, 2:] = whole[b, 2:, :, s].T
    assert rows[b].any()
    assert not rows[b, :, 2:].all()
    got, expected, dense = answer(broken, mask), answer(data, mask), dense_answer(broken, mask)
    assert np.isnan(got.output[rows]).all()
    assert np.isnan(got.query[rows]).all()
    np.testing.assert_array_equal(got.output[~rows], expected.output[~rows])
    np.testing.assert_array_equal(got.query[~rows], expected.query[~rows])
    for name in ("output", "query", "lse", "key", "value", "bias"):
        ours, theirs = getattr(got, name), getattr(dense, name)
        if name in ("key", "value"):  # the gradient of what is not a number means nothing
            ours[b, s, k] = theirs[b, s, k] = 0
        np.testing.assert_array_equal(np.isnan(ours), np.isnan(theirs), err_msg=name)


def test_query_that_is_not_finite_breaks_its_own_row_alone():
    data, mask, whole = of_masks(1)
    b, t, n = np.argwhere(~blind_rows(whole))[17]
    query = data.query.copy()
    query[b, t, n, 0] = np.nan
    broken_data = data._replace(query=query)
    got, expected = answer(broken_data, mask), answer(data, mask)
    for name, ours, theirs in zip(got._fields, got, dense_answer(broken_data, mask), strict=True):
        np.testing.assert_array_equal(np.isnan(ours), np.isnan(theirs), err_msg=name)
    broken = np.zeros((2, 13, 4), bool)
    broken[b, t, n] = True
    for name in ("output", "lse"):
        assert np.isnan(getattr(got, name)[broken]).all()
        np.testing.assert_array_equal(getattr(got, name)[~broken], getattr(expected, name)[~broken])


@pytest.mark.thorough
def test_hiding_keys_equals_deleting_them_under_the_lowest_bias():
    data = inputs(SHAPE, bias=(1, 1, 13, 17))
    for lowest in (np.finfo(np.float32).min, -2e38):
        low = data._replace(bias=np.full((1, 1, 13, 17), lowest, np.float32))
        got = answer(low, prefix(np.array([9, 9])))
        mixed = oracle.attend(*low[:3], np.arange(17) < 9, low.bias, 0.4)
        np.testing.assert_allclose(got.output, mixed, atol=1e-6)


# Half precision: no worse than the usual way in the same dtype, both against float64.


def jax_nn(query, key, value, mask):
    return jax.nn.dot_product_attention(query, key, value, mask=mask)


def textbook(query, key, value, mask):
    """Einsums and a float32 softmax: `jax.nn` on CPU multiplies no float16."""
    key, value = (jnp.repeat(x, query.shape[2] // x.shape[2], axis=2) for x in (key, value))
    logits = jnp.einsum("btnh,bsnh->bnts", query, key, preferred_element_type=jnp.float32)
    logits = jnp.where(mask, logits * query.shape[-1] ** -0.5, -1e30)
    weights = jax.nn.softmax(logits, axis=-1).astype(value.dtype)
    return jnp.einsum("bnts,bsnh->btnh", weights, value)


@pytest.mark.thorough
@pytest.mark.parametrize("masked", ["causal", "random"])
@pytest.mark.parametrize(
    "dtype, reference",
    [(jnp.bfloat16, jax_nn), (jnp.float16, textbook)],
    ids=["bfloat16, jax.nn", "float16, textbook"],
)
def test_mean_error_in_half_precision_is_that_of_the_reference(
    dtype, reference, masked, standard_promotion
):
    shape = Shape(1, 256, 256, 2, 1, 32, 32)
    errors = np.zeros((2, 4))

    @functools.partial(jax.jit, static_argnums=0)
    def differences(fn, data, mask):
        output, pull = jax.vjp(lambda *x: fn(*x, mask), *data[:3])
        return output, *pull(data.cotangent)

    def ours(query, key, value, mask):
        plan = from_dense(mask).plan(256, 256, block_q=64, block_kv=32)
        return attend(query, key, value, plan)

    for seed in range(3):
        data = Inputs(*(jnp.asarray(x, dtype) for x in inputs(shape, seed, (1, 1, 1, 1))))
        mask = np.tri(256, dtype=bool)[None, None]
        if masked == "random":
            mask = np.random.default_rng(seed).random((1, 1, 256, 256)) < 0.5
            assert mask.any(-1).all()
        exact = (
            oracle.attend(*data[:3], mask),
            *oracle.gradients(data.cotangent, *data[:3], mask)[:3],
        )
        for i, fn in enumerate((ours, reference)):
            got = differences(fn, data, mask)
            pairs = zip(got, exact, strict=True)
            errors[i] += [np.abs(np.asarray(g, np.float64) - e).mean() for g, e in pairs]
    assert (errors[0] <= 1.1 * errors[1]).all(), errors[0] / errors[1]


def test_output_has_the_dtype_of_the_query_and_log_sum_exp_is_float32():
    for dtype in (jnp.bfloat16, jnp.float16, jnp.float32):
        q = jnp.ones((1, 2, 1, 2), dtype)
        call = functools.partial(attend_with_stats, implementation="blockwise")
        output, lse = jax.eval_shape(call, q, q, q, causal())
        assert (output.dtype, lse.dtype, lse.shape) == (dtype, jnp.float32, (1, 2, 1))


def test_float16_bears_logits_of_ten_thousand():
    signs = np.array([1, -1, 1, -1, 1], np.float32)
    query = np.full((1, 5, 1, 1), 100, np.float16)
    key = (100 * signs).reshape(1, 5, 1, 1).astype(np.float16)
    value = np.arange(5, dtype=np.float16).reshape(1, 5, 1, 1)
    for mask in (np.tri(5, dtype=bool), np.tile(np.arange(5) % 2 == 1, (5, 1))):
        plan = from_dense(mask).plan(5, 5, block_q=2, block_kv=2)
        expected = oracle.attend(query, key, value, mask, scale=1.0)
        np.testing.assert_allclose(attend(query, key, value, plan, scale=1.0), expected, rtol=1e-3)


# Dropout.


@pytest.mark.thorough
def test_dropout_drops_what_dense_attention_drops():
    data, mask, _ = of_masks(1)
    options = dict(dropout_key=jax.random.key(7), rate=0.5)
    got = answer(data, mask, **options)
    assert_equal_to(dense_answer(data, mask, **options), got, 1e-5)
    other = answer(data, mask, dropout_key=jax.random.key(8), rate=0.5)
    assert np.abs(got.output - other.output).max() > 0.1
    np.testing.assert_array_equal(got.lse, other.lse)


@pytest.mark.thorough
def test_row_that_sees_nan_is_nan_even_if_dropout_drops_all_that_it_sees():
    """Alone the first row sees the first two keys, of which the first is broken."""
    data, mask, _ = of_masks(1)
    mask = mask & (np.arange(17) > 1)
    mask[:, :, 0] = np.arange(17) < 2
    options = dict(dropout_key=jax.random.key(7), rate=0.5)
    dropped = ~kept(SHAPE, 0.5, options["dropout_key"])[:, :, 0, :2].reshape(2, 2, 2, 2)
    assert dropped.all(-1).any()  # by a head
    assert dropped[..., 1].all(-1).any()  # the key that is not broken, by a group of heads
    value = data.value.copy()
    value[:, 0, :, 1] = np.nan
    broken = data._replace(value=value)
    got, expected = answer(broken, mask, **options), dense_answer(broken, mask, **options)
    assert np.isnan(got.output[:, 0]).all()
    for name, ours, theirs in zip(got._fields, got, expected, strict=True):
        np.testing.assert_array_equal(np.isnan(ours), np.isnan(theirs), err_msg=name)


@pytest.mark.thorough
def test_dropout_without_a_mask_is_that_of_dense_attention():
    data = inputs(SHAPE)
    options = dict(dropout_key=jax.random.key(7), rate=0.1)
    got = answer(data, None, None, **options)
    assert_equal_to(dense_answer(data, None, **options), got, 1e-5)


# Bias and scale.


@pytest.mark.thorough(quick=1)
@pytest.mark.parametrize("bias", [(2, 1, 5, 7), (1, 4, 1, 7), (1, 1, 5, 1), (1, 1, 1, 1)], ids=str)
def test_bias_without_a_mask_is_shared_over_axes_of_one(bias):
    shape = Shape(2, 5, 7, 4, 2, 3, 2)
    data = inputs(shape, bias=bias)
    got = answer(data, None, None)
    assert got.bias.shape == bias
    assert_equal_to(oracle_answer(data, True), got)


def test_scale_is_one_over_root_head_dim_unless_given():
    data, mask, whole = of_masks(1)
    plan = from_dense(mask).plan(13, 17, block_q=3, block_kv=4)
    expected = oracle.attend(*data[:3], whole)
    np.testing.assert_allclose(attend(*data[:3], plan), expected, atol=1e-5)


# No mask, and lengths that are no multiple of a block.


@pytest.mark.thorough(quick=1)
@pytest.mark.parametrize("lengths_", [(300, 270), (1, 257), (257, 1)], ids=str)
def test_without_a_mask_lengths_need_not_divide(lengths_):
    shape = Shape(1, *lengths_, 2, 1, 3, 2)
    data = inputs(shape, bias=(1, 1, 1, 1))
    expected = oracle_answer(data, True)
    for mask in (None, full()):
        assert_equal_to(expected, answer(data, mask, None))


@pytest.mark.thorough
@pytest.mark.parametrize("rows", [(1, 1, 1, 17), (2, 4, 1, 1)], ids=str)
def test_large_bias_shared_by_all_queries_does_not_reach_past_the_last_of_them(rows):
    data = inputs(SHAPE, bias=rows)
    data = data._replace(bias=np.full(rows, 200.0, np.float32))  # exp(200) is infinite
    assert_equal_to(oracle_answer(data, True), answer(data, full(), (8, 8)), 5e-4)


def test_without_a_mask_nan_is_everywhere_it_is_seen():
    data = inputs(SHAPE, bias=(1, 1, 1, 1))
    data.value[1, 16, 0, 2] = np.nan
    got = answer(data, None, None)
    broken = np.zeros(got.output.shape, bool)
    broken[1, :, :2, 2] = True
    np.testing.assert_array_equal(np.isnan(got.output), broken)


@pytest.mark.thorough
def test_ragged_batch_visits_the_blocks_of_each_example():
    kv = np.array([64, 9, 0, 33])
    plan = lengths(kv_lengths=kv).plan(16, 64, block_q=8, block_kv=8)
    assert np.asarray(plan.live.num_live).tolist() == [[8, 8], [2, 2], [0, 0], [5, 5]]
    assert np.asarray(plan.live.num_full).tolist() == [[8, 8], [1, 1], [0, 0], [4, 4]]
    ids = np.repeat([[1, 1], [1, 2]], 32, axis=1)
    plan = (causal() & same_segment(ids)).plan(64, 64, block_q=32, block_kv=8)
    assert np.asarray(plan.live.num_live).tolist() == [[4, 8], [4, 4]]
    assert np.asarray(plan.live.num_full).tolist() == [[0, 4], [0, 0]]


def test_blocks_that_are_empty_are_never_visited():
    """A plan that calls live blocks empty shows it: its answer is that of the others."""
    data = inputs(SHAPE)
    plan = full().plan(13, 17, block_q=3, block_kv=4)
    fewer = plan.live._replace(num_live=np.full(5, 2, np.int32), num_full=np.full(5, 2, np.int32))
    plan = type(plan)(plan.mask, plan.bounds, fewer, 13, 17, 3, 4)
    output = attend(*data[:3], plan, bias=data.bias)
    expected = oracle.attend(*data[:3], np.arange(17) < 8, data.bias)
    np.testing.assert_allclose(output, expected, atol=1e-5)


# Compilation.


@pytest.mark.thorough
def test_new_values_compile_nothing_new(caplog):
    def call(seed, S=29):
        rng = np.random.default_rng(seed)
        shape = Shape(2, 23, S, 4, 2, 3, 2)
        data = inputs(shape, seed)
        mask = causal() & lengths(kv_lengths=rng.integers(0, 29, 2)) | valid(
            rng.random((2, S)) < 0.5
        )
        mask = mask & ~sliding_window(rng.integers(0, 3, (1, 4))).shift(
            q_start=rng.integers(0, 3, 2)
        )
        options = dict(bias=data.bias, scale=jnp.float32(rng.random()))
        options |= dict(dropout_rate=0.1, dropout_key=jax.random.key(seed))
        attend(*data[:3], mask, **options, implementation="blockwise")

    call(0)
    assert compilations(caplog, lambda: call(0, S=31)) > 0
    assert compilations(caplog, lambda: call(1)) == 0


def test_a_jitted_gradient_of_a_mask_is_traced_once():
    @jax.jit
    @chex.assert_max_traces(n=1)
    def call(data, mask, scale):
        def loss(query):
            return attend(query, *data[1:3], mask, scale=scale, implementation="blockwise").sum()

        return jax.grad(loss)(data.query)

    for seed in range(3):
        rng = np.random.default_rng(seed)
        shape = Shape(2, 7, 7, 2, 1, 3, 2)
        call(inputs(shape, seed), causal() & same_segment(rng.integers(0, 3, (2, 7))), rng.random())


def compiled(length, backward, heads=2):
    """The program of packed causal attention of `length` queries and keys of 16 features."""
    x = jax.ShapeDtypeStruct((1, length, heads, 16), jnp.float32)
    ids = jax.ShapeDtypeStruct((1, length), jnp.int32)

    def forward(query, key, value, ids):
        mask = causal() & same_segment(ids)
        return attend(query, key, value, mask, implementation="blockwise")

    def gradients(query, key, value, ids, cotangent):
        return jax.vjp(lambda *x: forward(*x, ids), query, key, value)[1](cotangent)

    if backward:
        return jax.jit(gradients).lower(x, x, x, ids, x).compile()
    return jax.jit(forward).lower(x, x, x, ids).compile()


def largest(program):
    """The number of entries of the largest array in the text of a program."""
    shapes = re.findall(r"\b(?:pred|[suf]\d+|bf16)\[([\d,]+)\]", program.as_text())
    return max(int(np.prod([int(n) for n in shape.split(",")])) for shape in set(shapes))


@pytest.mark.thorough(quick=1)
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
def test_memory_grows_with_the_lengths_and_not_with_their_product(backward):
    small, large = compiled(4096, backward), compiled(8192, backward)
    assert 4096 * 2 * 16 <= largest(small) < 4096 * 4096
    assert largest(large) < 8192 * 8192 / 8
    bytes_ = [program.memory_analysis().temp_size_in_bytes for program in (small, large)]
    assert 0 < bytes_[1] <= 2.1 * bytes_[0]
    assert bytes_[1] < 8192 * 8192


def loops(length, mask=None, **options):
    """Whether the program of `attend` has loops: only that of blocks does."""
    x = jax.ShapeDtypeStruct((1, length, 1, 2), jnp.float32)
    call = functools.partial(attend, mask=mask, **options)
    return "stablehlo.while" in jax.jit(call).lower(x, x, x).as_text()


def test_auto_is_dense_up_to_its_rule_and_blockwise_above_it_or_with_a_plan():
    assert not loops(362)  # 131044 logits
    assert loops(363)  # 131769
    assert not loops(362, causal())
    assert loops(363, causal())
    assert loops(6, causal().plan(6, 6, block_q=2, block_kv=2))
    assert not loops(6, causal().plan(6, 6, block_q=2, block_kv=2), implementation="dense")
    assert not loops(363, implementation="dense")
    assert loops(300, implementation="blockwise")


def test_dense_and_auto_take_a_plan_too():
    data, mask, whole = of_masks(1)
    plan = from_dense(mask).plan(13, 17, block_q=3, block_kv=4)
    expected = oracle.attend(*data[:3], whole)
    for implementation in ("auto", "dense", "blockwise"):
        output = attend(*data[:3], plan, implementation=implementation)
        np.testing.assert_allclose(output, expected, atol=1e-5)


# float64, transformations, empty axes, errors.


@pytest.mark.thorough
def test_float64_works_with_masks_that_hold_arrays():
    with enable_x64(True):
        shape = Shape(2, 13, 17, 4, 2, 3, 2)
        data = inputs(shape, bias=(1, 4, 13, 17), dtype=np.float64)
        mask = lengths(kv_lengths=np.array([3, 15])) & valid(np.arange(17) != 1)
        ids = same_segment(np.arange(13) // 4, np.arange(17) // 4)
        mask = mask | ids & where(older, np.arange(17))
        dense = np.asarray(mask.dense(13, 17))[:, None]
        assert_equal_to(oracle_answer(data, dense), answer(data, mask), 1e-12)


@pytest.mark.thorough(quick=8)
@pytest.mark.parametrize("mask", [None, "mask", "plan"], ids=str)
@pytest.mark.parametrize("axis", ["B", "T", "S"])
def test_empty_axes_give_outputs_of_that_shape_and_zeros_without_keys(axis, mask):
    shape = SHAPE._replace(**{axis: 0})
    data = inputs(shape, bias=(1, 1, 1, 1))
    drawn = None if mask is None else sliding_window(np.array(3))
    got = answer(data, drawn, (3, 4) if mask == "plan" else None)
    assert got.output.shape == data.cotangent.shape
    assert got.lse.shape == data.cotangent.shape[:3]
    assert not got.output.any()
    assert (got.lse == -np.inf).all()
    for part, array in zip(got[2:6], data[:4], strict=True):
        assert part.shape == array.shape
        assert not part.any()


def test_plan_for_other_lengths_is_an_error_that_names_the_axis():
    data = inputs(SHAPE)[:3]
    with pytest.raises(ValueError, match="mask is a plan for T = 12, but query has T = 13"):
        attend(*data, causal().plan(12, 17, block_q=3, block_kv=4))
    with pytest.raises(ValueError, match="mask is a plan for S = 13, but key has S = 17"):
        attend(*data, causal().plan(13, 13, block_q=3, block_kv=4))


def test_plan_for_another_batch_or_other_heads_is_an_error():
    data = inputs(SHAPE)[:3]
    with pytest.raises(ValueError, match="B = 3; but query has B = 2"):
        attend(*data, lengths(kv_lengths=np.arange(3)).plan(13, 17, block_q=3, block_kv=4))
    with pytest.raises(ValueError, match="N = 3; but query has N = 4"):
        attend(*data, sliding_window(np.arange(3)[None]).plan(13, 17, block_q=3, block_kv=4))


def test_unknown_implementation_is_an_error_that_lists_the_choices():
    data = inputs(SHAPE)[:3]
    with pytest.raises(ValueError, match=r"'bogus'; expected one of .*auto.*dense.*blockwise"):
        attend(*data, implementation="bogus")


@pytest.mark.parametrize("dtype, tolerance", [(jnp.float32, 5e-5), (jnp.bfloat16, 3e-2)])
@pytest.mark.parametrize("implementation", ["dense", "blockwise"])
def test_a_scale_for_each_head_is_one_of_its_queries(implementation, dtype, tolerance):
    mask = random_mask(SHAPE, 0)
    given = jax.tree.map(lambda x: jnp.asarray(x, dtype), inputs(SHAPE, bias=(1, 1, 1, 1)))
    scales = np.array([-1, 0.5, 1, 2], np.float32)
    sizes = (3, 4) if implementation == "blockwise" else None
    d_lse = d_lse_of(inputs(SHAPE))
    options = {"implementation": implementation, "scale": scales}
    with geometry(1, 2):
        got = differentiate(given, d_lse, from_dense(mask), sizes, **options)
    exact = jax.tree.map(lambda x: np.asarray(x, np.float64), given)
    query = exact.query
    exact = exact._replace(query=query * scales[:, None])
    expected = oracle_answer(exact, mask, scale=1.0)
    d_scaled = expected.query
    d_scale = (d_scaled * query).sum((0, 1, 3))
    expected = expected._replace(query=d_scaled * scales[:, None], scale=d_scale)
    assert_equal_to(expected, jax.tree.map(lambda x: np.asarray(x, np.float64), got), tolerance)


@pytest.mark.parametrize("implementation", ["blockwise", "dense"])
def test_nothing_flows_back_from_rows_that_see_nothing_not_even_nan(implementation):
    """Not to keys and values that other rows of the same tile see."""
    q_len, empty = 11, np.array([0, 4, 10])
    query, key, value = np.random.default_rng(0).standard_normal((3, 2, q_len, 2, 3), np.float32)
    seen = np.tri(q_len, dtype=bool)
    seen[empty] = False
    mask = from_dense(seen).plan(q_len, q_len, block_q=5, block_kv=4)

    def fn(*arrays):
        return attend_with_stats(*arrays, mask, implementation=implementation)

    def pulled(cotangent):
        """The gradients, and how they change with the key."""

        def of_key(key):
            return jax.vjp(fn, query, key, value)[1]((cotangent, cotangent[..., 0]))

        return jax.jvp(of_key, (key,), (key,))

    cotangent = np.ones_like(query)
    zeros, nans = cotangent.copy(), cotangent.copy()
    zeros[:, empty], nans[:, empty] = 0.0, np.nan
    chex.assert_trees_all_close(pulled(nans), pulled(zeros), atol=1e-6)
    assert not pulled(nans)[0][0][:, empty].any()
