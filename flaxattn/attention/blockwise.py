"""Attention over the live blocks of a plan, with memory that grows with T + S, on any backend.

The forward pass is the online softmax of Milakov and Gimelshein (arXiv:1805.02867) in the tiles of
FlashAttention (arXiv:2205.14135); the backward pass computes the logits anew from the log-sum-exp
of each row. Empty blocks are never visited and full ones are not asked about the mask.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from flaxattn.attention.dense import softmax_dtype
from flaxattn.attention.dropout import head_seeds, keep
from flaxattn.attention.repair import not_finite, repair, without
from flaxattn.attention.tiles import Tiling, add_blocks, over_levels, take_blocks
from flaxattn.masks import BlockPlan, Mask
from flaxattn.masks.mask import map_leaves
from flaxattn.products import wide_einsum

__all__ = ["attend_blockwise"]


class Static(NamedTuple):
    """What is known while tracing."""

    tiling: Tiling
    rate: float
    masked: bool  # False: every query sees every key, and nothing is asked of the mask


class Inputs(NamedTuple):
    """What gradients flow to: [B, T, N, H], [B, S, K, H], [B, S, K, H'], [B, N, T, S] or None."""

    query: jax.Array
    key: jax.Array
    value: jax.Array
    bias: jax.Array | None
    scale: jax.Array


class Fixed(NamedTuple):
    """What no gradient flows to; [levels, ...] stands for B, C and D, 1 where shared."""

    mask: Mask  # leaves [levels, ...]
    blocks: jax.Array  # the plan: int32 [levels, R, u, blocks]
    num_full: jax.Array  # int32 [levels, R, u]
    num_live: jax.Array
    q_nan: jax.Array | None  # [levels, R, u, k, g, t], NaN where a query is not finite, else 0
    kv_nan: jax.Array | None  # [levels, blocks, k, s], likewise of a key or its value
    seeds: jax.Array | None  # uint32 [levels, k, g, 2]


class Row(NamedTuple):
    """A row of query blocks, of one example and chunk of heads; what else it has is optional.

    Blocks and key heads are one axis of u·k, and query heads of a group and queries one of g·t:
    matrix products of rank three are the ones that XLA does without a copy.
    """

    number: jax.Array
    blocks: jax.Array  # int32 [u, blocks]
    num_full: jax.Array  # int32 [u]
    num_live: jax.Array
    query: jax.Array  # [u·k, g·t, H], without what is not finite, and scaled if factor is None
    factor: jax.Array | None  # of the logits, where the query is too narrow to be scaled
    q_nan: jax.Array | None = None  # [u·k, g·t]
    bias: jax.Array | None = None  # [u, k, g, t, blocks, s], 1 where shared
    lse: Any = None  # [u·k, g·t]
    mean: Any = None
    d_output: Any = None  # [u·k, g·t, H']


class Tile(NamedTuple):
    """The logits of one step, and what they were made of."""

    logits: jax.Array  # [u·k, g·t, W·s], -inf where hidden
    seen: jax.Array | None  # bool [u, t, W·s]; None: all
    blocks: jax.Array  # int32 [u, W]
    key: jax.Array  # [u·k, W·s, H]
    kept: jax.Array | None  # bool [u·k, g·t, W·s], what dropout keeps


def attend_blockwise(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    plan: BlockPlan,
    *,
    bias: jax.Array | None,
    scale: Any,
    dropout_key: jax.Array | None,
    rate: float,
    masked: bool,
) -> tuple[jax.Array, jax.Array]:
    """The output [B, T, N, H'] and the float32 log-sum-exp [B, T, N] of attention by blocks.

    Args are those of `attend`; `masked` False says that there was no mask, so that what is not
    finite is not looked for: there is nothing it could be hidden by.
    """
    (batch, _, num_heads, head_dim), num_kv_heads = query.shape, key.shape[2]
    dtype = softmax_dtype(query.dtype)
    lead = plan.bounds.some.ndim - 2
    per_head = len(plan.mask.lead) == 2 and plan.mask.lead[1] > 1
    tiling = Tiling.of(batch, num_heads, num_kv_heads, plan, per_head)
    num_full, q_nan, kv_nan = plan.live.num_full, None, None
    if masked:
        # If anything is not finite, full blocks are treated as partial ones: those repair.
        _, key, value, q_nan, kv_nan = repair(query, key, value, dtype)  # queries: in their rows
        num_full = jnp.where(jnp.isnan(q_nan).any() | jnp.isnan(kv_nan).any(), 0, num_full)
        q_nan, kv_nan = tiling.split_q(q_nan), tiling.split_kv(kv_nan)
    blocks = jnp.asarray(plan.live.blocks)
    blocks = jnp.pad(
        blocks, [(0, 0)] * (blocks.ndim - 1) + [(0, tiling.kv_blocks - blocks.shape[-1])]
    )
    fixed = Fixed(
        mask=map_leaves(lambda x, n: tiling.split_lead(jnp.asarray(x), n), plan.mask),
        blocks=tiling.split_lead(tiling.split_rows(blocks, -2), lead),
        num_full=tiling.split_lead(tiling.split_rows(jnp.asarray(num_full)), lead),
        num_live=tiling.split_lead(tiling.split_rows(jnp.asarray(plan.live.num_live)), lead),
        q_nan=q_nan,
        kv_nan=kv_nan,
        seeds=None
        if dropout_key is None
        else tiling.split_heads(head_seeds(dropout_key, batch, num_heads)),
    )
    scale = jnp.asarray(head_dim**-0.5 if scale is None else scale, dtype)
    static = Static(tiling, rate, masked)
    return _attend(static, Inputs(query, key, value, bias, scale), fixed)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(static: Static, inputs: Inputs, fixed: Fixed) -> tuple[jax.Array, jax.Array]:
    return _forward(static, inputs, fixed)[0]


def _forward(static: Static, inputs: Inputs, fixed: Fixed) -> tuple[Any, Any]:
    tiling = static.tiling
    arrays = {
        "query": tiling.split_q(inputs.query),
        "key": tiling.split_kv(inputs.key),
        "value": tiling.split_kv(inputs.value),
        "bias": None if inputs.bias is None else tiling.split_bias(inputs.bias),
        "fixed": fixed,
    }

    def one(_: None, of: Any, at: Any) -> tuple[None, Any]:
        def row_of(_: None, x: Any) -> tuple[None, Any]:
            return None, _forward_row(static, _row(static, x, of, inputs.scale), of)

        return jax.lax.scan(row_of, None, _rows(static, of))

    _, (output, lse) = over_levels(one, None, arrays, tiling.levels)
    output = tiling.join_q(output).astype(inputs.query.dtype)
    lse = tiling.join_q(lse)
    return (output, lse), (inputs, fixed, output, lse)


def _forward_row(static: Static, row: Row, of: Any) -> tuple[jax.Array, jax.Array]:
    """A row's output [u, k, g, t, H'] and log-sum-exp [u, k, g, t]."""
    tiling, dtype = static.tiling, softmax_dtype(row.query.dtype)
    shape = row.query.shape[:-1]

    def step(j: jax.Array, carry: Any, masked: bool) -> Any:
        top, total, mixed, any_seen = carry
        tile = _tile(static, row, of, j, masked)
        value = take_blocks(of["value"], tile.blocks)
        new_top = jnp.maximum(top, tile.logits.max(axis=-1))
        origin = jnp.where(new_top == -jnp.inf, 0.0, new_top)  # nothing seen so far
        powers, decay = jnp.exp(tile.logits - origin[..., None]), jnp.exp(top - origin)
        total = total * decay + powers.sum(axis=-1)
        if tile.kept is not None:
            powers = jnp.where(tile.kept, powers / (1.0 - static.rate), 0.0)
        products = wide_einsum("nts,nsh->nth", powers.astype(value.dtype), value, dtype)
        seen = True if tile.seen is None else tile.seen.any(axis=-1)
        return new_top, total, mixed * decay[..., None] + products, any_seen | seen

    zero = _zero((of, row), dtype)
    start = (
        jnp.full(shape, -jnp.inf, dtype) + zero,
        jnp.zeros(shape, dtype) + zero,
        jnp.zeros((*shape, of["value"].shape[-1]), dtype) + zero,
        jnp.zeros((tiling.q_per_row, tiling.block_q), bool) | (zero > 0),
    )
    top, total, mixed, any_seen = _over_steps(static, row, step, start)
    any_seen = tiling.for_heads(any_seen)
    output = jnp.where(any_seen[..., None], mixed / total[..., None], 0.0)
    lse = jnp.where(any_seen, top + jnp.log(total), -jnp.inf)
    return tiling.unfold(output), tiling.unfold(lse)


def _backward(static: Static, residuals: Any, cotangents: Any) -> tuple[Inputs, None]:
    inputs, fixed, output, lse = residuals
    d_output, d_lse = cotangents
    tiling, dtype = static.tiling, lse.dtype
    # The softmax's Jacobian takes from each row its mean; the log-sum-exp's adds to it.
    mean = (d_output.astype(dtype) * output.astype(dtype)).sum(axis=-1) - d_lse
    arrays = {
        "query": tiling.split_q(inputs.query),
        "key": tiling.split_kv(inputs.key),
        "value": tiling.split_kv(inputs.value),
        "bias": None if inputs.bias is None else tiling.split_bias(inputs.bias),
        "fixed": fixed,
        "lse": tiling.split_q(jnp.where(lse == -jnp.inf, jnp.inf, lse)),  # exp(x - inf) = 0
        "mean": tiling.split_q(mean),
        "d_output": tiling.split_q(d_output),
    }

    def one(d_bias: Any, of: Any, at: Any) -> tuple[Any, Any]:
        def row_of(carry: Any, x: Any) -> tuple[Any, Any]:
            return _backward_row(static, _row(static, x, of, inputs.scale), of, at, carry)

        shapes = (of[name].swapaxes(-1, -2).shape for name in ("key", "value"))
        start = [jnp.zeros(shape, dtype) + _zero(of, dtype) for shape in shapes]
        rows = _rows(static, of)
        (d_key, d_value, d_bias), d_query = jax.lax.scan(row_of, (*start, d_bias), rows)
        return d_bias, (d_query, d_key, d_value)

    d_bias = None
    if inputs.bias is not None:
        d_bias = jnp.zeros(arrays["bias"].shape, dtype) + _zero(arrays, dtype)
    d_bias, (d_query, d_key, d_value) = over_levels(one, d_bias, arrays, tiling.levels)
    d_query = tiling.join_q(d_query)
    d_key, d_value = (tiling.join_kv(x.swapaxes(-1, -2)) for x in (d_key, d_value))
    query = inputs.query
    if static.masked:
        broken = not_finite(query)
        query, d_query = without(query, broken), without(d_query, broken)
    d_scale = (d_query * query.astype(dtype)).sum()
    if query.dtype != dtype:
        d_key *= inputs.scale
    if d_bias is not None:
        d_bias = tiling.join_bias(d_bias, inputs.bias.shape).astype(inputs.bias.dtype)
    gradients = (d_query * inputs.scale, d_key, d_value)
    d_query, d_key, d_value = (g.astype(inputs.query.dtype) for g in gradients)
    return Inputs(d_query, d_key, d_value, d_bias, d_scale), None


def _backward_row(static: Static, row: Row, of: Any, at: Any, carry: Any) -> tuple[Any, jax.Array]:
    """Adds a row's share to the gradients in `carry` and gives its queries', not yet scaled."""
    dtype, seen_by_heads = row.lse.dtype, static.tiling.for_heads
    # Gradients of keys and values are kept with features before positions: so, too, are queries
    # here, and no matrix product has to turn a tile of weights around.
    columns = [x.swapaxes(1, 2) for x in (row.query, row.d_output)]

    def step(j: jax.Array, carry: Any, masked: bool) -> Any:
        d_query, d_key, d_value, d_bias = carry
        tile = _tile(static, row, of, j, masked)
        value = take_blocks(of["value"], tile.blocks)
        seen = None if tile.seen is None else seen_by_heads(tile.seen)
        weights = _where(seen, jnp.exp(tile.logits - row.lse[..., None]))
        d_weights = wide_einsum("nth,nsh->nts", row.d_output, value, dtype)
        mixing = weights
        if tile.kept is not None:
            mixing, d_weights = (
                jnp.where(tile.kept, x / (1.0 - static.rate), 0.0) for x in (weights, d_weights)
            )
        d_logits = _where(seen, weights * (d_weights - row.mean[..., None]))
        mixing, narrow = mixing.astype(value.dtype), d_logits.astype(value.dtype)
        d_query += wide_einsum("nts,nsh->nth", narrow, tile.key, dtype)
        d_k = wide_einsum("nht,nts->nhs", columns[0], narrow, dtype)
        d_v = wide_einsum("nht,nts->nhs", columns[1], mixing, dtype)
        d_key, d_value = (add_blocks(x, tile.blocks, d) for x, d in ((d_key, d_k), (d_value, d_v)))
        if d_bias is not None:
            d_logits = static.tiling.unfold(d_logits)
            d_bias = _add_bias(d_bias, (*at, row.number), tile.blocks, d_logits)
        return d_query, d_key, d_value, d_bias

    start = jnp.zeros(row.query.shape, dtype) + _zero((of, row), dtype)
    d_query, *carry = _over_steps(static, row, step, (start, *carry))
    return tuple(carry), static.tiling.unfold(d_query)


_attend.defvjp(_forward, _backward)


def _rows(static: Static, of: Any) -> tuple[Any, ...]:
    """What `_row` takes, stacked over rows."""
    fixed, bias = of["fixed"], of["bias"]
    own = {name: of[name] for name in ("query", "lse", "mean", "d_output") if name in of}
    plan = (_count(static.tiling.rows), fixed.blocks, fixed.num_full, fixed.num_live)
    return plan, own | {"q_nan": fixed.q_nan}, bias if bias is None or bias.shape[0] > 1 else None


def _row(static: Static, x: Any, of: Any, scale: jax.Array) -> Row:
    (number, blocks, num_full, num_live), own, bias = x
    if of["bias"] is not None and bias is None:
        bias = of["bias"][0]
    own = {name: None if a is None else static.tiling.fold(a) for name, a in own.items()}
    query, q_nan = own.pop("query"), own["q_nan"]
    if q_nan is not None:
        query = without(query, jnp.isnan(q_nan))
    wide = query.dtype == scale.dtype
    query, factor = (query * scale, None) if wide else (query, scale)
    return Row(number, blocks, num_full, num_live, query, factor, bias=bias, **own)


def _over_steps(static: Static, row: Row, step: Any, carry: Any) -> Any:
    """First the steps in which all blocks are full, then the others that hold a live block."""
    width = static.tiling.width
    full = row.num_full.min() // width
    live = (row.num_live.max() + width - 1) // width
    carry = jax.lax.fori_loop(0, full, functools.partial(step, masked=False), carry)
    return jax.lax.fori_loop(full, live, functools.partial(step, masked=True), carry)


def _tile(static: Static, row: Row, of: Any, j: jax.Array, masked: bool) -> Tile:
    """The logits of step `j`; `masked` False: all its blocks are full."""
    tiling, fixed, u = static.tiling, of["fixed"], static.tiling.q_per_row
    slots = j * tiling.width + _count(1, tiling.width)
    blocks = jax.lax.dynamic_slice_in_dim(row.blocks, j * tiling.width, tiling.width, axis=1)
    key = take_blocks(of["key"], blocks)
    logits = wide_einsum("nth,nsh->nts", row.query, key, softmax_dtype(key.dtype))
    if row.factor is not None:
        logits *= row.factor
    if row.bias is not None:
        logits += _bias_tile(tiling, row.bias, blocks).astype(logits.dtype)
    q_blocks = row.number * u + _count(u)
    q_idx = q_blocks[:, None] * tiling.block_q + _count(1, tiling.block_q)
    kv_idx = blocks[:, :, None] * tiling.block_kv + _count(1, 1, tiling.block_kv)
    kv_idx = kv_idx.reshape(u, -1)
    kept = None
    if fixed.seeds is not None:
        over_heads = jax.vmap(jax.vmap(keep, (0, None, None, None)), (0, None, None, None))
        over_blocks = jax.vmap(over_heads, (None, 0, 0, None))
        kept = tiling.fold(over_blocks(fixed.seeds, q_idx, kv_idx, static.rate))
    if not masked:
        return Tile(logits, None, blocks, key, kept)
    live = jnp.repeat(slots < row.num_live[:, None], tiling.block_kv, axis=1)
    seen = (live & (kv_idx < tiling.kv_len))[:, None, :]
    if static.masked:
        seen &= fixed.mask(q_idx[:, :, None], kv_idx[:, None, :])
        kv_nan = jax.lax.optimization_barrier(take_blocks(fixed.kv_nan, blocks))
        logits += jnp.asarray(row.q_nan)[:, :, None] + kv_nan[:, None, :]
    # Barriers keep XLA from evaluating these anew for each head and each use of the logits.
    seen = jnp.broadcast_to(seen, (u, tiling.block_q, kv_idx.shape[1]))
    seen = jax.lax.optimization_barrier(seen)
    logits = jnp.where(tiling.for_heads(seen), logits, -jnp.inf)
    return Tile(jax.lax.optimization_barrier(logits), seen, blocks, key, kept)


def _zero(arrays: Any, dtype: Any) -> jax.Array:
    """0 that varies over devices as the arrays do: what `shard_map` asks of the start of a loop."""
    never = jnp.zeros((), bool)
    for x in jax.tree.leaves(arrays):
        never |= (x.reshape(-1)[0] != x.reshape(-1)[0]) & False
    return never.astype(dtype)


def _count(*shape: int) -> jax.Array:
    """0, 1, 2, ... along the last axis."""
    return jnp.arange(shape[-1], dtype=jnp.int32).reshape(shape)


def _where(seen: jax.Array | None, x: jax.Array) -> jax.Array:
    return x if seen is None else jnp.where(seen, x, 0.0)


def _bias_tile(tiling: Tiling, bias: jax.Array, blocks: jax.Array) -> jax.Array:
    """Bias [u, k, g, t, blocks, s], 1 where shared, at int [u, W] -> [u·k, g·t, W·s]."""
    if bias.shape[4] == 1:
        tile = bias
    elif bias.shape[0] == 1:
        tile = jnp.moveaxis(bias[0][:, :, :, blocks], 3, 0)
    else:
        tile = jax.vmap(lambda own, index: own[:, :, :, index])(bias, blocks)
    tile = tile.reshape(*tile.shape[:4], -1)
    heads = (tiling.q_per_row, tiling.key_heads, tiling.group, tiling.block_q)
    return tiling.fold(jnp.broadcast_to(tile, (*heads, tile.shape[-1])))


def _add_bias(
    d_bias: jax.Array, at: tuple[Any, ...], blocks: jax.Array, d_logits: jax.Array
) -> jax.Array:
    """Adds a tile's [u, k, g, t, W·s] to the gradient of the bias, summed where it is shared."""
    u, rest = len(blocks), d_bias.shape[4:]  # u, k, g, t, blocks, s
    at = tuple(0 if size == 1 else i for i, size in zip(at, d_bias.shape, strict=False))
    rows = _count(u) if rest[0] > 1 else jnp.zeros(u, jnp.int32)
    tile = d_logits.reshape(*d_logits.shape[:4], blocks.shape[1], -1)
    tile = tile.sum(axis=[i for i in (1, 2, 3) if rest[i] == 1], keepdims=True)
    if rest[4] * rest[5] == 1:
        return d_bias.at[(*at, rows)].add(tile.sum(axis=(4, 5), keepdims=True))
    everything = (slice(None),) * 3
    return d_bias.at[(*at, rows[:, None], *everything, blocks)].add(jnp.moveaxis(tile, 4, 1))
