"""Attention with scores and sinks against float64 loops: values and the gradients of all.

Scores are those of `score_cases.py`; the laws are those of masks: what is hidden is deleted, new
numbers compile nothing, nothing is as large as T · S.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
import score_cases
from attention_cases import (
    Shape,
    blind_rows,
    enable_x64,
    inputs,
    random_mask,
    unseen_keys,
    with_garbage,
)
from test_blockwise import geometry

from flaxattn import attend, attend_with_stats, attention_weights, from_dense, score

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
    rules = rules._replace(arrays=arrays)
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
@pytest.mark.parametrize("seed", range(24))
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
    "to the end": (  # nothing past the last query, which blocks go beyond
        lambda x, q, k, w: x + w * jnp.sqrt((6 - q).astype(x.dtype) + 1e-3),
        lambda x, t, s, w: x + w * np.sqrt(6 - t + 1e-3),
    ),
    "of the logit": (  # no slope at 0, which is what stands in place of what is hidden
        lambda x, q, k, w: w * jnp.sqrt(x * x),
        lambda x, t, s, w: w * (x if x.real > 0 else -x),
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


@pytest.mark.thorough(quick=2)
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
@IMPLEMENTATIONS
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
