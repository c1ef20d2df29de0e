"""What the kernels of all chips are given: whole blocks, live lists, and rules split in parts."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from flaxattn.attention.chunks import Fixed, Inputs, Setting
from flaxattn.attention.fused.rules import TileRule, led, tile_rule
from flaxattn.attention.fused.split import Outside
from flaxattn.attention.tiles import pad_to

__all__ = ["Broken", "Given", "Lists", "Returned", "Rules", "columns_of", "given_to", "rules_of"]


class Rules(NamedTuple):
    """What tiles ask, known while tracing."""

    full: TileRule
    partial: TileRule
    rate: float
    """Of dropout."""


class Lists(NamedTuple):
    """For each row of blocks the columns that hold work: first full blocks, then partial ones."""

    blocks: jax.Array  # int32 [b, n, rows, columns]
    num_full: jax.Array  # int32 [b, n, rows]
    num_live: jax.Array


class Broken(NamedTuple):
    """What is not finite in the arrays of a pass, for kernels that repair their tiles."""

    any: jax.Array  # int32 [1], whether there is any
    query: jax.Array  # float32 [B, N, T], NaN where it is not finite, or 0
    key: jax.Array  # float32 [B, K, S], of it or of its value


class Given(NamedTuple):
    """The arrays of a pass; lengths are multiples of its blocks.

    b and n stand for examples and query heads, 1 where shared.
    """

    query: jax.Array  # [B, T, N, H]
    key: jax.Array  # [B, S, K, H]
    value: jax.Array  # [B, S, K, H']
    scale: jax.Array  # float32 [1, n]
    sinks: jax.Array | None  # float32 [1, n]
    rows: Lists  # the key blocks of each query block
    full: Outside
    partial: Outside
    tables: list[jax.Array]  # [b, n, T, S] each; booleans are int8
    broken: Broken | None  # None: repaired, or with no mask

    def by_keys(self) -> "Given":
        """The same with tables [b, n, S, T], for tiles whose rows are of keys."""
        return self._replace(tables=[x.swapaxes(2, 3) for x in self.tables])


class Returned(NamedTuple):
    """What the backward passes are given besides."""

    d_output: jax.Array  # [B, T, N, H']
    lse: jax.Array  # float32 [B, N, T], inf where nothing is seen and past the last query
    mean: jax.Array  # float32 [B, N, T], what the softmax's Jacobian subtracts

    def in_base_2(self) -> "Returned":
        """The same with a log-sum-exp of base 2."""
        return self._replace(lse=self.lse * math.log2(math.e))


def rules_of(setting: Setting, inputs: Inputs, fixed: Fixed, *, derived: bool) -> Rules:
    """What full and partial tiles ask; `derived`: also the derivative of the score."""
    full, partial = (
        tile_rule(setting, inputs, fixed, partial=partial, derived=derived)
        for partial in (False, True)
    )
    return Rules(full, partial, setting.rate)


def given_to(setting: Setting, inputs: Inputs, fixed: Fixed, rules: Rules, lanes: int) -> Given:
    """The arrays of a pass, padded by zeros to whole blocks and to widths that `lanes` divides."""
    query = _padded(inputs.query, setting.block_q, lanes)
    key, value = (_padded(x, setting.block_kv, lanes) for x in (inputs.key, inputs.value))
    q_idx, kv_idx = (jnp.arange(x.shape[1], dtype=jnp.int32) for x in (query, key))
    full, partial = (
        rule.split.outside(rule.arrays, q_idx, kv_idx) for rule in (rules.full, rules.partial)
    )
    lead = fixed.num_full.ndim - 1
    return Given(
        query=query,
        key=key,
        value=value,
        scale=inputs.scale[None].astype(jnp.float32),
        sinks=None if inputs.sinks is None else inputs.sinks[None].astype(jnp.float32),
        rows=Lists(*(led(x, lead) for x in (fixed.blocks, fixed.num_full, fixed.num_live))),
        full=full,
        partial=partial,
        tables=[_in_blocks(x, inputs, query.shape[1], key.shape[1]) for x in rules.partial.tables],
        broken=_broken(fixed, query.shape[1], key.shape[1]) if setting.marked else None,
    )


def _broken(fixed: Fixed, q_len: int, kv_len: int) -> Broken:
    assert fixed.q_nan is not None
    assert fixed.kv_nan is not None
    found = jnp.isnan(fixed.q_nan).any() | jnp.isnan(fixed.kv_nan).any()
    by_heads = (x.swapaxes(1, 2).astype(jnp.float32) for x in (fixed.q_nan, fixed.kv_nan))
    query, key = (pad_to(x, 2, n) for x, n in zip(by_heads, (q_len, kv_len), strict=True))
    return Broken(found.astype(jnp.int32)[None], query, key)


def _padded(x: jax.Array, block: int, lanes: int) -> jax.Array:
    length, width = (-(-x.shape[i] // size) * size for i, size in ((1, block), (3, lanes)))
    return pad_to(pad_to(x, 1, length), 3, width)


def _in_blocks(table: jax.Array, inputs: Inputs, q_len: int, kv_len: int) -> jax.Array:
    """A table as kernels read it, of lengths that are whole blocks."""
    table = table[:, :, : inputs.query.shape[1], : inputs.key.shape[1]]
    if table.dtype != jnp.bfloat16:  # TPUs have no float16
        table = table.astype(jnp.int8 if table.dtype == bool else jnp.float32)
    return pad_to(pad_to(table, 2, q_len), 3, kv_len)


def columns_of(rows: Lists) -> Lists:
    """The query blocks of each key block, by the key blocks of each query block."""
    place = jnp.argsort(rows.blocks, axis=-1)  # of each column in its row
    partial, empty = (place >= x[..., None] for x in (rows.num_full, rows.num_live))
    # 0 full, 1 partial, 2 empty
    kind = (partial.astype(jnp.int32) + empty.astype(jnp.int32)).swapaxes(-1, -2)
    count = kind.shape[-1]
    index = jax.lax.broadcasted_iota(jnp.int32, kind.shape, kind.ndim - 1)
    order = jnp.sort(kind * count + index, axis=-1)
    return Lists(order % count, *((kind < below).sum(axis=-1, dtype=jnp.int32) for below in (1, 2)))
