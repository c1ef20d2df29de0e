"""Attention over the live blocks of a plan, with memory that grows with T + S, on any backend.

The forward pass is the online softmax of Milakov and Gimelshein (arXiv:1805.02867) in the tiles of
FlashAttention (arXiv:2205.14135); the backward pass computes the logits anew from the log-sum-exp
of each row. Empty blocks are never visited and full ones are not asked about the mask.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from flaxattn.attention.costs import draw_plan
from flaxattn.attention.dense import attend_dense, softmax_dtype
from flaxattn.attention.dropout import head_seeds
from flaxattn.attention.options import Options
from flaxattn.attention.repair import repair
from flaxattn.attention.tiles import At, Tiling, add_blocks, over_levels, pad_to, take_blocks
from flaxattn.attention.visits import (
    Chunk,
    Fixed,
    Gradients,
    KeyGradients,
    Returning,
    Row,
    Running,
    Static,
    add_bias,
    make_row,
    over_visits,
    rows_of,
    tile_of,
    where_seen,
    zero_varying_like,
)
from flaxattn.einsum import wide_einsum
from flaxattn.masks import BlockPlan, Mask, full
from flaxattn.masks.leaves import map_leaves
from flaxattn.types import Array

__all__ = ["attend_blockwise"]


class Inputs(NamedTuple):
    """What gradients flow to: [B, T, N, H], [B, S, K, H], [B, S, K, H'], [B, N, T, S] or None."""

    query: jax.Array
    key: jax.Array
    value: jax.Array
    bias: jax.Array | None
    scale: jax.Array


class Residuals(NamedTuple):
    """What the backward pass has of the forward one."""

    inputs: Inputs
    fixed: Fixed
    output: jax.Array  # [B, T, N, H']
    lse: jax.Array  # [B, T, N], -inf where nothing is seen


def attend_blockwise(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: Mask | BlockPlan | None,
    options: Options,
) -> tuple[jax.Array, jax.Array]:
    """The output [B, T, N, H'] and the float32 log-sum-exp [B, T, N] of attention by blocks.

    Without a mask nothing can be hidden, and values that are not finite are not looked for.
    """
    if 0 in (*query.shape, *value.shape):  # there are no blocks; dense returns at once
        return attend_dense(query, key, value, mask, options)
    (batch, _, num_heads, head_dim), num_kv_heads = query.shape, key.shape[2]
    dtype = softmax_dtype(query.dtype)
    plan = _plan_of(mask, query.shape[1], key.shape[1])
    per_head = len(plan.mask.lead) == 2 and plan.mask.lead[1] > 1
    tiling = Tiling.of(batch, num_heads, num_kv_heads, plan, per_head)
    fixed = _split_plan(tiling, plan)
    if mask is not None:
        query, key, value, q_nan, kv_nan = repair(query, key, value, dtype)
        # If anything is not finite, full blocks are treated as partial ones, which repair it.
        broken = jnp.isnan(q_nan).any() | jnp.isnan(kv_nan).any()
        fixed = fixed._replace(
            num_full=jnp.where(broken, 0, fixed.num_full),
            q_nan=tiling.split_q(q_nan),
            kv_nan=tiling.split_kv(kv_nan),
        )
    if options.dropout_key is not None:
        seeds = head_seeds(options.dropout_key, batch, num_heads)
        fixed = fixed._replace(seeds=tiling.split_heads(seeds))
    static = Static(tiling, options.dropout_rate, has_mask=mask is not None)
    scale = options.scale_for(head_dim, dtype)
    output, lse = _attend(static, Inputs(query, key, value, options.bias, scale), fixed)
    return output, lse


def _plan_of(mask: Mask | BlockPlan | None, q_len: int, kv_len: int) -> BlockPlan:
    if isinstance(mask, BlockPlan):
        return mask
    return draw_plan(full() if mask is None else mask, q_len, kv_len)


def _split_plan(tiling: Tiling, plan: BlockPlan) -> Fixed:
    """The mask and the lists of a plan, cut for the loops."""
    live, lead = plan.live, plan.bounds.some.ndim - 2

    def split(x: Array, axis: int) -> jax.Array:
        return tiling.split_lead(tiling.split_rows(jnp.asarray(x), axis), lead)

    return Fixed(
        mask=map_leaves(lambda x, n: tiling.split_lead(jnp.asarray(x), n), plan.mask),
        blocks=split(pad_to(jnp.asarray(live.blocks), -1, tiling.kv_blocks), -2),
        num_full=split(live.num_full, -1),
        num_live=split(live.num_live, -1),
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(static: Static, inputs: Inputs, fixed: Fixed) -> tuple[jax.Array, jax.Array]:
    return _forward(static, inputs, fixed)[0]


def _forward(
    static: Static, inputs: Inputs, fixed: Fixed
) -> tuple[tuple[jax.Array, jax.Array], Residuals]:
    def one(_: None, chunk: Chunk, at: At) -> tuple[None, tuple[jax.Array, jax.Array]]:
        def row_of(_: None, row: Row) -> tuple[None, tuple[jax.Array, jax.Array]]:
            row = make_row(static, row, chunk, inputs.scale)
            return None, _forward_row(static, row, chunk)

        _, outputs = jax.lax.scan(row_of, None, rows_of(static, chunk))
        return None, outputs

    tiling = static.tiling
    _, (output, lse) = over_levels(one, None, _chunks(tiling, inputs, fixed), tiling.levels)
    output = tiling.join_q(output).astype(inputs.query.dtype)
    lse = tiling.join_q(lse)
    return (output, lse), Residuals(inputs, fixed, output, lse)


def _chunks(
    tiling: Tiling, inputs: Inputs, fixed: Fixed, returning: Returning | None = None
) -> Chunk:
    """What a pass reads, cut for the loops."""
    return Chunk(
        query=tiling.split_q(inputs.query),
        key=tiling.split_kv(inputs.key),
        value=tiling.split_kv(inputs.value),
        bias=None if inputs.bias is None else tiling.split_bias(inputs.bias),
        fixed=fixed,
        returning=returning,
    )


def _forward_row(static: Static, row: Row, chunk: Chunk) -> tuple[jax.Array, jax.Array]:
    """A row's output [u, k, g, t, H'] and log-sum-exp [u, k, g, t]."""
    tiling, dtype = static.tiling, softmax_dtype(row.query.dtype)
    shape = row.query.shape[:-1]

    def visit(j: jax.Array, so_far: Running, partial: bool) -> Running:
        top, total, mixed, any_seen = so_far
        tile = tile_of(static, row, chunk, j, partial)
        value = take_blocks(chunk.value, tile.blocks)
        new_top = jnp.maximum(top, tile.logits.max(axis=-1))
        origin = jnp.where(new_top == -jnp.inf, 0.0, new_top)  # nothing seen so far
        powers, decay = jnp.exp(tile.logits - origin[..., None]), jnp.exp(top - origin)
        total = total * decay + powers.sum(axis=-1)
        if tile.kept is not None:
            powers = jnp.where(tile.kept, powers / (1.0 - static.rate), 0.0)
        products = wide_einsum("nts,nsh->nth", powers.astype(value.dtype), value, dtype)
        seen = True if tile.seen is None else tile.seen.any(axis=-1)
        return Running(new_top, total, mixed * decay[..., None] + products, any_seen | seen)

    zero = zero_varying_like((chunk, row), dtype)
    start = Running(
        jnp.full(shape, -jnp.inf, dtype) + zero,
        jnp.zeros(shape, dtype) + zero,
        jnp.zeros((*shape, chunk.value.shape[-1]), dtype) + zero,
        jnp.zeros((tiling.q_per_row, tiling.block_q), bool) | (zero > 0),
    )
    top, total, mixed, any_seen = over_visits(static, row, visit, start)
    any_seen = tiling.for_heads(any_seen)
    output = jnp.where(any_seen[..., None], mixed / total[..., None], 0.0)
    lse = jnp.where(any_seen, top + jnp.log(total), -jnp.inf)
    return tiling.unfold(output), tiling.unfold(lse)


def _backward(
    static: Static, residuals: Residuals, cotangents: tuple[jax.Array, jax.Array]
) -> tuple[Inputs, None]:
    inputs, fixed, _, lse = residuals
    tiling, dtype = static.tiling, lse.dtype
    chunks = _chunks(tiling, inputs, fixed, _returning(tiling, residuals, *cotangents))

    def one(
        d_bias: jax.Array | None, chunk: Chunk, at: At
    ) -> tuple[jax.Array | None, tuple[jax.Array, jax.Array, jax.Array]]:
        def row_of(so_far: KeyGradients, row: Row) -> tuple[KeyGradients, jax.Array]:
            row = make_row(static, row, chunk, inputs.scale)
            return _backward_row(static, row, chunk, at, so_far)

        zero = zero_varying_like(chunk, dtype)
        d_key, d_value = (
            jnp.zeros(x.swapaxes(-1, -2).shape, dtype) + zero for x in (chunk.key, chunk.value)
        )
        start = KeyGradients(d_key, d_value, d_bias)
        of_keys, d_query = jax.lax.scan(row_of, start, rows_of(static, chunk))
        return of_keys.bias, (d_query, of_keys.key, of_keys.value)

    d_bias = None
    if chunks.bias is not None:
        d_bias = jnp.zeros(chunks.bias.shape, dtype) + zero_varying_like(chunks, dtype)
    d_bias, (d_query, d_key, d_value) = over_levels(one, d_bias, chunks, tiling.levels)
    d_query = tiling.join_q(d_query)
    d_key, d_value = (tiling.join_kv(x.swapaxes(-1, -2)) for x in (d_key, d_value))
    d_scale = (d_query * inputs.query.astype(dtype)).sum()
    if inputs.query.dtype != dtype:
        d_key *= inputs.scale
    if d_bias is not None and inputs.bias is not None:
        d_bias = tiling.join_bias(d_bias, inputs.bias.shape).astype(inputs.bias.dtype)
    gradients = (d_query * inputs.scale, d_key, d_value)
    d_query, d_key, d_value = (g.astype(inputs.query.dtype) for g in gradients)
    return Inputs(d_query, d_key, d_value, d_bias, d_scale), None


def _returning(
    tiling: Tiling, residuals: Residuals, d_output: jax.Array, d_lse: jax.Array
) -> Returning:
    """What the backward pass has of each query besides, cut for the loops."""
    _, _, output, lse = residuals
    empty = lse == -jnp.inf  # nothing flows back from these rows, not even NaN
    d_output = jnp.where(empty[..., None], 0.0, d_output).astype(d_output.dtype)
    # The softmax's Jacobian subtracts its mean from each row; the log-sum-exp's adds to the row.
    mean = (d_output.astype(lse.dtype) * output.astype(lse.dtype)).sum(axis=-1) - d_lse
    return Returning(
        # exp(x - inf) = 0, also of queries past the last, whatever their bias
        lse=tiling.split_q(jnp.where(empty, jnp.inf, lse), past_end=jnp.inf),
        mean=tiling.split_q(jnp.where(empty, 0.0, mean)),
        d_output=tiling.split_q(d_output),
    )


def _backward_row(
    static: Static, row: Row, chunk: Chunk, at: At, of_keys: KeyGradients
) -> tuple[KeyGradients, jax.Array]:
    """Adds a row's share to the gradients of keys, and gives its queries', not yet scaled."""
    assert row.returning is not None
    lse, mean, d_output = row.returning
    dtype, seen_by_heads = lse.dtype, static.tiling.for_heads
    # Gradients of keys and values are kept with features before positions. With queries in the
    # same order no matrix product has to transpose a tile of weights.
    columns = [x.swapaxes(1, 2) for x in (row.query, d_output)]

    def visit(j: jax.Array, so_far: Gradients, partial: bool) -> Gradients:
        d_query, (d_key, d_value, d_bias) = so_far
        tile = tile_of(static, row, chunk, j, partial)
        value = take_blocks(chunk.value, tile.blocks)
        seen = None if tile.seen is None else seen_by_heads(tile.seen)
        weights = where_seen(seen, jnp.exp(tile.logits - lse[..., None]))
        d_weights = wide_einsum("nth,nsh->nts", d_output, value, dtype)
        mixing = weights
        if tile.kept is not None:
            stays = tile.kept | jnp.isnan(weights)
            mixing, d_weights = (
                jnp.where(stays, x / (1.0 - static.rate), 0.0) for x in (weights, d_weights)
            )
        d_logits = where_seen(seen, weights * (d_weights - mean[..., None]))
        mixing, narrow = mixing.astype(value.dtype), d_logits.astype(value.dtype)
        d_query += wide_einsum("nts,nsh->nth", narrow, tile.key, dtype)
        d_k = wide_einsum("nht,nts->nhs", columns[0], narrow, dtype)
        d_v = wide_einsum("nht,nts->nhs", columns[1], mixing, dtype)
        d_key, d_value = (add_blocks(x, tile.blocks, d) for x, d in ((d_key, d_k), (d_value, d_v)))
        if d_bias is not None:
            d_logits = static.tiling.unfold(d_logits)
            d_bias = add_bias(d_bias, (*at, row.number), tile.blocks, d_logits)
        return Gradients(d_query, KeyGradients(d_key, d_value, d_bias))

    start = jnp.zeros(row.query.shape, dtype) + zero_varying_like((chunk, row), dtype)
    d_query, of_keys = over_visits(static, row, visit, Gradients(start, of_keys))
    return of_keys, static.tiling.unfold(d_query)


_attend.defvjp(_forward, _backward)
