"""The gradient of the queries on Hopper GPUs."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from flaxattn.attention.fused.given import Given, Returned, Rules
from flaxattn.attention.fused.hopper.buffers import STAGES, Own, Ring, tiles
from flaxattn.attention.fused.hopper.machine import (
    COMPUTING,
    ROW,
    ROWS,
    Added,
    Fresh,
    Here,
    Load,
    Order,
    Ref,
    across,
    add_product,
    launch,
    multiply,
    vector,
    zeros,
)
from flaxattn.attention.fused.hopper.repair import Mend, clean_if_broken, leave
from flaxattn.attention.fused.hopper.steps import (
    COLUMNS,
    SHAPE,
    Asked,
    Reading,
    Steps,
    asked_of,
    column_ring,
    key_columns,
    kv_head,
    number,
    streamed_keys,
    weights_of,
)

__all__ = ["backward_query"]


def backward_query(
    given: Given, returned: Returned, rules: Rules, *, block_q: int, block_kv: int
) -> jax.Array:
    """The gradient of the queries, float32 [B, T, N, H], before it is scaled."""
    assert block_q == COMPUTING * ROWS
    batch, q_len, heads, _ = given.query.shape
    kernel = OfQueries(given, rules, block_q, block_kv)
    outputs = [jax.ShapeDtypeStruct(given.query.shape, jnp.float32)]
    order = Order.of((q_len // block_q, heads, batch), streamed_keys(given))
    return launch("backward_query", kernel, order, outputs, (given, returned.in_base_2()))[0]


class Memory(NamedTuple):
    """Shared memory."""

    query: Own
    d_output: Own
    keys: Ring
    values: Ring
    columns: Ring


class Row(NamedTuple):
    """What a warpgroup computes with."""

    query: Ref
    d_output: Ref
    scale: jax.Array
    lse: jax.Array  # tiles
    mean: jax.Array
    reading: Reading
    memory: Memory


class Sofar(NamedTuple):
    """Of the rows of a warpgroup, over the steps so far; `d_logits` are not mixed in yet."""

    d_query: jax.Array  # [rows, H]
    d_logits: jax.Array  # [rows, columns], of the last step


@dataclasses.dataclass(frozen=True, eq=False)
class OfQueries:
    """The kernel."""

    given: Given
    rules: Rules
    block_q: int
    block_kv: int

    def memory(self) -> Memory:
        """The shared memory of it."""
        given, dtype = self.given, self.given.query.dtype
        width, v_width = given.query.shape[3], given.value.shape[3]
        return Memory(
            query=Own.of(tiles(dtype, COMPUTING, ROWS, width)),
            d_output=Own.of(tiles(dtype, COMPUTING, ROWS, v_width)),
            keys=Ring.of(STAGES + 1, tiles(dtype, STAGES + 1, COLUMNS, width)),
            values=Ring.of(STAGES, tiles(dtype, STAGES, COLUMNS, v_width)),
            columns=column_ring(key_columns(given), STAGES, COLUMNS),
        )

    def steps(self, at: Here, given: Given) -> Steps:
        """Those of the row of blocks."""
        return Steps(given.rows, at, self.block_kv // COLUMNS, COLUMNS)

    def copy(self, at: Here, arrays: tuple[Given, Returned], memory: Memory) -> None:
        """Keys and values, and what tiles ask of them, step by step."""
        given = arrays[0]
        head, steps = kv_head(given, at).head, self.steps(at, given)
        reading, live = Reading.of(given, steps.full), steps.live

        @pl.loop(0, live)
        def _(j: jax.Array) -> None:
            columns = steps.columns(j)
            sources = (x.at[(*at.of(x), columns)] for x in key_columns(given))
            reading.fill(memory.columns, j, *sources)
            memory.keys.fill(j, given.key.at[at.batch, columns, head])
            memory.values.fill(j, given.value.at[at.batch, columns, head])

        memory.columns.drain(reading.number(live))
        memory.keys.drain(live)
        memory.values.drain(live)

    def compute(
        self,
        at: Here,
        arrays: tuple[Given, Returned],
        outputs: Sequence[Ref],
        memory: Memory,
    ) -> None:
        """The rows of a warpgroup."""
        given, returned = arrays
        rows, steps = at.rows(self.block_q), self.steps(at, given)
        where = (at.batch, rows, at.head)
        query = memory.query.load(at, given.query.at[where])
        d_output = memory.d_output.load(at, returned.d_output.at[where])
        full, partial = asked_of(self.rules, given, at, rows, memory.columns.buffers, steps)
        lse, mean = (across(vector(x, at, rows, ROW), SHAPE) for x in (returned.lse, returned.mean))
        memory.query.wait(at)
        memory.d_output.wait(at)
        reading, live = Reading.of(given, steps.full), steps.live
        row = Row(query, d_output, number(given.scale, at), lse, mean, reading, memory)
        step = functools.partial(self.step, row)
        dtype, width = given.query.dtype, given.query.shape[3]
        sofar = Sofar(zeros((ROWS, width)), zeros(SHAPE).astype(dtype))
        mend = functools.partial(clean_if_broken, given)
        sofar = lax.fori_loop(0, steps.full, functools.partial(step, full, leave), sofar)
        sofar = lax.fori_loop(steps.full, live, functools.partial(step, partial, mend), sofar)

        def write(d_query: jax.Array) -> None:
            outputs[0][where] = d_query

        def write_last() -> None:
            write(add_product(sofar.d_query, sofar.d_logits, memory.keys.of_step(live - 1)))
            memory.keys.release(live - 1)

        pl.when(live == 0)(lambda: write(sofar.d_query))
        pl.when(live > 0)(write_last)

    def step(self, row: Row, asked: Asked, mend: Mend, j: jax.Array, sofar: Sofar) -> Sofar:
        """The weights of step `j`, and the gradient of its logits.

        Those of the step before are mixed in meanwhile; before the first one they are zero. What is
        seen and not finite is NaN by the log-sum-exp.
        """
        keys, values, columns = row.memory.keys, row.memory.values, row.memory.columns
        before = jnp.maximum(j - 1, 0)

        def then(logits: Load, d_weights: Load) -> Sequence[jax.Array]:
            s = logits()
            answers = asked(s, row.scale, j, row.reading.number(j), columns)
            weights = weights_of(answers, s, row.scale, row.lse, self.rules)
            return (weights.d_logits(d_weights(), row.mean, asked),)

        def ready() -> None:
            keys.wait(j)
            mend(keys.of_step(j))

        fresh = [
            Fresh(row.query, keys.of_step(j), SHAPE, ready),
            Fresh(row.d_output, values.of_step(j), SHAPE, lambda: values.wait(j)),
        ]
        added = Added(sofar.d_query, sofar.d_logits, keys.of_step(before))
        (d_query,), (d_logits,) = multiply(fresh, [added], then, like=(zeros(SHAPE),))
        values.release(j)
        pl.when(j > 0)(lambda: keys.release(before))
        return Sofar(d_query, d_logits.astype(sofar.d_logits.dtype))
