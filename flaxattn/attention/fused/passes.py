"""The passes of attention by kernels, in place of those of loops in `attention/passes.py`."""

import importlib
from typing import Any

import jax
import jax.numpy as jnp

from flaxattn.attention import passes
from flaxattn.attention.chunks import Fixed, Inputs, Setting, static_of
from flaxattn.attention.fused.given import Returned, columns_of, given_to, rules_of
from flaxattn.attention.repair import unless_nan
from flaxattn.attention.residuals import Outputs, Residuals, joined, returned, unless_empty
from flaxattn.attention.tiles import pad_to
from flaxattn.varying import varying_like

__all__ = ["backward", "forward", "kernels_of"]


def kernels_of(chip: str) -> Any:
    """The module with the kernels of a chip, which is imported where they are used."""
    return importlib.import_module(f"flaxattn.attention.fused.{chip}")


def forward(setting: Setting, inputs: Inputs, fixed: Fixed) -> Outputs:
    """The output and the log-sum-exp, by a kernel."""
    assert setting.kernels is not None
    kernels = kernels_of(setting.kernels)
    rules = rules_of(setting, inputs, fixed, derived=False)
    given = given_to(setting, inputs, fixed, rules, kernels.LANES)
    sizes = {"block_q": setting.block_q, "block_kv": setting.block_kv}
    found = kernels.forward(given, rules, **sizes, wide=setting.wide)
    output, lse = (varying_like(x, given) for x in found)
    length, width = inputs.query.shape[1], inputs.value.shape[3]
    output = output[:, :length, :, :width].astype(jnp.float32)
    return Outputs(output, lse[:, :, :length].swapaxes(1, 2))


def backward(setting: Setting, residuals: Residuals, d_outputs: Outputs) -> Inputs:
    """The gradients of the inputs, by kernels, or by loops if a bias or a score is learned."""
    assert setting.kernels is not None
    inputs, fixed, outputs = residuals
    kernels = kernels_of(setting.kernels)
    widths = inputs.query.shape[3], inputs.value.shape[3]
    learned = inputs.bias is not None or jax.tree.leaves(inputs.score)
    if learned or max(widths) > kernels.WIDEST_WITH_GRADIENT:
        return passes.backward(setting, residuals, d_outputs)
    d_output, mean = returned(outputs, d_outputs)
    rules = rules_of(setting, inputs, fixed, derived=True)
    given = given_to(setting, inputs, fixed, rules, kernels.LANES)
    length, width = given.query.shape[1], given.value.shape[3]
    # Weights of rows that see what is not finite are NaN; what they do not see is to stay whole.
    finite_mean = jnp.where(jnp.isnan(outputs.lse), 0.0, mean)
    back = Returned(
        d_output=pad_to(pad_to(d_output.astype(inputs.value.dtype), 1, length), 3, width),
        lse=pad_to(_by_heads(unless_empty(outputs.lse)), 2, length, jnp.inf),
        mean=pad_to(_by_heads(finite_mean), 2, length),
    )
    sizes = {"block_q": setting.block_q, "block_kv": setting.block_kv}
    d_query = kernels.backward_query(given, back, rules, **sizes)
    columns = columns_of(given.rows)
    d_keys = kernels.backward_keys(given.by_keys(), back, rules, columns=columns, **sizes)
    d_query, d_key, d_value = (
        varying_like(d, (given, back))[:, : x.shape[1], :, : x.shape[3]]
        for d, x in zip((d_query, *d_keys), inputs[:3], strict=True)
    )
    if fixed.q_nan is not None and setting.marked:  # keys and values are zero already
        d_query = unless_nan(d_query, fixed.q_nan)
    tiling = static_of(setting, inputs, fixed).tiling
    return joined(tiling, residuals, inputs._replace(query=d_query, key=d_key, value=d_value), mean)


def _by_heads(x: jax.Array) -> jax.Array:
    """[B, T, N] -> float32 [B, N, T]."""
    return x.swapaxes(1, 2).astype(jnp.float32)
