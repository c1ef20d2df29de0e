"""The forward pass on Hopper GPUs."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from flaxattn.attention.fused.given import Broken, Given, Rules
from flaxattn.attention.fused.hopper.buffers import STAGES, Own, Ring, tiles
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
    filled,
    launch,
    multiply,
    product,
    whole,
    zeros,
)
from flaxattn.attention.fused.hopper.repair import (
    Mend,
    clean,
    clean_if_broken,
    if_broken,
    leave,
    spoil,
)
from flaxattn.attention.fused.hopper.steps import (
    COLUMNS,
    LOG2E,
    Asked,
    Reading,
    Steps,
    asked_of,
    column_ring,
    key_columns,
    kv_head,
    number,
    streamed_keys,
    without_dropped,
)

__all__ = ["forward"]

NARROW = 128  # wider heads have fewer columns a step, as registers allow


def forward(
    given: Given, rules: Rules, *, block_q: int, block_kv: int, wide: bool = False
) -> tuple[jax.Array, jax.Array]:
    """The output [B, T, N, H'] and the log-sum-exp [B, N, T], -inf where nothing is seen.

    `wide`: the output is float32, as gradients need it.
    """
    assert block_q == COMPUTING * ROWS
    (batch, q_len, heads, _), v_width = given.query.shape, given.value.shape[3]
    kernel = Forward(given, rules, block_q, block_kv, wide)
    dtype = jnp.float32 if wide else given.query.dtype
    outputs = [
        jax.ShapeDtypeStruct((batch, q_len, heads, v_width), dtype),
        jax.ShapeDtypeStruct((batch, heads, q_len), jnp.float32),
    ]
    order = Order.of((q_len // block_q, heads, batch), streamed_keys(given))
    output, lse = launch("forward", kernel, order, outputs, given)
    return output, lse


class Memory(NamedTuple):
    """Shared memory."""

    query: Own
    keys: Ring
    values: Ring
    columns: Ring
    output: Any
    lse: Any


class Row(NamedTuple):
    """What a warpgroup computes with."""

    query: Ref
    scale: jax.Array
    reading: Reading
    memory: Memory


class Sofar(NamedTuple):
    """Of the rows of a warpgroup, over the steps so far; `powers` are not mixed in yet."""

    top: jax.Array  # [rows], the highest logit in base 2
    total: jax.Array  # [rows], the sum of the powers of two
    mixed: jax.Array  # [rows, H']
    powers: jax.Array  # [rows, columns], of the last step


@dataclasses.dataclass(frozen=True, eq=False)
class Forward:
    """The kernel."""

    given: Given
    rules: Rules
    block_q: int
    block_kv: int
    wide: bool

    @property
    def columns(self) -> int:
        """Of a step."""
        widths = self.given.query.shape[3], self.given.value.shape[3]
        return self.block_kv if max(widths) <= NARROW else COLUMNS

    @property
    def shape(self) -> tuple[int, int]:
        """Of a tile of logits."""
        return ROWS, self.columns

    def memory(self) -> Memory:
        """The shared memory of it."""
        given, dtype = self.given, self.given.query.dtype
        width, v_width = given.query.shape[3], given.value.shape[3]
        apart = not self.wide and width != v_width
        return Memory(
            query=Own.of(tiles(dtype, COMPUTING, ROWS, width)),
            keys=Ring.of(STAGES, tiles(dtype, STAGES, self.columns, width)),
            values=Ring.of(STAGES, tiles(dtype, STAGES, self.columns, v_width)),
            columns=column_ring(key_columns(given), STAGES, self.columns),
            output=tiles(dtype, COMPUTING, ROWS, v_width) if apart else None,
            lse=plgpu.SMEM((COMPUTING, ROWS), jnp.float32),
        )

    def steps(self, at: Here, given: Given) -> Steps:
        """Those of the row of blocks."""
        return Steps(given.rows, at, self.block_kv // self.columns, self.columns)

    def copy(self, at: Here, given: Given, memory: Memory) -> None:
        """Keys, what tiles ask of them, and values, step by step."""
        head, steps = kv_head(given, at).head, self.steps(at, given)
        reading, live = Reading.of(given, steps.full, first=1), steps.live

        @pl.loop(0, live)
        def _(j: jax.Array) -> None:
            columns = steps.columns(j)
            memory.keys.fill(j, given.key.at[at.batch, columns, head])
            sources = (x.at[(*at.of(x), columns)] for x in key_columns(given))
            reading.fill(memory.columns, j, *sources)
            memory.values.fill(j, given.value.at[at.batch, columns, head])

        memory.keys.drain(live)
        memory.columns.drain(reading.number(live))
        memory.values.drain(live)

    def compute(self, at: Here, given: Given, outputs: Sequence[Ref], memory: Memory) -> None:
        """The rows of a warpgroup."""
        rows, steps = at.rows(self.block_q), self.steps(at, given)
        query = memory.query.load(at, given.query.at[at.batch, rows, at.head])
        full, partial = asked_of(self.rules, given, at, rows, memory.columns.buffers, steps)
        scale, live = number(given.scale, at), steps.live
        memory.query.wait(at)
        if_broken(given, lambda broken: spoil(query, at, broken.query, rows.start))

        @pl.when(scale < 0)  # so that the greatest product gives the greatest logit
        def _() -> None:
            query[...] = -whole(query)
            plgpu.commit_smem()

        scale = jnp.maximum(jnp.maximum(scale, -scale), 1e-30)  # of -inf, too: 0 · -inf is NaN
        mend = functools.partial(self.mend, at, given, memory, steps)
        row = Row(query, scale, Reading.of(given, steps.full, first=1), memory)
        buffers = memory.query.buffers if memory.output is None else memory.output
        target = Target(at, rows, outputs, buffers.at[at.wg], memory.lse.at[at.wg], self.wide)

        @pl.when(live == 0)
        def _() -> None:
            target.keep(zeros((ROWS, given.value.shape[3])), filled(-jnp.inf))

        @pl.when(live > 0)
        def _() -> None:
            sofar = self.first(row, partial, mend, given.value.shape[3])
            of_full, of_partial = (
                functools.partial(self.step, row, *of) for of in ((full, leave), (partial, mend))
            )
            sofar = lax.fori_loop(1, steps.full, of_full, sofar)
            sofar = lax.fori_loop(jnp.maximum(steps.full, 1), live, of_partial, sofar)
            target.keep(*self.last(row, sofar, live - 1, given, at))

        target.write()

    def mend(self, at: Here, given: Given, memory: Memory, steps: Steps, j: jax.Array) -> None:
        """Repairs the keys of step `j` and the values of the one before, which are both there."""

        def both(broken: Broken) -> None:
            own = kv_head(given, at)
            spoil(memory.keys.of_step(j), own, broken.key, steps.first(j))
            pl.when(j > 0)(lambda: clean(memory.values.of_step(j - 1)))

        if_broken(given, both)

    def first(self, row: Row, asked: Asked, mend: Mend, v_width: int) -> Sofar:
        """The first step; it counts as partial."""
        j = jnp.int32(0)
        row.memory.keys.wait(j)
        mend(j)
        s = product(row.query, row.memory.keys.of_step(j), self.shape)
        row.memory.keys.release(j)
        top, total, _, powers = self.softmax(row, asked, j, s, filled(-jnp.inf), filled(0.0))
        return Sofar(top, total, zeros((ROWS, v_width)), powers.astype(self.given.query.dtype))

    def step(self, row: Row, asked: Asked, mend: Mend, j: jax.Array, sofar: Sofar) -> Sofar:
        """The products of step `j`; values of the one before are mixed in meanwhile."""
        keys, values = row.memory.keys, row.memory.values

        def ready() -> None:
            keys.wait(j)
            values.wait(j - 1)
            mend(j)

        def then(logits: Load) -> Sequence[jax.Array]:
            s = logits()
            keys.release(j)
            return self.softmax(row, asked, j, s, sofar.top, sofar.total)

        fresh = Fresh(row.query, keys.of_step(j), self.shape, ready)
        added = Added(sofar.mixed, sofar.powers, values.of_step(j - 1))
        like = (sofar.top, sofar.total, sofar.top, zeros(self.shape))
        (mixed,), (top, total, decay, powers) = multiply([fresh], [added], then, like)
        values.release(j - 1)
        mixed = mixed * _like_rows(decay, mixed)
        return Sofar(top, total, mixed, powers.astype(sofar.powers.dtype))

    def softmax(
        self,
        row: Row,
        asked: Asked,
        j: jax.Array,
        s: jax.Array,
        top: jax.Array,
        total: jax.Array,
    ) -> Sequence[jax.Array]:
        """The highest logit, the sum, what that before is to be multiplied by, and the powers."""
        answers = asked(s, row.scale, j, row.reading.number(j), row.memory.columns)
        factor = row.scale * LOG2E
        if answers.logit is not None:
            s, factor = answers.logit, jnp.float32(LOG2E)
        if answers.seen is not None:
            s = jnp.where(answers.seen, s, -jnp.inf)
        new_top = origin = jnp.maximum(top, s.max(axis=1) * factor)
        if answers.seen is not None:  # nothing seen so far
            origin = jnp.where(new_top == -jnp.inf, 0.0, new_top)
        powers, decay = jnp.exp2(s * factor - across(origin, self.shape)), jnp.exp2(top - origin)
        total = total * decay + powers.sum(axis=1)
        return new_top, total, decay, without_dropped(powers, answers, self.rules)

    def last(
        self, row: Row, sofar: Sofar, j: jax.Array, given: Given, at: Here
    ) -> tuple[jax.Array, jax.Array]:
        """The output and the log-sum-exp, once the values of step `j`, the last, are mixed in."""
        values = row.memory.values
        values.wait(j)
        clean_if_broken(given, values.of_step(j))
        mixed = add_product(sofar.mixed, sofar.powers, values.of_step(j))
        values.release(j)
        # Not by the top, which is -inf also where a maximum drops NaN.
        top, total, empty = sofar.top, sofar.total, sofar.total == 0.0
        factor = filled(1.0)
        if given.sinks is not None:  # a logit whose value is zero
            sink = number(given.sinks, at) * LOG2E
            top = jnp.maximum(sofar.top, sink)
            factor = jnp.exp2(sofar.top - top)
            total = total * factor + jnp.exp2(sink - top)
        factor = jnp.where(empty, 0.0, factor / total)
        lse = jnp.where(empty, -jnp.inf, top * (1 / LOG2E) + jnp.log(total))
        return mixed * _like_rows(factor, mixed), lse


def _like_rows(x: jax.Array, like: jax.Array) -> jax.Array:
    """Numbers of rows as a tile like another."""
    return across(x, (ROWS, like.shape[1]))


class Target(NamedTuple):
    """Where the outputs of a warpgroup go, by way of shared memory, or directly if wide."""

    at: Here
    rows: Any
    outputs: Sequence[Ref]
    output: Ref
    lse: Ref
    wide: bool

    def keep(self, output: jax.Array, lse: jax.Array) -> None:
        """Takes them."""
        self.lse[...] = lse
        if self.wide:
            self.outputs[0][self.at.batch, self.rows, self.at.head] = output
        else:
            self.output[...] = output.astype(self.output.dtype)

    def write(self) -> None:
        """Sends them off."""
        at = self.at
        plgpu.commit_smem()
        if not self.wide:
            plgpu.copy_smem_to_gmem(self.output, self.outputs[0].at[at.batch, self.rows, at.head])
        plgpu.copy_smem_to_gmem(self.lse, self.outputs[1].at[at.batch, at.head, self.rows])
        plgpu.wait_smem_to_gmem(0)
