"""The passes of blockwise attention: forward, its derivative, and the transpose of that.

The forward pass is the online softmax of Milakov and Gimelshein (arXiv:1805.02867) in the tiles of
FlashAttention (arXiv:2205.14135). The others compute the logits anew from the log-sum-exp of each
row. Empty blocks are never visited and full ones are not asked about the mask.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from flaxattn.attention.chunks import (
    Chunk,
    Fixed,
    Inputs,
    Returning,
    Row,
    Setting,
    Static,
    cut,
    make_row,
    rows_of,
    static_of,
)
from flaxattn.attention.dense import softmax_dtype
from flaxattn.attention.tiles import At, Tiling, add_blocks, over_levels, take_blocks
from flaxattn.attention.visits import (
    Changes,
    Gradients,
    KeyGradients,
    Running,
    Tile,
    add_bias,
    over_visits,
    tile_of,
    where_seen,
    without_dropped,
)
from flaxattn.einsum import wide_einsum
from flaxattn.varying import zero_varying_like

__all__ = ["Outputs", "Residuals", "backward", "forward", "tangents"]


class Outputs(NamedTuple):
    """Of attention, or tangents or cotangents of them."""

    output: jax.Array  # [B, T, N, H']
    lse: jax.Array  # [B, T, N], -inf where nothing is seen


class Residuals(NamedTuple):
    """What the derivative has of the forward pass."""

    inputs: Inputs
    fixed: Fixed
    outputs: Outputs


def forward(setting: Setting, inputs: Inputs, fixed: Fixed) -> Outputs:
    """The output and the log-sum-exp."""
    static = static_of(setting, inputs, fixed)
    chunks = cut(static, inputs, fixed)

    def one(_: None, chunk: Chunk, at: At) -> tuple[None, Outputs]:
        def row_of(_: None, row: Row) -> tuple[None, Outputs]:
            return None, _forward_row(static, make_row(static, row, chunk.inputs), chunk)

        return jax.lax.scan(row_of, None, rows_of(static, chunk))

    tiling = static.tiling
    _, (output, lse) = over_levels(one, None, chunks, tiling.levels)
    return Outputs(tiling.join_q(output).astype(inputs.query.dtype), tiling.join_q(lse))


def _forward_row(static: Static, row: Row, chunk: Chunk) -> Outputs:
    """Of a row: [u, k, g, t, H'] and [u, k, g, t]."""
    tiling, dtype = static.tiling, softmax_dtype(row.query.dtype)
    shape, value_dim = row.query.shape[:-1], chunk.inputs.value.shape[-1]

    def visit(j: jax.Array, so_far: Running, partial: bool) -> Running:
        top, total, mixed, any_seen = so_far
        tile = tile_of(static, row, chunk, j, partial)
        value = take_blocks(chunk.inputs.value, tile.blocks)
        new_top = jnp.maximum(top, tile.logits.max(axis=-1))
        origin = jnp.where(new_top == -jnp.inf, 0.0, new_top)  # nothing seen so far
        powers, decay = jnp.exp(tile.logits - origin[..., None]), jnp.exp(top - origin)
        total = total * decay + powers.sum(axis=-1)
        if tile.kept is not None:
            powers = jnp.where(tile.kept, powers / (1.0 - static.setting.rate), 0.0)
        products = wide_einsum("nts,nsh->nth", powers.astype(value.dtype), value, dtype)
        seen = True if tile.seen is None else tile.seen.any(axis=-1)
        return Running(new_top, total, mixed * decay[..., None] + products, any_seen | seen)

    zero = zero_varying_like((chunk, row), dtype)
    start = Running(
        jnp.full(shape, -jnp.inf, dtype) + zero,
        jnp.zeros(shape, dtype) + zero,
        jnp.zeros((*shape, value_dim), dtype) + zero,
        jnp.zeros((tiling.q_per_row, tiling.block_q), bool) | (zero > 0),
    )
    top, total, mixed, any_seen = over_visits(static, row, visit, start)
    any_seen = tiling.for_heads(any_seen)
    output = jnp.where(any_seen[..., None], mixed / total[..., None], 0.0)
    lse = jnp.where(any_seen, top + jnp.log(total), -jnp.inf)
    return Outputs(tiling.unfold(output), tiling.unfold(lse))


def tangents(setting: Setting, residuals: Residuals, d_inputs: Inputs) -> Outputs:
    """The derivative of `forward` along `d_inputs`."""
    inputs, fixed, (output, lse) = residuals
    static = static_of(setting, inputs, fixed)
    tiling = static.tiling
    chunks = cut(static, inputs, fixed, Returning(_split_lse(tiling, lse)), d_inputs)

    def one(_: None, chunk: Chunk, at: At) -> tuple[None, Changes]:
        def row_of(_: None, rows: tuple[Row, Row]) -> tuple[None, Changes]:
            return None, _tangents_row(static, *rows, chunk)

        assert chunk.tangents is not None
        rows = rows_of(static, chunk)
        d_rows = rows_of(static, chunk._replace(inputs=chunk.tangents))
        return jax.lax.scan(row_of, None, (rows, d_rows))

    _, (mixed, d_lse) = over_levels(one, None, chunks, tiling.levels)
    mixed, d_lse = tiling.join_q(mixed), tiling.join_q(d_lse)
    d_output = mixed - output.astype(mixed.dtype) * d_lse[..., None]
    return Outputs(d_output.astype(output.dtype), d_lse)


def _tangents_row(static: Static, row: Row, d_row: Row, chunk: Chunk) -> Changes:
    """Of a row: [u, k, g, t, H'], before the change of the sum is taken off, and [u, k, g, t]."""
    tiling = static.tiling
    d_inputs = chunk.tangents
    assert row.returning is not None and d_inputs is not None
    lse_of_row = tiling.fold(row.returning.lse)
    dtype = lse_of_row.dtype

    def visit(j: jax.Array, so_far: Changes, partial: bool) -> Changes:
        def tile_and_value(
            query: jax.Array, bias: jax.Array | None, inputs: Inputs
        ) -> tuple[tuple[jax.Array, jax.Array], Tile]:
            own = make_row(static, row._replace(query=query, bias=bias), inputs)
            tile = tile_of(static, own, chunk._replace(inputs=inputs), j, partial)
            return (tile.logits, take_blocks(inputs.value, tile.blocks)), tile

        (logits, value), (d_logits, d_value), tile = jax.jvp(
            tile_and_value,
            (row.query, row.bias, chunk.inputs),
            (d_row.query, d_row.bias, d_inputs),
            has_aux=True,
        )
        seen = None if tile.seen is None else tiling.for_heads(tile.seen)
        weights = where_seen(seen, jnp.exp(logits - lse_of_row[..., None]))
        changes = weights * d_logits
        mixing, d_mixing = (without_dropped(static, tile, weights, x) for x in (weights, changes))
        mixed = (
            wide_einsum("nts,nsh->nth", x.astype(y.dtype), y, dtype)
            for x, y in ((mixing, d_value), (d_mixing, value))
        )
        return Changes(so_far.mixed + sum(mixed), so_far.lse + changes.sum(axis=-1))

    zero = zero_varying_like((chunk, row, d_row), dtype)
    shape, value_dim = lse_of_row.shape, chunk.inputs.value.shape[-1]
    start = Changes(jnp.zeros((*shape, value_dim), dtype) + zero, jnp.zeros(shape, dtype) + zero)
    mixed, lse = over_visits(static, row, visit, start)
    return Changes(tiling.unfold(mixed), tiling.unfold(lse))


def backward(setting: Setting, residuals: Residuals, d_outputs: Outputs) -> Inputs:
    """The transpose of `tangents`: cotangents of the outputs to those of the inputs."""
    inputs, fixed, outputs = residuals
    static = static_of(setting, inputs, fixed)
    tiling = static.tiling
    chunks = cut(static, inputs, fixed, _returning(tiling, outputs, d_outputs))
    dtype = outputs.lse.dtype

    def one(
        d_bias: jax.Array | None, chunk: Chunk, at: At
    ) -> tuple[jax.Array | None, tuple[jax.Array, jax.Array, jax.Array]]:
        def row_of(so_far: KeyGradients, row: Row) -> tuple[KeyGradients, jax.Array]:
            return _backward_row(static, make_row(static, row, chunk.inputs), chunk, at, so_far)

        zero = zero_varying_like(chunk, dtype)
        d_key, d_value = (
            jnp.zeros(x.swapaxes(-1, -2).shape, dtype) + zero
            for x in (chunk.inputs.key, chunk.inputs.value)
        )
        start = KeyGradients(d_key, d_value, d_bias)
        of_keys, d_query = jax.lax.scan(row_of, start, rows_of(static, chunk))
        return of_keys.bias, (d_query, of_keys.key, of_keys.value)

    d_bias = None
    if chunks.inputs.bias is not None:
        d_bias = jnp.zeros(chunks.inputs.bias.shape, dtype) + zero_varying_like(chunks, dtype)
    d_bias, (d_query, d_key, d_value) = over_levels(one, d_bias, chunks, tiling.levels)
    d_query = tiling.join_q(d_query)
    d_key, d_value = (tiling.join_kv(x.swapaxes(-1, -2)) for x in (d_key, d_value))
    return _joined(tiling, inputs, Inputs(d_query, d_key, d_value, d_bias, inputs.scale))


def _returning(tiling: Tiling, outputs: Outputs, d_outputs: Outputs) -> Returning:
    """What the backward pass has of each query besides, cut for the loops."""
    (output, lse), (d_output, d_lse) = outputs, d_outputs
    empty = lse == -jnp.inf  # nothing flows back from these rows, not even NaN
    d_output = jnp.where(empty[..., None], 0.0, d_output).astype(d_output.dtype)
    # The softmax's Jacobian subtracts its mean from each row; the log-sum-exp's adds to the row.
    mean = (d_output.astype(lse.dtype) * output.astype(lse.dtype)).sum(axis=-1) - d_lse
    return Returning(
        lse=_split_lse(tiling, lse),
        mean=tiling.split_q(mean),
        d_output=tiling.split_q(d_output),
    )


def _split_lse(tiling: Tiling, lse: jax.Array) -> jax.Array:
    """Cut for the loops, inf where nothing is seen: exp(x - inf) = 0.

    So it is for queries past the last, whatever their bias.
    """
    return tiling.split_q(jnp.where(lse == -jnp.inf, jnp.inf, lse), past_end=jnp.inf)


def _joined(tiling: Tiling, inputs: Inputs, found: Inputs) -> Inputs:
    """The gradients, put together and scaled, in the dtypes of the inputs."""
    d_query, d_key, d_value, d_bias, scale = found
    dtype = d_query.dtype
    d_scale = d_query * inputs.query.astype(dtype)
    d_scale = d_scale.sum() if scale.size == 1 else d_scale.sum(axis=(0, 1, 3))
    if d_bias is not None and inputs.bias is not None:
        d_bias = tiling.join_bias(d_bias, inputs.bias.shape).astype(inputs.bias.dtype)
    gradients = (d_query * scale[None, None, :, None], d_key, d_value)
    d_query, d_key, d_value = (g.astype(inputs.query.dtype) for g in gradients)
    return Inputs(d_query, d_key, d_value, d_bias, d_scale.reshape(scale.shape))


def _backward_row(
    static: Static, row: Row, chunk: Chunk, at: At, of_keys: KeyGradients
) -> tuple[KeyGradients, jax.Array]:
    """Adds a row's share to the gradients of keys, and gives its queries', not yet scaled."""
    assert row.returning is not None
    lse, mean, d_output = row.returning
    assert mean is not None and d_output is not None
    dtype, seen_by_heads = lse.dtype, static.tiling.for_heads
    # Gradients of keys and values are kept with features before positions. With queries in the
    # same order no matrix product has to transpose a tile of weights.
    query, factor = row.query, row.factor
    if factor is not None and factor.ndim > 0:  # of each head; heads add up in their keys
        query, factor = (query * factor).astype(query.dtype), None
    columns = [x.swapaxes(1, 2) for x in (query, d_output)]

    def visit(j: jax.Array, so_far: Gradients, partial: bool) -> Gradients:
        d_query, (d_key, d_value, d_bias) = so_far
        tile = tile_of(static, row, chunk, j, partial)
        value = take_blocks(chunk.inputs.value, tile.blocks)
        seen = None if tile.seen is None else seen_by_heads(tile.seen)
        weights = where_seen(seen, jnp.exp(tile.logits - lse[..., None]))
        d_weights = wide_einsum("nth,nsh->nts", d_output, value, dtype)
        mixing, d_weights = (
            without_dropped(static, tile, weights, x) for x in (weights, d_weights)
        )
        d_logits = where_seen(seen, weights * (d_weights - mean[..., None]))
        mixing, narrow = mixing.astype(value.dtype), d_logits.astype(value.dtype)
        d_query += wide_einsum("nts,nsh->nth", narrow, tile.key, dtype)
        d_k = wide_einsum("nht,nts->nhs", columns[0], narrow, dtype)
        d_k = d_k if factor is None else d_k * factor
        d_v = wide_einsum("nht,nts->nhs", columns[1], mixing, dtype)
        d_key, d_value = (add_blocks(x, tile.blocks, d) for x, d in ((d_key, d_k), (d_value, d_v)))
        if d_bias is not None:
            d_logits = static.tiling.unfold(d_logits)
            d_bias = add_bias(d_bias, (*at, row.number), tile.blocks, d_logits)
        return Gradients(d_query, KeyGradients(d_key, d_value, d_bias))

    start = jnp.zeros(row.query.shape, dtype) + zero_varying_like((chunk, row), dtype)
    d_query, of_keys = over_visits(static, row, visit, Gradients(start, of_keys))
    return of_keys, static.tiling.unfold(d_query)
