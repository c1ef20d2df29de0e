"""`merge`: attention to parts of the keys, put together, is attention to all of them."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from attention_cases import (
    GARBAGE,
    Shape,
    blind_rows,
    enable_x64,
    inputs,
    random_mask,
    unseen_keys,
    with_garbage,
)

from flaxattn import attend_with_stats, merge

SMALL = Shape(2, 7, 11, 4, 2, 5, 3)
SHAPES = {"one block": SMALL, "above the rule of auto": Shape(1, 401, 797, 2, 1, 4, 3)}
CUTS = {11: (0, 1, 4, 4, 9, 11), 797: (0, 400, 797)}  # the ends of parts: of one key, of none


def in_parts(query, key, value, bias, scale, mask):
    """Attention to each part of the keys, merged."""
    cuts = CUTS[key.shape[1]]
    parts = []
    for start, stop in itertools.pairwise(cuts):
        keys = slice(start, stop)
        of_keys = key[:, keys], value[:, keys], mask[..., keys]
        parts.append(attend_with_stats(query, *of_keys, bias=bias[..., keys], scale=scale))
    return merge(parts)


@jax.jit
def answer(data, mask, d_lse):
    """Output and log-sum-exp, and the gradients of both."""
    scale = jnp.asarray(0.4, data.query.dtype)
    results, pull = jax.vjp(functools.partial(in_parts, mask=mask), *data[:4], scale)
    return results, pull((data.cotangent, d_lse))


def d_lse_of(data):
    shape = data.query.shape[:3]
    return np.random.default_rng(9).standard_normal(shape).astype(data.query.dtype)


@functools.cache
def case(name, dtype=np.float32):
    """Inputs, a mask in which some rows see nothing, and the oracle's answer to all keys."""
    shape = SHAPES[name]
    bias = shape.logits if shape is SMALL else (1, 1, 1, shape.S)
    data, mask = inputs(shape, bias=bias, dtype=dtype), random_mask(shape, 1)
    mask[:, :, 1, : CUTS[shape.S][-2]] = False  # seen in the last part alone, if anywhere
    expected = (
        oracle.attend(*data[:3], mask, data.bias, 0.4),
        oracle.log_sum_exp(*data[:2], mask, data.bias, 0.4),
    )
    slopes = None
    if shape is SMALL:
        slopes = oracle.gradients(
            data.cotangent, *data[:3], mask, data.bias, 0.4, lse_cotangent=d_lse_of(data)
        )
    return data, mask, expected, slopes


@pytest.mark.thorough(quick=1)
@pytest.mark.parametrize("name", SHAPES)
def test_parts_of_the_keys_are_all_of_them(name):
    data, mask, (output, lse), slopes = case(name)
    assert blind_rows(mask).any()
    got, gradients = answer(data, mask, d_lse_of(data))
    np.testing.assert_allclose(got[0], output, atol=5e-6)
    np.testing.assert_allclose(got[1], lse, atol=5e-5)
    for a, e in zip(gradients, slopes or (), strict=False):
        np.testing.assert_allclose(a, e, atol=2e-5 * np.abs(e).max())
    assert not np.asarray(got[0])[blind_rows(mask)].any()
    assert not np.asarray(gradients[0])[blind_rows(mask)].any()
    assert all(np.isfinite(g).all() for g in gradients)


@pytest.mark.thorough
def test_in_float64_they_are_so_to_float64():
    with enable_x64(True):
        data, mask, expected, slopes = case("one block", np.float64)
        got, gradients = answer(data, mask, d_lse_of(data))
        for a, e in zip((*got, *gradients), (*expected, *slopes), strict=True):
            assert a.dtype == np.float64
            np.testing.assert_allclose(a, e, atol=1e-12)


def test_what_stands_in_hidden_keys_changes_nothing():
    data, mask, *_ = case("one block")
    unseen, blind = unseen_keys(mask, SMALL.K), blind_rows(mask)
    dirty = data._replace(
        query=with_garbage(data.query, blind),
        key=with_garbage(data.key, unseen),
        value=with_garbage(data.value, unseen),
        cotangent=np.where(blind[..., None], np.nan, data.cotangent).astype(np.float32),
    )
    d_lse = np.where(blind, np.nan, d_lse_of(data)).astype(np.float32)
    got, wanted = answer(dirty, mask, d_lse), answer(data, mask, d_lse_of(data))
    for a, e in zip((*got[0], *got[1][:4]), (*wanted[0], *wanted[1][:4]), strict=True):
        np.testing.assert_array_equal(a, e)


def test_beside_a_sink_nothing_flows_back_from_rows_that_see_nothing():
    """Not even NaN: they are zero, whatever the sink."""
    outputs, lses = parts_of(6)
    lses[:, 2], sinks = -np.inf, np.float32(0.3)
    results, pull = jax.vjp(
        lambda o, lse, sink: merge(zip(o, lse, strict=True), sinks=sink), outputs, lses, sinks
    )
    dirty = results[0].at[2].set(np.nan)
    for a, e in zip(pull((dirty, results[1])), pull(results), strict=True):
        np.testing.assert_array_equal(a, e)


# Parts as arrays, whatever made them.


def parts_of(seed, count=3, dtype=np.float32):
    """Outputs [count, 5, 3], log-sum-exps [count, 5]; a row empty in one part, and one in all."""
    rng = np.random.default_rng(seed)
    outputs, lses = rng.standard_normal((count, 5, 3)), 3 * rng.standard_normal((count, 5))
    lses[0, 1] = lses[:, 2] = -np.inf
    return outputs.astype(dtype), lses.astype(np.float32)


def float64_merge(outputs, lses):
    weights = np.exp(lses.astype(np.float64))
    total = weights.sum(0)
    mixed = (weights[..., None] * outputs.astype(np.float64)).sum(0)
    with np.errstate(divide="ignore"):
        return mixed / np.where(total, total, 1)[..., None], np.log(total)


def test_the_order_does_not_matter_and_merged_parts_can_be_merged():
    outputs, lses = parts_of(0)
    (a, b, c), expected = zip(outputs, lses, strict=True), float64_merge(outputs, lses)
    for got in (
        merge([a, b, c]),
        merge([c, a, b]),
        merge([merge([a, b]), c]),
        merge([a, merge([b, c])]),
    ):
        for x, e in zip(got, expected, strict=True):
            np.testing.assert_allclose(x, e, rtol=1e-5, atol=1e-6)


def test_a_scan_begins_with_attention_to_no_keys():
    outputs, lses = parts_of(1)

    def scanned(outputs, lses):
        nothing = jnp.zeros(outputs.shape[1:]), jnp.full(lses.shape[1:], -jnp.inf)
        return jax.lax.scan(lambda c, part: (merge([c, part]), None), nothing, (outputs, lses))[0]

    results, pull = jax.vjp(scanned, outputs, lses)
    expected, pull_all = jax.vjp(lambda *x: merge(zip(*x, strict=True)), outputs, lses)
    for x, e in zip(results, expected, strict=True):
        np.testing.assert_allclose(x, e, rtol=1e-5, atol=1e-6)
    for x, e in zip(pull(results), pull_all(results), strict=True):
        assert np.isfinite(x).all()
        np.testing.assert_allclose(x, e, atol=1e-6)


def test_what_stands_where_a_part_sees_nothing_changes_nothing():
    outputs, lses = parts_of(2)
    clean = outputs * np.isfinite(lses)[..., None]
    results, pull = jax.vjp(lambda *x: merge(zip(*x, strict=True)), clean, lses)
    for garbage in GARBAGE:
        dirty = np.where(np.isfinite(lses)[..., None], outputs, garbage)
        got, pull_dirty = jax.vjp(lambda *x: merge(zip(*x, strict=True)), dirty, lses)
        assert all(map(np.array_equal, got, results))
        assert all(map(np.array_equal, pull_dirty(results), pull(results)))
    assert not np.asarray(results[0])[2].any() and np.asarray(results[1])[2] == -np.inf


def test_nan_that_is_seen_stays():
    outputs, lses = parts_of(3)
    outputs[1, 0], lses[1, 4] = np.nan, np.nan
    output, lse = merge(zip(outputs, lses, strict=True))
    assert np.isnan(output).all(axis=-1).tolist() == [True, False, False, False, True]
    assert np.isnan(lse).tolist() == [False] * 4 + [True]


def test_differences_of_thousands_neither_overflow_nor_vanish():
    outputs = np.float32([[[1.0]], [[2.0]]])
    for lse, expected in ((5e3, 1.0), (-5e3, 2.0)):
        lses = np.float32([[lse], [-lse]])
        output, total = merge(zip(outputs, lses, strict=True))
        assert (float(output[0, 0]), float(total[0])) == (expected, 5e3)


def test_outputs_in_half_precision_are_summed_in_that_of_the_log_sum_exp():
    outputs, lses = parts_of(4, count=40, dtype=jnp.bfloat16)
    output, lse = merge(zip(outputs, lses, strict=True))
    expected, total = float64_merge(outputs.astype(np.float64), lses)
    assert (output.dtype, lse.dtype) == (jnp.bfloat16, jnp.float32)
    np.testing.assert_array_equal(output, expected.astype(np.float32).astype(jnp.bfloat16))
    np.testing.assert_allclose(lse, total, rtol=1e-6)


def test_nothing_is_raised_under_debug_nans_and_second_derivatives_are_finite():
    outputs, lses = parts_of(5)
    lses[:, 2] = -np.inf

    def loss(outputs, lses):
        output, lse = merge(zip(outputs, lses, strict=True))
        return (output**2).sum() + jnp.where(jnp.isfinite(lse), lse, 0.0).sum()

    with jax.debug_nans(True):
        gradients = jax.grad(loss, (0, 1))(outputs, lses)
        pushed = jax.jvp(jax.grad(loss, (0, 1)), (outputs, lses), gradients)[1]
    assert all(np.isfinite(x).all() and np.any(x) for x in (*gradients, *pushed))
    assert not any(np.any(x[:, 2]) for x in (*gradients, *pushed))


GOOD = parts_of(6, count=1)
GOOD = GOOD[0][0], GOOD[1][0]

ERRORS = {
    "nothing": (None, TypeError, "parts is a NoneType; expected pairs"),
    "no parts": ([], ValueError, "parts is empty"),
    "an output alone": ([GOOD[0]], TypeError, r"parts\[0\] is a ndarray; expected a pair"),
    "three of them": ([GOOD, (*GOOD, 1)], TypeError, r"parts\[1\] is a tuple; expected a pair"),
    "lists": ([(GOOD[0].tolist(), GOOD[1])], TypeError, r"parts\[0\]\[0\] is a list"),
    "integers": ([(GOOD[0], GOOD[1] > 0)], TypeError, r"parts\[0\]\[1\] has dtype bool"),
    "other rows": (
        [GOOD, (GOOD[0][:4], GOOD[1][:4])],
        ValueError,
        r"parts\[1\]\[0\] is float32\[4, 3\].*float32\[5, 3\]",
    ),
    "another dtype": (
        [GOOD, (GOOD[0].astype(np.float16), GOOD[1])],
        ValueError,
        r"parts\[1\]\[0\] is float16\[5, 3\]",
    ),
    "an output of no features": ([(GOOD[1], GOOD[1])], ValueError, r"parts\[0\] .*\(5,\).*H'"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_an_error_names_the_part(name):
    parts, error, message = ERRORS[name]
    with pytest.raises(error, match=message):
        merge(parts)
