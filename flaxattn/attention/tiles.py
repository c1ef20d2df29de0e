"""Arrays cut into tiles, and loops over them: the geometry of blockwise attention.

    B batch · K key/value heads, as C chunks of k · G query heads per key head, as D chunks of g ·
    T queries, as R rows of u blocks of t · S keys, as blocks of s

One visit takes the u query blocks of a row and, for each of them, W key blocks of its own, all for
the k · g heads of a chunk: a tile `[u, k, g, t, W·s]`. The numbers are chosen so that a tile has
about `CELLS` cells, whatever the number of heads.
"""

import math
from collections.abc import Callable
from typing import NamedTuple, TypeAlias, TypeVar

import jax
import jax.numpy as jnp

from flaxattn.types import Indices

__all__ = ["At", "Carry", "Tiling", "add_blocks", "over_levels", "pad_to", "take_blocks"]

Carry = TypeVar("Carry")
Arrays = TypeVar("Arrays")
Outputs = TypeVar("Outputs")
At: TypeAlias = tuple[Indices, ...]  # which example and chunks, from the outermost level on
CELLS = 2**20  # logits of a visit: enough to keep two cores busy, few enough for their caches
WIDTH = 2  # key blocks of a visit


class Tiling(NamedTuple):
    """Sizes and numbers of tiles; the letters are those of the module."""

    batch: int
    chunks: int  # C
    key_heads: int  # k
    group_chunks: int  # D
    group: int  # g
    rows: int  # R
    q_per_row: int  # u
    block_q: int  # t
    kv_blocks: int  # a multiple of W
    block_kv: int  # s
    width: int  # W
    q_len: int  # T
    kv_len: int  # S

    @classmethod
    def of(
        cls,
        query: tuple[int, ...],
        key: tuple[int, ...],
        block_q: int,
        block_kv: int,
        *,
        per_head: bool,
    ) -> "Tiling":
        """That of a query [B, T, N, H] and a key [B, S, K, H].

        Heads of a chunk share their mask: a single one where every head has its own.
        """
        (batch, q_len, num_heads, _), (_, kv_len, num_kv_heads, _) = query, key
        q_blocks, kv_blocks = -(-q_len // block_q), -(-kv_len // block_kv)
        width = min(WIDTH, kv_blocks)
        cells = block_q * block_kv * width
        group = 1 if per_head else num_heads // num_kv_heads
        most = 1 if per_head else max(CELLS // (cells * group), 1)
        key_heads = max(
            k for k in range(1, num_kv_heads + 1) if num_kv_heads % k == 0 and k <= most
        )
        most = max(CELLS // (cells * group * key_heads), 1)
        rows = -(-q_blocks // most)
        return cls(
            batch=batch,
            chunks=num_kv_heads // key_heads,
            key_heads=key_heads,
            group_chunks=num_heads // num_kv_heads // group,
            group=group,
            rows=rows,
            q_per_row=-(-q_blocks // rows),
            block_q=block_q,
            kv_blocks=-(-kv_blocks // width) * width,
            block_kv=block_kv,
            width=width,
            q_len=q_len,
            kv_len=kv_len,
        )

    @property
    def levels(self) -> tuple[int, int, int]:
        """B, C and D: what `over_levels` loops over."""
        return self.batch, self.chunks, self.group_chunks

    def split_q(self, x: jax.Array, past_end: float = 0.0) -> jax.Array:
        """[B, T, N, ...] -> [B, C, D, R, u, k, g, t, ...], filled up past the end."""
        x = pad_to(x, 1, self.rows * self.q_per_row * self.block_q, past_end)
        heads = (self.chunks, self.key_heads, self.group_chunks, self.group)
        x = x.reshape(x.shape[0], self.rows, self.q_per_row, self.block_q, *heads, *x.shape[3:])
        return x.transpose(0, 4, 6, 1, 2, 5, 7, 3, *range(8, x.ndim))

    def join_q(self, x: jax.Array) -> jax.Array:
        """[B, C, D, R, u, k, g, t, ...] -> [B, T, N, ...]."""
        x = x.transpose(0, 3, 4, 7, 1, 5, 2, 6, *range(8, x.ndim))
        heads = self.chunks * self.key_heads * self.group_chunks * self.group
        return x.reshape(x.shape[0], -1, heads, *x.shape[8:])[:, : self.q_len]

    def split_kv(self, x: jax.Array) -> jax.Array:
        """[B, S, K, ...] -> [B, C, 1, blocks, k, s, ...], zeros past the end."""
        x = pad_to(x, 1, self.kv_blocks * self.block_kv)
        heads = (self.chunks, self.key_heads)
        x = x.reshape(x.shape[0], self.kv_blocks, self.block_kv, *heads, *x.shape[3:])
        return x.transpose(0, 3, 1, 4, 2, *range(5, x.ndim))[:, :, None]

    def join_kv(self, x: jax.Array) -> jax.Array:
        """[B, C, D, blocks, k, s, ...] -> [B, S, K, ...], added up over D."""
        x = x.sum(axis=2).transpose(0, 2, 4, 1, 3, *range(5, x.ndim - 1))
        return x.reshape(x.shape[0], -1, self.chunks * self.key_heads, *x.shape[5:])[
            :, : self.kv_len
        ]

    def split_lead(self, x: jax.Array, lead: int) -> jax.Array:
        """[*lead, ...] of a mask or plan -> [B, C, D, ...], 1 where shared; see `Mask.lead`."""
        batch, heads = (*x.shape[:lead], 1, 1)[:2]
        levels = (self.chunks, self.group_chunks) if heads > 1 else (1, 1)
        return x.reshape(batch, *levels, *x.shape[lead:])

    def split_heads(self, x: jax.Array) -> jax.Array:
        """[B, N, ...] -> [B, C, D, k, g, ...], 1 where shared."""
        heads = (self.chunks, self.key_heads, self.group_chunks, self.group)
        x = x.reshape(x.shape[0], *(heads if x.shape[1] > 1 else (1, 1, 1, 1)), *x.shape[2:])
        return x.swapaxes(2, 3)

    def join_heads(self, x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """What `split_heads` made of an array of `shape`, put together again."""
        return x.swapaxes(2, 3).reshape(shape)

    def split_rows(self, x: jax.Array, axis: int = -1) -> jax.Array:
        """The axis of all query blocks -> [R, u], zeros past the end."""
        axis %= x.ndim
        x = pad_to(x, axis, self.rows * self.q_per_row)
        return x.reshape(*x.shape[:axis], self.rows, self.q_per_row, *x.shape[axis + 1 :])

    def fold(self, x: jax.Array) -> jax.Array:
        """[u, k, g, t, ...] -> [u·k, g·t, ...]."""
        return x.reshape(x.shape[0] * x.shape[1], x.shape[2] * x.shape[3], *x.shape[4:])

    def unfold(self, x: jax.Array) -> jax.Array:
        """[u·k, g·t, ...] -> [u, k, g, t, ...]."""
        heads = (self.q_per_row, self.key_heads, self.group, self.block_q)
        return x.reshape(*heads, *x.shape[2:])

    def for_heads(self, x: jax.Array) -> jax.Array:
        """[u, t, ...], the same for all heads of a chunk -> [u·k, g·t, ...]."""
        heads = (self.q_per_row, self.key_heads, self.group, self.block_q)
        return self.fold(jnp.broadcast_to(x[:, None, None], (*heads, *x.shape[2:])))

    def for_queries(self, x: jax.Array) -> jax.Array:
        """[k, g], the same for all queries -> [u·k, g·t]."""
        heads = (self.q_per_row, self.key_heads, self.group, self.block_q)
        return self.fold(jnp.broadcast_to(x[None, :, :, None], heads))

    def split_bias(self, bias: jax.Array) -> jax.Array:
        """[B, N, T, S] -> [B, C, D, R, u, k, g, t, blocks, s], 1 where shared."""
        x = self.split_heads(bias)
        if bias.shape[2] > 1:
            x = pad_to(x, 5, self.rows * self.q_per_row * self.block_q)
            x = x.reshape(*x.shape[:5], self.rows, self.q_per_row, self.block_q, x.shape[-1])
        else:
            x = x.reshape(*x.shape[:5], 1, 1, 1, x.shape[-1])
        if bias.shape[3] > 1:
            x = pad_to(x, 8, self.kv_blocks * self.block_kv)
            x = x.reshape(*x.shape[:8], self.kv_blocks, self.block_kv)
        else:
            x = x[..., None]
        return x.transpose(0, 1, 2, 5, 6, 3, 4, 7, 8, 9)

    def join_bias(self, x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """What `split_bias` made of an array of `shape`, put together again."""
        x = x.transpose(0, 1, 5, 2, 6, 3, 4, 7, 8, 9)
        x = x.reshape(x.shape[0], math.prod(x.shape[1:5]), math.prod(x.shape[5:8]), -1)
        return x[:, :, : shape[2], : shape[3]]


def over_levels(
    fn: Callable[[Carry, Arrays, At], tuple[Carry, Outputs]],
    carry: Carry,
    arrays: Arrays,
    levels: tuple[int, ...],
    at: At = (),
) -> tuple[Carry, Outputs]:
    """`fn(carry, arrays of one example and chunk, its indices) -> (carry, outputs)`, one by one.

    The leading axes of `arrays` are the levels, 1 where shared; those of the outputs are the
    levels. A loop and not a `vmap`, so that each goes on for its own number of visits.
    """
    if not levels:
        return fn(carry, arrays, at)
    size, inner = levels[0], levels[1:]
    leaves, treedef = jax.tree.flatten(arrays)
    mapped = [x for x in leaves if x.shape[0] == size != 1]

    def one(carry: Carry, x: tuple[Indices, list[jax.Array]]) -> tuple[Carry, Outputs]:
        index, own = x[0], iter(x[1])
        mine = [next(own) if a.shape[0] == size != 1 else a[0] for a in leaves]
        return over_levels(fn, carry, jax.tree.unflatten(treedef, mine), inner, (*at, index))

    if size == 1:
        carry, outputs = one(carry, (0, []))
        return carry, jax.tree.map(lambda x: x[None], outputs)
    return jax.lax.scan(one, carry, (jnp.arange(size, dtype=jnp.int32), mapped))


def take_blocks(x: jax.Array, index: jax.Array) -> jax.Array:
    """Key blocks side by side: [blocks, k, s, ...], int [u, W] -> [u·k, W·s, ...]."""
    if index.shape[0] == 1:  # slices are a little faster than a gather
        blocks = [jax.lax.dynamic_index_in_dim(x, i, keepdims=False) for i in index[0]]
        return jnp.concatenate(blocks, axis=1)
    x = jnp.moveaxis(x[index], 2, 1)
    return x.reshape(x.shape[0] * x.shape[1], x.shape[2] * x.shape[3], *x.shape[4:])


def add_blocks(x: jax.Array, index: jax.Array, tile: jax.Array) -> jax.Array:
    """`x` [blocks, k, H, s] with a tile [u·k, H, W·s] added to its blocks int [u, W]."""
    (u, width), (_, k, h, s) = index.shape, x.shape
    return x.at[index].add(tile.reshape(u, k, h, width, s).transpose(0, 3, 1, 2, 4))


def pad_to(x: jax.Array, axis: int, size: int, value: float = 0.0) -> jax.Array:
    """`x` filled up with `value` to `size` along `axis`."""
    pads = [(0, 0)] * x.ndim
    pads[axis] = (0, size - x.shape[axis])
    return jnp.pad(x, pads, constant_values=value) if size > x.shape[axis] else x
