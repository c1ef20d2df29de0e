"""`attend` against float64 loops, against `jax.nn`, and against its own promises."""

import functools
import itertools
from typing import Any, NamedTuple

import chex
import jax
import jax.experimental
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
    attend_head,
    attention_weights,
    causal,
    chunked,
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

GROUPED = Shape(2, 5, 7, 6, 3, 11, 13)  # no two axes agree but N = 2 K
SHAPES = [GROUPED, Shape(3, 7, 5, 3, 1, 2, 11), Shape(1, 13, 11, 2, 2, 5, 3)]


class Answer(NamedTuple):
    """The output and the gradients of sum(output * cotangent)."""

    output: Any
    query: Any
    key: Any
    value: Any
    bias: Any
    scale: Any


@functools.partial(jax.jit, static_argnames=("fn", "rate"))
def differentiate(fn, data, mask, scale=0.4, dropout_key=None, rate=0.0):
    def call(query, key, value, bias, scale):
        more = {} if dropout_key is None else dict(dropout_rate=rate, dropout_key=dropout_key)
        return fn(query, key, value, mask, bias=bias, scale=scale, **more)

    output, pull = jax.vjp(call, data.query, data.key, data.value, data.bias, scale)
    return Answer(output, *pull(data.cotangent))


def answer(data, mask, **options):
    return Answer(*map(np.array, differentiate(attend, data, mask, **options)))


def oracle_answer(data, mask, scale=0.4, **options):
    query, key, value, bias, cotangent = data
    output = oracle.attend(query, key, value, mask, bias, scale, **options)
    return Answer(
        output, *oracle.gradients(cotangent, query, key, value, mask, bias, scale, **options)
    )


# The oracle itself.


def test_gradients_of_the_oracle_are_differences_of_its_values():
    shape = Shape(2, 3, 5, 4, 2, 2, 3)
    data = inputs(shape, bias=(1, 4, 3, 1), dtype=np.float64)
    mask, keep = random_mask(shape, 1), np.random.default_rng(2).random(shape.logits) < 0.8

    def loss(query, key, value, bias, scale):
        output = oracle.attend(query, key, value, mask, bias, scale, keep, 0.2)
        return (output * data.cotangent).sum()

    point = [*data[:4], np.array(0.4)]
    gradients = oracle.gradients(data.cotangent, *data[:3], mask, data.bias, 0.4, keep, 0.2)
    for i, gradient in enumerate(gradients):
        for index in np.ndindex(np.shape(point[i])):
            step = np.zeros_like(point[i])
            step[index] = 1e-5
            up, down = (loss(*point[:i], point[i] + d, *point[i + 1 :]) for d in (step, -step))
            assert abs((up - down) / 2e-5 - np.asarray(gradient)[index]) < 1e-8


def test_weights_of_the_oracle_mix_values_to_its_output():
    data, mask = inputs(GROUPED), random_mask(GROUPED, 1)
    weights = oracle.attention_weights(data.query, data.key, mask, data.bias)
    values = np.repeat(data.value.astype(np.float64), 2, axis=2)
    output = oracle.attend(data.query, data.key, data.value, mask, data.bias)
    np.testing.assert_allclose(np.einsum("bnts,bsnh->btnh", weights, values), output, atol=1e-12)


# Values and gradients.


@pytest.mark.thorough
@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.sampled_from(SHAPES),
    st.integers(0, 999),
    st.sampled_from([0.1, 0.5, 0.9, 1.0]),
    st.sampled_from([0.1, 0.4, -1.0, 2.0]),
)
def test_values_and_gradients_are_those_of_the_oracle(shape, seed, chance, scale):
    data, mask = inputs(shape, seed), random_mask(shape, seed, chance)
    assert_close(answer(data, mask, scale=scale), oracle_answer(data, mask, scale=scale), 5e-5)


def packed_causal(rng, b, n, t, s):
    q_ids, kv_ids = rng.integers(0, 3, (b, t)), rng.integers(0, 3, (b, s))

    def rule(i, j):
        return oracle.both(oracle.causal(), oracle.same_segment(q_ids[i], kv_ids[i]))

    return causal() & same_segment(q_ids, kv_ids), rule


def window_of_every_head(rng, b, n, t, s):
    left, right = rng.integers(0, 3, (1, n)), rng.integers(0, 3, (b, n))
    return sliding_window(left, right), lambda i, j: oracle.sliding_window(left[0, j], right[i, j])


def padded_prefix(rng, b, n, t, s):
    q_len, kv_len, length = (rng.integers(0, high, b) for high in (t + 1, s + 1, s))

    def rule(i, j):
        seen = oracle.either(oracle.causal(), oracle.prefix(length[i]))
        return oracle.both(seen, oracle.lengths(q_len[i], kv_len[i]))

    return (causal() | prefix(length)) & lengths(q_len, kv_len), rule


def decoding_step(rng, b, n, t, s):
    flags, start = rng.random((b, s)) < 0.7, rng.integers(0, s, b)

    def rule(i, j):
        return oracle.both(oracle.shifted(oracle.causal(), start[i]), oracle.valid(flags[i]))

    return causal().shift(q_start=start) & valid(flags), rule


def everything_else(rng, b, n, t, s):
    ages, array = rng.integers(0, 9, max(t, s)), rng.random((b, 1, t, s)) < 0.5

    def rule(i, j):
        mine = oracle.opposite(lambda q, k: ages[q] >= ages[k])
        return oracle.either(
            oracle.both(mine, oracle.chunked(3)),
            oracle.both(oracle.global_tokens(1), oracle.from_dense(array[i, 0])),
        )

    return ~where(older, ages) & chunked(3) | global_tokens(1) & from_dense(array), rule


@pytest.mark.thorough(quick=3)
@pytest.mark.parametrize(
    "build", [packed_causal, window_of_every_head, padded_prefix, decoding_step, everything_else]
)
def test_with_masks_of_the_algebra_it_is_the_oracle_with_their_plain_rules(build):
    for seed in range(4):
        data = inputs(GROUPED, seed)
        mask, rule = build(np.random.default_rng(seed), *GROUPED.logits)
        assert_close(answer(data, mask), oracle_answer(data, every(GROUPED, rule)))


@pytest.mark.thorough(quick=3)
@pytest.mark.parametrize("bias", [(1, 1, 1, 1), (2, 1, 1, 7), (1, 1, 5, 7), (2, 6, 5, 1)], ids=str)
def test_bias_is_shared_over_axes_of_one_and_its_gradient_summed_there(bias):
    data, mask = inputs(GROUPED, bias=bias), random_mask(GROUPED, 1)
    actual = answer(data, mask)
    assert actual.bias.shape == bias
    assert_close(actual, oracle_answer(data, mask), 1e-5)


def test_scale_is_one_over_root_head_dim_unless_given():
    data, mask = inputs(GROUPED), random_mask(GROUPED, 1)
    default = attend(data.query, data.key, data.value, mask)
    given = attend(data.query, data.key, data.value, mask, scale=11**-0.5)
    np.testing.assert_array_equal(default, given)
    expected = oracle.attend(data.query, data.key, data.value, mask)
    np.testing.assert_allclose(default, expected, atol=5e-6)


def test_no_mask_and_no_bias_is_the_oracle_that_sees_everything():
    data = inputs(GROUPED)._replace(bias=None)
    expected = oracle_answer(data, True)._replace(bias=None)
    assert_close(answer(data, None), expected)
    assert_close(answer(data, full()), expected)


# Half precision: no worse than jax.nn in the same dtype, both against float64.


def jax_nn(query, key, value, mask, *, bias=None, scale=None, **options):
    return jax.nn.dot_product_attention(
        query, key, value, bias=bias, mask=mask, scale=scale, **options
    )


def textbook(query, key, value, mask, *, bias, scale):
    """Einsums and a float32 softmax: `jax.nn` on CPU multiplies no float16."""
    key, value = (jnp.repeat(x, query.shape[2] // x.shape[2], axis=2) for x in (key, value))
    logits = jnp.einsum("btnh,bsnh->bnts", query, key, preferred_element_type=jnp.float32)
    logits = jnp.where(mask, logits * scale + bias.astype(jnp.float32), -1e30)
    weights = jax.nn.softmax(logits, axis=-1).astype(value.dtype)
    return jnp.einsum("bnts,bsnh->btnh", weights, value)


@pytest.mark.thorough(quick=1)
@pytest.mark.parametrize(
    "dtype, reference",
    [(jnp.bfloat16, jax_nn), (jnp.bfloat16, textbook), (jnp.float16, textbook)],
    ids=["bfloat16, jax.nn", "bfloat16, textbook", "float16, textbook"],
)
def test_mean_error_in_half_precision_is_that_of_the_reference(
    dtype, reference, standard_promotion
):
    shape = Shape(2, 31, 37, 6, 3, 16, 16)
    errors = np.zeros((2, 5))
    for seed in range(3):
        data = Inputs(*(jnp.asarray(x, dtype) for x in inputs(shape, seed)))
        mask = random_mask(shape, seed, 0.3)
        sees = mask.any(-1).swapaxes(1, 2)[..., None]
        data = data._replace(cotangent=jnp.where(sees, data.cotangent, 0).astype(dtype))
        exact = oracle_answer(data, mask)
        for i, fn in enumerate((attend, reference)):
            got = differentiate(fn, data, mask)
            got = got._replace(output=np.where(sees, got.output, 0))
            errors[i] += [
                np.abs(np.asarray(g, np.float64) - e).mean()
                for g, e in zip(got[:5], exact[:5], strict=True)
            ]
    assert (errors[0] <= 1.1 * errors[1] + 1e-7).all(), errors


def test_output_has_the_dtype_of_the_query():
    for dtype in (jnp.bfloat16, jnp.float16, jnp.float32):
        q = k = v = jnp.ones((1, 2, 1, 2), dtype)
        assert jax.eval_shape(attend, q, k, v, causal()).dtype == dtype
        assert jax.eval_shape(attention_weights, q, k, causal()).dtype == jnp.float32


def test_float16_bears_logits_of_ten_thousand():
    """Products of 1e4 fit float16; their exponentials, differences and scale must not need to."""
    signs = np.array([1, -1, 1, -1, 1], np.float32)
    query = np.full((1, 5, 1, 1), 100, np.float16)
    key = (100 * signs).reshape(1, 5, 1, 1).astype(np.float16)
    value = np.arange(5, dtype=np.float16).reshape(1, 5, 1, 1)
    for mask in (np.tri(5, dtype=bool), np.tile(np.arange(5) % 2 == 1, (5, 1))):
        expected = oracle.attend(query, key, value, mask, scale=1.0)
        output = attend(query, key, value, mask, scale=1.0)
        np.testing.assert_allclose(output, expected, rtol=1e-3)


# jax.nn, where it is right.

SQUARE = Shape(2, 7, 7, 6, 3, 5, 5)

JAX_NN = {
    "causal": (causal(), dict(is_causal=True)),
    "window": (sliding_window(2), dict(local_window_size=2)),
    "uneven window": (sliding_window(3, 1), dict(local_window_size=(3, 1))),
    "lengths": (
        lengths(np.array([7, 4]), np.array([3, 7])),
        dict(
            query_seq_lengths=np.array([7, 4], np.int32),
            key_value_seq_lengths=np.array([3, 7], np.int32),
        ),
    ),
}


@pytest.mark.thorough(quick=1)
@pytest.mark.parametrize("name", JAX_NN)
def test_values_and_gradients_are_those_of_jax_nn_on_rows_that_see_something(name):
    mask, options = JAX_NN[name]
    data = inputs(SQUARE)
    drawn = np.asarray(mask.dense(7, 7))
    dense = np.broadcast_to(drawn if drawn.ndim == 2 else drawn[:, None], SQUARE.logits)
    sees = dense.any(-1).swapaxes(1, 2)[..., None]
    data = data._replace(cotangent=np.where(sees, data.cotangent, 0))
    actual = answer(data, mask)
    reference = functools.partial(jax_nn, **options)
    ones = np.ones((1, 1, 7, 7), bool)  # without a mask jax 0.7 forgets the window
    expected = Answer(*map(np.asarray, differentiate(reference, data, ones)))
    assert_close(actual, expected._replace(output=np.where(sees, expected.output, 0)))


def test_with_a_dense_mask_it_is_jax_nn_on_rows_that_see_something():
    for seed in range(3):
        data, mask = inputs(GROUPED, seed), random_mask(GROUPED, seed)
        data = data._replace(value=np.ascontiguousarray(data.value[..., :11]))
        sees = mask.any(-1).swapaxes(1, 2)[..., None]
        cotangent = np.where(sees, data.cotangent[..., :11], 0)
        data = data._replace(cotangent=cotangent)
        expected = Answer(*map(np.asarray, differentiate(jax_nn, data, mask)))
        assert_close(
            answer(data, mask), expected._replace(output=np.where(sees, expected.output, 0))
        )


# Hidden = deleted.


def test_row_that_sees_nothing_gives_zero_output_and_gradient():
    for seed in range(5):
        data, mask = inputs(GROUPED, seed), random_mask(GROUPED, seed)
        blind, got = blind_rows(mask), answer(data, mask)
        assert blind.any()
        assert not blind.all()
        assert not got.output[blind].any()
        assert not got.query[blind].any()
        assert not got.bias[~mask].any()
        alone = data._replace(cotangent=np.where(blind[..., None], data.cotangent, 0))
        assert not any(part.any() for part in answer(alone, mask)[1:])


def test_row_that_sees_nothing_passes_no_gradient_on_even_if_its_own_is_nan():
    """Its output is zero, where the gradient of a norm, for one, is not a number."""
    data, mask = inputs(GROUPED), random_mask(GROUPED, 1)
    blind = blind_rows(mask)[..., None]
    zero = data._replace(cotangent=np.where(blind, 0, data.cotangent))
    nan = data._replace(cotangent=np.where(blind, np.nan, data.cotangent))
    assert_same(answer(nan, mask), answer(zero, mask))


def test_example_that_sees_nothing_gives_zero_output_and_gradient():
    data, mask = inputs(GROUPED), random_mask(GROUPED, 1)
    mask[1] = False
    got = answer(data, mask)
    for part in (got.output, got.query, got.key, got.value, got.bias):
        assert not part[1].any()
        assert part[0].any()


def test_if_no_row_sees_anything_all_outputs_and_gradients_are_zero():
    data, mask = inputs(GROUPED), np.zeros(GROUPED.logits, bool)
    assert not any(part.any() for part in answer(data, mask))
    assert not any(part.any() for part in answer(data, prefix(0)))


def test_key_that_no_row_sees_gets_zero_gradient():
    data, mask = inputs(GROUPED), random_mask(GROUPED, 1)
    unseen, got = unseen_keys(mask, GROUPED.K), answer(data, mask)
    assert unseen.any()
    assert not got.key[unseen].any()
    assert not got.value[unseen].any()


@pytest.mark.parametrize("where_", ["key", "value", "query", "everywhere"])
def test_garbage_in_what_is_hidden_changes_no_output_and_no_gradient(where_):
    for seed in range(4):
        data, mask = inputs(GROUPED, seed), random_mask(GROUPED, seed)
        unseen, blind = unseen_keys(mask, GROUPED.K), blind_rows(mask)
        clean, dirty = data, data
        for name, hidden in (("query", blind), ("key", unseen), ("value", unseen)):
            if where_ in (name, "everywhere"):
                array = getattr(data, name)
                clean = clean._replace(**{name: np.where(hidden[..., None], 0, array)})
                dirty = dirty._replace(**{name: with_garbage(array, hidden, seed)})
        assert_same(answer(dirty, mask), answer(clean, mask), but=["scale"])


@pytest.mark.parametrize("garbage", GARBAGE)
def test_garbage_in_hidden_entries_of_the_bias_changes_no_output_and_no_gradient(garbage):
    data, mask = inputs(GROUPED), random_mask(GROUPED, 1)
    dirty = data._replace(bias=np.where(mask, data.bias, garbage))
    assert_same(answer(dirty, mask), answer(data, mask))


@pytest.mark.parametrize("garbage", GARBAGE)
def test_garbage_in_hidden_keys_and_queries_does_not_reach_the_gradient_of_the_scale(garbage):
    data, mask = inputs(GROUPED), random_mask(GROUPED, 1)
    dirty = data._replace(
        query=np.where(blind_rows(mask)[..., None], garbage, data.query),
        key=np.where(unseen_keys(mask, GROUPED.K)[..., None], garbage, data.key),
    )
    np.testing.assert_allclose(answer(dirty, mask).scale, answer(data, mask).scale, rtol=1e-5)


def test_hiding_keys_equals_deleting_them():
    data = inputs(GROUPED)
    kept = np.array([0, 2, 3, 6])
    mask = random_mask(GROUPED, 1, 0.8)
    mask &= np.isin(np.arange(7), kept)
    hidden = ~np.isin(np.arange(7), kept)[None, :, None]
    garbage = data._replace(
        key=with_garbage(data.key, np.broadcast_to(hidden, data.key.shape[:3])),
        value=with_garbage(data.value, np.broadcast_to(hidden, data.value.shape[:3])),
    )
    fewer = data._replace(
        key=data.key[:, kept], value=data.value[:, kept], bias=data.bias[..., kept]
    )
    got, expected = answer(garbage, mask), answer(fewer, mask[..., kept])
    got = got._replace(key=got.key[:, kept], value=got.value[:, kept], bias=got.bias[..., kept])
    assert_close(got._replace(scale=None), expected, 3e-7)


@pytest.mark.parametrize("lowest", [np.finfo(np.float32).min, -2e38, -np.inf])
def test_hiding_keys_equals_deleting_them_under_the_lowest_bias(lowest):
    """A row all of whose visible keys carry an "additive mask" still mixes just these."""
    shape = Shape(1, 3, 5, 1, 1, 2, 3)
    data, kept = inputs(shape, bias=(1, 1, 3, 5)), np.array([0, 1, 2])
    bias = np.full((1, 1, 3, 5), lowest, np.float32)
    hidden = attend(data.query, data.key, data.value, prefix(3), bias=bias)
    deleted = attend(
        data.query, data.key[:, kept], data.value[:, kept], full(), bias=bias[..., kept]
    )
    np.testing.assert_allclose(hidden, deleted, rtol=1e-6)


@pytest.mark.parametrize("what", ["key", "value", "both"])
@pytest.mark.parametrize("garbage", [np.nan, np.inf, -np.inf])
def test_key_that_is_not_finite_breaks_exactly_the_rows_that_see_it(what, garbage):
    data, mask = inputs(GROUPED), random_mask(GROUPED, 3)
    b, s, k = np.argwhere(~unseen_keys(mask, GROUPED.K))[4]
    broken, clean = data, data
    for name in ("key", "value") if what == "both" else (what,):
        array = getattr(data, name).copy()
        array[b, s, k, 1] = garbage
        broken = broken._replace(**{name: array})
    heads = slice(2 * k, 2 * k + 2)
    rows = np.zeros((2, 5, 6), bool)  # [B, T, N]
    rows[b, :, heads] = mask[b, heads, :, s].T
    assert rows.any()
    assert not rows[b, :, heads].all()
    seen_along = np.zeros((2, 7, 3), bool)  # [B, S, K]: keys that a broken row sees
    seen_along[b, :, k] = (mask[b, heads] & rows[b, :, heads].T[..., None]).any((0, 1))
    got, expected = answer(broken, mask), answer(clean, mask)
    for name, is_broken in (("output", rows), ("query", rows), ("key", seen_along)):
        a, e = getattr(got, name), getattr(expected, name)
        if name == "key":
            a[b, s, k] = np.nan  # the gradient of what is not a number means nothing
        assert np.isnan(a[is_broken]).all()
        np.testing.assert_array_equal(a[~is_broken], e[~is_broken])


def test_query_that_is_not_finite_breaks_its_own_row_alone():
    data, mask = inputs(GROUPED), random_mask(GROUPED, 1)
    b, t, n = np.argwhere(~blind_rows(mask))[7]
    query = data.query.copy()
    query[b, t, n, 0] = np.nan
    got, expected = answer(data._replace(query=query), mask), answer(data, mask)
    broken = np.zeros((2, 5, 6), bool)
    broken[b, t, n] = True
    assert np.isnan(got.output[broken]).all()
    np.testing.assert_array_equal(got.output[~broken], expected.output[~broken])


def test_gradients_flow_only_from_later_queries_to_earlier_keys():
    shape = Shape(1, 7, 7, 2, 1, 3, 2)
    data = inputs(shape)

    def outputs(key, value):
        return attend(data.query, key, value, causal()).sum((0, 2, 3))

    for jacobian in jax.jit(jax.jacrev(outputs, argnums=(0, 1)))(data.key, data.value):
        reaches = (np.asarray(jacobian) != 0).any((1, 3, 4))  # [T, S]
        expected = np.tri(7, dtype=bool)
        if jacobian.shape[-1] == shape.H:
            expected[0, 0] = False  # one key alone has weight one, whatever it is
        np.testing.assert_array_equal(reaches, expected)


# Dropout.


def dropout_weights(shape, rate, seed=0, mask=None):
    """[B, N, T, S]: equal weights after dropout, read through values that are the identity."""
    b, t, s, n, k, h, _ = shape
    query, key = np.zeros((b, t, n, h), np.float32), np.zeros((b, s, k, h), np.float32)
    identity = np.broadcast_to(np.eye(s, dtype=np.float32)[:, None], (b, s, k, s))
    rng = jax.random.key(seed)
    output = attend(query, key, identity, mask, dropout_rate=rate, dropout_key=rng)
    return np.asarray(output).swapaxes(1, 2)


@functools.cache
def kept(rate):
    """bool [2, 2, 256, 256]: which weights dropout keeps."""
    return dropout_weights(Shape(2, 256, 256, 2, 1, 1, 0), rate) > 0


RATES = pytest.mark.parametrize("rate", [0.1, 0.5])


def test_dropout_depends_on_batch_head_query_and_key_alone_and_not_on_the_sizes():
    small = dropout_weights(Shape(1, 5, 7, 2, 2, 3, 0), 0.5) > 0
    large = dropout_weights(Shape(2, 11, 13, 6, 3, 2, 0), 0.5) > 0
    np.testing.assert_array_equal(small, large[:1, :2, :5, :7])
    np.testing.assert_array_equal(large[:, :2], kept(0.5)[:, :, :11, :13])


def test_dropout_does_not_depend_on_the_mask():
    shape = Shape(2, 11, 13, 6, 3, 2, 0)
    plain = dropout_weights(shape, 0.5) > 0
    mask = random_mask(shape, 1)
    np.testing.assert_array_equal(dropout_weights(shape, 0.5, mask=mask) > 0, plain & mask)


def test_dropout_scales_up_what_it_keeps():
    weights = dropout_weights(Shape(1, 5, 8, 2, 1, 1, 0), 0.2)
    assert set(np.unique(weights)) == {np.float32(0), np.float32(1 / 8) / np.float32(1 - 0.2)}


def test_dropout_uses_the_key_it_is_given():
    shape = Shape(1, 11, 13, 2, 1, 1, 0)
    same, other = dropout_weights(shape, 0.5), dropout_weights(shape, 0.5, seed=1)
    np.testing.assert_array_equal(same, dropout_weights(shape, 0.5))
    assert 0.3 < ((same > 0) == (other > 0)).mean() < 0.7


def test_dropout_rate_of_zero_drops_nothing():
    data = inputs(GROUPED)
    plain = attend(data.query, data.key, data.value)
    never = attend(*data[:3], dropout_rate=0.0, dropout_key=jax.random.key(0))
    np.testing.assert_array_equal(plain, never)


@RATES
def test_dropout_keeps_the_share_it_says(rate):
    sigma = (rate * (1 - rate)) ** 0.5
    dropped = ~kept(rate)
    for axes in ((0, 1, 2, 3), (2, 3), (3,), (2,), (0, 1, 2)):
        mean = dropped.mean(axes)
        of_each = sigma / (dropped.size / mean.size) ** 0.5
        assert (np.abs(mean - rate) < 5 * of_each).all(), axes


def standardised(rate):
    """[4, 256, 256] of mean 0 and variance 1: the heads of both examples."""
    return ((kept(rate) - (1 - rate)) / (rate * (1 - rate)) ** 0.5).reshape(4, 256, 256)


SPREAD = 1 / 256  # the standard deviation of a mean over 256 x 256 of them


@RATES
def test_dropout_has_no_structure_of_rows_and_columns(rate):
    """The largest singular value of a 256 x 256 matrix of independent noise is near 2 sqrt 256."""
    assert np.linalg.svd(standardised(rate), compute_uv=False).max() < 1.15 * 32


@RATES
def test_dropout_has_no_periodic_structure(rate):
    """The power of noise at each of 65536 frequencies is exponential with mean 1."""
    power = np.abs(np.fft.fft2(standardised(rate))) ** 2 / 256**2
    assert power.max() < 22


@RATES
def test_dropout_of_heads_and_examples_is_uncorrelated_at_every_shift(rate):
    spectra = np.fft.fft2(standardised(rate))
    for i, j in itertools.combinations_with_replacement(range(4), 2):
        correlation = np.fft.ifft2(spectra[i] * spectra[j].conj()).real / 256**2
        if i == j:
            correlation[0, 0] = 0  # with itself, not shifted
        assert np.abs(correlation).max() < 7 * SPREAD, (i, j)


@RATES
def test_dropout_has_no_structure_of_parity(rate):
    """Correlations of [t, s] with [t ^ a, s ^ b] for all a and b, by Walsh-Hadamard transform."""
    walsh = functools.reduce(np.kron, [np.array([[1.0, 1.0], [1.0, -1.0]])] * 8)
    for noise in standardised(rate):
        power = (walsh @ noise @ walsh) ** 2
        assert power.max() / 256**2 < 40  # chi-squared of one degree: P(> 40) = 3e-10
        correlation = walsh @ power @ walsh / 256**4
        correlation[0, 0] = 0
        assert np.abs(correlation).max() < 8 * 2**0.5 * SPREAD


def test_dropout_has_the_gradients_of_the_oracle_that_drops_the_same():
    data, mask = inputs(GROUPED), random_mask(GROUPED, 1)
    keep = dropout_weights(GROUPED, 0.3) > 0
    actual = answer(data, mask, dropout_key=jax.random.key(0), rate=0.3)
    assert_close(actual, oracle_answer(data, mask, keep=keep, rate=0.3))


def test_dropout_at_the_highest_rate_drops_nearly_everything():
    data = inputs(GROUPED)
    assert not attend(*data[:3], dropout_rate=1 - 2**-32, dropout_key=jax.random.key(0)).any()


def test_mean_over_dropout_keys_is_the_output_without():
    data, mask = inputs(GROUPED), random_mask(GROUPED, 1)

    def one(key):
        return attend(*data[:3], mask, dropout_rate=0.3, dropout_key=key)

    outputs = np.asarray(jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(0), 1000)))
    error = outputs.mean(0) - attend(*data[:3], mask)
    assert (np.abs(error) <= 5 * outputs.std(0) / 1000**0.5 + 1e-6).all()


def test_dropout_under_jit_is_that_outside_and_takes_keys_of_both_kinds():
    data = inputs(GROUPED)

    def call(key):
        return attend(*data[:3], causal(), dropout_rate=0.5, dropout_key=key)

    plain = call(jax.random.key(7))
    np.testing.assert_allclose(jax.jit(call)(jax.random.key(7)), plain, atol=1e-6)
    np.testing.assert_array_equal(call(jax.random.PRNGKey(7)), plain)


def test_dropout_ignores_garbage_in_what_is_hidden():
    data, mask = inputs(GROUPED), random_mask(GROUPED, 1)
    unseen = unseen_keys(mask, GROUPED.K)
    dirty = data._replace(
        key=with_garbage(data.key, unseen), value=with_garbage(data.value, unseen)
    )
    options = dict(dropout_key=jax.random.key(0), rate=0.3)
    assert_same(answer(dirty, mask, **options), answer(data, mask, **options), but=["scale"])


# Attention weights.


def test_weights_are_those_of_the_oracle_and_sum_to_one_or_zero():
    data, mask = inputs(GROUPED), random_mask(GROUPED, 1)
    weights = np.asarray(attention_weights(data.query, data.key, mask, bias=data.bias, scale=0.4))
    expected = oracle.attention_weights(data.query, data.key, mask, data.bias, 0.4)
    np.testing.assert_allclose(weights, expected, atol=1e-6)
    assert not weights[~mask].any()
    np.testing.assert_allclose(weights.sum(-1), mask.any(-1), atol=1e-6)


def test_weights_are_what_attend_mixes_values_with():
    data, mask = inputs(GROUPED), random_mask(GROUPED, 1)
    identity = np.broadcast_to(np.eye(7, dtype=np.float32)[:, None], (2, 7, 3, 7))
    mixed = attend(data.query, data.key, identity, mask, bias=data.bias).swapaxes(1, 2)
    weights = attention_weights(data.query, data.key, mask, bias=data.bias)
    np.testing.assert_allclose(weights, mixed, atol=1e-7)


SOME = random_mask(GROUPED, 1)

CHOICES = {  # the shape of the bias, the mask and its drawing
    "bias and mask of every head": ((2, 6, 5, 7), SOME, SOME),
    "shared bias and mask": ((1, 1, 5, 1), SOME[:, :1], SOME[:, :1]),
    "bias and window of every head": (
        (2, 6, 1, 7),
        sliding_window(np.arange(6)[None]),
        every(GROUPED, lambda i, j: oracle.sliding_window(j)),
    ),
    "no mask": ((1, 6, 5, 1), None, True),
}


@pytest.mark.parametrize("name", CHOICES)
def test_weights_of_chosen_rows_and_heads_are_those_of_the_oracle(name):
    bias, mask, dense = CHOICES[name]
    data, rows, heads = inputs(GROUPED, bias=bias), np.array([3, 0, 3]), np.array([5, 1, 0, 4])
    chosen = attention_weights(data.query, data.key, mask, bias=data.bias, rows=rows, heads=heads)
    expected = oracle.attention_weights(data.query, data.key, dense, data.bias)
    np.testing.assert_allclose(chosen, expected[:, heads][:, :, rows], atol=1e-6)


def test_weights_of_chosen_rows_alone_or_heads_alone():
    data, mask = inputs(GROUPED), random_mask(GROUPED, 1)
    everything = np.asarray(attention_weights(data.query, data.key, mask))
    rows = attention_weights(data.query, data.key, mask, rows=[4])
    np.testing.assert_allclose(rows, everything[:, :, 4:], atol=1e-6)
    heads = attention_weights(data.query, data.key, mask, heads=[2])
    np.testing.assert_allclose(heads, everything[:, 2:3], atol=1e-6)


@pytest.mark.parametrize("name", ["rows", "heads"])
def test_weights_of_negative_rows_or_heads_count_from_the_end(name):
    data = inputs(Shape(1, 5, 7, 5, 1, 3, 2))
    everything = np.asarray(attention_weights(data.query, data.key, causal()))
    chosen = attention_weights(data.query, data.key, causal(), **{name: np.array([-1, -5])})
    axis = {"heads": 1, "rows": 2}[name]
    np.testing.assert_allclose(chosen, np.take(everything, [-1, -5], axis), atol=1e-6)


CHOICE_ERRORS = {
    "row past the last": (dict(rows=[0, 5]), ValueError, "rows holds 5; .*-5 to 4, for T = 5"),
    "row before the first": (dict(rows=np.array([-6])), ValueError, "rows holds -6"),
    "head past the last": (dict(heads=jnp.array([6])), ValueError, "heads holds 6.*N = 6"),
    "a single row": (dict(rows=3), ValueError, r"rows has shape \(\); expected one axis"),
    "rows that are floats": (dict(rows=np.ones(2)), TypeError, "rows has dtype float64"),
    "heads as flags": (dict(heads=np.ones(6, bool)), TypeError, "heads has dtype bool"),
}


@pytest.mark.parametrize("name", CHOICE_ERRORS)
def test_rows_or_heads_that_are_not_there_are_an_error_that_names_them(name):
    changes, error, message = CHOICE_ERRORS[name]
    data = inputs(GROUPED)
    with pytest.raises(error, match=message):
        attention_weights(data.query, data.key, causal(), **changes)


def test_rows_and_heads_may_be_traced():
    data = inputs(GROUPED)

    def choose(rows, heads):
        return attention_weights(data.query, data.key, causal(), rows=rows, heads=heads)

    everything = np.asarray(attention_weights(data.query, data.key, causal()))
    chosen = jax.jit(choose)(np.array([4, -5]), np.array([5, 2], np.uint8))
    np.testing.assert_allclose(chosen, everything[:, [5, 2]][:, :, [4, 0]], atol=1e-6)


# Masks as arrays, compilation, transformations.

BOOLEANS = [(5, 7), (1, 7), (5, 1), (1, 5, 7), (1, 1, 7), (2, 6, 5, 7), (1, 6, 1, 7), (2, 1, 5, 1)]


@pytest.mark.thorough(quick=7)
@pytest.mark.parametrize("shape", BOOLEANS, ids=str)
def test_boolean_array_with_shared_axes_is_the_mask_it_stands_for(shape):
    data = inputs(GROUPED)._replace(bias=None)
    array = np.random.default_rng(1).random(shape) < 0.6
    missing = {2: (0, 1), 3: (1,), 4: ()}[array.ndim]
    whole = np.broadcast_to(np.expand_dims(array, missing), GROUPED.logits)
    expected = oracle.attend(*data[:3], whole)
    for mask in (array, jnp.asarray(array), from_dense(array)):
        np.testing.assert_allclose(attend(*data[:3], mask), expected, atol=5e-6)


@pytest.mark.thorough
def test_new_values_compile_nothing_new(caplog):
    def call(seed, S=7):
        rng = np.random.default_rng(seed)
        data = inputs(GROUPED._replace(S=S), seed)
        mask = causal() & lengths(kv_lengths=rng.integers(0, 7, 2)) | valid(
            rng.random((2, S)) < 0.5
        )
        mask = mask & ~sliding_window(rng.integers(0, 3, (1, 6))).shift(
            q_start=rng.integers(0, 3, 2)
        )
        options = dict(bias=data.bias, scale=jnp.float32(rng.random()))
        attend(*data[:3], mask, **options, dropout_rate=0.1, dropout_key=jax.random.key(seed))
        attention_weights(*data[:2], mask, **options)

    call(0)
    assert compilations(caplog, lambda: call(0, S=11)) > 0
    assert compilations(caplog, lambda: call(1)) == 0


def test_a_jitted_function_of_a_mask_is_traced_once():
    @jax.jit
    @chex.assert_max_traces(n=1)
    def call(data, mask, scale):
        return attend(*data[:3], mask, scale=scale)

    for seed in range(3):
        rng = np.random.default_rng(seed)
        mask = causal() & same_segment(rng.integers(0, 3, (2, 7)))
        call(inputs(GROUPED, seed), mask, rng.random())


@pytest.mark.parametrize("mask", [None, "array"], ids=str)
@pytest.mark.parametrize("axis", ["B", "T", "S"])
def test_empty_axes_give_outputs_of_that_shape_and_zeros_without_keys(axis, mask):
    shape = GROUPED._replace(**{axis: 0})
    data = inputs(shape)._replace(bias=None)
    got = answer(data, np.ones(shape.logits, bool) if mask == "array" else mask)
    assert got.output.shape == data.cotangent.shape
    assert not got.output.any()
    for part, array in zip(got[1:4], data[:3], strict=True):
        assert part.shape == array.shape
        assert not part.any()


@pytest.mark.thorough
def test_float64_works_with_masks_that_hold_arrays():
    with enable_x64(True):
        data = inputs(GROUPED, dtype=np.float64)
        mask = lengths(kv_lengths=np.array([3, 5])) & valid(np.arange(7) != 1)
        ids = same_segment(np.array([1, 2, 2, 0, 3]), np.arange(7))
        mask = mask | ids & where(older, np.arange(7))
        dense = np.asarray(mask.dense(5, 7))[:, None]
        expected = oracle.attend(*data[:3], dense)
        np.testing.assert_allclose(attend(*data[:3], mask), expected, atol=1e-14)
        weights = attention_weights(data.query, data.key, mask)
        expected = oracle.attention_weights(data.query, data.key, dense)
        np.testing.assert_allclose(weights, expected, atol=1e-14)


def test_inputs_are_left_as_they_are():
    data = Inputs(*map(jnp.asarray, inputs(GROUPED)))
    before = [np.array(x) for x in data]
    attend(*data[:3], causal(), bias=data.bias)
    for array, copy in zip(data, before, strict=True):
        np.testing.assert_array_equal(array, copy)


# Errors name the argument.

GOOD = inputs(GROUPED)


def call(**changes):
    """`attend` of arguments that fit but for those that are given."""
    arguments = dict(query=GOOD.query, key=GOOD.key, value=GOOD.value) | changes
    return attend(**arguments)


KEY = np.zeros((2, 7, 3, 11), np.float32)

ERRORS = {
    "query of rank three": (dict(query=GOOD.query[0]), ValueError, "query has shape .* rank 3"),
    "key of rank five": (dict(key=GOOD.key[None]), ValueError, "key has shape .* rank 5"),
    "value of rank three": (dict(value=GOOD.value[0]), ValueError, "value has shape .* rank 3"),
    "batches differ": (dict(key=KEY[:1]), ValueError, "key has shape .*B = 1.*query has B = 2"),
    "head dims differ": (dict(key=KEY[..., :5]), ValueError, "key .*H = 5.*query has H = 11"),
    "lengths differ": (dict(value=GOOD.value[:, :4]), ValueError, "value .*S = 4.*key has S = 7"),
    "value heads differ": (dict(value=GOOD.value[:, :, :1]), ValueError, "value .*K = 1.*K = 3"),
    "heads do not divide": (
        dict(key=np.zeros((2, 7, 4, 11), np.float32), value=np.zeros((2, 7, 4, 3), np.float32)),
        ValueError,
        "query has 6 heads and key 4",
    ),
    "no key heads": (
        dict(key=KEY[:, :, :0], value=GOOD.value[:, :, :0]),
        ValueError,
        "query has 6 heads and key 0",
    ),
    "integer query": (
        dict(query=np.ones((2, 5, 6, 11), np.int32)),
        TypeError,
        "query has dtype int",
    ),
    "key of another dtype": (dict(key=KEY.astype(np.float16)), TypeError, "key has dtype float16"),
    "value of another dtype": (
        dict(value=GOOD.value.astype(np.float16)),
        TypeError,
        "value has dtype float16",
    ),
    "float mask": (dict(mask=np.zeros((5, 7), np.float32)), TypeError, "mask has dtype float32"),
    "integer mask": (dict(mask=np.zeros((5, 7), np.int32)), TypeError, "mask has dtype int32"),
    "mask of rank one": (dict(mask=np.ones(7, bool)), ValueError, r"mask has shape \(7,\)"),
    "mask of rank five": (dict(mask=np.ones((1, 1, 1, 5, 7), bool)), ValueError, "mask has shape"),
    "mask of other lengths": (
        dict(mask=np.ones((7, 5), bool)),
        ValueError,
        r"mask has shape \(7, 5\); expected \[T, S\] = \[5, 7\]",
    ),
    "mask of another batch": (dict(mask=np.ones((3, 5, 7), bool)), ValueError, "mask has shape"),
    "mask of key heads": (dict(mask=np.ones((2, 3, 5, 7), bool)), ValueError, "mask has shape"),
    "mask that would grow the batch": (
        dict(
            query=GOOD.query[:1], key=KEY[:1], value=GOOD.value[:1], mask=np.ones((2, 5, 7), bool)
        ),
        ValueError,
        "mask has shape",
    ),
    "leaves of another batch": (
        dict(mask=lengths(kv_lengths=np.ones(3, int))),
        ValueError,
        r"mask .*lengths.*B = 3.*query has B = 2",
    ),
    "leaves of other heads": (
        dict(mask=causal() & sliding_window(np.ones((1, 3), int))),
        ValueError,
        r"mask .*N = 3.*query has N = 6",
    ),
    "leaves too short": (dict(mask=valid(np.ones(6, bool))), ValueError, "valid: kv_valid"),
    "bias of rank two": (dict(bias=GOOD.bias[0, 0]), ValueError, "bias has shape"),
    "bias of other heads": (dict(bias=GOOD.bias[:, :3]), ValueError, "bias has shape .*6, 5, 7"),
    "bias of other lengths": (dict(bias=GOOD.bias[..., :5]), ValueError, "bias has shape"),
    "boolean bias": (dict(bias=GOOD.bias > 0), TypeError, "bias has dtype bool"),
    "integer bias": (dict(bias=np.ones((1, 1, 5, 7), np.int32)), TypeError, "bias has dtype int32"),
    "dropout without a key": (dict(dropout_rate=0.1), ValueError, "dropout_key is None"),
    "dropout of everything": (
        dict(dropout_rate=1.0, dropout_key=jax.random.key(0)),
        ValueError,
        "dropout_rate is 1.0",
    ),
    "dropout of all but everything": (
        dict(dropout_rate=1 - 1e-12, dropout_key=jax.random.key(0)),
        ValueError,
        "dropout_rate is 0.999999999999; expected at most",
    ),
    "negative dropout": (dict(dropout_rate=-0.1), ValueError, "dropout_rate is -0.1"),
    "dropout of nan": (dict(dropout_rate=np.nan), ValueError, "dropout_rate is nan"),
    "unknown implementation": (dict(implementation="fast"), ValueError, "implementation is 'fast'"),
    "mask as a nested list": (dict(mask=[[True] * 7] * 5), TypeError, "mask"),
    "mask as a number": (dict(mask=True), TypeError, "mask"),
    "scale of every key": (dict(scale=np.ones(7, np.float32)), ValueError, "scale"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_error_has_its_type_and_names_the_argument(name):
    changes, error, message = ERRORS[name]
    with pytest.raises(error, match=message):
        call(**changes)


WEIGHTS_ERRORS = ["query of rank three", "head dims differ", "heads do not divide", "float mask"]
WEIGHTS_ERRORS += ["leaves of another batch", "leaves too short", "bias of other heads"]


@pytest.mark.parametrize("name", WEIGHTS_ERRORS)
def test_attention_weights_has_the_errors_of_attend(name):
    changes, error, message = ERRORS[name]
    arguments = dict(query=GOOD.query, key=GOOD.key) | changes
    arguments.pop("value", None)
    with pytest.raises(error, match=message):
        attention_weights(**arguments)


# One head.


def test_one_head_is_the_oracle_of_one_head():
    data, mask = inputs(GROUPED), random_mask(GROUPED, 1)
    got = jax.jit(attend_head)(
        data.query[0, :, 0], data.key[0, :, 0], data.value[0, :, 0], mask[0, 0]
    )
    expected = oracle.attend(data.query, data.key, data.value, mask)[0, :, 0]
    np.testing.assert_allclose(got, expected, atol=5e-6)


Q, K, V, M = (np.ones(shape, np.float32) for shape in ((5, 3), (7, 3), (7, 2), (5, 7)))

HEAD_ERRORS = {
    "query of rank three": (Q[None], K, V, None),
    "key of rank one": (Q, K[0], V, None),
    "value of rank three": (Q, K, V[None], None),
    "query and key of other head dims": (Q[:, :2], K, V, None),
    "key and value of other lengths": (Q, K, V[:4], None),
    "mask of other lengths": (Q, K, V, M[:, :5] > 0),
    "mask of rank three": (Q, K, V, M[None] > 0),
}


@pytest.mark.parametrize("name", HEAD_ERRORS)
def test_one_head_asserts_its_shapes(name):
    with pytest.raises(AssertionError):
        attend_head(*HEAD_ERRORS[name])
