"""Kernels for Hopper GPUs in the interpreter: equal to the definition, and their barriers fit."""

import dataclasses
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hopper_interpreter import interpreted

from flaxattn import attend_with_stats, causal, dropout_keys, lengths, same_segment, sliding_window
from flaxattn.attention.blockwise import prepared
from flaxattn.attention.dropout import seeds_for
from flaxattn.attention.fused import attend as front
from flaxattn.attention.fused import passes
from flaxattn.attention.options import Options
from flaxattn.attention.residuals import Outputs, Residuals
from flaxattn.masks import Mask
from flaxattn.scores import alibi


def outputs_and_gradients(
    arrays: list[jax.Array], d_output: jax.Array, mask: Mask, options: Options
) -> list[jax.Array]:
    """Of the kernels, as the operation of attention runs them."""
    query, key, value = arrays
    with mock.patch.object(front, "chip", lambda: "hopper"):
        plan = front.draw_fused_plan(mask, query.shape[1], key.shape[1])
    call = prepared(*arrays, plan, options, has_mask=True, kernels="hopper")
    setting, inputs, fixed = call
    with interpreted():
        outputs = passes.forward(setting._replace(wide=True), inputs, fixed)
        back = Outputs(d_output.astype(jnp.float32), jnp.zeros_like(outputs.lse))
        found = passes.backward(setting, Residuals(inputs, fixed, outputs), back)
    return [outputs.output, outputs.lse, found.query, found.key, found.value, found.scale]


CASES: dict[str, Any] = {
    "causal, grouped heads": dict(shape=(140, 140, 2, 1, 64, 64), mask=causal()),
}


@pytest.mark.parametrize("name", CASES)
def test_equals_the_definition(name: str) -> None:
    case = CASES[name]
    q_len, kv_len, heads, kv_heads, width, v_width = case["shape"]
    rng = np.random.default_rng(0)
    shapes = [(q_len, heads, width), (kv_len, kv_heads, width), (kv_len, kv_heads, v_width)]
    *arrays, d_output = (
        jnp.asarray(rng.normal(size=(1, *s)), jnp.bfloat16) for s in (*shapes, (q_len, heads, v_width))
    )
    options = case.get("options", Options())
    found = outputs_and_gradients(arrays, d_output, case["mask"], options)
    print([x.shape for x in found])
