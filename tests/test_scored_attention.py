"""Attention with scores and sinks against float64 loops: values and the gradients of all.

Scores are those of `score_cases.py`; the laws are those of masks: what is hidden is deleted, new
numbers compile nothing, nothing is as large as T · S.
"""

import functools
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
import score_cases
from attention_cases import (
    Shape,
    blind_rows,
    compilations,
    enable_x64,
    inputs,
    random_mask,
    unseen_keys,
    with_garbage,
)
from jax import export
from test_blockwise import geometry, largest

from flaxattn import (
    alibi,
    attend,
    attend_with_stats,
    attention_weights,
    causal,
    from_dense,
    full,
    merge,
    prefix,
    relative_bias,
    relative_buckets,
    relative_positions,
    score,
    softcap,
    temperature,
)

KEY, RATE = jax.random.key(3), 0.3
SHAPE = Shape(2, 7, 11, 6, 2, 3, 2)
IMPLEMENTATIONS = pytest.mark.parametrize("implementation", ["blockwise", "dense"])


class Point(NamedTuple):
    """What gradients flow to; None: it is not given."""

    query: Any
    key: Any
    value: Any
    bias: Any
    scale: Any
    sinks: Any
    arrays: Any = ()


class Answer(NamedTuple):
    """The output, the log-sum-exp, and the gradients of both times their cotangents."""

    output: Any
    lse: Any
    gradients: Point


class Options(NamedTuple):
    """What of a call is known while tracing."""

    implementation: str = "blockwise"
    sizes: tuple[int, int] | None = (4, 3)  # of the blocks of a plan; None: none is given
    rate: float = 0.0


BY_BLOCKS = Options()


def call_of(make, mask, options):
    """`attend_with_stats` of a point."""
    implementation, sizes, rate = options
    dropout = {"dropout_rate": rate, "dropout_key": KEY} if rate else {}

    def call(point):
        query, key, value, bias, scale, sinks, arrays = point
        given = mask
        if mask is not None and sizes is not None and implementation != "dense":
            block_q, block_kv = sizes
            given = mask.plan(query.shape[1], key.shape[1], block_q=block_q, block_kv=block_kv)
        numbers = {"bias": bias, "scale": scale, "sinks": sinks, "score": make(arrays)}
        return attend_with_stats(
            query, key, value, given, **numbers, implementation=implementation, **dropout
        )

    return call


def answer(make, point, mask, cotangents, options=BY_BLOCKS, tile=(60, 2)):
    """Compiled; small tiles divide heads into chunks and queries into rows of several blocks."""
    mask = from_dense(mask) if isinstance(mask, np.ndarray) else mask

    @jax.jit
    def differentiate(point, mask, cotangents):
        results, pull = jax.vjp(call_of(make, mask, options), point)
        return Answer(*results, *pull(cotangents))

    with geometry(*tile):
        return jax.tree.map(np.asarray, differentiate(point, mask, cotangents))


def oracle_answer(rules, point, mask, cotangents, **dropout):
    """The same in loops."""
    query, key, value, bias, scale, sinks, arrays = (
        jax.tree.map(lambda x: np.asarray(x, np.float64), x) for x in point
    )
    rules = rules._replace(arrays=arrays) if rules.rule else None
    mask = np.ones((1, 1, 1, 1), bool) if mask is None else mask
    given = {"bias": bias, "scale": scale, "sinks": sinks, "score": rules}
    cotangent, d_lse = cotangents
    slopes = oracle.scored_gradients(
        cotangent, query, key, value, mask, lse_cotangent=d_lse, **given, **dropout
    )
    output = oracle.attend(query, key, value, mask, **given, **dropout)
    lse = oracle.log_sum_exp(query, key, mask, **given)
    return Answer(output, lse, Point(*slopes))


def assert_equal_to(expected, got, tolerance=2e-5):
    """-inf at the same places; else within the tolerance of the largest number of each part."""
    pairs = zip(expected.gradients, got.gradients, strict=True)
    asked = Point(*(None if g is None else e for e, g in pairs))
    expected = jax.tree.leaves_with_path(expected._replace(gradients=asked))
    for (path, e), g in zip(expected, jax.tree.leaves(got), strict=True):
        e, g = (np.where(x == -np.inf, -1e9, x.astype(np.float64)) for x in (e, g))
        size = max(np.abs(e)[np.abs(e) < 1e8].max(initial=0), 1.0)
        name = jax.tree_util.keystr(path)
        np.testing.assert_allclose(g, e, rtol=0, atol=tolerance * size, err_msg=name)


def point_of(shape, seed, rules, bias=None, scale=(), sinks=(), dtype=np.float32):
    """Normal variates, and the cotangents of both outputs."""
    data, rng = inputs(shape, seed, bias=bias, dtype=dtype), np.random.default_rng(seed)
    given = 0.4 + 0.2 * rng.random(scale), rng.standard_normal(sinks)
    scale, sinks = (np.asarray(x, dtype) for x in given)
    d_lse = rng.standard_normal(data.query.shape[:3]).astype(dtype)
    arrays = score_cases.as_floats(rules.arrays, dtype)
    return Point(*data[:4], scale, sinks, arrays), (data.cotangent, d_lse)


# ---- Random compositions -------------------------------------------------------------------------


@functools.cache
def random_case(seed, dtype=np.float32):
    """A score, a point, a mask and the oracle's answer."""
    make, rules = score_cases.random_score(seed, SHAPE)
    rng = np.random.default_rng(seed)
    everything = random_mask(SHAPE, seed)
    masks = everything, everything[:, :1], everything[:1], np.tri(7, 11, 2, bool)[None, None], None
    biases = (2, 6, 7, 11), (1, 6, 1, 11), (1, 1, 1, 1), (2, 1, 7, 1)
    shapes = {"bias": biases[rng.integers(4)], "scale": [(), (6,)][rng.integers(2)]}
    point, cotangents = point_of(
        SHAPE, seed, rules, sinks=[(), (6,)][seed % 2], dtype=dtype, **shapes
    )
    if seed % 3 == 0:
        point = point._replace(sinks=None)
    mask = masks[seed % 5]
    return make, point, mask, cotangents, oracle_answer(rules, point, mask, cotangents)


@pytest.mark.thorough(quick=2)
@pytest.mark.parametrize("seed", range(10))
def test_values_and_gradients_are_those_of_the_oracle(seed):
    make, point, mask, cotangents, expected = random_case(seed)
    sizes = [(4, 3), (3, 11), (7, 2), None][seed % 4]
    for implementation in ("blockwise", "dense"):
        got = answer(make, point, mask, cotangents, Options(implementation, sizes))
        assert_equal_to(expected, got)


@pytest.mark.thorough
@pytest.mark.parametrize("seed", range(3))
def test_in_float64_they_are_so_to_float64(seed):
    with enable_x64(True):
        make, point, mask, cotangents, expected = random_case(seed, np.float64)
        for implementation in ("blockwise", "dense"):
            got = answer(make, point, mask, cotangents, Options(implementation))
            assert all(x.dtype == np.float64 for x in jax.tree.leaves(got))
            assert_equal_to(expected, got, 1e-12)


@pytest.mark.thorough
@pytest.mark.parametrize("seed", range(3))
def test_dropout_drops_weights_after_scores_and_sinks(seed):
    make, point, mask, cotangents, _ = random_case(seed)
    (b, t, s, n, k, *_), rules = SHAPE, score_cases.random_score(seed, SHAPE)[1]
    eye = np.broadcast_to(np.eye(s, dtype=np.float32)[:, None], (b, s, k, s))
    flat = np.zeros((b, t, n, 1), np.float32), np.zeros((b, s, k, 1), np.float32)
    dropped = attend(*flat, eye, dropout_rate=RATE, dropout_key=KEY, implementation="dense")
    dropout = {"keep": np.asarray(dropped).swapaxes(1, 2) > 0, "rate": RATE}
    expected = oracle_answer(rules, point, mask, cotangents, **dropout)
    for implementation in ("blockwise", "dense"):
        got = answer(make, point, mask, cotangents, Options(implementation, rate=RATE))
        assert_equal_to(expected, got)


def own_score(seed=0, shape=SHAPE):
    """Every pattern in turn, arrays of all shapes."""
    rng, leads = np.random.default_rng(seed), [*score_cases.LEADS.values()]
    patterns = enumerate(score_cases.PATTERNS[:-1])
    return score_cases.joined(*(p(rng, leads[i % 5](shape.B, shape.N)) for i, p in patterns))


@pytest.mark.parametrize("kind", ["rows", "heads", "both", "all"])
def test_weights_of_chosen_rows_and_heads_are_those_of_the_oracle(kind):
    make, rules = own_score()
    point, _ = point_of(SHAPE, 1, rules, sinks=(6,))
    mask = random_mask(SHAPE, 1)
    chosen = {"rows": np.array([6, -7, 3]), "heads": np.array([5, 0, -3])}
    chosen = {name: x for name, x in chosen.items() if kind in (name, "both")}
    numbers = {"bias": point.bias, "scale": point.scale, "sinks": point.sinks}
    got = attention_weights(
        point.query, point.key, from_dense(mask), score=make(point.arrays), **numbers, **chosen
    )
    expected = oracle.attention_weights(
        point.query, point.key, mask, **numbers, score=rules._replace(arrays=point.arrays)
    )
    rows, heads = chosen.get("rows", slice(None)), chosen.get("heads", slice(None))
    np.testing.assert_allclose(got, expected[:, heads][:, :, rows], atol=2e-6)


# ---- What is hidden is deleted -------------------------------------------------------------------

APART = {  # rules that are nothing, or have no derivative, where a key is not before its query
    "log": (
        lambda x, q, k, w: x - w * jnp.log((q - k).astype(x.dtype)),
        lambda x, t, s, w: x - w * np.log(t - s),
    ),
    "inverse": (
        lambda x, q, k, w: x + w / (q - k).astype(x.dtype),
        lambda x, t, s, w: x + w / (t - s),
    ),
    "root": (
        lambda x, q, k, w: x - w * jnp.sqrt((q - k - 1).astype(x.dtype) + w**2),
        lambda x, t, s, w: x - w * np.sqrt(t - s - 1 + w**2),
    ),
    "of the logit": (  # no slope at 0, which is what stands in place of what is hidden
        lambda x, q, k, w: w * jnp.sqrt(x * x),
        lambda x, t, s, w: w * (x if x.real > 0 else -x),
    ),
    "to the end": (  # nothing past the last query, which blocks go beyond
        lambda x, q, k, w: x + w * jnp.sqrt((6 - q).astype(x.dtype) + 1e-3),
        lambda x, t, s, w: x + w * np.sqrt(6 - t + 1e-3),
    ),
}


def apart(name, lead=(6,)):
    """A score by one of these, of a weight for each head."""
    fn, rule = APART[name]
    piece = score_cases.Piece(
        lambda a: score(fn, a[0]),
        lambda a, b, n: lambda x, t, s: rule(x, t, s, a[0]),
        (0.5 + np.random.default_rng(0).random(lead),),
        (0,),
    )
    return score_cases.joined(piece)


def before(shape):
    """bool [B, N, T, S]: keys before their query, some of them; heads differ."""
    return random_mask(shape, 3, 0.8) & np.tri(shape.T, shape.S, -1, dtype=bool)


@pytest.mark.thorough(quick=1)
@pytest.mark.parametrize("name", APART)
def test_what_a_score_makes_of_hidden_pairs_is_never_seen(name):
    make, rules = apart(name)
    point, cotangents = point_of(SHAPE, 0, rules, sinks=(6,))
    mask = before(SHAPE)
    mask[:, :, :, 4:7] = False  # blocks in which nothing is seen
    assert blind_rows(mask).any() and unseen_keys(mask, SHAPE.K).any()
    blind, unseen = blind_rows(mask), unseen_keys(mask, SHAPE.K)
    dirty = point._replace(
        query=with_garbage(point.query, blind),
        key=with_garbage(point.key, unseen),
        value=with_garbage(point.value, unseen),
        bias=with_garbage(point.bias[..., None], ~mask)[..., 0],
    )
    cotangents = np.where(blind[..., None], np.nan, cotangents[0]), cotangents[1]
    clean = np.nan_to_num(cotangents[0]), cotangents[1]
    expected = oracle_answer(rules, point, mask, clean)
    for implementation in ("blockwise", "dense"):
        got = answer(make, dirty, mask, cotangents, Options(implementation))
        assert_equal_to(expected, got)


@pytest.mark.thorough(quick=1)
@pytest.mark.parametrize("name", ["to the end", "of the logit"])
@pytest.mark.parametrize("rule", [causal().shift(1), full()], ids=repr)
def test_nothing_past_the_last_query_is_asked_about(name, rule):
    """A block of queries goes beyond it, and these masks see from there."""
    make, rules = apart(name)
    point, cotangents = point_of(SHAPE, 0, rules, sinks=(6,))
    point = point._replace(bias=None)  # what stands there has logits of 0
    mask = np.asarray(rule.dense(SHAPE.T, SHAPE.S))[None, None]
    got = answer(make, point, rule, cotangents)
    assert_equal_to(oracle_answer(rules, point, mask, cotangents), got)


@pytest.mark.thorough
@pytest.mark.parametrize("length", [351, 373])  # "auto" takes blocks above 360
@pytest.mark.parametrize("name", ["log", "of the logit"])
def test_so_it_is_on_both_sides_of_the_rule_of_auto(name, length):
    shape = Shape(1, length, length, 1, 1, 2, 2)
    make, rules = apart(name, ())
    point, cotangents = point_of(shape, 0, rules, bias=(1, 1, 1, 1))
    mask = np.tri(length, k=-1, dtype=bool)[None, None]
    got = answer(make, point, mask, cotangents, Options("auto", None), (2**20, 2))
    assert_equal_to(oracle_answer(rules, point, mask, cotangents), got, 1e-4)


@pytest.mark.thorough(quick=1)
@pytest.mark.parametrize("name", ["capped", "capped, then a rule of one's own"])
def test_products_of_hidden_pairs_that_overflow_reach_no_gradient(name):
    """Each query sees the key of its size: 1e-30 · 1e30; the others' products are infinite."""
    sizes = np.float32([1e30, 1e-30, 1e30, 1e-30, 1e30])
    shape, mask = Shape(1, 5, 5, 1, 1, 1, 1), (sizes == sizes[0]) ^ (sizes[:, None] == sizes[0])
    pieces = [score_cases.capped(np.random.default_rng(0), (1,))]
    if name != "capped":
        pieces.append(score_cases.of_ones_own(np.random.default_rng(1), ()))
    make, rules = score_cases.joined(*pieces)
    point, cotangents = point_of(shape, 0, rules, scale=(1,))
    big = (x * sizes[:, None, None] for x in point[:2])
    point, mask = point._replace(**dict(zip(("query", "key"), big, strict=True))), mask[None, None]
    expected = oracle_answer(rules, point, mask, cotangents)
    for implementation in ("blockwise", "dense"):
        got = answer(make, point, mask, cotangents, Options(implementation, (2, 2)))
        for which in range(2):  # of numbers of any size
            g, e = got.gradients[which], expected.gradients[which]
            np.testing.assert_allclose(g, e, rtol=2e-4)
        rest = (x._replace(gradients=x.gradients._replace(query=0, key=0)) for x in (got, expected))
        assert_equal_to(*reversed([*map(_arrays, rest)]))


def _arrays(found):
    return jax.tree.map(np.asarray, found)


def nan_at_a_key():
    return score_cases.Piece(
        lambda a: score(lambda x, q, k: jnp.where(k == 5, jnp.nan, x)), lambda a, b, n: None
    )


@pytest.mark.thorough(quick=1)
@pytest.mark.parametrize("what", ["key", "value", "score"])
@pytest.mark.parametrize("implementation", ["dense", "blockwise"])
def test_nan_that_is_seen_stays_in_the_rows_that_see_it(what, implementation):
    mask = random_mask(SHAPE, 2)
    make, rules = own_score(2)
    point, cotangents = point_of(SHAPE, 2, rules, sinks=(6,))
    if what == "score":
        make, _ = score_cases.joined(nan_at_a_key())
        point = point._replace(arrays=())
    else:
        broken = np.array(getattr(point, what))
        broken[1, 5] = np.nan
        point = point._replace(**{what: broken})
    got = answer(make, point, mask, cotangents, Options(implementation))
    sees = mask[..., 5].swapaxes(1, 2).copy()
    if what != "score":
        sees[0] = False
    assert sees.any() and not sees.all()
    np.testing.assert_array_equal(np.isnan(got.output).all(-1), sees)
    np.testing.assert_array_equal(np.isnan(got.output).any(-1), sees)
    np.testing.assert_array_equal(np.isnan(got.gradients.query).any(-1), sees)


# ---- Sinks ---------------------------------------------------------------------------------------


def softmax_of_sinks(sinks, mask=None, implementation="blockwise", shape=SHAPE, **given):
    """The answer of plain attention with sinks; the score is none."""
    point, cotangents = point_of(shape, 4, oracle.Score(None), sinks=())
    point = point._replace(sinks=sinks, **given)
    mask = random_mask(shape, 4) if mask is None else mask
    make = lambda arrays: None  # noqa: E731
    return answer(make, point, mask, cotangents, Options(implementation)), point, cotangents, mask


@pytest.mark.thorough(quick=1)
@pytest.mark.parametrize("implementation", ["dense", "blockwise"])
def test_a_sink_of_minus_infinity_is_none(implementation):
    got, _, (_, d_lse), mask = softmax_of_sinks(
        np.full(6, -np.inf, np.float32), None, implementation
    )
    without, *_ = softmax_of_sinks(None, None, implementation)
    of_blind = np.where(blind_rows(mask), d_lse, 0).sum((0, 1))  # whose log-sum-exp it is
    np.testing.assert_allclose(got.gradients.sinks, of_blind, atol=1e-6)
    got = got._replace(gradients=got.gradients._replace(sinks=None))
    assert (got.lse == -np.inf).any()
    assert_equal_to(got, without, 5e-6)


@pytest.mark.thorough(quick=1)
@pytest.mark.parametrize("size", [60.0, -60.0, 3e38, -3e38])
@IMPLEMENTATIONS
def test_sinks_may_be_far_above_or_below_all_logits(size, implementation):
    got, point, cotangents, mask = softmax_of_sinks(
        np.full(6, size, np.float32), None, implementation
    )
    blind = blind_rows(mask)
    assert (got.lse[blind] == np.float32(size)).all() and not got.output[blind].any()
    if abs(size) < 100:
        expected = oracle_answer(oracle.Score(None), point, mask, cotangents)
        rest = (x._replace(lse=np.where(blind, 0, x.lse)) for x in (expected, got))
        assert_equal_to(*rest)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(got))
    if size > 0:
        assert np.abs(got.output).max() < 1e-20


@pytest.mark.thorough(quick=1)
@IMPLEMENTATIONS
def test_rows_that_see_nothing_give_their_sink_alone_and_nothing_flows_back_but_to_it(
    implementation,
):
    shape, sinks = SHAPE, np.arange(6, dtype=np.float32)
    mask = np.zeros((2, 1, 7, 11), bool)
    got, _, (_, d_lse), _ = softmax_of_sinks(sinks, mask, implementation)
    np.testing.assert_array_equal(got.lse, np.broadcast_to(sinks, got.lse.shape))
    assert not got.output.any() and got.output.shape == (*got.lse.shape, shape.H_value)
    assert not any(x.any() for x in jax.tree.leaves(got.gradients._replace(sinks=None)))
    np.testing.assert_allclose(got.gradients.sinks, d_lse.sum((0, 1)), rtol=1e-5)


@pytest.mark.thorough(quick=1)
@pytest.mark.parametrize("shape", [(6,), ()], ids=["of each head", "one"])
@pytest.mark.parametrize("where", ["merge", 1])
@pytest.mark.parametrize("implementation", ["dense", "blockwise"])
def test_parts_merged_with_sinks_are_attention_with_sinks(shape, where, implementation):
    """Given to `merge`, or to one part; also where a row sees nothing in some part, or in any."""
    make, rules = own_score(5)
    point, cotangents = point_of(SHAPE, 5, rules, sinks=shape)
    mask = random_mask(SHAPE, 5)
    mask[:, :, :2, :6] = False
    expected = oracle_answer(rules, point, mask, cotangents)
    order = np.arange(SHAPE.S)

    def in_parts(point):
        query, key, value, bias, scale, sinks, arrays = point
        parts = []
        for i, keys in enumerate((slice(0, 6), slice(6, 7), slice(7, None))):
            given = {"sinks": sinks} if where == i else {}
            parts.append(
                attend_with_stats(
                    query,
                    *(x[:, keys] for x in (key, value)),
                    from_dense(mask[..., keys]),
                    bias=bias[..., keys],
                    scale=scale,
                    score=make(arrays).at(None, order[keys]),
                    implementation=implementation,
                    **given,
                )
            )
        return merge(parts, sinks=sinks if where == "merge" else None)

    results, pull = jax.vjp(jax.jit(in_parts), point)
    assert_equal_to(expected, _arrays(Answer(*results, *pull(cotangents))), 5e-5)


@IMPLEMENTATIONS
def test_sinks_of_any_real_type_are_the_same(implementation):
    data = inputs(SHAPE)
    call = functools.partial(attend, *data[:3], implementation=implementation)
    expected = call(sinks=2.0)
    for sinks in (2, np.int32(2), jnp.float32(2), np.full(6, 2), np.full(6, 2, jnp.bfloat16)):
        np.testing.assert_allclose(call(sinks=sinks), expected, atol=1e-6)
    np.testing.assert_allclose(
        merge([attend_with_stats(*data[:3])], sinks=2)[0], expected, atol=1e-6
    )
    output, lse = merge([(jnp.ones(3), jnp.zeros(()))] * 2, sinks=0.0)  # of a single row
    np.testing.assert_allclose(output, 2 / 3, rtol=1e-6)
    np.testing.assert_allclose(lse, np.log(3), rtol=1e-6)


# ---- What gradients are asked for ----------------------------------------------------------------


@pytest.mark.thorough
@pytest.mark.parametrize("name", [("arrays", 0), ("sinks",), ("arrays", 3), ("query",), ("bias",)])
def test_gradients_of_one_argument_alone_are_those_of_all(name):
    """Forward, reverse, and along a direction."""
    make, rules = own_score(6)
    point, cotangents = point_of(SHAPE, 6, rules, sinks=(6,))
    mask = random_mask(SHAPE, 6)
    sinkless = np.where(blind_rows(mask), 0, cotangents[1])
    expected = oracle_answer(rules, point, mask, (cotangents[0], sinkless)).gradients
    wanted = functools.reduce(
        lambda x, i: x[i] if isinstance(i, int) else getattr(x, i), name, expected
    )
    given = functools.reduce(
        lambda x, i: x[i] if isinstance(i, int) else getattr(x, i), name, point
    )

    def replaced(x):
        if name[0] != "arrays":
            return point._replace(**{name[0]: x})
        arrays = list(point.arrays)
        arrays[name[1]] = x
        return point._replace(arrays=tuple(arrays))

    for implementation in ("blockwise", "dense"):
        call = call_of(make, from_dense(mask), Options(implementation))

        def loss(x, call=call):
            output, lse = call(replaced(x))
            return (output * cotangents[0]).sum() + (lse * sinkless).sum()

        along = np.random.default_rng(0).standard_normal(np.shape(given)).astype(np.float32)
        slope, pushed = jax.jit(lambda x, v: (jax.grad(loss)(x), jax.jvp(loss, (x,), (v,))[1]))(
            given, along
        )
        np.testing.assert_allclose(slope, wanted, atol=2e-5 * max(np.abs(wanted).max(), 1))
        np.testing.assert_allclose(pushed, (wanted * along).sum(), rtol=1e-3, atol=1e-4)


@pytest.mark.thorough(quick=1)
@pytest.mark.parametrize("implementation", ["dense", "blockwise"])
def test_vmap_over_the_arrays_of_a_score_is_one_by_one(implementation):
    data, mask = inputs(SHAPE), from_dense(random_mask(SHAPE, 1))
    slopes = np.random.default_rng(0).random((3, 6)).astype(np.float32)
    tables = np.random.default_rng(1).random((3, 6, 5)).astype(np.float32)
    options = {"implementation": implementation, "sinks": 0.5}

    def loss(slopes, table):
        made = alibi(slopes) >> relative_positions(table)
        return (attend(*data[:3], mask, score=made, **options) * data.cotangent).sum()

    found = jax.jit(jax.vmap(jax.value_and_grad(loss, (0, 1))))(slopes, tables)
    one = jax.jit(jax.value_and_grad(loss, (0, 1)))
    for i in range(3):
        for a, e in zip(*map(jax.tree.leaves, (found, one(slopes[i], tables[i]))), strict=True):
            np.testing.assert_allclose(a[i], e, rtol=2e-5, atol=2e-5)


# ---- Programs ------------------------------------------------------------------------------------

SLOPES = np.float32([0.5, 0.25, 0.1, 0.2, 0.3, 0.4])
LARGE = {
    "softcap": lambda: softcap(30.0),
    "caps": lambda: softcap(SLOPES[:2]),
    "temperature": lambda: temperature(2.0),
    "alibi": lambda: alibi(),
    "relative_bias": lambda: relative_bias(np.ones((2, 32), np.float32)),
    "relative_positions": lambda: relative_positions(np.ones((2, 65), np.float32)),
    "score": lambda: score(
        lambda x, q, k, w: x - w * jnp.log1p((q - k).astype(x.dtype)), SLOPES[:2]
    ),
    "in turn": lambda: softcap(30.0) >> alibi() >> relative_positions(np.ones(65, np.float32)),
}


@pytest.mark.thorough(quick=1)
@pytest.mark.parametrize("name", ["in turn", *list(LARGE)[:-1]])
@pytest.mark.parametrize("backward", [True, False], ids=["gradient", "forward"])
def test_nothing_in_a_program_is_as_large_as_queries_times_keys(name, backward):
    length = 4096
    made = jax.tree.map(jnp.asarray, LARGE[name]())
    x = jax.ShapeDtypeStruct((1, length, 2, 16), jnp.float32)
    sinks = jax.ShapeDtypeStruct((2,), jnp.float32)

    def forward(query, key, value, made, sinks):
        return attend(query, key, value, causal(), score=made, sinks=sinks)

    def gradients(cotangent, *given):
        return jax.vjp(forward, *given)[1](cotangent)

    given = x, x, x, made, sinks
    lowered = jax.jit(gradients).lower(x, *given) if backward else jax.jit(forward).lower(*given)
    program = lowered.compile()
    assert length * 2 * 16 <= largest(program) < length * length / 8
    assert 0 < program.memory_analysis().temp_size_in_bytes < 2 * length * length


@IMPLEMENTATIONS
def test_new_numbers_compile_nothing_new_and_other_static_ones_do(implementation):
    chex.clear_trace_counter()
    data = inputs(SHAPE)

    @jax.jit
    @chex.assert_max_traces(2)
    def call(made, sinks):
        options = {"score": made, "sinks": sinks, "implementation": implementation}
        return attend(*data[:3], causal(), **options)

    for seed in range(4):
        slopes = np.random.default_rng(seed).random(6).astype(np.float32)
        call(softcap(50) >> alibi(slopes).shift(np.array(seed)), slopes)
    call(softcap(50.0) >> alibi(slopes).shift(np.array(0)), slopes)
    call(softcap(49.0) >> alibi(slopes).shift(np.array(0)), slopes)
    with pytest.raises(AssertionError, match="traced"):
        call(softcap(48.0) >> alibi(slopes).shift(np.array(0)), slopes)


def test_new_numbers_compile_nothing_outside_of_jit_either(caplog):
    data = inputs(SHAPE)
    rules = [lambda x, q, k, w: x * w]

    def call(seed, cap=3.0):
        number = np.random.default_rng(seed).random(6).astype(np.float32)
        made = softcap(cap) >> alibi(number) >> score(rules[0], number)
        attend(*data[:3], causal(), score=made, sinks=number, implementation="dense")

    call(0)
    assert compilations(caplog, lambda: call(0, 4.0)) > 0
    assert compilations(caplog, lambda: (call(1), call(2, 4.0))) == 0


@pytest.mark.thorough(quick=1)
@IMPLEMENTATIONS
def test_attention_with_a_score_can_be_exported(implementation):
    data = inputs(SHAPE)
    made = softcap(5.0) >> alibi(SLOPES) >> relative_positions(np.ones((6, 5), np.float32))

    def call(query, made, sinks):
        options = {"score": made, "sinks": sinks, "implementation": implementation}
        return attend(query, *data[1:3], causal(), **options)

    exported = export.export(jax.jit(call))(data.query, made, SLOPES)
    found = export.deserialize(exported.serialize()).call(data.query, made, SLOPES)
    np.testing.assert_allclose(found, call(data.query, made, SLOPES), atol=1e-6)


def test_symbolic_lengths_are_those_that_they_stand_for():
    made = softcap(5.0) >> alibi() >> relative_positions(np.ones((6, 5), np.float32)).shift(1)
    made >>= score(lambda x, q, k, w: x - w * jnp.log((q - k).astype(x.dtype) + 1), SLOPES)
    data, scope = inputs(SHAPE), export.SymbolicScope()
    shapes = [
        jax.ShapeDtypeStruct(export.symbolic_shape(text, scope=scope), jnp.float32)
        for text in ("b, t, 6, 3", "b, s, 2, 3", "b, s, 2, 2")
    ]

    def call(*x):
        return attend(*x, causal(), score=made, sinks=0.5)

    program = export.export(jax.jit(call))(*shapes)
    np.testing.assert_allclose(program.call(*data[:3]), call(*data[:3]), atol=1e-6)


@pytest.mark.parametrize("axis", ["B", "T", "S"])
@pytest.mark.parametrize("name", ["in turn", "score"])
def test_empty_axes_give_outputs_of_that_shape(name, axis):
    shape = Shape(1, 5, 7, 2, 1, 3, 3)._replace(**{axis: 0})
    data = inputs(shape)
    for mask in (None, causal()):
        output, lse = attend_with_stats(*data[:3], mask, score=LARGE[name](), sinks=1.0)
        assert output.shape == data.cotangent.shape and not np.any(output)
        assert lse.shape == output.shape[:3] and (axis != "S" or (lse == 1.0).all())


# ---- Half precision ------------------------------------------------------------------------------


def textbook(mask, query, key, value, made, sinks):
    """Einsums, float32 logits and softmax, in a dozen lines; sinks are a last column."""
    key, value = (jnp.repeat(x, query.shape[2] // x.shape[2], axis=2) for x in (key, value))
    logits = jnp.einsum("btnh,bsnh->bnts", query, key, preferred_element_type=jnp.float32)
    cap, slopes, table = (x.astype(jnp.float32)[None] for x in made)
    cap, slopes = (x[..., None, None] for x in (cap, slopes))
    logits = cap * jnp.tanh(logits * query.shape[-1] ** -0.5 / cap)
    distance = jnp.arange(key.shape[1])[None] - jnp.arange(query.shape[1])[:, None]
    logits -= slopes * jnp.abs(distance[None, None]).astype(jnp.float32)
    logits += table[:, :, jnp.clip(distance, -2, 2) + 2]
    logits = jnp.where(mask, logits, -1e30)
    last = jnp.broadcast_to(sinks.astype(jnp.float32)[None, :, None, None], (*logits.shape[:3], 1))
    weights = jax.nn.softmax(jnp.concatenate([logits, last], -1), axis=-1)[..., :-1]
    return jnp.einsum("bnts,bsnh->btnh", weights.astype(value.dtype), value)


@functools.cache
def half_precise(dtype, of_arrays, seed):
    """Rules, inputs in half precision, and the oracle's answer to them, for all implementations."""
    shape = Shape(1, 31, 33, 16, 8, 16, 16)
    pieces = score_cases.capped, score_cases.sloped, score_cases.clipped
    make, rules = score_cases.joined(*(x(np.random.default_rng(0), (16,)) for x in pieces))
    rng = np.random.default_rng(seed)
    numbers = 1 + rng.random(16), rng.random(16) / 8, rng.standard_normal((16, 5))
    arrays = tuple(x.astype(of_arrays or dtype) for x in numbers)
    sinks = rng.standard_normal(16).astype(of_arrays or dtype)
    *data, _, cotangent = (x.astype(dtype) for x in inputs(shape, seed))
    point = Point(*data, None, None, sinks, arrays)
    exact = oracle_answer(rules, point, np.tri(31, 33, 2, bool)[None, None], (cotangent, None))
    slopes = exact.gradients
    expected = exact.output, *slopes[:3], *slopes.arrays, slopes.sinks
    return make, (cotangent, *data, arrays, sinks), expected


@pytest.mark.thorough
@pytest.mark.parametrize(
    "dtype, of_arrays",
    [(jnp.bfloat16, np.float32), (jnp.bfloat16, None), (np.float16, None)],
    ids=["bfloat16, float32 arrays", "bfloat16", "float16"],
)
@IMPLEMENTATIONS
def test_mean_error_in_half_precision_is_that_of_the_reference(
    dtype, of_arrays, implementation, standard_promotion
):
    """Of the output and of each gradient: sinks and arrays of a score have one number a head."""
    mask, errors = np.tri(31, 33, 2, bool)[None, None], np.zeros((2, 8))

    @functools.partial(jax.jit, static_argnums=(0, 1))
    def answer_of(fn, make, cotangent, *given):
        output, pull = jax.vjp(functools.partial(fn, make), *given)
        return output, *jax.tree.leaves(pull(cotangent))

    def ours(make, query, key, value, arrays, sinks):
        plan = from_dense(mask).plan(31, 33, block_q=8, block_kv=8)
        options = {"score": make(arrays), "sinks": sinks, "implementation": implementation}
        return attend(query, key, value, plan, **options)

    def plain(make, *given):
        return textbook(mask, *given)

    for seed in range(6):
        make, given, expected = half_precise(dtype, of_arrays, seed)
        for i, fn in enumerate((ours, plain)):
            got = answer_of(fn, make, *given)
            errors[i] += [
                np.abs(np.asarray(g, np.float64) - e).mean()
                for g, e in zip(got, expected, strict=True)
            ]
    assert (errors[0] <= 1.1 * errors[1] + 1e-7).all(), errors[0] / errors[1]


# ---- FlexAttention -------------------------------------------------------------------------------


def flex_scores(torch):
    """Those of attention-gym and FlexAttention's documentation, and what they are here."""
    slopes = torch.exp2(-(torch.arange(6) + 1) * 8.0 / 6)
    table = torch.randn(6, 2 * 11 + 1, generator=torch.Generator().manual_seed(0))
    buckets = torch.tensor(relative_buckets(np.arange(-11, 12), 8, 16, bidirectional=True))
    bins = torch.tensor([0.3, 1.0, 0.5])
    numbers = [x.numpy() for x in (slopes, table, bins)]

    return {
        "softcap": (lambda x, b, h, q, k: 20 * torch.tanh(x / 20), softcap(20)),
        "alibi, of attention-gym": (
            lambda x, b, h, q, k: x + (k - q) * slopes[h],
            score(lambda x, q, k, slope: x + slope * (k - q).astype(x.dtype), numbers[0]),
        ),
        "alibi": (lambda x, b, h, q, k: x - (k - q).abs() * slopes[h], alibi(numbers[0])),
        "distance": (
            lambda x, b, h, q, k: x + (q - k),
            score(lambda x, q, k: x + (q - k).astype(x.dtype)),
        ),
        "relative": (
            lambda x, b, h, q, k: x + table[h, k - q + 11],
            relative_positions(numbers[1]),
        ),
        "buckets": (
            lambda x, b, h, q, k: x + table[h, buckets[k - q + 11]],
            relative_bias(numbers[1][:, :8], 8, 16),
        ),
        "squared relu": (
            lambda x, b, h, q, k: torch.relu(x) ** 2,
            score(lambda x, q, k: jax.nn.relu(x) ** 2),
        ),
        "hidden by the score": (
            lambda x, b, h, q, k: torch.where(q >= k, x, -float("inf")),
            score(lambda x, q, k: jnp.where(q >= k, x, -jnp.inf)),
        ),
        "in turn": (
            lambda x, b, h, q, k: 3 * torch.tanh((x + bins[q % 3]) / 3) / bins[k % 3],
            score(lambda x, q, k, b: x + b[q % 3], numbers[2], ranks=[1])
            >> softcap(3)
            >> score(lambda x, q, k, b: x / b[k % 3], numbers[2], ranks=[1]),
        ),
    }


@pytest.mark.filterwarnings("ignore")
@IMPLEMENTATIONS
def test_scores_of_flexattention_are_scores_here(implementation):
    """PyTorch's, not compiled, on the CPU, where it goes forward only; its rule's own gradients."""
    torch = pytest.importorskip("torch")
    flex = pytest.importorskip("torch.nn.attention.flex_attention")
    data, mask = inputs(Shape(2, 11, 11, 6, 2, 4, 4)), causal() | prefix(3)
    cotangent = torch.tensor(data.cotangent).transpose(1, 2)
    rule = lambda b, h, q, k: (q >= k) | (k < 3)  # noqa: E731
    block_mask = flex.create_block_mask(rule, None, None, 11, 11, device="cpu")
    t = torch.arange(11)
    indices = torch.arange(2)[:, None, None, None], torch.arange(6)[:, None, None], t[:, None], t

    def plain(query, key, value, mod):
        key, value = (x.repeat_interleave(3, dim=1) for x in (key, value))
        logits = mod(query @ key.mT * 4**-0.5, *indices)
        return logits.masked_fill(~rule(*indices), -float("inf")).softmax(-1) @ value

    for name, (mod, made) in flex_scores(torch).items():
        tensors = [torch.tensor(x).transpose(1, 2) for x in data[:3]]
        output = flex.flex_attention(
            *tensors, score_mod=mod, block_mask=block_mask, enable_gqa=True
        )
        tensors = [x.requires_grad_() for x in tensors]
        slopes = torch.autograd.grad(plain(*tensors, mod), tensors, cotangent)

        def call(*x, made=made):
            given = mask.plan(11, 11, block_q=4, block_kv=3) if implementation != "dense" else mask
            return attend(*x, given, score=made, implementation=implementation)

        found, pull = jax.vjp(jax.jit(call), *data[:3])
        for a, e in zip([found, *pull(data.cotangent)], [output, *slopes], strict=True):
            np.testing.assert_allclose(a, e.transpose(1, 2).numpy(), atol=2e-5, err_msg=name)
