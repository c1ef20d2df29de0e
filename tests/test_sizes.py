"""The laws at the sizes of real rows, on both sides of every threshold.

Compilers choose other code for larger arrays: on a CPU, XLA's maximum drops NaN in arrays of some
4,096 elements and more. Small shapes alone, as in the other tests, do not see that.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from attention_cases import Shape, blind_rows, inputs, random_mask, unseen_keys, with_garbage

from flaxattn import (
    attend_head,
    attend_with_stats,
    attention_weights,
    causal,
    from_dense,
    lengths,
)
from flaxattn.attention.repair import bounded, not_finite
from flaxattn.layers import MultiHeadAttention
from flaxattn.search import Lengths, SpecialTokens, beam_search, greedy

IMPLEMENTATIONS = pytest.mark.parametrize("implementation", ["dense", "blockwise", "auto"])


@functools.partial(jax.jit, static_argnames="implementation")
def answer(data, mask, implementation, scale=0.4):
    """Output, log-sum-exp, and all gradients of the sum of output times cotangent."""

    def call(query, key, value, bias, scale):
        return attend_with_stats(
            query, key, value, mask, bias=bias, scale=scale, implementation=implementation
        )

    outputs, pull = jax.vjp(call, *data[:4], scale)
    return outputs, pull((data.cotangent, jnp.zeros_like(outputs[1])))


def assert_unchanged(actual, expected):
    """But for rounding: blocks that all see are computed as partial ones where garbage is about."""
    (outputs, gradients), (wanted, slopes) = actual, expected
    for a, e in zip((*outputs, *gradients[:4]), (*wanted, *slopes[:4]), strict=True):
        np.testing.assert_allclose(
            a, e, rtol=1e-6, atol=1e-6 * np.abs(e[np.isfinite(e)]).max(initial=0)
        )
    np.testing.assert_allclose(gradients[4], slopes[4], rtol=1e-4, atol=1e-2)


# What is hidden, in arrays of 1 to 2**20 elements.

# Keys or values of S positions and H features each, of which the second half is hidden.
SIZES = [(1, 1), (60, 64), (4095, 1), (64, 64), (17, 241), (2, 4099), (1031, 67), (16384, 64)]


@pytest.mark.thorough(quick=1)
@IMPLEMENTATIONS
@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
def test_what_is_not_finite_in_hidden_keys_and_values_changes_nothing(size, implementation):
    kv_len, features = size
    data = inputs(Shape(1, 3, kv_len, 1, 1, features, features))
    mask, seen = lengths(kv_lengths=np.array([kv_len // 2])), kv_len // 2
    clean = answer(data, mask, implementation)
    assert all(np.isfinite(x).all() for x in (clean[0][0], *clean[1]))
    last = np.zeros(data.key.shape, bool)
    last[:, -1, :, -1] = True
    rows = np.broadcast_to((np.arange(kv_len) >= seen)[:, None, None], data.key.shape[1:])
    for name in ("key", "value"):
        for garbage in (np.nan, np.inf, -np.inf, 1e38):
            for where in (last, rows):
                dirty = np.where(where, np.float32(garbage), getattr(data, name))
                got = answer(data._replace(**{name: dirty}), mask, implementation)
                assert_unchanged(got, clean)


@pytest.mark.thorough(quick=1)
@IMPLEMENTATIONS
@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
def test_what_is_not_finite_in_queries_that_see_nothing_changes_nothing(size, implementation):
    q_len, features = size
    data = inputs(Shape(1, q_len, 3, 1, 1, features, 2))
    mask = lengths(q_lengths=np.array([q_len // 2]))
    clean = answer(data, mask, implementation)
    for garbage in (np.nan, np.inf, 1e38):
        dirty = data.query.copy()
        dirty[:, q_len // 2 :] = garbage
        got = answer(data._replace(query=dirty), mask, implementation)
        assert_unchanged(got, clean)


@pytest.mark.thorough(quick=7)
@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
def test_rows_that_are_not_finite_are_found_wherever_they_are(size):
    rows, features = size
    for dtype in (jnp.float32, jnp.bfloat16, jnp.float16):
        x = np.ones((rows, features), dtype)
        assert not np.asarray(jax.jit(not_finite)(x)).any()
        for garbage in (np.nan, np.inf, -np.inf):
            for at in {0, rows // 2, rows - 1}:
                broken = x.copy()
                broken[at, features // 3] = garbage
                found = np.asarray(jax.jit(not_finite)(broken))
                np.testing.assert_array_equal(found, np.arange(rows) == at)


@pytest.mark.thorough
def test_one_head_and_weights_and_layers_keep_the_first_promise_at_that_size():
    kv_len, features = 64, 64
    data = inputs(Shape(1, kv_len, kv_len, 1, 1, features, features))
    mask = lengths(kv_lengths=np.array([32]))
    dirty = with_garbage(data.value, np.arange(kv_len)[None, :, None] >= 32)
    seen = mask.dense(kv_len, kv_len)[0]
    one = [x[0, :, 0] for x in (data.query, data.key)]
    head = [attend_head(*one, v[0, :, 0], seen) for v in (data.value, dirty)]
    np.testing.assert_array_equal(*head)
    weights = [attention_weights(data.query, k, mask) for k in (data.value, dirty)]
    np.testing.assert_array_equal(*weights)
    layer = MultiHeadAttention(num_heads=4)
    padded = [np.where(np.isfinite(x), x, np.nan)[:, :, 0] for x in (data.value, dirty)]
    params = layer.init(jax.random.key(0), padded[0], deterministic=True)
    outputs = [layer.apply(params, x, mask=mask, deterministic=True)[:, :32] for x in padded]
    np.testing.assert_array_equal(*outputs)


# Random masks: all implementations are the oracle, with values, gradients and garbage.

LARGE = [
    Shape(1, 67, 61, 2, 1, 64, 64),  # more than 4,096 elements
    Shape(2, 359, 353, 2, 1, 12, 16),  # below what "auto" takes blockwise attention from
    Shape(1, 367, 373, 2, 1, 12, 16),  # above it
    Shape(1, 1031, 1033, 2, 2, 5, 3),  # more cells than a tile has
]


@functools.cache
def expected(shape):
    """The oracle's answer to a random mask; the gradient of the bias is left out for time."""
    data, mask = inputs(shape, bias=(1, 1, 1, 1)), random_mask(shape, 5)
    output = oracle.attend(*data[:3], mask, data.bias, 0.4)
    return data, mask, output, oracle.gradients(data.cotangent, *data[:3], mask, data.bias, 0.4)


@pytest.mark.thorough(quick=1)
@IMPLEMENTATIONS
@pytest.mark.parametrize("shape", LARGE, ids=lambda shape: f"{shape.T}x{shape.S}")
def test_values_and_gradients_are_those_of_the_oracle_whatever_lies_hidden(shape, implementation):
    data, mask, output, slopes = expected(shape)
    blind, unseen = blind_rows(mask), unseen_keys(mask, shape.K)
    assert blind.any() and unseen.any()
    dirty = data._replace(
        query=with_garbage(data.query, blind),
        key=with_garbage(data.key, unseen),
        value=with_garbage(data.value, unseen),
    )
    (got, lse), gradients = answer(dirty, from_dense(mask), implementation)
    np.testing.assert_allclose(got, output, atol=2e-5)
    np.testing.assert_array_equal(np.asarray(lse) == -np.inf, blind)
    assert not np.asarray(got)[blind].any() and not np.asarray(gradients[0])[blind].any()
    for a, e in zip(gradients[:3], slopes[:3], strict=True):
        np.testing.assert_allclose(a, e, atol=5e-5 * np.abs(e).max())
    assert not np.asarray(gradients[1])[unseen].any()


@pytest.mark.thorough(quick=1)
@IMPLEMENTATIONS
@pytest.mark.parametrize("shape", LARGE, ids=lambda shape: f"{shape.T}x{shape.S}")
def test_a_key_that_is_not_finite_breaks_exactly_the_rows_that_see_it(shape, implementation):
    data = inputs(shape, bias=(1, 1, 1, 1))
    at = min(shape.T, shape.S) // 2
    clean = answer(data, causal(), implementation)[0][0]
    for name in ("key", "value"):
        broken = getattr(data, name).copy()
        broken[0, at, 0, -1] = np.nan
        got = np.array(answer(data._replace(**{name: broken}), causal(), implementation)[0][0])
        seeing = np.zeros((shape.B, shape.T, shape.N), bool)
        seeing[0, at:, : shape.N // shape.K] = True
        assert np.isnan(got[seeing]).all()
        np.testing.assert_array_equal(got[~seeing], np.asarray(clean)[~seeing])


@pytest.mark.thorough(quick=1)
@IMPLEMENTATIONS
@pytest.mark.parametrize("scale", [np.nan, np.inf])
def test_a_scale_that_is_not_finite_is_told_in_every_row_that_sees_something(scale, implementation):
    data = inputs(Shape(1, 367, 373, 2, 1, 12, 16), bias=(1, 1, 1, 1))
    data = data._replace(query=np.zeros_like(data.query))
    output = answer(data, causal() & lengths(q_lengths=300), implementation, scale=scale)[0][0]
    assert np.isnan(output[:, :300]).all() and not np.asarray(output[:, 300:]).any()


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
def test_what_is_too_large_is_bounded_and_nan_stays(size):
    x = np.ones(size, np.float32)
    x[-1, -1], x[0, 0] = np.nan, np.inf
    total = jax.jit(lambda x: bounded(x).sum())
    assert np.isnan(total(x)) == np.isnan(x).any()
    most = np.finfo(np.float32).max
    within = bounded(np.float32([-np.inf, -1, np.inf]))
    np.testing.assert_array_equal(within, np.float32([-most, -1, most]))


# A vocabulary of a real size.


@pytest.mark.thorough(quick=1)
@pytest.mark.parametrize(
    "search", [greedy, functools.partial(beam_search, beam_size=3)], ids=["greedy", "beam"]
)
@pytest.mark.parametrize("vocab_size", [6, 4096, 32_003])
def test_logits_that_are_not_numbers_are_told_in_every_size_of_vocabulary(search, vocab_size):
    def step(tokens, index, state):
        logits = jnp.zeros((len(tokens), vocab_size)).at[:, 3].set(1.0)
        return logits.at[:, -1].set(jnp.where(state["broken"], jnp.nan, 0.0)), state

    state = {"broken": np.array([False, True, False])}
    ids = SpecialTokens(bos_id=0, eos_id=1, pad_id=2)
    found = search(step, state, batch_size=3, special_tokens=ids, lengths=Lengths(4))
    scores = np.asarray(found.scores)
    assert np.isnan(scores[1]).all() and np.isfinite(scores[[0, 2], 0]).all()
