"""One visit of blockwise attention: the logits of a tile, what it is made of, and what is summed.

The letters are those of `tiles.py`.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from flaxattn.attention.dense import softmax_dtype
from flaxattn.attention.dropout import keep
from flaxattn.attention.repair import bounded
from flaxattn.attention.tiles import At, Carry, Tiling, take_blocks
from flaxattn.einsum import wide_einsum
from flaxattn.masks import Mask
from flaxattn.types import PyTree

__all__ = [
    "Chunk",
    "Fixed",
    "Gradients",
    "KeyGradients",
    "Returning",
    "Row",
    "Running",
    "Static",
    "add_bias",
    "make_row",
    "over_visits",
    "rows_of",
    "tile_of",
    "where_seen",
    "zero_varying_like",
]


class Static(NamedTuple):
    """What is known while tracing."""

    tiling: Tiling
    rate: float
    has_mask: bool  # False: every query sees every key, and the mask is not asked


class Fixed(NamedTuple):
    """What no gradient flows to; [levels, ...] stands for B, C and D, 1 where shared."""

    mask: Mask  # leaves [levels, ...]
    blocks: jax.Array  # the plan: int32 [levels, R, u, blocks]
    num_full: jax.Array  # int32 [levels, R, u]
    num_live: jax.Array
    q_nan: jax.Array | None = None  # [levels, R, u, k, g, t], NaN where a query was not finite
    kv_nan: jax.Array | None = None  # [levels, blocks, k, s], likewise of a key or its value
    seeds: jax.Array | None = None  # uint32 [levels, k, g, 2]


class Returning(NamedTuple):
    """What the backward pass has of each query besides: [levels, R, u, k, g, t, ...]."""

    lse: jax.Array  # inf where nothing is seen
    mean: jax.Array  # what the softmax's Jacobian subtracts from each row
    d_output: jax.Array  # [..., H']


class Chunk(NamedTuple):
    """All that a pass reads, [levels, ...]; inside its loops, of one example and chunk."""

    query: jax.Array  # [levels, R, u, k, g, t, H]
    key: jax.Array  # [levels, blocks, k, s, H]
    value: jax.Array  # [levels, blocks, k, s, H']
    bias: jax.Array | None  # [levels, R, u, k, g, t, blocks, s], 1 where shared
    fixed: Fixed
    returning: Returning | None = None


class Row(NamedTuple):
    """A row of query blocks, of one example and chunk of heads.

    Blocks and key heads are one axis of u·k, query heads of a group and queries one of g·t, because
    XLA does matrix products of rank three without a copy.
    """

    number: jax.Array
    blocks: jax.Array  # int32 [u, blocks]
    num_full: jax.Array  # int32 [u]
    num_live: jax.Array
    query: jax.Array  # [u·k, g·t, H], scaled if factor is None
    factor: jax.Array | None = None  # of the logits, where the query is too narrow to be scaled
    q_nan: jax.Array | None = None  # [u·k, g·t]
    bias: jax.Array | None = None  # [u, k, g, t, blocks, s], 1 where shared
    returning: Returning | None = None  # [u·k, g·t, ...]


class Places(NamedTuple):
    """Which queries and keys meet in a visit."""

    slots: jax.Array  # int32 [1, W], places in the lists of blocks
    blocks: jax.Array  # int32 [u, W]
    q_idx: jax.Array  # int32 [u, t]
    kv_idx: jax.Array  # int32 [u, W·s]


class Tile(NamedTuple):
    """The logits of one visit, and what they were made of."""

    logits: jax.Array  # [u·k, g·t, W·s], -inf where hidden
    seen: jax.Array | None  # bool [u, t, W·s]; None: all
    blocks: jax.Array  # int32 [u, W]
    key: jax.Array  # [u·k, W·s, H]
    kept: jax.Array | None  # bool [u·k, g·t, W·s], what dropout keeps


class Running(NamedTuple):
    """The online softmax of a row, so far."""

    top: jax.Array  # [u·k, g·t], the largest logit
    total: jax.Array  # [u·k, g·t], the sum of exp(logit - top)
    mixed: jax.Array  # [u·k, g·t, H'], the values times these powers, summed
    any_seen: jax.Array  # bool [u, t]


class KeyGradients(NamedTuple):
    """Gradients that the rows of an example and chunk add to; features stand before positions."""

    key: jax.Array  # [blocks, k, H, s]
    value: jax.Array  # [blocks, k, H', s]
    bias: jax.Array | None  # of all examples and chunks, as of `Tiling.split_bias`


class Gradients(NamedTuple):
    """Gradients that the visits of a row add to."""

    query: jax.Array  # [u·k, g·t, H]
    of_keys: KeyGradients


def rows_of(static: Static, chunk: Chunk) -> Row:
    """The rows of one example and chunk, stacked; `make_row` completes each."""
    fixed, bias = chunk.fixed, chunk.bias
    return Row(
        number=_count(static.tiling.rows),
        blocks=fixed.blocks,
        num_full=fixed.num_full,
        num_live=fixed.num_live,
        query=chunk.query,
        q_nan=fixed.q_nan,
        bias=None if bias is None or bias.shape[0] == 1 else bias,
        returning=chunk.returning,
    )


def make_row(static: Static, row: Row, chunk: Chunk, scale: jax.Array) -> Row:
    """One of `rows_of`, with its axes folded, its query scaled and the bias that rows share."""
    own = {name: getattr(row, name) for name in ("query", "q_nan", "returning")}
    row = row._replace(**jax.tree.map(static.tiling.fold, own))
    if chunk.bias is not None and row.bias is None:
        row = row._replace(bias=chunk.bias[0])
    if row.query.dtype != scale.dtype:
        return row._replace(factor=scale)
    query = row.query * scale
    if static.has_mask:  # what is hidden stays finite, however large it is
        query = bounded(query)
    return row._replace(query=query)


def over_visits(
    static: Static, row: Row, visit: Callable[[jax.Array, Carry, bool], Carry], carry: Carry
) -> Carry:
    """First the visits in which all blocks are full, then the others that hold a live block.

    `visit` takes its number, what it carries on, and whether its blocks may be partial.
    """
    width = static.tiling.width
    full = row.num_full.min() // width
    live = (row.num_live.max() + width - 1) // width
    carry = jax.lax.fori_loop(0, full, lambda j, carry: visit(j, carry, False), carry)
    carry = jax.lax.fori_loop(full, live, lambda j, carry: visit(j, carry, True), carry)
    return carry


def tile_of(static: Static, row: Row, chunk: Chunk, j: jax.Array, partial: bool) -> Tile:
    """The logits of visit `j`; `partial` False: all its blocks are full."""
    tiling, fixed, places = static.tiling, chunk.fixed, _places(static.tiling, row, j)
    blocks = places.blocks
    key = take_blocks(chunk.key, blocks)
    logits = _logits(tiling, row, key, blocks)
    kept = None if fixed.seeds is None else _kept(static, fixed.seeds, places)
    if not partial:
        return Tile(logits, None, blocks, key, kept)
    if row.q_nan is not None and fixed.kv_nan is not None:  # as they are with a mask
        kv_nan = jax.lax.optimization_barrier(take_blocks(fixed.kv_nan, blocks))
        logits += row.q_nan[:, :, None] + kv_nan[:, None, :]
    # Barriers keep XLA from evaluating these anew for each head and each use of the logits.
    seen = jax.lax.optimization_barrier(_seen(static, row, fixed.mask, places))
    logits = jnp.where(tiling.for_heads(seen), logits, -jnp.inf)
    return Tile(jax.lax.optimization_barrier(logits), seen, blocks, key, kept)


def _places(tiling: Tiling, row: Row, j: jax.Array) -> Places:
    first, u = j * tiling.width, tiling.q_per_row
    blocks = jax.lax.dynamic_slice_in_dim(row.blocks, first, tiling.width, axis=1)
    q_blocks = row.number * u + _count(u)
    q_idx = q_blocks[:, None] * tiling.block_q + _count(1, tiling.block_q)
    kv_idx = blocks[:, :, None] * tiling.block_kv + _count(1, 1, tiling.block_kv)
    return Places(first + _count(1, tiling.width), blocks, q_idx, kv_idx.reshape(u, -1))


def _logits(tiling: Tiling, row: Row, key: jax.Array, blocks: jax.Array) -> jax.Array:
    """[u·k, g·t, W·s] before anything is hidden."""
    logits = wide_einsum("nth,nsh->nts", row.query, key, softmax_dtype(key.dtype))
    if row.factor is not None:
        logits *= row.factor
    if row.bias is not None:
        logits += _bias_tile(tiling, row.bias, blocks).astype(logits.dtype)
    return logits


def _kept(static: Static, seeds: jax.Array, places: Places) -> jax.Array:
    """What dropout keeps: seeds [k, g, 2] -> bool [u·k, g·t, W·s]."""
    over_heads = jax.vmap(jax.vmap(keep, (0, None, None, None)), (0, None, None, None))
    over_blocks = jax.vmap(over_heads, (None, 0, 0, None))
    return static.tiling.fold(over_blocks(seeds, places.q_idx, places.kv_idx, static.rate))


def _seen(static: Static, row: Row, mask: Mask, places: Places) -> jax.Array:
    """bool [u, t, W·s]: what is seen of live blocks; keys past the last are hidden."""
    tiling, (slots, _, q_idx, kv_idx) = static.tiling, places
    live = jnp.repeat(slots < row.num_live[:, None], tiling.block_kv, axis=1)
    seen = (live & (kv_idx < tiling.kv_len))[:, None, :]
    if static.has_mask:
        seen &= mask(q_idx[:, :, None], kv_idx[:, None, :])
    return jnp.broadcast_to(seen, (*q_idx.shape, kv_idx.shape[1]))


def zero_varying_like(arrays: PyTree, dtype: DTypeLike) -> jax.Array:
    """0 that varies over devices as the arrays do: what `shard_map` asks of the start of a loop."""
    never = jnp.zeros((), bool)
    for x in jax.tree.leaves(arrays):
        never |= (x.reshape(-1)[0] != x.reshape(-1)[0]) & False
    return never.astype(dtype)


def _count(*shape: int) -> jax.Array:
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


def add_bias(d_bias: jax.Array, at: At, blocks: jax.Array, d_logits: jax.Array) -> jax.Array:
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
