"""What a pass of blockwise attention is given, and how it is cut into chunks and rows.

The letters are those of `tiles.py`. Every part has the type of the whole.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from flaxattn.attention.repair import bounded, finite
from flaxattn.attention.tiles import Tiling, pad_to
from flaxattn.masks import Mask
from flaxattn.masks.leaves import map_leaves
from flaxattn.scores import Score

__all__ = [
    "Chunk",
    "Fixed",
    "Inputs",
    "Returning",
    "Row",
    "Setting",
    "Static",
    "bias_of",
    "count",
    "cut",
    "make_row",
    "rows_of",
    "static_of",
]


class Setting(NamedTuple):
    """What is known while tracing."""

    block_q: int
    block_kv: int
    rate: float
    has_mask: bool  # False: every query sees every key, and the mask is not asked
    smooth: bool = False  # whether jax is to differentiate the loops
    kernels: str | None = None  # the chip whose kernels do it; None: loops
    wide: bool = False  # whether kernels keep the output in float32, as gradients need it
    marked: bool = False  # whether rows that are not finite are as they are, for kernels to repair


class Static(NamedTuple):
    """That, and the geometry of the arrays that a pass is given."""

    tiling: Tiling
    setting: Setting


class Inputs(NamedTuple):
    """What gradients flow to; second, as it is cut, [levels] being B, C, D, 1 where shared."""

    query: jax.Array  # [B, T, N, H]; [levels, R, u, k, g, t, H]
    key: jax.Array  # [B, S, K, H]; [levels, blocks, k, s, H]
    value: jax.Array  # [B, S, K, H']; [levels, blocks, k, s, H']
    # [B, N, T, S]; [levels, R, u, k, g, t, blocks, s], 1 where shared. None: none, or a fixed one.
    bias: jax.Array | None
    scale: jax.Array  # [N]; [levels, k, g], 1 where shared
    score: Score | None = None  # floating leaves [B, N, ...]; [levels, k, g, ...], 1 where shared
    sinks: jax.Array | None = None  # as the scale


class Fixed(NamedTuple):
    """What no gradient flows to; [lead] stands for B and N of the mask's arrays, 1 where shared."""

    mask: Mask  # leaves [lead, ...]; [levels, ...]
    blocks: jax.Array  # the plan: int32 [lead, Q, blocks]; [levels, R, u, blocks]
    num_full: jax.Array  # int32 [lead, Q]; [levels, R, u]
    num_live: jax.Array
    # NaN where a query, or a key or its value, was not finite.
    q_nan: jax.Array | None = None  # [B, T, N]; [levels, R, u, k, g, t]
    kv_nan: jax.Array | None = None  # [B, S, K]; [levels, blocks, k, s]
    score: Score | None = None  # the leaves of the score that are not floating
    seeds: jax.Array | None = None  # uint32 [B, N, 2]; [levels, k, g, 2]
    # Where queries and keys stand, where that is not in order; [levels, ...].
    q_places: jax.Array | None = None  # int32 [T]
    kv_places: jax.Array | None = None  # int32 [S]
    bias: jax.Array | None = None  # as that of the inputs, where it stays as it is


class Returning(NamedTuple):
    """What the passes after the forward one have of each query besides: [levels, R, u, k, g, t]."""

    lse: jax.Array  # inf where nothing is seen
    mean: jax.Array | None = None  # what the softmax's Jacobian subtracts from each row
    d_output: jax.Array | None = None  # [..., H']


class Chunk(NamedTuple):
    """All that a pass reads, [levels, ...]; inside its loops, of one example and chunk."""

    inputs: Inputs
    fixed: Fixed
    returning: Returning | None = None
    tangents: Inputs | None = None


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


def bias_of(inputs: Inputs, fixed: Fixed) -> jax.Array | None:
    """The bias, whether gradients flow to it or not."""
    return fixed.bias if inputs.bias is None else inputs.bias


def static_of(setting: Setting, inputs: Inputs, fixed: Fixed) -> Static:
    """What is known of a pass while tracing."""
    lead = fixed.mask.lead
    per_head = len(lead) == 2 and lead[1] > 1
    shapes = (inputs.query.shape, inputs.key.shape)
    tiling = Tiling.of(*shapes, setting.block_q, setting.block_kv, per_head=per_head)
    return Static(tiling, setting)


def cut(
    static: Static,
    inputs: Inputs,
    fixed: Fixed,
    returning: Returning | None = None,
    tangents: Inputs | None = None,
) -> Chunk:
    """What a pass is given, cut for its loops; `returning` is so already."""
    tiling = static.tiling
    if static.setting.marked:
        query, key, value = map(finite, inputs[:3])
        inputs = inputs._replace(query=query, key=key, value=value)
    d_inputs = None if tangents is None else _cut_inputs(tiling, tangents)
    return Chunk(_cut_inputs(tiling, inputs), _cut_fixed(tiling, fixed), returning, d_inputs)


def _cut_inputs(tiling: Tiling, inputs: Inputs) -> Inputs:
    return Inputs(
        query=tiling.split_q(inputs.query),
        key=tiling.split_kv(inputs.key),
        value=tiling.split_kv(inputs.value),
        bias=None if inputs.bias is None else tiling.split_bias(inputs.bias),
        scale=tiling.split_heads(inputs.scale[None]),
        score=jax.tree.map(tiling.split_heads, inputs.score),
        sinks=None if inputs.sinks is None else tiling.split_heads(inputs.sinks[None]),
    )


def _cut_fixed(tiling: Tiling, fixed: Fixed) -> Fixed:
    lead = fixed.num_full.ndim - 1

    def split(x: jax.Array, axis: int) -> jax.Array:
        return tiling.split_lead(tiling.split_rows(x, axis), lead)

    q_nan, kv_nan, seeds = fixed.q_nan, fixed.kv_nan, fixed.seeds
    return Fixed(
        mask=map_leaves(lambda x, n: tiling.split_lead(jnp.asarray(x), n), fixed.mask),
        blocks=split(pad_to(fixed.blocks, -1, tiling.kv_blocks), -2),
        num_full=split(fixed.num_full, -1),
        num_live=split(fixed.num_live, -1),
        q_nan=None if q_nan is None else tiling.split_q(q_nan),
        kv_nan=None if kv_nan is None else tiling.split_kv(kv_nan),
        score=jax.tree.map(tiling.split_heads, fixed.score),
        seeds=None if seeds is None else tiling.split_heads(seeds),
        q_places=None if fixed.q_places is None else fixed.q_places[None, None, None],
        kv_places=None if fixed.kv_places is None else fixed.kv_places[None, None, None],
        bias=None if fixed.bias is None else tiling.split_bias(fixed.bias),
    )


def rows_of(static: Static, chunk: Chunk) -> Row:
    """The rows of one example and chunk, stacked; `make_row` completes each."""
    fixed = chunk.fixed
    return Row(
        number=count(static.tiling.rows),
        blocks=fixed.blocks,
        num_full=fixed.num_full,
        num_live=fixed.num_live,
        query=chunk.inputs.query,
        q_nan=fixed.q_nan,
        bias=_own_bias(bias_of(chunk.inputs, fixed)),
        returning=chunk.returning,
    )


def _own_bias(bias: jax.Array | None) -> jax.Array | None:
    """That which each row has of its own."""
    return None if bias is None or bias.shape[0] == 1 else bias


def make_row(static: Static, row: Row, chunk: Chunk) -> Row:
    """One of `rows_of`, with its axes folded, its query scaled and the bias that rows share."""
    scale, tiling, bias = chunk.inputs.scale, static.tiling, bias_of(chunk.inputs, chunk.fixed)
    if scale.size == 1:
        scale = scale.reshape(())
    else:  # of each head
        scale = tiling.for_queries(scale)[..., None]
    own = {name: getattr(row, name) for name in ("query", "q_nan", "returning")}
    row = row._replace(**jax.tree.map(tiling.fold, own))
    if bias is not None and row.bias is None:
        row = row._replace(bias=bias[0])
    if row.query.dtype != scale.dtype:
        return row._replace(factor=scale)
    query = row.query * scale
    if static.setting.has_mask:  # what is hidden stays finite, however large it is
        query = bounded(query)
    return row._replace(query=query)


def count(*shape: int) -> jax.Array:
    """0, 1, 2, ... along the last axis."""
    return jnp.arange(shape[-1], dtype=jnp.int32).reshape(shape)
