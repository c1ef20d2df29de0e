"""What fused attention is to compute, on any chip, and a run of the kernels of one.

The letters are those of the oracle.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from attention_cases import Shape, older, unseen_keys, with_garbage
from attention_cases import inputs as random_inputs

from flaxattn import (
    alibi,
    attend_with_stats,
    causal,
    chunked,
    dilated,
    from_dense,
    full,
    global_tokens,
    lengths,
    prefix,
    same_segment,
    score,
    sliding_window,
    softcap,
    valid,
    where,
)
from flaxattn.attention import passes as loops
from flaxattn.attention.arguments import make_options
from flaxattn.attention.blockwise import prepared
from flaxattn.attention.chunks import Fixed, Inputs, Setting
from flaxattn.attention.dropout import seeds_for
from flaxattn.attention.fused import passes
from flaxattn.attention.repair import marked, repair
from flaxattn.attention.residuals import Outputs, Residuals
from flaxattn.attention.scoring import halves, whole

PLAIN = Shape(B=2, T=37, S=300, N=2, K=2, H=8, H_value=8)
GROUPED = Shape(B=2, T=37, S=300, N=4, K=2, H=8, H_value=5)
ONE = Shape(B=1, T=37, S=300, N=4, K=2, H=8, H_value=5)
SQUARE = Shape(B=1, T=300, S=300, N=2, K=1, H=8, H_value=8)


class Case(NamedTuple):
    """A call of attention, made of a generator of random numbers and its shape."""

    mask: Callable[[np.random.Generator, Shape], Any] = lambda rng, shape: causal()
    shape: Shape = GROUPED
    score: Callable[[np.random.Generator, Shape], Any] = lambda rng, shape: None
    sinks: bool = False
    scale: Any = None
    rate: float = 0.0
    dtype: Any = np.float32
    garbage: bool = False
    """Whether keys and values that nobody sees are not finite."""
    broken: bool = False
    """Whether a key, a value and a query that see or are seen are not."""
    bias: str = ""
    """The axes of [B, N, T, S] that a bias has its own numbers for."""


class Call(NamedTuple):
    """What `attend` is given."""

    query: Any
    key: Any
    value: Any
    mask: Any
    score: Any
    sinks: Any
    scale: Any
    dropout_key: Any
    bias: Any


class Answer(NamedTuple):
    """Output and log-sum-exp, and gradients of both together."""

    output: Any
    lse: Any
    query: Any
    key: Any
    value: Any
    scale: Any
    sinks: Any
    bias: Any


def documents(rng, shape, count=5):
    """int [B, S] of packed documents, 0 at the end."""
    ids = np.sort(rng.integers(1, count, (shape.B, shape.S)))
    ids[:, -20:] = 0
    return ids


def packed(rng, shape):
    kv_ids = documents(rng, shape)
    q_ids = kv_ids[:, np.linspace(0, shape.S - 1, shape.T).astype(int)]
    return same_segment(q_ids, kv_ids)


def window_of_heads(rng, shape):
    """Of its own width for every example and head, and the last sees nothing."""
    widths = rng.integers(3, 90, (shape.B, shape.N))
    queries = rng.integers(0, 2, (shape.B, shape.N, shape.S)) > 0
    return sliding_window(jnp.asarray(widths)) & valid(jnp.asarray(queries))


def empty_rows(rng, shape):
    q_lengths = np.linspace(shape.T // 2, 1, shape.B).astype(int)
    return causal() & lengths(q_lengths, np.full(shape.B, shape.S - 7))


def ages(rng, shape):
    return where(older, jnp.asarray(rng.integers(0, 9, shape.S)))


def own_score(rng, shape):
    weights = jnp.asarray(rng.standard_normal((shape.N, shape.S)), jnp.float32)
    return score(lambda x, q, k, w: x * w[k] + jnp.sin(w[q]) - 0.1 * x**2, weights, ranks=(1,))


def bounded_below(rng, shape):
    """What is not greater than -9, which NaN is not, is -9."""
    return score(lambda x, q, k: jnp.where(x > -9.0, x, -9.0))


def slopes(rng, shape):
    return alibi(jnp.asarray(rng.random(shape.N) / 9, jnp.float32))


def of_what_is_left(rng, shape):
    """Not finite past the last query."""
    return score(lambda x, q, k: x - jnp.log((shape.T - q).astype(jnp.float32)))


CASES = {
    "causal": Case(shape=SQUARE),
    "window of heads": Case(window_of_heads),
    "documents, bfloat16": Case(
        lambda rng, shape: causal() & packed(rng, shape), SQUARE, dtype=jnp.bfloat16
    ),
    "empty rows, sinks, softcap": Case(
        empty_rows, score=lambda rng, shape: softcap(2.0), sinks=True
    ),
    "dropout, documents": Case(packed, rate=0.3),
    "garbage": Case(lambda rng, shape: lengths(None, np.full(2, 140)), PLAIN, garbage=True),
    "what is seen is not finite": Case(shape=SQUARE, broken=True),
    "what is not finite, in documents": Case(packed, ONE, broken=True),
    "what is not finite, and a score that loses NaN": Case(
        packed, ONE, score=bounded_below, broken=True
    ),
    "bias of pairs, softcap": Case(
        score=lambda rng, shape: softcap(2.0), sinks=True, rate=0.2, bias="BNTS"
    ),
    "bias of keys, documents": Case(packed, bias="BS"),
    "bias of queries and heads, broken": Case(shape=SQUARE, bias="NT", broken=True),
    "shared bias of pairs, bfloat16": Case(window_of_heads, bias="TS", dtype=jnp.bfloat16),
    "bias where all is seen": Case(lambda rng, shape: full(), SQUARE, bias="NTS"),
    "from_dense of heads": Case(lambda rng, shape: from_dense(rng.random(shape.logits) < 0.3)),
    "from_dense in others, bias": Case(
        lambda rng, shape: ~(packed(rng, shape) & from_dense(rng.random(shape.logits[2:]) < 0.5)),
        bias="NTS",
    ),
    "no mask, own score": Case(lambda rng, shape: None, SQUARE, score=own_score),
    "negative scales": Case(lambda rng, shape: full(), PLAIN, scale=np.array([-0.7, 0.2])),
    "a score without values past the last query": Case(shape=GROUPED, score=of_what_is_left),
    "prefix": Case(lambda rng, shape: prefix(np.array([130, 4])) | sliding_window(9), score=slopes),
    "dilated": Case(lambda rng, shape: dilated(3) & sliding_window(90), SQUARE, rate=0.1),
    "a rule of one's own": Case(ages, PLAIN, sinks=True),
    "global tokens": Case(
        lambda rng, shape: sliding_window(3) | global_tokens(rng.random(shape.S) < 0.1),
        SQUARE,
    ),
    "chunks, shifted": Case(lambda rng, shape: chunked(50).shift(7, 0) & ~causal(), PLAIN),
    "nothing at all": Case(lambda rng, shape: ~full(), PLAIN, sinks=True),
    "no mask": Case(lambda rng, shape: None),
}


def call_of(case: Case, seed: int = 0) -> Call:
    """With random numbers."""
    rng = np.random.default_rng(seed)
    mask, score = case.mask(rng, case.shape), case.score(rng, case.shape)
    data = random_inputs(case.shape, seed)
    key, value = data.key, data.value
    if case.garbage:
        seen = np.broadcast_to(mask.dense(case.shape.T, case.shape.S)[:, None], case.shape.logits)
        unseen = unseen_keys(seen, case.shape.K)
        key, value = with_garbage(key, unseen), with_garbage(value, unseen, seed=1)
    query = data.query
    if case.broken:
        query, key, value = (np.array(x) for x in (query, key, value))
        query[0, 7, 0, 3], key[0, 90, 0, 1], value[0, 210, 0, 0] = np.inf, np.inf, np.nan
        query[0, 0, 1, 3] = -np.inf * np.sign(key[0, 0, 0, 3])  # a logit of -inf
    query, key, value = (jnp.asarray(x, case.dtype) for x in (query, key, value))
    sinks = jnp.asarray(rng.standard_normal(case.shape.N), jnp.float32) if case.sinks else None
    scale = None if case.scale is None else jnp.asarray(case.scale, jnp.float32)
    dropout_key = jax.random.key(seed) if case.rate else None
    bias = None
    if case.bias:
        own = [
            n if axis in case.bias else 1 for axis, n in zip("BNTS", case.shape.logits, strict=True)
        ]
        bias = jnp.asarray(rng.standard_normal(own), case.dtype)
    return Call(query, key, value, mask, score, sinks, scale, dropout_key, bias)


def cotangents_of(case: Case, seed: int = 1) -> tuple[Any, Any]:
    """Of the output and of the log-sum-exp."""
    rng = np.random.default_rng(seed)
    b, t, _, n, _, _, h_value = case.shape
    d_output, d_lse = rng.standard_normal((b, t, n, h_value)), rng.standard_normal((b, t, n))
    return jnp.asarray(d_output, case.dtype), jnp.asarray(d_lse, jnp.float32)


@functools.partial(jax.jit, static_argnames=("rate",))
def dense(call: Call, cotangents: tuple[Any, Any], rate: float) -> Answer:
    """By the definition."""
    query, key, value, mask, score, sinks, scale, dropout_key, bias = call

    def attend(query, key, value, scale, sinks, bias):
        return attend_with_stats(
            query,
            key,
            value,
            mask,
            bias=bias,
            scale=scale,
            score=score,
            sinks=sinks,
            dropout_rate=rate,
            dropout_key=dropout_key,
            implementation="dense",
        )

    results, pull = jax.vjp(attend, query, key, value, scale, sinks, bias)
    return Answer(*results, *pull(cotangents))


def assert_answers(actual: Answer, expected: Answer) -> None:
    """Each part within a tolerance of its largest number, which is that of the dtype."""
    narrow = expected.query.dtype == jnp.bfloat16
    for name, a, e in zip(actual._fields, actual, expected, strict=True):
        if a is not None:
            a, e = (np.asarray(x, np.float32) for x in (a, e))
            size = np.abs(e, where=np.isfinite(e), out=np.zeros_like(e)).max(initial=1.0)
            size *= 10 if name in ("scale", "sinks") else 1  # sums of much that cancels
            tolerance = (2e-2 if narrow else 1e-5) * size
            np.testing.assert_allclose(a, e, rtol=0, atol=tolerance, err_msg=name)


@functools.partial(jax.jit, static_argnames=("chip", "rate", "block_q", "block_kv", "interpreter"))
def fused(
    chip: str,
    call: Call,
    cotangents: tuple[Any, Any],
    rate: float,
    *,
    block_q: int,
    block_kv: int,
    interpreter: str | None = None,
) -> Answer:
    """By the kernels of a chip; the interpreter that is in use is named for the cache."""
    setting, inputs, fixed = prepared_for(chip, call, rate, block_q, block_kv)
    found = passes.forward(setting, inputs, fixed)
    lse = found.lse
    if inputs.sinks is not None:
        lse = jnp.where(lse == -jnp.inf, inputs.sinks[None, None], lse)
    d_output, d_lse = cotangents
    back = Outputs(d_output.astype(found.output.dtype), d_lse)
    pulled = passes.backward(setting, Residuals(inputs, fixed, found), back)
    if call.bias is not None:  # kernels have gradients beside one that stays
        fixed, inputs = fixed._replace(bias=inputs.bias), inputs._replace(bias=None)
        with mock.patch.object(loops, "backward", side_effect=AssertionError("these are loops")):
            still = passes.backward(setting, Residuals(inputs, fixed, found), back)
        pulled = still._replace(bias=pulled.bias)
    # All that a row which sees nothing has is the sink.
    d_sinks = pulled.sinks
    if d_sinks is not None:
        d_sinks += jnp.where(found.lse == -jnp.inf, d_lse, 0.0).sum(axis=(0, 1))
    d_scale = None if call.scale is None else pulled.scale
    # Kernels are given what is repaired, and rows that were not finite have no gradient.
    guard = marked if setting.marked else repair  # which kernels do themselves
    _, pull = jax.vjp(lambda *rows: guard(*rows, jnp.float32)[:3], *call[:3])
    return Answer(found.output, lse, *pull(pulled[:3]), d_scale, d_sinks, pulled.bias)


def prepared_for(
    chip: str, call: Call, rate: float, block_q: int, block_kv: int
) -> tuple[Setting, Inputs, Fixed]:
    """What the passes are given; no gradient is asked for that of a score's arrays."""
    query, key, value, mask, score, sinks, scale, dropout_key, bias = call
    (batch, q_len, num_heads, _), kv_len = query.shape, key.shape[1]
    drawn = full() if mask is None else mask
    plan = drawn.plan(q_len, kv_len, block_q=block_q, block_kv=block_kv)
    given = dict(bias=bias, scale=scale, score=score, sinks=sinks, dropout_rate=rate)
    seeds = None if dropout_key is None else seeds_for(dropout_key, batch, num_heads)
    options = make_options(query, key, **given).for_heads(num_heads)
    options = dataclasses.replace(options, seeds=seeds)
    setting, inputs, fixed = prepared(
        query, key, value, plan, options, has_mask=mask is not None, kernels=chip
    )
    if inputs.score is not None:
        every = whole(inputs.score, fixed.score)
        some, others = halves(every, [False] * len(jax.tree.leaves(every)))
        inputs, fixed = inputs._replace(score=some), fixed._replace(score=others)
    return setting._replace(wide=True), inputs, fixed
