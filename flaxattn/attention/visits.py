"""One visit of blockwise attention: the logits of a tile, what it is made of, and what is summed.

The letters are those of `tiles.py`.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from flaxattn.attention.chunks import Chunk, Fixed, Row, Static, count
from flaxattn.attention.dense import softmax_dtype
from flaxattn.attention.dropout import keep
from flaxattn.attention.scored_tiles import score_tile
from flaxattn.attention.scoring import Pairs
from flaxattn.attention.tiles import At, Carry, Tiling, take_blocks
from flaxattn.einsum import wide_einsum
from flaxattn.masks import Mask
from flaxattn.scores import Score

__all__ = [
    "Changes",
    "Gradients",
    "KeyGradients",
    "Running",
    "Tile",
    "add_bias",
    "over_visits",
    "place",
    "tile_of",
    "where_seen",
    "without_dropped",
]


class Places(NamedTuple):
    """Which queries and keys meet in a visit."""

    slots: jax.Array  # int32 [1, W], places in the lists of blocks
    blocks: jax.Array  # int32 [u, W]
    q_idx: jax.Array  # int32 [u, t]
    kv_idx: jax.Array  # int32 [u, W·s]

    def pairs(self, block_kv: int) -> Pairs:
        """As a score is asked about them."""
        return Pairs(self.q_idx[:, :, None], self.kv_idx[:, None, :], block_kv)


class Tile(NamedTuple):
    """The logits of one visit, and what they were made of."""

    logits: jax.Array  # [u·k, g·t, W·s], -inf where hidden
    unscored: jax.Array  # [u·k, g·t, W·s], before the score, if there is one
    pairs: Pairs
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


class Changes(NamedTuple):
    """Tangents of a row's outputs, so far."""

    mixed: jax.Array  # [u·k, g·t, H']
    lse: jax.Array  # [u·k, g·t]


class KeyGradients(NamedTuple):
    """Gradients that the rows of an example and chunk add to; features stand before positions."""

    key: jax.Array  # [blocks, k, H, s]
    value: jax.Array  # [blocks, k, H', s]
    bias: jax.Array | None  # of all examples and chunks, as of `Tiling.split_bias`
    score: Score | None  # [k, g, ...], 1 where shared, of the floating leaves


class Gradients(NamedTuple):
    """Gradients that the visits of a row add to."""

    query: jax.Array  # [u·k, g·t, H]
    of_keys: KeyGradients


def over_visits(
    static: Static, row: Row, visit: Callable[[jax.Array, Carry, bool], Carry], carry: Carry
) -> Carry:
    """First the visits in which all blocks are full, then the others that hold a live block.

    `visit` takes its number, what it carries on, and whether its blocks may be partial.
    """
    width = static.tiling.width
    full = row.num_full.min() // width
    live = (row.num_live.max() + width - 1) // width
    if static.setting.smooth:
        return _over_all(static.tiling.kv_blocks // width, full, live, visit, carry)
    carry = jax.lax.fori_loop(0, full, lambda j, carry: visit(j, carry, False), carry)
    carry = jax.lax.fori_loop(full, live, lambda j, carry: visit(j, carry, True), carry)
    return carry


def _over_all(
    total: int,
    full: jax.Array,
    live: jax.Array,
    visit: Callable[[jax.Array, Carry, bool], Carry],
    carry: Carry,
) -> Carry:
    """The same in a loop of a known length, which jax can differentiate; each visit anew."""

    def step(carry: Carry, j: jax.Array) -> tuple[Carry, None]:
        kinds = [lambda c: visit(j, c, False), lambda c: visit(j, c, True), lambda c: c]
        kind = (j >= full).astype(jnp.int32) + (j >= live).astype(jnp.int32)
        return jax.checkpoint(lambda c: jax.lax.switch(kind, kinds, c))(carry), None

    return jax.lax.scan(step, carry, count(total))[0]


def tile_of(static: Static, row: Row, chunk: Chunk, j: jax.Array, partial: bool) -> Tile:
    """The logits of visit `j`; `partial` False: all its blocks are full."""
    tiling, fixed, places = static.tiling, chunk.fixed, _places(static.tiling, row, j)
    blocks, pairs = places.blocks, places.pairs(tiling.block_kv)
    key = take_blocks(chunk.inputs.key, blocks)
    unscored = logits = _logits(tiling, row, key, blocks)
    kept = None if fixed.seeds is None else _kept(static, fixed, fixed.seeds, places)
    # Barriers keep XLA from evaluating these anew for each head and each use of the logits.
    seen = jax.lax.optimization_barrier(_seen(static, row, fixed.mask, places)) if partial else None
    if chunk.inputs.score is not None:
        # In the forward pass nothing is derived: it is enough that what is hidden is so in the end.
        derived = chunk.returning is not None or static.setting.smooth
        logits = score_tile(tiling, chunk, logits, pairs, seen, derived=derived)
    tile = Tile(logits, unscored, pairs, seen, blocks, key, kept)
    if seen is None:
        return tile
    if row.q_nan is not None and fixed.kv_nan is not None:  # as they are with a mask
        kv_nan = jax.lax.optimization_barrier(take_blocks(fixed.kv_nan, blocks))
        logits += row.q_nan[:, :, None] + kv_nan[:, None, :]
    logits = jnp.where(tiling.for_heads(seen), logits, -jnp.inf)
    return tile._replace(logits=jax.lax.optimization_barrier(logits))


def _places(tiling: Tiling, row: Row, j: jax.Array) -> Places:
    first, u = j * tiling.width, tiling.q_per_row
    blocks = jax.lax.dynamic_slice_in_dim(row.blocks, first, tiling.width, axis=1)
    q_blocks = row.number * u + count(u)
    q_idx = q_blocks[:, None] * tiling.block_q + count(1, tiling.block_q)
    kv_idx = blocks[:, :, None] * tiling.block_kv + count(1, 1, tiling.block_kv)
    return Places(first + count(1, tiling.width), blocks, q_idx, kv_idx.reshape(u, -1))


def _logits(tiling: Tiling, row: Row, key: jax.Array, blocks: jax.Array) -> jax.Array:
    """[u·k, g·t, W·s] before anything is hidden."""
    logits = wide_einsum("nth,nsh->nts", row.query, key, softmax_dtype(key.dtype))
    if row.factor is not None:
        logits *= row.factor
    if row.bias is not None:
        logits += _bias_tile(tiling, row.bias, blocks).astype(logits.dtype)
    return logits


def _kept(static: Static, fixed: Fixed, seeds: jax.Array, places: Places) -> jax.Array:
    """What dropout keeps: seeds [k, g, 2] -> bool [u·k, g·t, W·s]."""
    q_idx, kv_idx = places.q_idx, places.kv_idx
    if fixed.q_places is not None and fixed.kv_places is not None:
        pairs = (fixed.q_places, q_idx), (fixed.kv_places, kv_idx)
        q_idx, kv_idx = (jnp.take(places, i, mode="clip") for places, i in pairs)
    over_heads = jax.vmap(jax.vmap(keep, (0, None, None, None)), (0, None, None, None))
    over_blocks = jax.vmap(over_heads, (None, 0, 0, None))
    return static.tiling.fold(over_blocks(seeds, q_idx, kv_idx, static.setting.rate))


def _seen(static: Static, row: Row, mask: Mask, places: Places) -> jax.Array:
    """bool [u, t, W·s]: what is seen of live blocks; keys past the last are hidden."""
    tiling, (slots, _, q_idx, kv_idx) = static.tiling, places
    live = jnp.repeat(slots < row.num_live[:, None], tiling.block_kv, axis=1)
    seen = (live & (kv_idx < tiling.kv_len))[:, None, :]
    if static.setting.has_mask:
        seen &= mask(q_idx[:, :, None], kv_idx[:, None, :])
    return jnp.broadcast_to(seen, (*q_idx.shape, kv_idx.shape[1]))


def where_seen(seen: jax.Array | None, x: jax.Array) -> jax.Array:
    """`x` where seen, else 0."""
    return x if seen is None else jnp.where(seen, x, 0.0)


def without_dropped(static: Static, tile: Tile, weights: jax.Array, x: jax.Array) -> jax.Array:
    """`x` [u·k, g·t, W·s] where dropout keeps the weights, scaled up, else 0; NaN stays NaN."""
    if tile.kept is None:
        return x
    stays = tile.kept | jnp.isnan(weights)
    return jnp.where(stays, x / (1.0 - static.setting.rate), 0.0)


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
    at = place(d_bias, at)
    rows = count(u) if rest[0] > 1 else jnp.zeros(u, jnp.int32)
    tile = d_logits.reshape(*d_logits.shape[:4], blocks.shape[1], -1)
    tile = tile.sum(axis=[i for i in (1, 2, 3) if rest[i] == 1], keepdims=True)
    if rest[4] * rest[5] == 1:
        return d_bias.at[(*at, rows)].add(tile.sum(axis=(4, 5), keepdims=True))
    everything = (slice(None),) * 3
    return d_bias.at[(*at, rows[:, None], *everything, blocks)].add(jnp.moveaxis(tile, 4, 1))


def place(x: jax.Array, at: At) -> At:
    """Where the part of an example and chunk is in an array [levels, ...], 1 where shared."""
    return tuple(0 if size == 1 else i for i, size in zip(at, x.shape, strict=False))
