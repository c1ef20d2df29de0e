"""The gradients of keys and values on Hopper GPUs.

Tiles are transposed: rows of keys, columns of queries. Heads of a group add up in registers.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from flaxattn.attention.fused.given import Given, Lists, Returned, Rules
from flaxattn.attention.fused.hopper.buffers import STAGES, Own, Ring, slot, tiles
from flaxattn.attention.fused.hopper.machine import (
    COMPUTING,
    ROWS,
    Added,
    Fresh,
    Here,
    Load,
    Order,
    Ref,
    across,
    add_product,
    column,
    launch,
    multiply,
    zeros,
)
from flaxattn.attention.fused.hopper.repair import Mend, clean_if_broken, leave, unless_broken
from flaxattn.attention.fused.hopper.steps import (
    COLUMNS,
    SHAPE,
    Asked,
    Steps,
    Weights,
    asked_of,
    column_ring,
    number,
    query_columns,
    weights_of,
)

__all__ = ["backward_keys"]


def backward_keys(
    given: Given,
    returned: Returned,
    rules: Rules,
    *,
    columns: Lists,
    block_q: int,
    block_kv: int,
) -> tuple[jax.Array, jax.Array]:
    """The gradients of keys and values, [B, S, K, H] and [B, S, K, H'] in their dtype.

    `columns`: the query blocks of each key block.
    """
    assert block_kv == COMPUTING * ROWS
    batch, kv_len, kv_heads, _ = given.key.shape
    returned = returned.in_base_2()
    kernel = OfKeys(given, returned, rules, block_q, block_kv)
    outputs = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (given.key, given.value)]
    order = Order.of(
        (kv_len // block_kv, kv_heads, batch),
        (given.query.nbytes + returned.d_output.nbytes) // (kv_heads * batch),
        last_first=False,
    )
    d_key, d_value = launch("backward_keys", kernel, order, outputs, (given, returned, columns))
    return d_key, d_value


class Memory(NamedTuple):
    """Shared memory."""

    key: Own
    value: Own
    queries: Ring
    d_outputs: Ring
    columns: Ring


class Row(NamedTuple):
    """What a warpgroup computes with, of one query head."""

    key: Ref
    value: Ref
    scale: jax.Array
    start: jax.Array  # the steps of the heads before
    memory: Memory


class Sofar(NamedTuple):
    """Of the rows of a warpgroup, over the steps so far; `d_logits` are not mixed in yet."""

    d_key: jax.Array  # [rows, H]
    d_value: jax.Array  # [rows, H']
    d_logits: jax.Array  # [rows, columns], of the last step


@dataclasses.dataclass(frozen=True, eq=False)
class OfKeys:
    """The kernel."""

    given: Given
    returned: Returned
    rules: Rules
    block_q: int
    block_kv: int

    @property
    def shared_scale(self) -> bool:
        """Whether all heads have one: then it is taken at the end."""
        return self.given.scale.shape[1] == 1

    @property
    def group(self) -> int:
        """Query heads of a key head."""
        return self.given.query.shape[2] // self.given.key.shape[2]

    def memory(self) -> Memory:
        """The shared memory of it."""
        given, dtype = self.given, self.given.query.dtype
        width, v_width = given.query.shape[3], given.value.shape[3]
        return Memory(
            key=Own.of(tiles(dtype, COMPUTING, ROWS, width)),
            value=Own.of(tiles(dtype, COMPUTING, ROWS, v_width)),
            queries=Ring.of(STAGES + 1, tiles(dtype, STAGES + 1, COLUMNS, width)),
            d_outputs=Ring.of(STAGES, tiles(dtype, STAGES, COLUMNS, v_width)),
            columns=column_ring(query_columns(given, self.returned), STAGES, COLUMNS),
        )

    def steps(self, at: Here, lists: Lists) -> Steps:
        """Those of the row of blocks, of a query head."""
        return Steps(lists, at, self.block_q // COLUMNS, COLUMNS)

    def copy(self, at: Here, arrays: tuple[Given, Returned, Lists], memory: Memory) -> None:
        """Queries, gradients of outputs, and numbers of them, step by step."""
        given, returned, lists = arrays

        def of_head(g: jax.Array, start: jax.Array) -> jax.Array:
            own = at._replace(head=at.head * self.group + g)
            steps = self.steps(own, lists)
            live = steps.live

            @pl.loop(0, live)
            def _(j: jax.Array) -> None:
                where = steps.columns(j)
                memory.queries.fill(start + j, given.query.at[own.batch, where, own.head])
                sources = (x.at[(*own.of(x), where)] for x in query_columns(given, returned))
                memory.columns.fill(start + j, *sources)
                memory.d_outputs.fill(start + j, returned.d_output.at[own.batch, where, own.head])

            return start + live

        steps = lax.fori_loop(0, self.group, of_head, jnp.int32(0))
        memory.queries.drain(steps)
        memory.columns.drain(steps)
        memory.d_outputs.drain(steps)

    def compute(
        self,
        at: Here,
        arrays: tuple[Given, Returned, Lists],
        outputs: Sequence[Ref],
        memory: Memory,
    ) -> None:
        """The rows of a warpgroup."""
        given, lists = arrays[0], arrays[2]
        rows = at.rows(self.block_kv)
        where = (at.batch, rows, at.head)
        key = memory.key.load(at, given.key.at[where])
        value = memory.value.load(at, given.value.at[where])
        memory.key.wait(at)
        memory.value.wait(at)

        def of_head(g: jax.Array, carry: tuple[Sofar, jax.Array]) -> tuple[Sofar, jax.Array]:
            sofar, start = carry
            own = at._replace(head=at.head * self.group + g)
            steps, columns = self.steps(own, lists), memory.columns.buffers[2:]
            full, partial = asked_of(self.rules, given, own, rows, columns, steps, transposed=True)
            row = Row(key, value, number(given.scale, own), start, memory)
            step, mend = (
                functools.partial(self.step, row),
                functools.partial(clean_if_broken, given),
            )
            of_full, of_partial = (
                functools.partial(step, *of) for of in ((full, leave), (partial, mend))
            )
            sofar = lax.fori_loop(0, steps.full, of_full, sofar)
            sofar = lax.fori_loop(steps.full, steps.live, of_partial, sofar)
            return sofar, start + steps.live

        dtype, widths = given.query.dtype, (given.key.shape[3], given.value.shape[3])
        d_key, d_value = (zeros((ROWS, width)) for width in widths)
        start = (Sofar(d_key, d_value, zeros(SHAPE).astype(dtype)), jnp.int32(0))
        sofar, steps = lax.fori_loop(0, self.group, of_head, start)

        self.keep(at, given, key, value, sofar, steps, memory)
        plgpu.copy_smem_to_gmem(key, outputs[0].at[where])
        plgpu.copy_smem_to_gmem(value, outputs[1].at[where])
        plgpu.wait_smem_to_gmem(0)

    def keep(
        self,
        at: Here,
        given: Given,
        key: Ref,
        value: Ref,
        sofar: Sofar,
        steps: jax.Array,
        memory: Memory,
    ) -> None:
        """Puts the gradients where keys and values were, once those of the last step are in."""
        dtype = given.query.dtype
        finite = functools.partial(unless_broken, given, at, at.rows(self.block_kv))

        def keep_key(d_key: jax.Array) -> None:
            key[...] = finite(d_key).astype(dtype)

        def keep_last() -> None:
            d_key = add_product(sofar.d_key, sofar.d_logits, memory.queries.of_step(steps - 1))
            memory.queries.release(steps - 1)
            keep_key(d_key * number(given.scale, at) if self.shared_scale else d_key)

        pl.when(steps == 0)(lambda: keep_key(sofar.d_key))
        pl.when(steps > 0)(keep_last)
        value[...] = finite(sofar.d_value).astype(dtype)
        plgpu.commit_smem()

    def step(self, row: Row, asked: Asked, mend: Mend, j: jax.Array, sofar: Sofar) -> Sofar:
        """The weights of step `j`, and the gradient of its logits.

        Those of the logits of the step before are mixed in meanwhile, zeros before the first one.
        """
        t = row.start + j
        d_key, weights = self.weights(row, asked, mend, t, sofar)
        d_outputs, columns = row.memory.d_outputs, row.memory.columns

        def then(d_weights: Load) -> Sequence[jax.Array]:
            mean = across(column(slot(columns.buffers[1], t)), SHAPE, 1)
            d_logits = weights.d_logits(d_weights(), mean, asked)
            columns.release(t)
            return (d_logits if self.shared_scale else d_logits * row.scale,)

        dtype, d_output = sofar.d_logits.dtype, d_outputs.of_step(t)
        fresh = Fresh(row.value, d_output, SHAPE, lambda: d_outputs.wait(t))
        added = Added(sofar.d_value, weights.mixing.astype(dtype), d_output)
        (d_value,), (d_logits,) = multiply([fresh], [added], then, like=(zeros(SHAPE),))
        d_outputs.release(t)
        return Sofar(d_key, d_value, d_logits.astype(dtype))

    def weights(
        self, row: Row, asked: Asked, mend: Mend, t: jax.Array, sofar: Sofar
    ) -> tuple[jax.Array, Weights]:
        """The gradient of the keys up to the step before, and the weights of this one."""
        queries, columns = row.memory.queries, row.memory.columns
        before = jnp.maximum(t - 1, 0)

        def then(logits: Load) -> Sequence[jax.Array]:
            s = logits()
            columns.wait(t)
            lse = across(column(slot(columns.buffers[0], t)), SHAPE, 1)
            answers = asked(s, row.scale, t - row.start, t)
            return weights_of(answers, s, row.scale, lse, self.rules).distinct()

        def ready() -> None:
            queries.wait(t)
            mend(queries.of_step(t))

        fresh = Fresh(row.key, queries.of_step(t), SHAPE, ready)
        added = Added(sofar.d_key, sofar.d_logits, queries.of_step(before))
        like = (zeros(SHAPE),) * asked.kinds
        (d_key,), found = multiply([fresh], [added], then, like)
        pl.when(t > 0)(lambda: queries.release(before))
        return d_key, Weights.whole(found)
