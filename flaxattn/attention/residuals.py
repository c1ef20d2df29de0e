"""What passes of blockwise attention leave to those after them, and what becomes of gradients."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from flaxattn.attention.chunks import Fixed, Inputs
from flaxattn.attention.repair import finite, unless_nan
from flaxattn.attention.tiles import Tiling

__all__ = [
    "Outputs",
    "Residuals",
    "joined",
    "returned",
    "split_lse",
    "unless_broken",
    "unless_empty",
]


class Outputs(NamedTuple):
    """Of attention, or tangents or cotangents of them."""

    output: (
        jax.Array
    )  # [B, T, N, H'] in the dtype of logits: gradients need it before it is rounded
    lse: jax.Array  # [B, T, N], -inf where nothing is seen, sink or not


class Residuals(NamedTuple):
    """What the derivative has of the forward pass."""

    inputs: Inputs
    fixed: Fixed
    outputs: Outputs


def split_lse(tiling: Tiling, lse: jax.Array) -> jax.Array:
    """Cut for the loops, inf also for queries past the last, whatever their bias."""
    return tiling.split_q(unless_empty(lse), past_end=jnp.inf)


def unless_empty(lse: jax.Array) -> jax.Array:
    """inf where nothing is seen: exp(x - inf) = 0, and so is its derivative."""
    return jnp.where(lse == -jnp.inf, jnp.inf, lse)


def returned(outputs: Outputs, d_outputs: Outputs) -> tuple[jax.Array, jax.Array]:
    """The cotangent of the output, and what the softmax's Jacobian subtracts: [B, T, N]."""
    (output, lse), (d_output, d_lse) = outputs, d_outputs
    empty = lse == -jnp.inf  # nothing flows back from these rows, not even NaN
    d_output = jnp.where(empty[..., None], 0.0, d_output).astype(d_output.dtype)
    # The Jacobian subtracts the row's mean; that of the log-sum-exp adds to the row.
    mean = (d_output.astype(lse.dtype) * output.astype(lse.dtype)).sum(axis=-1) - d_lse
    return d_output, mean


def joined(tiling: Tiling, residuals: Residuals, found: Inputs, mean: jax.Array) -> Inputs:
    """The gradients that the loops found, put together and scaled, in the dtypes of the inputs.

    Those of scale and sinks are found here, without loops; `mean` is that of `returned`.
    """
    inputs, outputs = residuals.inputs, residuals.outputs
    d_query, d_bias, d_sinks, scale = found.query, found.bias, None, inputs.scale
    query = inputs.query.astype(d_query.dtype)
    if residuals.fixed.q_nan is not None:  # kernels that repair it themselves have it as it is
        query = finite(query)
    d_scale = _of_heads((d_query * query).sum(axis=-1), scale)
    if inputs.sinks is not None:  # a logit like others, whose value is zero
        weights = jnp.exp(inputs.sinks[None, None] - unless_empty(outputs.lse))
        d_sinks = _of_heads(-weights * mean, inputs.sinks)
    if d_bias is not None and inputs.bias is not None:
        d_bias = tiling.join_bias(d_bias, inputs.bias.shape).astype(inputs.bias.dtype)
    gradients = (d_query * scale[None, None, :, None], found.key, found.value)
    d_query, d_key, d_value = (g.astype(inputs.query.dtype) for g in gradients)
    d_score = jax.tree.map(lambda x, d: tiling.join_heads(d, x.shape), inputs.score, found.score)
    return Inputs(d_query, d_key, d_value, d_bias, d_scale, d_score, d_sinks)


def unless_broken(fixed: Fixed, found: Inputs) -> Inputs:
    """Gradients without those of rows that are not finite."""
    assert fixed.q_nan is not None
    assert fixed.kv_nan is not None
    nans = (fixed.q_nan, fixed.kv_nan, fixed.kv_nan)
    query, key, value = (unless_nan(*pair) for pair in zip(found[:3], nans, strict=True))
    return found._replace(query=query, key=key, value=value)


def _of_heads(x: jax.Array, like: jax.Array) -> jax.Array:
    """[B, T, N] added up as an array [N], 1 where shared."""
    return x.sum().reshape(1) if like.size == 1 else x.sum(axis=(0, 1))
