"""Attention on Hopper GPUs: kernels of Mosaic GPU for the passes.

Two warpgroups compute, 64 rows of a tile each, and a third copies, by the plan's lists of live
blocks. Products of a warpgroup go on while it computes weights, and the two take turns, as in
FlashAttention-3 (arXiv:2407.08608). Only partial tiles ask the mask, by its rule in registers.
"""

import functools
import inspect
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jax.typing import DTypeLike

from flaxattn.attention.fused.given import Given, Lists, Returned, Rules
from flaxattn.attention.fused.rules import Answers, TileRule
from flaxattn.attention.fused.split import Outside

__all__ = [
    "LANES",
    "WIDEST_WITH_GRADIENT",
    "backward_keys",
    "backward_query",
    "forward",
    "why_not",
]

LANES = 64  # what the widths of heads are multiples of
WIDEST, WIDEST_WITH_GRADIENT = 256, 128  # as registers and shared memory allow
LOG2E = math.log2(math.e)
COMPUTING, ROWS = 2, 64  # warpgroups that compute, and rows of each
STEP = 64  # columns of a step of the backward passes
STAGES = 2
REGISTERS, COPYING_REGISTERS = 232, 40
ROW, COLUMN, TILE = plgpu.Layout.WGMMA.reduce(1), plgpu.Layout.WGMMA.reduce(0), plgpu.Layout.WGMMA

Ref: TypeAlias = Any


def why_not(dtype: DTypeLike, width: int) -> str | None:
    """Why there is no kernel for arrays of a dtype, and heads so wide; None: there is one."""
    if dtype not in (jnp.bfloat16, jnp.float16):
        return f"the arrays are {jnp.dtype(dtype)}, and its tensor cores take bfloat16 and float16"
    if width > WIDEST:
        return f"heads have {width} features, and its shared memory holds tiles of up to {WIDEST}"
    return None


def forward(
    given: Given, rules: Rules, *, block_q: int, block_kv: int, wide: bool = False
) -> tuple[jax.Array, jax.Array]:
    """The output [B, T, N, H'] and the log-sum-exp [B, N, T], -inf where nothing is seen.

    `wide`: the output is float32, as gradients need it.
    """
    (batch, q_len, heads, width), (_, _, kv_heads, v_width) = given.query.shape, given.value.shape
    columns = block_kv if max(width, v_width) <= 128 else STEP  # of a step, as registers allow
    dtype, parts, shape = given.query.dtype, block_kv // columns, (ROWS, columns)

    def compute(at: Here, given: Given, outputs: Sequence[Ref], memory: ForwardMemory) -> None:
        o_memory = memory.q if width == v_width else memory.o
        q_smem, o_smem, lse_smem = (x.at[at.wg] for x in (memory.q, o_memory, memory.lse))
        rows = pl.ds(at.row * block_q + at.wg * ROWS, ROWS)
        rows_of = (at.batch, rows, at.head)
        load(given.query.at[rows_of], q_smem, memory.q_ready.at[at.wg])
        full, partial = (
            Asked.of(rule, outside, at, rows, columns)
            for (rule, outside), columns in zip(
                of_rules(rules, given), memory.columns.parts(given), strict=True
            )
        )
        scale = number(given.scale, at)
        sink = None if given.sinks is None else number(given.sinks, at) * LOG2E
        num_full, num_live = at.full(given.rows) * parts, at.live(given.rows) * parts
        reading = reading_of(given, num_full, first=1)
        plgpu.barrier_wait(memory.q_ready.at[at.wg])

        @pl.when(scale < 0)  # so that the greatest product gives the greatest logit
        def _() -> None:
            q_smem[...] = -whole(q_smem)
            plgpu.commit_smem()

        scale = jnp.maximum(jnp.abs(scale), 1e-30)  # of -inf, too: 0 · -inf is NaN

        def softmax(
            j: jax.Array, s: jax.Array, top: jax.Array, total: jax.Array, asked: Asked
        ) -> Sequence[jax.Array]:
            answers = asked(memory.columns, reading.number(j), s, scale)
            factor = scale * LOG2E
            if answers.logit is not None:
                s, factor = answers.logit, LOG2E
            if answers.seen is not None:
                s = jnp.where(answers.seen, s, -jnp.inf)
            new_top = origin = jnp.maximum(top, s.max(axis=1) * factor)
            if answers.seen is not None:  # nothing seen so far
                origin = jnp.where(new_top == -jnp.inf, 0.0, new_top)
            powers, decay = jnp.exp2(s * factor - across(origin, shape)), jnp.exp2(top - origin)
            total = total * decay + powers.sum(axis=1)
            return new_top, total, decay, without_dropped(powers, answers, rules)

        def step(j: jax.Array, carry: Any, asked: Asked) -> Any:
            top, total, mixed, powers = carry

            def then(logits: Load) -> Sequence[jax.Array]:
                s = logits()
                arrive(memory.k_free, j)
                return softmax(j, s, top, total, asked)

            last = slot(memory.v, j - 1)
            (mixed,), (top, total, decay, powers) = multiply(
                [Fresh(q_smem, slot(memory.k, j), shape, lambda: wait(memory.k_ready, j))],
                [Added(mixed, powers, last, lambda: wait(memory.v_ready, j - 1))],
                then,
                like=(top, total, top, zeros(shape)),
            )
            arrive(memory.v_free, j - 1)
            return top, total, mixed * across(decay, mixed.shape), powers.astype(dtype)

        def write(output: jax.Array, lse: jax.Array) -> None:
            lse_smem[...] = lse
            if wide:
                store(output, outputs[0], rows_of)
            else:
                o_smem[...] = output.astype(dtype)

        @pl.when(num_live == 0)
        def _() -> None:
            write(zeros((ROWS, v_width)), filled(-jnp.inf))

        @pl.when(num_live > 0)
        def _() -> None:
            zero = jnp.int32(0)
            wait(memory.k_ready, zero)
            s = product(q_smem, memory.k.at[0], shape)
            arrive(memory.k_free, zero)
            top, total, _, powers = softmax(zero, s, filled(-jnp.inf), filled(0.0), partial)
            carry = (top, total, zeros((ROWS, v_width)), powers.astype(dtype))
            carry = lax.fori_loop(1, num_full, functools.partial(step, asked=full), carry)
            start = jnp.maximum(num_full, 1)
            carry = lax.fori_loop(start, num_live, functools.partial(step, asked=partial), carry)
            top, total, mixed, powers = carry
            wait(memory.v_ready, num_live - 1)
            mixed = add_product(mixed, powers, slot(memory.v, num_live - 1))
            arrive(memory.v_free, num_live - 1)
            empty, factor = top == -jnp.inf, 1.0
            if sink is not None:  # a logit whose value is zero
                new_top = jnp.maximum(top, sink)
                factor = jnp.exp2(top - new_top)
                top, total = new_top, total * factor + jnp.exp2(sink - new_top)
            mixed = mixed * across(jnp.where(empty, 0.0, factor / total), mixed.shape)
            write(mixed, jnp.where(empty, -jnp.inf, top * (1 / LOG2E) + jnp.log(total)))

        plgpu.commit_smem()
        if not wide:
            plgpu.copy_smem_to_gmem(o_smem, outputs[0].at[rows_of])
        plgpu.copy_smem_to_gmem(lse_smem, outputs[1].at[at.batch, at.head, rows])
        plgpu.wait_smem_to_gmem(0)

    def copy(at: Here, given: Given, memory: ForwardMemory) -> None:
        kv_head = lax.div(at.head, jnp.int32(heads // kv_heads))
        num_full, num_live = at.full(given.rows) * parts, at.live(given.rows) * parts
        reading = reading_of(given, num_full, first=1)

        @pl.loop(0, num_live)
        def _(j: jax.Array) -> None:
            own = pl.ds(at.column(given.rows, j, parts) * columns, columns)
            cells = (at.batch, own, kv_head)
            copy_when_free(given.key.at[cells], memory.k, memory.k_ready, memory.k_free, j)
            memory.columns.copy(key_columns(given), at, own, j, reading)
            copy_when_free(given.value.at[cells], memory.v, memory.v_ready, memory.v_free, j)

        memory.columns.drain(reading.number(num_live))
        drain(memory.k_free, num_live)
        drain(memory.v_free, num_live)

    memory = ForwardMemory(
        q=tiles(dtype, COMPUTING, ROWS, width),
        k=tiles(dtype, STAGES, columns, width),
        v=tiles(dtype, STAGES, columns, v_width),
        o=None if width == v_width else tiles(dtype, COMPUTING, ROWS, v_width),
        lse=plgpu.SMEM((COMPUTING, ROWS), jnp.float32),
        q_ready=barriers(COMPUTING),
        k_ready=barriers(STAGES),
        v_ready=barriers(STAGES),
        k_free=barriers(STAGES, COMPUTING),
        v_free=barriers(STAGES, COMPUTING),
        columns=Columns.of(key_columns(given), STAGES, columns),
    )
    outs = [
        jax.ShapeDtypeStruct((batch, q_len, heads, v_width), jnp.float32 if wide else dtype),
        jax.ShapeDtypeStruct((batch, heads, q_len), jnp.float32),
    ]
    grid = (q_len // block_q, heads, batch)
    return tuple(launch(compute, copy, grid, outs, memory, given))


class ForwardMemory(NamedTuple):
    """Shared memory of the forward pass."""

    q: Any
    k: Any
    v: Any
    o: Any
    lse: Any
    q_ready: Any
    k_ready: Any
    v_ready: Any
    k_free: Any
    v_free: Any
    columns: "Columns"


def backward_query(
    given: Given, returned: Returned, rules: Rules, *, block_q: int, block_kv: int
) -> jax.Array:
    """The gradient of the queries, float32 [B, T, N, H], before it is scaled."""
    (batch, q_len, heads, width), (_, _, kv_heads, v_width) = given.query.shape, given.value.shape
    dtype, parts, shape = given.query.dtype, block_kv // STEP, (ROWS, STEP)

    def compute(at: Here, arrays: Any, outputs: Sequence[Ref], memory: QueryMemory) -> None:
        given, returned = arrays
        q_smem, d_smem = (x.at[at.wg] for x in (memory.q, memory.d_output))
        rows = pl.ds(at.row * block_q + at.wg * ROWS, ROWS)
        rows_of = (at.batch, rows, at.head)
        load(given.query.at[rows_of], q_smem, memory.q_ready.at[at.wg])
        load(returned.d_output.at[rows_of], d_smem, memory.d_ready.at[at.wg])
        full, partial = (
            Asked.of(rule, outside, at, rows, columns)
            for (rule, outside), columns in zip(
                of_rules(rules, given), memory.columns.parts(given), strict=True
            )
        )
        scale = number(given.scale, at)
        lse, mean = (vector(x, at, rows, ROW) for x in (returned.lse, returned.mean))
        lse, mean = across(lse, shape), across(mean, shape)
        plgpu.barrier_wait(memory.q_ready.at[at.wg])
        plgpu.barrier_wait(memory.d_ready.at[at.wg])

        def step(j: jax.Array, carry: Any, asked: Asked) -> Any:
            d_query, d_logits = carry
            before = jnp.maximum(j - 1, 0)

            def then(logits: Load, d_weights: Load) -> Sequence[jax.Array]:
                s, number = logits(), reading.number(j)
                own = weights_of(asked, memory.columns, number, s, scale, lse, rules)
                return (own.d_logits(d_weights(), mean),)

            (d_query,), (d_logits,) = multiply(
                [
                    Fresh(q_smem, slot(memory.k, j), shape, lambda: wait(memory.k_ready, j)),
                    Fresh(d_smem, slot(memory.v, j), shape, lambda: wait(memory.v_ready, j)),
                ],
                [Added(d_query, d_logits, slot(memory.k, before))],
                then,
                like=(zeros(shape),),
            )
            arrive(memory.v_free, j)
            pl.when(j > 0)(lambda: arrive(memory.k_free, before))
            return d_query, d_logits.astype(dtype)

        carry = (zeros((ROWS, width)), zeros(shape).astype(dtype))
        middle, end = at.full(given.rows) * parts, at.live(given.rows) * parts
        reading = reading_of(given, middle)
        carry = lax.fori_loop(0, middle, functools.partial(step, asked=full), carry)
        d_query, d_logits = lax.fori_loop(
            middle, end, functools.partial(step, asked=partial), carry
        )
        pl.when(end == 0)(lambda: store(d_query, outputs[0], rows_of))

        @pl.when(end > 0)
        def _() -> None:
            last = add_product(d_query, d_logits, slot(memory.k, end - 1))
            store(last, outputs[0], rows_of)
            arrive(memory.k_free, end - 1)

    def copy(at: Here, arrays: Any, memory: QueryMemory) -> None:
        given, _ = arrays
        kv_head = lax.div(at.head, jnp.int32(heads // kv_heads))
        reading = reading_of(given, at.full(given.rows) * parts)

        @pl.loop(0, at.live(given.rows) * parts)
        def _(j: jax.Array) -> None:
            columns = pl.ds(at.column(given.rows, j, parts) * STEP, STEP)
            cells = (at.batch, columns, kv_head)
            memory.columns.copy(key_columns(given), at, columns, j, reading)
            copy_when_free(given.key.at[cells], memory.k, memory.k_ready, memory.k_free, j)
            copy_when_free(given.value.at[cells], memory.v, memory.v_ready, memory.v_free, j)

        memory.columns.drain(reading.number(at.live(given.rows) * parts))
        drain(memory.k_free, at.live(given.rows) * parts)
        drain(memory.v_free, at.live(given.rows) * parts)

    memory = QueryMemory(
        q=tiles(dtype, COMPUTING, ROWS, width),
        d_output=tiles(dtype, COMPUTING, ROWS, v_width),
        k=tiles(dtype, STAGES + 1, STEP, width),
        v=tiles(dtype, STAGES, STEP, v_width),
        q_ready=barriers(COMPUTING),
        d_ready=barriers(COMPUTING),
        k_ready=barriers(STAGES + 1),
        v_ready=barriers(STAGES),
        k_free=barriers(STAGES + 1, COMPUTING),
        v_free=barriers(STAGES, COMPUTING),
        columns=Columns.of(key_columns(given), STAGES, STEP),
    )
    out = jax.ShapeDtypeStruct((batch, q_len, heads, width), jnp.float32)
    grid = (q_len // block_q, heads, batch)
    arrays = (given, returned.in_base_2())
    return launch(compute, copy, grid, [out], memory, arrays)[0]


class QueryMemory(NamedTuple):
    """Shared memory of the backward pass of queries."""

    q: Any
    d_output: Any
    k: Any
    v: Any
    q_ready: Any
    d_ready: Any
    k_ready: Any
    v_ready: Any
    k_free: Any
    v_free: Any
    columns: "Columns"


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

    Tiles are transposed: rows of keys, columns of queries. Heads of a group add up in registers.
    """
    (batch, _, heads, width), (_, kv_len, kv_heads, v_width) = given.query.shape, given.value.shape
    dtype, parts, shape = given.query.dtype, block_q // STEP, (ROWS, STEP)
    group, shared_scale = heads // kv_heads, given.scale.shape[1] == 1

    def compute(at: Here, arrays: Any, outputs: Sequence[Ref], memory: KeyMemory) -> None:
        given, _, columns = arrays
        k_smem, v_smem = (x.at[at.wg] for x in (memory.k, memory.v))
        rows = pl.ds(at.row * block_kv + at.wg * ROWS, ROWS)
        rows_of = (at.batch, rows, at.head)
        load(given.key.at[rows_of], k_smem, memory.k_ready.at[at.wg])
        load(given.value.at[rows_of], v_smem, memory.v_ready.at[at.wg])
        plgpu.barrier_wait(memory.k_ready.at[at.wg])
        plgpu.barrier_wait(memory.v_ready.at[at.wg])

        (lse, mean), *parts_of_columns = memory.columns.split(2, len(given.full.of_queries))

        def of_head(g: jax.Array, carry: Any) -> Any:
            own = at._replace(head=at.head * group + g)
            full, partial = (
                Asked.of(rule, outside, own, rows, columns, transposed=True)
                for (rule, outside), columns in zip(
                    of_rules(rules, given), parts_of_columns, strict=True
                )
            )
            scale, start = number(given.scale, own), carry[-1]

            def step(j: jax.Array, carry: Any, asked: Asked) -> Any:
                d_key, d_value, d_logits = carry
                t, before = start + j, jnp.maximum(start + j - 1, 0)

                def of_logits(logits: Load) -> Sequence[jax.Array]:
                    s = logits()
                    memory.columns.wait(t)
                    of_queries = across(column(lse, t), shape, 1)
                    return weights_of(asked, None, t, s, scale, of_queries, rules).distinct()

                kinds = asked.kinds
                (d_key,), found = multiply(
                    [Fresh(k_smem, slot(memory.q, t), shape, lambda: wait(memory.q_ready, t))],
                    [Added(d_key, d_logits, slot(memory.q, before))],
                    of_logits,
                    like=(zeros(shape),) * kinds,
                )
                weights = Weights(*found, *found * (3 - kinds))
                pl.when(t > 0)(lambda: arrive(memory.q_free, before))
                mixing = weights.mixing.astype(dtype)

                def of_d_weights(d_weights: Load) -> Sequence[jax.Array]:
                    found = weights.d_logits(d_weights(), across(column(mean, t), shape, 1))
                    memory.columns.arrive(t)
                    return (found if shared_scale else found * scale,)

                ready = lambda: wait(memory.d_ready, t)  # noqa: E731
                (d_value,), (d_logits,) = multiply(
                    [Fresh(v_smem, slot(memory.d_output, t), shape, ready)],
                    [Added(d_value, mixing, slot(memory.d_output, t))],
                    of_d_weights,
                    like=(zeros(shape),),
                )
                arrive(memory.d_free, t)
                return d_key, d_value, d_logits.astype(dtype)

            middle, end = own.full(columns) * parts, own.live(columns) * parts
            carry = lax.fori_loop(0, middle, functools.partial(step, asked=full), carry[:3])
            carry = lax.fori_loop(middle, end, functools.partial(step, asked=partial), carry)
            return *carry, start + end

        start = (zeros((ROWS, width)), zeros((ROWS, v_width)), zeros(shape).astype(dtype))
        carry = lax.fori_loop(0, group, of_head, (*start, jnp.int32(0)))
        d_key, d_value, d_logits, steps = carry
        scale = number(given.scale, at) if shared_scale else 1.0

        @pl.when(steps > 0)
        def _() -> None:
            total = add_product(d_key, d_logits, slot(memory.q, steps - 1))
            arrive(memory.q_free, steps - 1)
            k_smem[...] = (total * scale).astype(dtype)

        @pl.when(steps == 0)
        def _() -> None:
            k_smem[...] = zeros((ROWS, width)).astype(dtype)

        v_smem[...] = d_value.astype(dtype)
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(k_smem, outputs[0].at[rows_of])
        plgpu.copy_smem_to_gmem(v_smem, outputs[1].at[rows_of])
        plgpu.wait_smem_to_gmem(0)

    def copy(at: Here, arrays: Any, memory: KeyMemory) -> None:
        given, returned, columns = arrays

        def of_head(g: jax.Array, start: jax.Array) -> jax.Array:
            own = at._replace(head=at.head * group + g)
            end = own.live(columns) * parts

            @pl.loop(0, end)
            def _(j: jax.Array) -> None:
                rows = pl.ds(own.column(columns, j, parts) * STEP, STEP)
                cells = (own.batch, rows, own.head)
                query, d_output = given.query.at[cells], returned.d_output.at[cells]
                copy_when_free(query, memory.q, memory.q_ready, memory.q_free, start + j)
                memory.columns.copy(query_columns(given, returned), own, rows, start + j)
                copy_when_free(d_output, memory.d_output, memory.d_ready, memory.d_free, start + j)

            return start + end

        steps = lax.fori_loop(0, group, of_head, jnp.int32(0))
        memory.columns.drain(steps)
        drain(memory.q_free, steps)
        drain(memory.d_free, steps)

    memory = KeyMemory(
        k=tiles(dtype, COMPUTING, ROWS, width),
        v=tiles(dtype, COMPUTING, ROWS, v_width),
        q=tiles(dtype, STAGES + 1, STEP, width),
        d_output=tiles(dtype, STAGES, STEP, v_width),
        k_ready=barriers(COMPUTING),
        v_ready=barriers(COMPUTING),
        q_ready=barriers(STAGES + 1),
        d_ready=barriers(STAGES),
        q_free=barriers(STAGES + 1, COMPUTING),
        d_free=barriers(STAGES, COMPUTING),
        columns=Columns.of(query_columns(given, returned), STAGES, STEP),
    )
    outs = [
        jax.ShapeDtypeStruct((batch, kv_len, kv_heads, size), dtype) for size in (width, v_width)
    ]
    grid = (kv_len // block_kv, kv_heads, batch)
    arrays = (given, returned.in_base_2(), columns)
    return tuple(launch(compute, copy, grid, outs, memory, arrays))


class KeyMemory(NamedTuple):
    """Shared memory of the backward pass of keys and values."""

    k: Any
    v: Any
    q: Any
    d_output: Any
    k_ready: Any
    v_ready: Any
    q_ready: Any
    d_ready: Any
    q_free: Any
    d_free: Any
    columns: "Columns"


class Weights(NamedTuple):
    """Of a tile, as the backward passes need them; those that are the same are one."""

    mixing: jax.Array  # those that values were mixed with, after dropout
    up: jax.Array  # times the gradient of the weights,
    off: jax.Array  # less this times the mean, is the gradient of the logits

    def distinct(self) -> Sequence[jax.Array]:
        """The first, or all if there are others."""
        return self[:1] if self.off is self.mixing else self

    def d_logits(self, d_weights: jax.Array, mean: jax.Array) -> jax.Array:
        """The gradient of the logits."""
        if self.up is self.off:
            return self.up * (d_weights - mean)
        return self.up * d_weights - self.off * mean


def weights_of(
    asked: "Asked",
    columns: "Columns | None",
    j: jax.Array,
    s: jax.Array,
    scale: jax.Array,
    lse: jax.Array,
    rules: Rules,
) -> Weights:
    """The weights of a tile, by its products and the log-sum-exp of its queries in base 2."""
    answers = asked(columns, j, s, scale)
    if answers.logit is None:
        weights = jnp.exp2(s * (scale * LOG2E) - lse)
    else:
        weights = jnp.exp2(answers.logit * LOG2E - lse)
    if answers.seen is not None:
        weights = jnp.where(answers.seen, weights, 0.0)
    mixing = up = without_dropped(weights, answers, rules)
    off = weights
    if answers.slope is not None:
        up, off = up * answers.slope, off * answers.slope
        if answers.seen is not None:
            up, off = (jnp.where(answers.seen, x, 0.0) for x in (up, off))
    return Weights(mixing, up, off)


def without_dropped(weights: jax.Array, answers: Answers, rules: Rules) -> jax.Array:
    """The weights after dropout; NaN stays NaN."""
    if answers.kept is None:
        return weights
    return jnp.where(answers.kept, weights * (1.0 / (1.0 - rules.rate)), weights * 0.0)


class Here(NamedTuple):
    """Where a warpgroup is."""

    row: jax.Array  # of blocks
    head: jax.Array
    batch: jax.Array
    wg: jax.Array

    def of(self, x: Ref) -> tuple[Any, Any]:
        """The example and head of `x` [b, n, ...], 1 where shared."""
        batch, head = x.shape[:2]
        return self.batch if batch > 1 else 0, self.head if head > 1 else 0

    def full(self, lists: Lists) -> jax.Array:
        """How many full blocks the row has."""
        return lists.num_full[(*self.of(lists.num_full), self.row)]

    def live(self, lists: Lists) -> jax.Array:
        """How many blocks the row has that hold work."""
        return lists.num_live[(*self.of(lists.num_live), self.row)]

    def column(self, lists: Lists, j: jax.Array, parts: int = 1) -> jax.Array:
        """The part of a block that step `j` works on, blocks being cut into so many."""
        j, part = lax.div(j, jnp.int32(parts)), lax.rem(j, jnp.int32(parts))
        return lists.blocks[(*self.of(lists.blocks), self.row, j)] * parts + part


class Asked(NamedTuple):
    """A rule and what it reads; what is of the rows of a warpgroup is loaded once."""

    rule: TileRule
    of_rows: list[jax.Array]
    of_columns: Sequence[Ref]  # of steps, in shared memory
    of_heads: list[jax.Array]
    transposed: bool

    @classmethod
    def of(
        cls,
        rule: TileRule,
        outside: Outside,
        at: Here,
        rows: Any,
        columns: Sequence[Ref],
        *,
        transposed: bool = False,
    ) -> "Asked":
        """The rule for rows of queries, or of keys if it is transposed."""
        of_rows = outside.of_keys if transposed else outside.of_queries
        loaded = [vector(x, at, rows, ROW) for x in of_rows]
        return cls(rule, loaded, columns, [x[at.of(x)] for x in outside.of_heads], transposed)

    @property
    def kinds(self) -> int:
        """How many different tiles `Weights` holds."""
        return 3 if {"kept", "slope"}.intersection(self.rule.names) else 1

    def __call__(
        self, columns: "Columns | None", j: jax.Array, s: jax.Array, scale: jax.Array
    ) -> Answers:
        """What the rule says of the tile of products of step `j`.

        `columns` None: they are there, and are read again.
        """
        if not self.rule.names:
            return Answers()
        of_queries = [across(x, s.shape) for x in self.of_rows]
        if columns is not None and self.of_columns:
            columns.wait(j)
        of_keys = [across(column(x, j), s.shape, 1) for x in self.of_columns]
        if columns is not None and self.of_columns:
            columns.arrive(j)
        if self.transposed:
            of_queries, of_keys = of_keys, of_queries
        of_heads = [everywhere(x, s.shape) for x in self.of_heads]
        spread = functools.partial(everywhere, shape=s.shape)
        answers = self.rule.split.tile([s * scale], of_queries, of_keys, of_heads, spread)
        return self.rule.answers(answers)


def of_rules(rules: Rules, given: Given) -> Sequence[tuple[TileRule, Outside]]:
    """What full and partial tiles ask."""
    return (rules.full, given.full), (rules.partial, given.partial)


def key_columns(given: Given) -> list[Any]:
    """What steps over keys read of them besides: of full, then of partial tiles."""
    return [*given.full.of_keys, *given.partial.of_keys]


def query_columns(given: Given, returned: Returned) -> list[Any]:
    """What steps over queries read of them besides."""
    of_rules = (*given.full.of_queries, *given.partial.of_queries)
    return [returned.lse, returned.mean, *of_rules]


class Reading(NamedTuple):
    """Which steps read columns: the first so many, and all after those that are skipped."""

    first: int
    skipped: jax.Array | None

    def reads(self, j: jax.Array) -> jax.Array:
        """Whether step `j` does."""
        assert self.skipped is not None
        return (j < self.first) | (j >= self.first + self.skipped)

    def number(self, j: jax.Array) -> jax.Array:
        """The number of step `j` among those that do."""
        if self.skipped is None:
            return j
        return jnp.where(j < self.first, j, j - self.skipped)


def reading_of(given: Given, num_full: jax.Array, first: int = 0) -> Reading:
    """Full steps read columns only if what they ask depends on keys; `first` count as partial."""
    return Reading(first, None if given.full.of_keys else jnp.maximum(num_full - first, 0))


class Columns(NamedTuple):
    """Numbers of the columns of steps, in shared memory."""

    buffers: Sequence[Any]  # [stages, columns] each
    ready: Any
    free: Any

    @classmethod
    def of(cls, arrays: Sequence[Any], stages: int, size: int) -> "Columns":
        """Memory for arrays [b, n, positions]."""
        buffers = [plgpu.SMEM((stages, size), x.dtype) for x in arrays]
        if not buffers:
            return cls([], None, None)
        return cls(buffers, barriers(stages, len(buffers)), barriers(stages, COMPUTING))

    def parts(self, given: Given) -> Sequence[Sequence[Ref]]:
        """Those of `key_columns`, of full and of partial tiles."""
        return self.split(len(given.full.of_keys))

    def split(self, *sizes: int) -> Sequence[Sequence[Ref]]:
        """So many of them, so many after these, ..., and the others."""
        ends = [0, *itertools.accumulate(sizes), len(self.buffers)]
        return [self.buffers[i:j] for i, j in itertools.pairwise(ends)]

    def copy(
        self,
        arrays: Sequence[Ref],
        at: Here,
        where: Any,
        j: jax.Array,
        reading: "Reading | None" = None,
    ) -> None:
        """Copies what step `j` reads, if it does, once there is room."""

        def into(j: jax.Array) -> None:
            pl.when(j >= self.free.shape[0])(lambda: wait(self.free, j))
            for x, buffer in zip(arrays, self.buffers, strict=True):
                load(x.at[(*at.of(x), where)], slot(buffer, j), slot(self.ready, j))

        if not self.buffers:
            return
        if reading is None or reading.skipped is None:
            into(j)
        else:
            pl.when(reading.reads(j))(lambda: into(reading.number(j)))

    def wait(self, j: jax.Array) -> None:
        """Waits for what step `j` reads."""
        if self.buffers:
            wait(self.ready, j)

    def arrive(self, j: jax.Array) -> None:
        """Says that step `j` has read it."""
        if self.buffers:
            arrive(self.free, j)

    def drain(self, steps: jax.Array) -> None:
        """Waits until all is read."""
        if self.buffers:
            drain(self.free, steps)


Load: TypeAlias = Callable[[], jax.Array]


class Fresh(NamedTuple):
    """A product a bᵀ of two tiles in shared memory."""

    a: Ref
    b: Ref
    shape: tuple[int, int]
    ready: Callable[[], None]
    """Waits for b."""


class Added(NamedTuple):
    """A product of a tile of weights and one in shared memory, added to a sum."""

    total: jax.Array
    a: jax.Array
    b: Ref
    ready: Callable[[], None] | None = None


def multiply(
    fresh: Sequence[Fresh],
    added: Sequence[Added],
    then: Callable[..., Sequence[jax.Array]],
    like: Sequence[jax.Array],
) -> tuple[list[jax.Array], list[jax.Array]]:
    """Products, and what is computed from the fresh ones while the others are.

    Args:
      fresh: come first.
      added: to sums.
      then: what is computed, of functions that wait for the fresh products.
      like: arrays as those that it gives.

    Returns:
      The sums, and what `then` gave.
    """

    def run(refs: Any) -> None:
        sums, outs = refs[: len(added)], refs[len(added) :]

        def scoped(*products: Ref) -> None:
            for of, ref in zip(fresh, products, strict=True):
                of.ready()
                plgpu.wgmma(ref, of.a, transposed(of.b))
            for of, ref in zip(added, sums, strict=True):
                if of.ready is not None:
                    of.ready()
                plgpu.wgmma(ref, of.a, of.b)
            behind = range(len(fresh) + len(added) - 1, -1, -1)
            loads = [
                functools.partial(loaded, ref, after)
                for ref, after in zip(products, behind, strict=False)
            ]
            for out, x in zip(outs, then(*loads), strict=True):
                out[...] = x

        pl.run_scoped(scoped, *(plgpu.ACC(of.shape, jnp.float32) for of in fresh))

    results = pl.run_state(run)((*(plgpu.ACC.init(of.total) for of in added), *like))
    return list(results[: len(added)]), list(results[len(added) :])


def loaded(product: Ref, after: int) -> jax.Array:
    """A product, once no more than `after` that were begun after it go on."""
    return plgpu.wgmma_accumulator_load(product, wait_n=after)


def add_product(total: jax.Array, a: jax.Array, b: Ref) -> jax.Array:
    """total + a b."""
    return pl.run_state(lambda ref: plgpu.wgmma(ref, a, b))(plgpu.ACC.init(total))


def product(a: Ref, b: Ref, shape: tuple[int, int]) -> jax.Array:
    """a bᵀ."""

    def of(ref: Ref) -> jax.Array:
        plgpu.wgmma(ref, a, transposed(b))
        return ref[...]

    return pl.run_scoped(of, plgpu.ACC(shape, jnp.float32))


def transposed(ref: Ref) -> Ref:
    return ref.transpose((1, 0))


def number(x: Ref, at: Here) -> jax.Array:
    """Of the head, of [1, n]."""
    return x[0, at.head if x.shape[1] > 1 else 0]


def vector(x: Ref, at: Here, where: Any, layout: Any) -> jax.Array:
    """Numbers of rows or columns, of [b, n, positions], in registers."""
    return plgpu.load(x.at[(*at.of(x), where)], (), layout=layout, optimized=False)


def column(x: Ref, j: jax.Array) -> jax.Array:
    """Numbers of the columns of step `j`, in registers."""
    return plgpu.load(slot(x, j), (), layout=COLUMN)


def whole(x: Ref) -> jax.Array:
    """A tile of shared memory in registers."""
    return plgpu.load(x, (), layout=TILE)


def store(x: jax.Array, ref: Ref, where: Any) -> None:
    ref[where] = x


def filled(value: float) -> jax.Array:
    """A number for each row of a warpgroup."""
    return plgpu.layout_cast(jnp.full((ROWS,), value, jnp.float32), ROW)


def zeros(shape: tuple[int, int]) -> jax.Array:
    return plgpu.layout_cast(jnp.zeros(shape, jnp.float32), TILE)


def across(x: jax.Array, shape: tuple[int, int], axis: int = 0) -> jax.Array:
    """Numbers of rows, or of columns, as a tile."""
    return lax.broadcast_in_dim(x, shape, [axis])


def everywhere(x: jax.Array, shape: tuple[int, int]) -> jax.Array:
    """A number as a tile."""
    return lax.broadcast_in_dim(x, shape, [])


def slot(x: Ref, j: jax.Array) -> Ref:
    """The buffer of step `j`."""
    return x.at[lax.rem(j, jnp.int32(x.shape[0]))]


def wait(barrier: Ref, j: jax.Array) -> None:
    plgpu.barrier_wait(slot(barrier, j))


def arrive(barrier: Ref, j: jax.Array) -> None:
    plgpu.barrier_arrive(slot(barrier, j))


def load(source: Ref, target: Ref, ready: Ref) -> None:
    plgpu.copy_gmem_to_smem(source, target, ready)


def copy_when_free(source: Ref, buffers: Ref, ready: Ref, free: Ref, j: jax.Array) -> None:
    """Copies what step `j` needs into its buffer."""
    pl.when(j >= buffers.shape[0])(lambda: wait(free, j))
    load(source, slot(buffers, j), slot(ready, j))


def drain(free: Ref, steps: jax.Array) -> None:
    """Waits until what was copied for so many steps is used."""

    @pl.loop(jnp.maximum(steps - free.shape[0], 0), steps)
    def _(j: jax.Array) -> None:
        wait(free, j)


def tiles(dtype: Any, count: int, rows: int, width: int) -> Any:
    """Shared memory for tiles, as tensor cores read it."""
    transforms = (plgpu.TilingTransform((8, 64)), plgpu.SwizzleTransform(128))
    return plgpu.SMEM((count, rows, width), dtype, transforms=transforms)


def barriers(count: int, arrivals: int = 1) -> Any:
    return plgpu.Barrier(num_barriers=count, num_arrivals=arrivals)


def launch(
    compute: Callable[..., None],
    copy: Callable[..., None],
    grid: tuple[int, int, int],
    outputs: Sequence[jax.ShapeDtypeStruct],
    memory: Any,
    arrays: Any,
) -> list[jax.Array]:
    """Runs a kernel over rows of blocks, heads and examples; the last row comes first."""
    leaves, tree = jax.tree.flatten(arrays)

    def body(*refs: Ref) -> None:
        given = jax.tree.unflatten(tree, refs[: len(leaves)])
        outs = refs[len(leaves) :]

        def scoped(*memory: Any) -> None:
            own = type(layout)(*memory)
            row = grid[0] - 1 - lax.axis_index("row")
            axes = (lax.axis_index(name) for name in ("head", "batch", "wg"))
            at = Here(row, *axes)

            @pl.when(at.wg < COMPUTING)
            def _() -> None:
                plgpu.set_max_registers(REGISTERS, action="increase")
                compute(at, given, outs, own)

            @pl.when(at.wg == COMPUTING)
            def _() -> None:
                plgpu.set_max_registers(COPYING_REGISTERS, action="decrease")
                copy(at, given, own)

        layout = memory
        pl.run_scoped(scoped, *memory, collective_axes="wg")

    parameters = inspect.signature(plgpu.kernel).parameters
    kernel = plgpu.kernel(
        body,
        **{"out_type" if "out_type" in parameters else "out_shape": list(outputs)},
        grid=grid,
        grid_names=("row", "head", "batch"),
        num_threads=COMPUTING + 1,
        thread_name="wg",
        compiler_params=plgpu.CompilerParams(approx_math=True),
    )
    return list(kernel(*leaves))
