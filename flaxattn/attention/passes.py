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
from flaxattn.attention.residuals import (
    Outputs,
    Residuals,
    joined,
    returned,
    split_lse,
    unless_broken,
)
from flaxattn.attention.scored_tiles import before_score
from flaxattn.attention.tiles import At, add_blocks, over_levels, take_blocks
from flaxattn.attention.visits import (
    Changes,
    Gradients,
    KeyGradients,
    Running,
    Tile,
    add_bias,
    over_visits,
    place,
    tile_of,
    where_seen,
    without_dropped,
)
from flaxattn.einsum import wide_einsum
from flaxattn.scores import Score
from flaxattn.varying import zero_varying_like

__all__ = ["backward", "forward", "tangents"]


def forward(setting: Setting, inputs: Inputs, fixed: Fixed) -> Outputs:
    """The output and the log-sum-exp."""
    static = static_of(setting, inputs, fixed)
    chunks = cut(static, inputs, fixed)

    def one(_: None, chunk: Chunk, at: At) -> tuple[None, Outputs]:
        def row_of(_: None, row: Row) -> tuple[None, Outputs]:
            return None, _forward_row(static, make_row(static, row, chunk), chunk)

        return jax.lax.scan(row_of, None, rows_of(static, chunk))

    tiling = static.tiling
    _, (output, lse) = over_levels(one, None, chunks, tiling.levels)
    return Outputs(tiling.join_q(output), tiling.join_q(lse))


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

    zero, sinks = zero_varying_like((chunk, row), dtype), chunk.inputs.sinks
    # A sink is a logit with a value of zero: the sum begins with it.
    first = jnp.full(shape, -jnp.inf, dtype) if sinks is None else tiling.for_queries(sinks)
    start = Running(
        first + zero,
        jnp.where(first == -jnp.inf, 0.0, 1.0).astype(dtype) + zero,
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
    chunks = cut(static, inputs, fixed, Returning(split_lse(tiling, lse)), d_inputs)

    def one(_: None, chunk: Chunk, at: At) -> tuple[None, Changes]:
        def row_of(_: None, rows: tuple[Row, Row]) -> tuple[None, Changes]:
            return None, _tangents_row(static, *rows, chunk)

        assert chunk.tangents is not None
        rows = rows_of(static, chunk)
        still = chunk.fixed._replace(bias=None)
        d_rows = rows_of(static, chunk._replace(inputs=chunk.tangents, fixed=still))
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
            moved = chunk._replace(inputs=inputs)
            own = row._replace(query=query, bias=row.bias if bias is None else bias)
            tile = tile_of(static, make_row(static, own, moved), moved, j, partial)
            return (tile.logits, take_blocks(inputs.value, tile.blocks)), tile

        (logits, value), (d_logits, d_value), tile = jax.jvp(
            tile_and_value,
            (row.query, None if d_row.bias is None else row.bias, chunk.inputs),
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
    d_lse = jnp.zeros(shape, dtype)
    if chunk.inputs.sinks is not None and d_inputs.sinks is not None:
        sinks, d_sinks = map(tiling.for_queries, (chunk.inputs.sinks, d_inputs.sinks))
        d_lse = jnp.exp(sinks - lse_of_row) * d_sinks
    start = Changes(jnp.zeros((*shape, value_dim), dtype) + zero, d_lse + zero)
    mixed, lse = over_visits(static, row, visit, start)
    return Changes(tiling.unfold(mixed), tiling.unfold(lse))


def backward(setting: Setting, residuals: Residuals, d_outputs: Outputs) -> Inputs:
    """The transpose of `tangents`: cotangents of the outputs to those of the inputs."""
    inputs, fixed, outputs = residuals
    static = static_of(setting, inputs, fixed)
    tiling = static.tiling
    d_output, mean = returned(outputs, d_outputs)
    returning = Returning(
        lse=split_lse(tiling, outputs.lse),
        mean=tiling.split_q(mean),
        d_output=tiling.split_q(d_output.astype(inputs.value.dtype)),
    )
    chunks = cut(static, inputs, fixed, returning)
    dtype = outputs.lse.dtype

    def one(
        so_far: OfAll, chunk: Chunk, at: At
    ) -> tuple[OfAll, tuple[jax.Array, jax.Array, jax.Array]]:
        def row_of(so_far: KeyGradients, row: Row) -> tuple[KeyGradients, jax.Array]:
            return _backward_row(static, make_row(static, row, chunk), chunk, at, so_far)

        zero = zero_varying_like(chunk, dtype)
        d_key, d_value = (
            jnp.zeros(x.swapaxes(-1, -2).shape, dtype) + zero
            for x in (chunk.inputs.key, chunk.inputs.value)
        )
        own = jax.tree.map(lambda x: x[place(x, at)], so_far.score)
        start = KeyGradients(d_key, d_value, so_far.bias, own)
        of_keys, d_query = jax.lax.scan(row_of, start, rows_of(static, chunk))
        score = jax.tree.map(lambda x, y: x.at[place(x, at)].set(y), so_far.score, of_keys.score)
        return OfAll(of_keys.bias, score), (d_query, of_keys.key, of_keys.value)

    zero, cuts = zero_varying_like(chunks, dtype), chunks.inputs
    of_all = OfAll(
        *jax.tree.map(lambda x: jnp.zeros(x.shape, dtype) + zero, (cuts.bias, cuts.score))
    )
    of_all, (d_query, d_key, d_value) = over_levels(one, of_all, chunks, tiling.levels)
    d_query = tiling.join_q(d_query)
    d_key, d_value = (tiling.join_kv(x.swapaxes(-1, -2)) for x in (d_key, d_value))
    found = Inputs(d_query, d_key, d_value, of_all.bias, inputs.scale, of_all.score)
    if setting.marked:
        found = unless_broken(fixed, found)
    return joined(tiling, residuals, found, mean)


class OfAll(NamedTuple):
    """Gradients that all examples and chunks add to, as their arrays are cut."""

    bias: jax.Array | None
    score: Score | None


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
        d_query, (d_key, d_value, d_bias, d_score) = so_far
        tile = tile_of(static, row, chunk, j, partial)
        value = take_blocks(chunk.inputs.value, tile.blocks)
        seen = None if tile.seen is None else seen_by_heads(tile.seen)
        weights = where_seen(seen, jnp.exp(tile.logits - lse[..., None]))
        d_weights = wide_einsum("nth,nsh->nts", d_output, value, dtype)
        mixing, d_weights = (
            without_dropped(static, tile, weights, x) for x in (weights, d_weights)
        )
        d_logits = where_seen(seen, weights * (d_weights - mean[..., None]))
        d_logits, d_own = before_score(
            static.tiling, chunk, tile.unscored, tile.pairs, tile.seen, d_logits
        )
        mixing, narrow = mixing.astype(value.dtype), d_logits.astype(value.dtype)
        d_query += wide_einsum("nts,nsh->nth", narrow, tile.key, dtype)
        d_k = wide_einsum("nht,nts->nhs", columns[0], narrow, dtype)
        d_k = d_k if factor is None else d_k * factor
        d_v = wide_einsum("nht,nts->nhs", columns[1], mixing, dtype)
        d_key, d_value = (add_blocks(x, tile.blocks, d) for x, d in ((d_key, d_k), (d_value, d_v)))
        if d_bias is not None:
            d_logits = static.tiling.unfold(d_logits)
            d_bias = add_bias(d_bias, (*at, row.number), tile.blocks, d_logits)
        d_score = jax.tree.map(jnp.add, d_score, d_own)
        return Gradients(d_query, KeyGradients(d_key, d_value, d_bias, d_score))

    start = jnp.zeros(row.query.shape, dtype) + zero_varying_like((chunk, row), dtype)
    d_query, of_keys = over_visits(static, row, visit, Gradients(start, of_keys))
    return of_keys, static.tiling.unfold(d_query)
