"""One step of blockwise attention: the logits of a tile, and what a tile is made of.

The letters are those of `tiles.py`.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from flaxattn.attention.dense import softmax_dtype
from flaxattn.attention.dropout import keep
from flaxattn.attention.repair import without
from flaxattn.attention.tiles import Tiling, take_blocks
from flaxattn.masks import Mask
from flaxattn.products import wide_einsum

__all__ = [
    "Fixed",
    "Row",
    "Static",
    "add_bias",
    "make_row",
    "over_steps",
    "rows_of",
    "tile_of",
    "where_seen",
    "zero_like",
]


class Static(NamedTuple):
    """What is known while tracing."""

    tiling: Tiling
    rate: float
    masked: bool  # False: every query sees every key, and nothing is asked of the mask


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


def rows_of(static: Static, of: Any) -> tuple[Any, ...]:
    """What `make_row` takes, stacked over rows."""
    fixed, bias = of["fixed"], of["bias"]
    own = {name: of[name] for name in ("query", "lse", "mean", "d_output") if name in of}
    plan = (count(static.tiling.rows), fixed.blocks, fixed.num_full, fixed.num_live)
    return plan, own | {"q_nan": fixed.q_nan}, bias if bias is None or bias.shape[0] > 1 else None


def make_row(static: Static, x: Any, of: Any, scale: jax.Array) -> Row:
    """A row from its entry of `rows_of`, the arrays of its example and chunk, and the scale."""
    (number, blocks, num_full, num_live), own, bias = x
    if of["bias"] is not None and bias is None:
        bias = of["bias"][0]
    own = {name: None if a is None else static.tiling.fold(a) for name, a in own.items()}
    query, q_nan = own.pop("query"), own["q_nan"]
    if q_nan is not None:
        query = without(query, jnp.isnan(q_nan))
    wide = query.dtype == scale.dtype
    query, factor = (query * scale, None) if wide else (query, scale)
    if q_nan is not None:  # what is hidden stays finite, however large it is
        limit = jnp.finfo(query.dtype).max
        query = jnp.clip(query, -limit, limit)
    return Row(number, blocks, num_full, num_live, query, factor, bias=bias, **own)


def over_steps(static: Static, row: Row, step: Any, carry: Any) -> Any:
    """First the steps in which all blocks are full, then the others that hold a live block."""
    width = static.tiling.width
    full = row.num_full.min() // width
    live = (row.num_live.max() + width - 1) // width
    carry = jax.lax.fori_loop(0, full, functools.partial(step, masked=False), carry)
    return jax.lax.fori_loop(full, live, functools.partial(step, masked=True), carry)


def tile_of(static: Static, row: Row, of: Any, j: jax.Array, masked: bool) -> Tile:
    """The logits of step `j`; `masked` False: all its blocks are full."""
    tiling, fixed, u = static.tiling, of["fixed"], static.tiling.q_per_row
    slots = j * tiling.width + count(1, tiling.width)
    blocks = jax.lax.dynamic_slice_in_dim(row.blocks, j * tiling.width, tiling.width, axis=1)
    key = take_blocks(of["key"], blocks)
    logits = wide_einsum("nth,nsh->nts", row.query, key, softmax_dtype(key.dtype))
    if row.factor is not None:
        logits *= row.factor
    if row.bias is not None:
        logits += _bias_tile(tiling, row.bias, blocks).astype(logits.dtype)
    q_blocks = row.number * u + count(u)
    q_idx = q_blocks[:, None] * tiling.block_q + count(1, tiling.block_q)
    kv_idx = blocks[:, :, None] * tiling.block_kv + count(1, 1, tiling.block_kv)
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


def zero_like(arrays: Any, dtype: Any) -> jax.Array:
    """0 that varies over devices as the arrays do: what `shard_map` asks of the start of a loop."""
    never = jnp.zeros((), bool)
    for x in jax.tree.leaves(arrays):
        never |= (x.reshape(-1)[0] != x.reshape(-1)[0]) & False
    return never.astype(dtype)


def count(*shape: int) -> jax.Array:
    """0, 1, 2, ... along the last axis."""
    return jnp.arange(shape[-1], dtype=jnp.int32).reshape(shape)


def where_seen(seen: jax.Array | None, x: jax.Array) -> jax.Array:
    """`x` where seen, else 0."""
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


def add_bias(
    d_bias: jax.Array, at: tuple[Any, ...], blocks: jax.Array, d_logits: jax.Array
) -> jax.Array:
    """Adds a tile's [u, k, g, t, W·s] to the gradient of the bias, summed where it is shared."""
    u, rest = len(blocks), d_bias.shape[4:]  # u, k, g, t, blocks, s
    at = tuple(0 if size == 1 else i for i, size in zip(at, d_bias.shape, strict=False))
    rows = count(u) if rest[0] > 1 else jnp.zeros(u, jnp.int32)
    tile = d_logits.reshape(*d_logits.shape[:4], blocks.shape[1], -1)
    tile = tile.sum(axis=[i for i in (1, 2, 3) if rest[i] == 1], keepdims=True)
    if rest[4] * rest[5] == 1:
        return d_bias.at[(*at, rows)].add(tile.sum(axis=(4, 5), keepdims=True))
    everything = (slice(None),) * 3
    return d_bias.at[(*at, rows[:, None], *everything, blocks)].add(jnp.moveaxis(tile, 4, 1))
