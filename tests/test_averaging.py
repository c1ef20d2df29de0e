"""Averages of parameters against float64 NumPy."""

import jax.numpy as jnp
import numpy as np
import pytest

from flaxattn.training.parameters.averaging import mean, update_average


@pytest.mark.parametrize("decay", [0.0, 0.3, 0.9, 0.999])
def test_the_average_follows_with_a_decay_that_grows_to_its_limit(decay):
    history = np.random.default_rng(0).normal(0, 1, (60, 5))
    expected, found = history[0].copy(), {"w": jnp.array(history[0], jnp.float32)}
    for step, params in enumerate(history):
        kept = min(decay, (1 + step) / (10 + step))
        expected = kept * expected + (1 - kept) * params
        found = update_average(found, {"w": jnp.array(params, jnp.float32)}, jnp.int32(step), decay)
        np.testing.assert_allclose(found["w"], expected, rtol=1e-5, atol=1e-6)
    assert found["w"].dtype == jnp.float32


def test_what_stands_still_is_its_own_average():
    params = {"w": jnp.array([0.1, 1e-30, -7.3e8])}
    found = update_average(params, params, jnp.int32(7), 0.99)
    np.testing.assert_array_equal(found["w"], params["w"])


def test_the_mean_of_models_is_that_of_each_element():
    models = np.random.default_rng(1).normal(0, 1, (7, 3, 2)).astype(np.float32)
    found = mean([{"a": {"w": jnp.array(x)}, "b": jnp.array(x[0])} for x in models])
    np.testing.assert_allclose(found["a"]["w"], models.mean(axis=0, dtype=np.float64), rtol=1e-5)
    np.testing.assert_allclose(found["b"], models[:, 0].mean(axis=0, dtype=np.float64), rtol=1e-5)


def test_the_mean_of_bfloat16_is_added_up_in_float32():
    values = [256.0] + [1.0] * 15  # in bfloat16, 256 + 1 is 256
    found = mean([{"w": jnp.array([v], jnp.bfloat16)} for v in values])["w"]
    assert found.dtype == jnp.bfloat16
    assert found.tolist() == [float(jnp.bfloat16(271 / 16))]


def test_the_mean_of_one_model_is_that_model():
    w = jnp.array([0.1, -3.7e-30, 2e30])
    np.testing.assert_array_equal(mean([{"w": w}])["w"], w)
