"""The table of implementations: a third one is a function and an entry, and serves everywhere."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import mosaic_gpu

from flaxattn import (
    attend,
    attend_with_stats,
    causal,
    explain,
    from_dense,
    prepare,
    relative_bias,
    softcap,
    where,
)
from flaxattn.attention import costs, table
from flaxattn.attention.arguments import make_options
from flaxattn.attention.dense import attend_dense
from flaxattn.attention.fused import attend as fused
from flaxattn.attention.table import IMPLEMENTATIONS, Choice, Implementation

X = jnp.asarray(np.random.default_rng(0).normal(size=(1, 6, 2, 4)), jnp.float32)
BIAS = jnp.ones((1, 1, 6, 6))
PLAN = causal().plan(6, 6, block_q=3, block_kv=2)


def doubled(query, key, value, mask, options):
    """Made up: what it gives is seen to be its own."""
    output, lse = attend_dense(query, key, value, mask, options)
    return 2 * output, lse


def why_not(query, key, value, mask, options):
    return None if options.bias is None else f"it knows no bias of shape {options.bias.shape}"


def coarse(mask, q_len, kv_len):
    return mask.plan(q_len, kv_len, block_q=q_len, block_kv=kv_len)


@pytest.fixture
def third(monkeypatch):
    """Doubled attention beside the others."""
    monkeypatch.setitem(IMPLEMENTATIONS, "doubled", Implementation(doubled, coarse, why_not))


@pytest.fixture
def best(third, monkeypatch):
    """And chosen wherever nothing else is asked for."""
    monkeypatch.setattr(table, "best", lambda q_len, kv_len: Choice("doubled", "it is new"))


def test_it_serves_by_its_name(third):
    output, lse = attend_with_stats(X, X, X, causal(), implementation="doubled")
    expected, expected_lse = attend_with_stats(X, X, X, causal(), implementation="dense")
    np.testing.assert_allclose(output, 2 * expected, rtol=1e-6)
    np.testing.assert_array_equal(lse, expected_lse)


def test_it_says_why_it_cannot_and_nothing_is_taken_in_its_place(third):
    with pytest.raises(ValueError, match=r'"doubled" cannot serve this call: it knows no bias of'):
        attend(X, X, X, causal(), bias=BIAS, implementation="doubled")


def test_a_name_that_is_not_there_is_told_of_all_that_are(third):
    with pytest.raises(ValueError, match=r"'auto', 'dense', 'blockwise', 'fused', 'doubled'"):
        attend(X, X, X, causal(), implementation="double")


def test_auto_takes_the_best_if_it_can_and_else_the_definition(best):
    dense = attend(X, X, X, causal(), implementation="dense")
    np.testing.assert_allclose(attend(X, X, X, causal()), 2 * dense, rtol=1e-6)
    biased = attend(X, X, X, causal(), bias=BIAS)
    np.testing.assert_allclose(biased, dense, rtol=1e-6)  # the same for all keys


@pytest.mark.parametrize(("backend", "length"), [("cpu", 362), ("gpu", 4096), ("tpu", 4096)])
def test_up_to_so_many_logits_the_definition_is_best(monkeypatch, backend, length):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    assert table.best(length, length).name == "dense"
    assert table.best(length + 1, length + 1).name == "blockwise"
    assert ("off the CPU" in table.best(1, 1).why) == (backend != "cpu")


@pytest.fixture
def hopper(monkeypatch):
    """As if there were such a GPU."""
    if not hasattr(mosaic_gpu, "wgmma_accumulator_load"):
        pytest.skip("this jax has not what kernels for Hopper GPUs need")
    for module in (costs, fused):
        monkeypatch.setattr(module, "chip", lambda: "hopper")


HALVES = jnp.ones((1, 512, 2, 64), jnp.bfloat16)
PREPARED = causal().plan(300, 300, block_q=128, block_kv=128)
TABLE = from_dense(np.ones((513, 512), bool))


@pytest.mark.parametrize(
    ("array", "mask", "options", "taken"),
    [
        (HALVES, causal(), {}, "fused"),
        (HALVES, None, {"score": softcap(3.0)}, "fused"),
        (HALVES, causal().plan(512, 512, block_q=64, block_kv=64), {}, "fused"),
        (HALVES[:, :256], causal(), {}, "dense"),
        (HALVES, TABLE, {}, "fused"),
        (HALVES, causal() & ~TABLE, {}, "fused"),
        (HALVES, TABLE.shift(1, 0), {}, "blockwise"),
        (HALVES.astype(jnp.float32), causal(), {}, "blockwise"),
        (HALVES, causal(), {"bias": jnp.ones((1, 1, 1, 512))}, "blockwise"),
        (HALVES, causal(), {"score": relative_bias(jnp.ones((2, 32)))}, "blockwise"),
        (jnp.ones((1, 512, 2, 320), jnp.bfloat16), causal(), {}, "blockwise"),
        (jnp.ones((1, 512, 2, 256), jnp.bfloat16), causal(), {}, "blockwise"),  # gradients are not
        (HALVES[:, :300].astype(jnp.float32), PREPARED, {}, "dense"),
    ],
)
def test_auto_takes_kernels_where_they_serve_and_pay(hopper, array, mask, options, taken):
    asked = {name: options.get(name) for name in ("bias", "scale", "score", "sinks")}
    options = make_options(array, array, **asked, dropout_rate=0.0)
    assert table.choose("auto", array, array, array, mask, options) == taken


def test_few_queries_are_no_work_for_kernels(hopper):
    taken = [table.best(q_len, 8192).name == "fused" for q_len in (1, 127, 128)]
    assert taken == [False, False, True]


@pytest.mark.parametrize(
    ("array", "mask", "why"),
    [
        (HALVES, TABLE.shift(1, 0), r"of the mask: .* at once"),
        (HALVES, where(lambda q, k, x: (x[q] * x[k]).sum() > 0, jnp.ones((512, 3))), "of the mask"),
        (X, causal(), "float32, and its tensor cores take bfloat16"),
        (jnp.ones((1, 6, 2, 320), jnp.float16), causal(), "320 features"),
    ],
)
def test_kernels_say_why_they_do_not_serve(hopper, array, mask, why):
    with pytest.raises(ValueError, match=f'"fused" cannot serve this call: .*{why}'):
        attend(array, array, array, mask, implementation="fused")


def test_without_kernels_the_device_is_named():
    with pytest.raises(ValueError, match="Hopper GPUs and TPUs, and the device is cpu"):
        attend(HALVES, HALVES, HALVES, causal(), implementation="fused")


def test_auto_takes_a_plan_to_blocks(best):
    dense = attend(X, X, X, causal(), implementation="dense")
    np.testing.assert_allclose(attend(X, X, X, PLAN), dense, rtol=1e-5, atol=1e-6)


def test_prepare_and_explain_ask_the_place_that_chooses(best):
    plan = prepare(causal(), 6, 6)
    assert (plan.block_q, plan.block_kv) == (6, 6)
    assert explain(causal(), 6, 6).endswith('implementation="auto" chooses "doubled": it is new')


@pytest.mark.parametrize("mask", [np.ones((6, 6), bool), PLAN, None], ids=["array", "plan", "none"])
@pytest.mark.parametrize("asked", [prepare, explain])
def test_what_is_no_mask_is_refused_by_its_type(asked, mask):
    with pytest.raises(TypeError, match=rf"mask is a {type(mask).__name__}; expected a Mask"):
        asked(mask, 1024, 1024)
