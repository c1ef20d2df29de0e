"""Attention on Hopper GPUs: one kernel of Mosaic GPU for each pass.

Two warpgroups compute, 64 rows of a tile each, and a third copies: the ping-pong of
FlashAttention-3 (arXiv:2407.08608). Logits of the next tile and products of the last are computed
by the tensor cores while the softmax of a tile is. Only live blocks are fetched, by the lists of
the plan, and only partial ones ask the mask, by its rule in registers.
"""

import functools
import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from flaxattn.attention.fused.rules import Answers, TileRule
from flaxattn.attention.fused.split import Outside

LOG2E = math.log2(math.e)
WARPGROUP = 64  # rows of a matrix product of one warpgroup
COMPUTE = 2  # warpgroups that compute
ROW, COLUMN, TILE = plgpu.Layout.WGMMA.reduce(1), plgpu.Layout.WGMMA.reduce(0), plgpu.Layout.WGMMA


class Forward(NamedTuple):
    """What the forward pass is given; lengths are multiples of blocks, widths of 64.

    b and n stand for examples and query heads, 1 where shared.
    """

    query: jax.Array  # [B, T, N, H]
    key: jax.Array  # [B, S, K, H]
    value: jax.Array  # [B, S, K, H']
    blocks: jax.Array  # int32 [b, n, Q, blocks]: the live lists of the plan
    num_full: jax.Array  # int32 [b, n, Q]
    num_live: jax.Array
    scale: jax.Array  # float32 [1, n]
    sinks: jax.Array | None  # float32 [1, n]
    full: Outside  # what tiles ask, full and partial ones
    partial: Outside


class Tuning(NamedTuple):
    block_q: int = 128
    block_kv: int = 128
    stages: int = 2
    overlap: bool = True
    pingpong: bool = True
    raw_max: bool = True


def forward(given: Forward, full: TileRule, partial: TileRule, rate: float, tuning: Tuning = Tuning()):
    """The output [B, T, N, H'] and the log-sum-exp [B, N, T]."""
    B, T, N, H = given.query.shape
    S, K, width = given.value.shape[1:]
    group = N // K
    dtype = given.query.dtype
    bq, bkv, stages = tuning.block_q, tuning.block_kv, tuning.stages
    half = bq // COMPUTE
    assert half == WARPGROUP
    rows = T // bq
    leaves, tree = jax.tree.flatten(given)

    def kernel(*refs):
        inputs = jax.tree.unflatten(tree, refs[: len(leaves)])
        o_ref, lse_ref = refs[len(leaves) : len(leaves) + 2]
        (q_smem, k_smem, v_smem, o_smem, lse_smem), (q_bar, k_bar, v_bar), (k_free, v_free), turns = refs[len(leaves) + 2 :]
        if width == H:
            o_smem = q_smem
        n, b, wg = lax.axis_index("heads"), lax.axis_index("batch"), lax.axis_index("wg")
        i = rows - 1 - lax.axis_index("rows")  # those with most work first
        live = at(inputs.num_live, b, n, i)
        num_full = at(inputs.num_full, b, n, i)
        kv_head = lax.div(n, jnp.int32(group))
        base = i * bq + wg * half

        def block_of(j):
            return at(inputs.blocks, b, n, i, j)

        @pl.when(wg < COMPUTE)
        def _():
            plgpu.set_max_registers(232, action="increase")
            own_q = q_smem.at[wg]
            rows_at = pl.ds(base, half)
            plgpu.copy_gmem_to_smem(inputs.query.at[b, rows_at, n], own_q, q_bar.at[wg])
            scale = inputs.scale[0, pick1(inputs.scale, n)]
            factor = scale * LOG2E
            asked = {
                kind: Asked.load(given, rule, rows_at, b, n)
                for kind, given, rule in (
                    ("full", inputs.full, full), ("partial", inputs.partial, partial))
            }
            sink = None if inputs.sinks is None else inputs.sinks[0, pick1(inputs.sinks, n)] * LOG2E
            plgpu.barrier_wait(q_bar.at[wg])

            @pl.when(scale < 0)
            def _():
                own_q[...] = -plgpu.load(own_q, (), layout=TILE)
                plgpu.commit_smem()

            factor = jnp.abs(factor)

            def logits_of(j, s, kind):
                """Base-2 logits, or raw ones of which `factor` is still to be taken."""
                rule = asked[kind]
                if not rule.rule.names:
                    return None, Answers()
                answers = rule(block_of(j) * bkv, bkv, s * (factor / LOG2E), (half, bkv))
                return answers

            def soft(j, s, m, l, kind):
                rule = asked[kind]
                if not rule.rule.names:
                    if tuning.raw_max:
                        top = jnp.maximum(m, s.max(axis=1) * factor)
                        p = jnp.exp2(s * factor - across(top, s.shape))
                    else:
                        z = s * factor
                        top = jnp.maximum(m, z.max(axis=1))
                        p = jnp.exp2(z - across(top, s.shape))
                    return top, jnp.exp2(m - top), p, None
                answers = rule(block_of(j) * bkv, bkv, s * (factor * (1 / LOG2E)), (half, bkv))
                z = s * factor if answers.logit is None else answers.logit * LOG2E
                if answers.seen is not None:
                    z = jnp.where(answers.seen, z, -jnp.inf)
                top = jnp.maximum(m, z.max(axis=1))
                origin = jnp.where(top == -jnp.inf, 0.0, top) if answers.seen is not None else top
                p = jnp.exp2(z - across(origin, s.shape))
                return top, jnp.exp2(m - origin), p, answers.kept

            def weights(p, kept):
                if kept is not None:
                    p = jnp.where(kept, p * (1.0 / (1.0 - rate)), 0.0)
                return p.astype(dtype)

            def my_turn():
                if tuning.pingpong:
                    plgpu.barrier_wait(turns.at[wg])

            def your_turn():
                if tuning.pingpong:
                    plgpu.barrier_arrive(turns.at[1 - wg])

            pl.when(live == 0)(lambda: nothing(o_smem, lse_smem, wg, half, width, dtype, sink))

            @pl.when(live > 0)
            def _():
                if tuning.pingpong:
                    @pl.when(wg == 1)
                    def _():
                        plgpu.barrier_arrive(turns.at[0])
                plgpu.barrier_wait(k_bar.at[0])
                my_turn()
                s = product(own_q, k_smem.at[0], (half, bkv))
                your_turn()
                plgpu.barrier_arrive(k_free.at[0])
                m = row(half, -jnp.inf) if sink is None else row(half, 0.0) + sink
                l = row(half, 0.0 if sink is None else 1.0)
                m, alpha, p, kept = soft(jnp.int32(0), s, m, l, "partial")
                l = l * alpha + p.sum(axis=1)
                acc = tile((half, width), 0.0)

                def step(j, carry, kind):
                    m, l, acc, p16 = carry
                    slot, last = lax.rem(j, jnp.int32(stages)), lax.rem(j - 1, jnp.int32(stages))
                    plgpu.barrier_wait(k_bar.at[slot])
                    my_turn()

                    def both(refs):
                        acc_ref, m_ref, alpha_ref, l_ref, p_ref = refs

                        def scoped(s_ref):
                            plgpu.wgmma(s_ref, own_q, k_smem.at[slot].transpose((1, 0)))
                            plgpu.barrier_wait(v_bar.at[last])
                            plgpu.wgmma(acc_ref, p16, v_smem.at[last])
                            your_turn()
                            return plgpu.wgmma_accumulator_load(s_ref, wait_n=1)

                        s = pl.run_scoped(scoped, plgpu.ACC((half, bkv), jnp.float32))
                        plgpu.barrier_arrive(k_free.at[slot])
                        top, alpha, p, kept = soft(j, s, m, l, kind)
                        l_ref[...] = l * alpha + p.sum(axis=1)
                        m_ref[...] = top
                        alpha_ref[...] = alpha
                        if kept is not None:
                            p = jnp.where(kept, p * (1.0 / (1.0 - rate)), 0.0)
                        p_ref[...] = p

                    acc, m, alpha, l, p = pl.run_state(both)(
                        (plgpu.ACC.init(acc), m, m, l, tile((half, bkv), 0.0))
                    )
                    plgpu.barrier_arrive(v_free.at[last])
                    acc = acc * across(alpha, acc.shape)
                    return m, l, acc, p.astype(dtype)

                carry = (m, l, acc, weights(p, kept))
                carry = lax.fori_loop(1, num_full, functools.partial(step, kind="full"), carry)
                first = jnp.maximum(num_full, 1)
                carry = lax.fori_loop(first, live, functools.partial(step, kind="partial"), carry)
                m, l, acc, p16 = carry
                last = lax.rem(live - 1, jnp.int32(stages))
                plgpu.barrier_wait(v_bar.at[last])
                acc = pl.run_state(lambda r: plgpu.wgmma(r, p16, v_smem.at[last]))(plgpu.ACC.init(acc))
                plgpu.barrier_arrive(v_free.at[last])
                empty = m == -jnp.inf
                inverse = jnp.where(empty, 0.0, 1.0 / l)
                o_smem.at[wg][...] = (acc * across(inverse, acc.shape)).astype(dtype)
                lse_smem.at[wg][...] = jnp.where(empty, -jnp.inf, m * (1 / LOG2E) + jnp.log(l))

            plgpu.commit_smem()
            plgpu.copy_smem_to_gmem(o_smem.at[wg], o_ref.at[b, rows_at, n])
            plgpu.copy_smem_to_gmem(lse_smem.at[wg], lse_ref.at[b, n, rows_at])
            plgpu.wait_smem_to_gmem(0)

        @pl.when(wg == COMPUTE)
        def _():
            plgpu.set_max_registers(40, action="decrease")

            @pl.loop(0, live)
            def _(j):
                slot = lax.rem(j, jnp.int32(stages))
                where = (b, pl.ds(block_of(j) * bkv, bkv), kv_head)
                pl.when(j >= stages)(lambda: plgpu.barrier_wait(k_free.at[slot]))
                plgpu.copy_gmem_to_smem(inputs.key.at[where], k_smem.at[slot], k_bar.at[slot])
                pl.when(j >= stages)(lambda: plgpu.barrier_wait(v_free.at[slot]))
                plgpu.copy_gmem_to_smem(inputs.value.at[where], v_smem.at[slot], v_bar.at[slot])

    tiled = (plgpu.TilingTransform((8, 64)), plgpu.SwizzleTransform(128))

    def smem(*shape):
        return plgpu.SMEM(shape, dtype, transforms=tiled)

    def barriers(count, arrivals=1):
        return plgpu.Barrier(num_barriers=count, num_arrivals=arrivals)

    def entry(*refs):
        pl.run_scoped(
            lambda *scoped: kernel(*refs, *scoped),
            [
                smem(COMPUTE, half, H),
                smem(stages, bkv, H),
                smem(stages, bkv, width),
                None if width == H else smem(COMPUTE, half, width),
                plgpu.SMEM((COMPUTE, half), jnp.float32),
            ],
            (barriers(COMPUTE), barriers(stages), barriers(stages)),
            (barriers(stages, COMPUTE), barriers(stages, COMPUTE)),
            barriers(COMPUTE),
            collective_axes="wg",
        )

    out = [
        jax.ShapeDtypeStruct((B, T, N, width), dtype),
        jax.ShapeDtypeStruct((B, N, T), jnp.float32),
    ]
    return plgpu.kernel(
        entry,
        out_type=out,
        grid=(rows, N, B),
        grid_names=("rows", "heads", "batch"),
        num_threads=COMPUTE + 1,
        thread_name="wg",
        compiler_params=plgpu.CompilerParams(approx_math=True),
    )(*leaves)


def nothing(o_smem, lse_smem, wg, half, width, dtype, sink):
    o_smem.at[wg][...] = tile((half, width), 0.0).astype(dtype)
    lse_smem.at[wg][...] = row(half, -jnp.inf)


class Asked(NamedTuple):
    """The rule of tiles, and what it reads of the rows of a warpgroup, loaded once."""

    rule: TileRule
    of_queries: list
    of_heads: list
    of_keys: list  # refs
    b: Any
    n: Any

    @classmethod
    def load(cls, outside, rule, rows_at, b, n):
        load = lambda x: plgpu.load(x.at[(*pick(x, b, n), rows_at)], (), layout=ROW, optimized=False)
        return cls(
            rule,
            [load(x) for x in outside.of_queries],
            [x[pick(x, b, n)] for x in outside.of_heads],
            outside.of_keys,
            b,
            n,
        )

    def __call__(self, first, bkv, logits, shape):
        of_keys = [
            across(plgpu.load(x.at[(*pick(x, self.b, self.n), pl.ds(first, bkv))], (), layout=COLUMN, optimized=False), shape, 1)
            for x in self.of_keys
        ]
        of_queries = [across(x, shape) for x in self.of_queries]
        spread = lambda x: lax.broadcast_in_dim(x, shape, [])
        tiles = self.rule.split.tile([logits], of_queries, of_keys, [spread(x) for x in self.of_heads], spread)
        return self.rule.answers(tiles)


def pick(x, b, n):
    return (b if x.shape[0] > 1 else 0, n if x.shape[1] > 1 else 0)


def pick1(x, n):
    return n if x.shape[1] > 1 else 0


def at(x, b, n, *rest):
    return x[(*pick(x, b, n), *rest)]


def row(size, value):
    return plgpu.layout_cast(jnp.full((size,), value, jnp.float32), ROW)


def tile(shape, value):
    return plgpu.layout_cast(jnp.full(shape, value, jnp.float32), TILE)


def across(x, shape, axis=0):
    return lax.broadcast_in_dim(x, shape, [axis])


def product(a, b, shape):
    """a bᵀ."""

    def of(ref):
        plgpu.wgmma(ref, a, b.transpose((1, 0)))
        return ref[...]

    return pl.run_scoped(of, plgpu.ACC(shape, jnp.float32))
