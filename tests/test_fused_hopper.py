"""Kernels for Hopper GPUs in the interpreter: equal to the definition, and their barriers fit."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hopper_interpreter import interpreted

from flaxattn import attend_with_stats, causal, full, lengths, same_segment, sliding_window
from flaxattn.attention.arguments import make_options
from flaxattn.attention.blockwise import prepared
from flaxattn.attention.dropout import seeds_for
from flaxattn.attention.fused import passes
from flaxattn.attention.fused.given import Lists, columns_of
from flaxattn.attention.residuals import Outputs, Residuals
from flaxattn.masks import Mask
from flaxattn.scores import alibi, softcap


def outputs_and_gradients(
    arrays: list[jax.Array], d_output: jax.Array, mask: Mask, given: dict[str, Any]
) -> list[jax.Array]:
    """The output and the gradients of the arrays, of the kernels."""
    query, key, value = arrays
    given = dict(given)
    dropout_key = given.pop("dropout_key", None)
    options = make_options(query, key, **{**NONE, **given}).for_heads(query.shape[2])
    if dropout_key is not None:
        options = dataclasses.replace(options, seeds=seeds_for(dropout_key, 1, query.shape[2]))
    plan = mask.plan(query.shape[1], key.shape[1], block_q=128, block_kv=128)
    setting, inputs, fixed = prepared(
        query, key, value, plan, options, has_mask=True, kernels="hopper"
    )
    with interpreted():
        outputs = passes.forward(setting._replace(wide=True), inputs, fixed)
        back = Outputs(d_output.astype(jnp.float32), jnp.zeros_like(outputs.lse))
        found = passes.backward(setting, Residuals(inputs, fixed, outputs), back)
    return [outputs.output, found.query, found.key, found.value]


NONE = {"bias": None, "scale": None, "score": None, "sinks": None, "dropout_rate": 0.0}


class Case(NamedTuple):
    """Sizes T, S, N, K, H, H', a mask, and options."""

    shape: tuple[int, int, int, int, int, int]
    mask: Mask
    options: dict[str, Any] | None = None


IDS = jnp.asarray([[0] * 100 + [1] * 100])
CASES = {
    "causal documents, grouped heads": Case((200, 200, 2, 1, 64, 64), causal() & same_segment(IDS)),
    "rows and keys without work, own value width, sinks": Case(
        (140, 300, 2, 2, 64, 128),
        lengths(jnp.array([100]), jnp.array([170])),
        {"sinks": jnp.array([0.5, -1.0])},
    ),
    "windows and scales of heads": Case(
        (200, 200, 2, 2, 64, 64),
        sliding_window(jnp.array([[20, 150]])),
        {"scale": jnp.array([0.2, -0.1])},
    ),
    "dropout": Case(
        (140, 140, 2, 1, 64, 64), causal(), {"dropout_rate": 0.3, "dropout_key": jax.random.key(1)}
    ),
    "score": Case((140, 140, 2, 1, 128, 128), causal(), {"score": alibi() >> softcap(2.0)}),
    "all is seen": Case((128, 256, 1, 1, 64, 64), full()),
}


@pytest.mark.thorough(quick=1)
@pytest.mark.parametrize("name", CASES)
def test_equals_the_definition(name: str) -> None:
    """No further from it in float32 than the dense one is in bfloat16, or a tenth more."""
    (q_len, kv_len, heads, kv_heads, width, v_width), mask, options = CASES[name]
    options = options or {}
    rng = np.random.default_rng(0)
    shapes = [(q_len, heads, width), (kv_len, kv_heads, width), (kv_len, kv_heads, v_width)]
    *arrays, d_output = (
        jnp.asarray(rng.normal(size=(1, *shape)), jnp.bfloat16)
        for shape in (*shapes, (q_len, heads, v_width))
    )

    def dense(dtype: Any) -> list[jax.Array]:
        def attend(*arrays: jax.Array) -> tuple[jax.Array, jax.Array]:
            return attend_with_stats(*arrays, mask, **options, implementation="dense")

        query, key, value = (x.astype(dtype) for x in arrays)
        (output, lse), vjp = jax.vjp(attend, query, key, value)
        return [output, *vjp((d_output.astype(dtype), jnp.zeros_like(lse)))]

    found = outputs_and_gradients(arrays, d_output, mask, options)
    exact, rounded = dense(jnp.float32), dense(jnp.bfloat16)
    for x, y, z in zip(found, exact, rounded, strict=True):
        assert jnp.isfinite(x).all()
        assert distance(x, y) <= 1.1 * distance(z, y)


def distance(x: jax.Array, y: jax.Array) -> float:
    """Of two arrays, by the length of the second."""
    x, y = (z.astype(jnp.float32) for z in (x, y))
    return float(jnp.linalg.norm((x - y).ravel()) / jnp.linalg.norm(y.ravel()))


def test_rows_and_columns_of_a_plan() -> None:
    """The query blocks of each key block, as the plan itself tells them."""
    mask = causal() & same_segment(jnp.asarray([[0] * 5 + [1] * 8, [0] * 9 + [1] * 4]))
    plan = mask.plan(13, 13, block_q=2, block_kv=3)
    rows = Lists(*(jnp.asarray(x)[:, None] for x in plan.live))
    for x, y in zip(columns_of(rows), plan.transpose(), strict=True):
        np.testing.assert_array_equal(x[:, 0], y)
