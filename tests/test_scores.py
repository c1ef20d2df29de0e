"""The algebra of scores, and its patterns, against plain Python: what becomes of a logit."""

import copy
import functools
import itertools
import operator
import pickle

import chex
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
import score_cases
from attention_cases import Shape, enable_x64
from jax import export

from flaxattn import (
    Score,
    alibi,
    alibi_slopes,
    attend,
    attend_with_stats,
    causal,
    relative_bias,
    relative_buckets,
    relative_positions,
    score,
    score_type,
    softcap,
    temperature,
)
from flaxattn.masks.leaves import child, leaf

ONES = functools.partial(np.ones, dtype=np.float32)
SHAPE = Shape(2, 7, 11, 6, 2, 3, 2)
LOGITS = np.random.default_rng(0).standard_normal((SHAPE.T, SHAPE.S)).astype(np.float32)


def drawn(rules, logits=LOGITS, batch=SHAPE.B, heads=SHAPE.N):
    """The oracle's rules of all examples and heads: [B, N, T, S]."""
    found = np.zeros((batch, heads, *logits.shape))
    for b, n, t, s in np.ndindex(found.shape):
        found[b, n, t, s] = rules.of(b, n)(logits[t, s], t, s)
    return found


# ---- The rule ------------------------------------------------------------------------------------


@pytest.mark.thorough(quick=6)
@pytest.mark.parametrize("seed", range(60))
def test_random_scores_are_the_plain_rules_in_turn(seed):
    make, rules = score_cases.random_score(seed, SHAPE)
    made = make(score_cases.as_floats(rules.arrays))
    found = made.dense(SHAPE.T, SHAPE.S, logit=LOGITS)
    lead = made.lead or (1, 1)
    assert found.shape == (*made.lead, SHAPE.T, SHAPE.S) and len(lead) == 2
    expected = drawn(rules)
    np.testing.assert_allclose(
        np.broadcast_to(found, expected.shape), expected, rtol=2e-6, atol=2e-6
    )
    sizes = {i: x.shape for i, x in enumerate(jax.tree.leaves(made))}
    assert all(x == y for x, y in itertools.zip_longest(sizes.values(), map(_shape, made.leaves())))


def _shape(leaf):
    return leaf.array.shape


@pytest.mark.thorough(quick=2)
@pytest.mark.parametrize("seed", range(12))
def test_a_tile_of_blocks_and_runs_is_the_rule(seed):
    """Two blocks of three queries, each with two runs of four keys of its own."""
    shape = Shape(1, 30, 30, 1, 1, 1, 1)
    make, rules = score_cases.random_score(seed, shape)
    made = make(score_cases.as_floats(rules.arrays)).for_heads(1)
    made = jax.tree.map(lambda x: x[0, 0], made)
    q_idx, blocks = np.array([[0, 1, 2], [9, 10, 11]]), np.array([[3, 0], [5, 6]])
    kv_idx = (blocks[..., None] * 4 + np.arange(4)).reshape(2, -1)
    q_idx, kv_idx = (x.astype(np.int32) for x in (q_idx[:, :, None], kv_idx[:, None]))
    logits = np.random.default_rng(seed).standard_normal((2, 3, 8)).astype(np.float32)
    found = made.tile(*map(jnp.asarray, (logits, q_idx, kv_idx)), 4)
    rule = rules._replace(arrays=[np.asarray(x) for x in rules.arrays]).of(0, 0)
    for u, t, s in np.ndindex(logits.shape):
        expected = rule(logits[u, t, s], int(q_idx[u, t, 0]), int(kv_idx[u, 0, s]))
        np.testing.assert_allclose(found[u, t, s], expected, rtol=2e-6, atol=2e-6)


A, B, C = softcap(2.0), alibi(0.5), relative_positions(np.float32([1, 0, 3]))


def test_the_first_of_a_chain_comes_first_and_brackets_do_not_matter():
    logit, q, k = jnp.float32(3), 7, 4
    np.testing.assert_allclose((A >> B)(logit, q, k), 2 * np.tanh(1.5) - 1.5, rtol=1e-6)
    np.testing.assert_allclose((B >> A)(logit, q, k), 2 * np.tanh(0.75), rtol=1e-6)
    assert (A >> B) >> C == A >> (B >> C) == functools.reduce(operator.rshift, [A, B, C])
    assert A >> B != B >> A
    assert repr(A >> (B >> C)) == (
        "(softcap(cap=2.0) >> alibi(slopes=0.5) >> relative_positions(table=float32[3]))"
    )


def test_five_hundred_scores_may_be_joined():
    long = functools.reduce(operator.rshift, [temperature(1.5), temperature(1 / 1.5)] * 250)
    np.testing.assert_allclose(long.dense(1, 1, logit=3.0), [[3.0]], rtol=1e-4)
    assert hash(long) == hash(copy.deepcopy(long)) and pickle.loads(pickle.dumps(long)) == long


@pytest.mark.parametrize("made", [A, B, C, A >> B >> C, C.shift(3), C.at(np.arange(9), None)])
def test_a_rule_broadcasts_logits_and_indices(made):
    logits, q, k = jnp.asarray(LOGITS[:2, :3]), np.array([[4], [2]]), np.array([0, 3, 8])
    q, k = q.astype(np.int32), k[None].astype(np.int32)
    found = made(logits, q, k)
    for i, j in np.ndindex(2, 3):
        one = made(logits[i, j], jnp.int32(q[i, 0]), jnp.int32(k[0, j]))
        np.testing.assert_allclose(found[i, j], one, rtol=1e-6)


def test_moved_scores_are_the_score_of_other_positions():
    """All are drawn in one shape: each shape is compiled."""
    whole = np.asarray(C.dense(20, 20))
    q, k = np.array([3, 18, 1, 7]), np.array([2, 2, 11, 5, 4, 9])
    for moved, expected in (
        (C.shift(3, 5), whole[3:7, 5:11]),
        (C.shift(1, 2).shift(2, 3), whole[3:7, 5:11]),
        (C.at(q, k), whole[q][:, k]),
        (C.at(None, k), whole[:4, k]),
        (C.at(q - 1, None).shift(0, 1).at(None, k - 1), whole[q - 1][:, k]),
        (C.shift(1).at(q, k), whole[q + 1][:, k]),
    ):
        np.testing.assert_array_equal(moved.dense(4, 6), expected)
    assert C.shift() == C.shift(0, 0)


# ---- The patterns --------------------------------------------------------------------------------

SIZES = [(32, 128), (32, 32), (8, 16), (6, 300), (128, 1000), (10, 11)]
BUCKETS = [(*sizes, two) for sizes in SIZES for two in (False, True)]


@pytest.mark.parametrize("config", BUCKETS, ids=str)
def test_buckets_are_those_of_the_paper_to_the_last_distance(config):
    distances = np.arange(-300, 301)
    found = relative_buckets(distances, *config[:2], bidirectional=config[2])
    expected = [oracle.bucket(int(d), *config) for d in distances]
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == np.int32 and found.min() == 0 and found.max() < config[0]


def test_buckets_are_those_that_t5_computes_in_float64():
    """arXiv:1910.10683: 32 buckets to 128; ends of buckets of whole numbers are whole here."""
    distances = np.arange(1, 1000)
    logs = np.floor(np.log(np.maximum(distances, 8) / 8) / np.log(16) * 8 + 1e-9)
    expected = np.where(distances < 8, distances, np.minimum(8 + logs, 15)) + 16
    found = relative_buckets(distances, 32, 128, bidirectional=True)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("bidirectional", [False, True])
def test_a_bias_reads_its_table_at_the_bucket_of_any_distance(bidirectional):
    table = np.random.default_rng(0).standard_normal(8).astype(np.float32)
    made = relative_bias(table, 8, 20, bidirectional)
    ends = [0, 1, 19, 20, 21, 1000, 2**31 - 1]
    for q, k in itertools.product(ends, ends):
        expected = table[oracle.bucket(k - q, 8, 20, bidirectional)]
        assert made(jnp.float32(0), jnp.int32(q), jnp.int32(k)) == expected


def test_distances_beyond_int32_are_the_furthest():
    ends = np.array([2**31 - 1, -(2**31)], np.int32)
    found = relative_positions(np.float32([1, 2, 3]))(jnp.zeros(2), ends, ends[::-1])
    assert found.tolist() == [1, 3]


@pytest.mark.parametrize("num_heads", [*range(1, 34), 48, 64, 100])
def test_slopes_are_those_of_the_paper(num_heads):
    found = alibi_slopes(num_heads)
    np.testing.assert_allclose(found, oracle.alibi_slopes(num_heads), rtol=1e-6)
    assert found.dtype == np.float32 and found.shape == (num_heads,)


def test_slopes_of_eight_heads_are_those_that_the_paper_prints():
    np.testing.assert_array_equal(alibi_slopes(8), 2.0 ** -np.arange(1, 9))
    printed = [*(2.0 ** -np.arange(1, 9)), *(2.0 ** -np.arange(0.5, 4.5))]
    np.testing.assert_allclose(alibi_slopes(12), printed, rtol=1e-6)


def test_alibi_of_no_slopes_has_those_of_as_many_heads_as_the_query():
    x = jnp.ones((1, 5, 3, 2))
    for made in (alibi(), alibi().shift(2), A >> alibi().at(np.arange(5), None), Twice(alibi())):
        again = jax.tree.unflatten(*reversed(jax.tree.flatten(made)))
        given = [y.for_heads(3) for y in (made, again)]
        assert given[0] == given[1] and given[0].lead == (1, 3)
        assert attend(x, x, x, score=made).shape == x.shape
    np.testing.assert_allclose(alibi().for_heads(3).dense(1, 2)[0, :, 0, 1], -alibi_slopes(3))


# ---- A class, and a function, of one's own -------------------------------------------------------


@score_type
class Twice(Score):
    """A score made of another."""

    inner: Score = child()

    def __call__(self, logit, q_idx, kv_idx):
        return self.inner(self.inner(logit, q_idx, kv_idx), q_idx, kv_idx)


@score_type
class NearerThan(Score):
    """Made of another, with a rule of its own that makes no sense after the query."""

    inner: Score = child()
    weight: jax.Array = leaf()

    def __call__(self, logit, q_idx, kv_idx):
        distance = jnp.asarray(q_idx - kv_idx + 1).astype(logit.dtype)
        return self.inner(logit, q_idx, kv_idx) - self.weight * jnp.log(distance)


@pytest.mark.parametrize("implementation", ["blockwise", "dense"])
def test_a_class_made_of_scores_that_are_defined_everywhere_need_not_be_so(implementation):
    made = NearerThan(softcap(5.0), np.ones(2, np.float32))
    assert not made.defined and (softcap(5.0) >> alibi(1.0)).shift(3).defined
    rows = jnp.asarray(np.random.default_rng(0).normal(size=(1, 9, 2, 4)), jnp.float32)

    def loss(made):
        return attend(rows, rows, rows, causal(), score=made, implementation=implementation).sum()

    assert jnp.isfinite(jax.grad(loss)(made).weight).all()


@pytest.mark.parametrize("implementation", ["blockwise", "dense"])
def test_positions_end_in_attention_too(implementation):
    """Query and key are farther apart than int32 tells: as far as there is, and not before."""
    far = relative_positions(np.array([5.0, 0.0, -3.0], np.float32)).shift(2**31 - 90, -(2**30))
    rows = jnp.zeros((1, 5, 1, 2))
    options = {"score": far, "implementation": implementation}
    lse = attend_with_stats(rows, rows, rows, **options)[1]
    np.testing.assert_allclose(lse, 5 + np.log(5), rtol=1e-6)


def test_alibi_beside_arrays_of_heads_is_drawn_for_as_many():
    drawn = (alibi() >> softcap(np.full(4, 1e6, np.float32))).dense(1, 2)
    np.testing.assert_allclose(drawn[0, :, 0, 1], -(4.0 ** -np.arange(1, 5)), rtol=1e-5)
    with pytest.raises(ValueError, match="slopes is None"):  # shared by heads: by how many?
        (alibi() >> softcap(np.full((4, 1), 9.0, np.float32))).dense(1, 2)


def test_a_score_that_holds_a_mask_is_refused():
    with pytest.raises(TypeError, match="Twice holds causal, a mask"):
        attend(*[jnp.ones((1, 3, 1, 2))] * 3, score=Twice(causal()))


@score_type
class Weighed(Score):
    """Of arrays of positions."""

    of_keys: jax.Array = leaf("kv")
    power: int = 1

    def __call__(self, logit, q_idx, kv_idx):
        return logit * jnp.asarray(self.of_keys)[kv_idx] ** self.power


class Bare(Score):
    def __call__(self, logit, q_idx, kv_idx):
        return logit


def test_classes_of_ones_own_are_scores_like_any_other():
    weights = np.random.default_rng(0).random((2, 1, 11)).astype(np.float32)
    made = Twice(A) >> Weighed(weights, 2)
    found = made.dense(7, 11, logit=LOGITS)
    expected = 2 * np.tanh(np.tanh(LOGITS / 2)) * weights[:, :, None] ** 2
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert made.lead == (2, 1) and repr(made).endswith(
        "Weighed(of_keys=float32[2, 1, 11], power=2))"
    )
    with pytest.raises(ValueError, match=r"Weighed: of_keys has shape \(2, 1, 11\).*0 to 11"):
        made.dense(7, 12)
    with pytest.raises(ValueError, match=r"Weighed: of_keys has shape"):
        attend(*[jnp.ones((2, 12, 1, 3))] * 3, score=made)


def test_a_class_that_is_not_registered_is_told_of_score_type():
    x = jnp.ones((1, 3, 1, 2))
    for use in (
        lambda: attend(x, x, x, score=Bare()),
        lambda: Bare().dense(2, 2),
        lambda: (A >> Bare()).dense(2, 2),
        lambda: attend(x, x, x, score=Bare().shift(1)),
    ):
        with pytest.raises(TypeError, match="@score_type above `class Bare`"):
            use()


@pytest.mark.thorough(quick=1)
@pytest.mark.parametrize("dtype", [jnp.bfloat16, np.float16, np.float32, np.float64])
def test_arrays_may_be_of_any_floating_dtype(dtype):
    """Those of a function come in the dtype of the logit, also where jax mixes none."""
    numbers, table = np.array([0.5, 2.0]).astype(dtype), np.ones((2, 3)).astype(dtype)
    with enable_x64(dtype == np.float64):
        made = softcap(numbers) >> temperature(numbers) >> alibi(numbers)
        made >>= relative_positions(table) >> score(lambda x, q, k, w: x * w[k % 3], table)
        assert made.dense(3, 3).dtype == jnp.float32
        x = jnp.ones((1, 3, 2, 2), jnp.float32)
        assert attend(x, x, x, score=made).dtype == x.dtype


@pytest.mark.parametrize(
    "lead, ranks, expected",
    [((), None, ()), ((6,), None, (1, 6)), ((2, 6), None, (2, 6)), ((2, 1), (1,), (2, 1))],
)
def test_arrays_of_a_function_are_those_of_heads_as_few_as_need_be(lead, ranks, expected):
    array = np.ones((*lead, 3), np.float32)
    made = score(lambda x, q, k, w: x + w[q % 3] + w.ndim, array, ranks=ranks)
    assert made.lead == expected
    np.testing.assert_array_equal(made.dense(2, 2), np.full((*expected, 2, 2), 2.0))


# ---- A score is a value --------------------------------------------------------------------------

STATIC = [
    lambda: softcap(50),
    lambda: softcap(30.0),
    lambda: temperature(50.0),
    lambda: alibi(),
    lambda: alibi(0.5),
    lambda: alibi(0.5).shift(1),
    lambda: alibi(0.5).shift(0, 1),
    lambda: alibi(0.5).at(None, None),
    lambda: softcap(50) >> alibi(),
    lambda: alibi() >> softcap(50),
]
WITH_ARRAYS = [
    lambda: softcap(np.float32([1, 2])),
    lambda: softcap(np.float32([1, 3])),
    lambda: temperature(np.float32([1, 2])),
    lambda: alibi(jnp.float32(0.5)),
    lambda: relative_positions(ONES(3)),
    lambda: relative_bias(ONES((2, 8)), 8),
    lambda: relative_bias(ONES((2, 8)), 8, bidirectional=False),
    lambda: relative_bias(ONES((2, 8)), 8, 100),
    lambda: alibi(0.5).at(np.array([1, 0]), None),
    lambda: alibi(0.5).at(None, np.array([1, 0])),
    lambda: alibi(0.5).shift(np.array([1, 0])),
    lambda: softcap(50) >> alibi(np.float32([1, 2])),
]


def test_scores_are_equal_just_where_they_are_made_alike():
    made, again = ([make() for make in STATIC + WITH_ARRAYS] for _ in range(2))
    equal = np.array([[a == b for b in again] for a in made])
    np.testing.assert_array_equal(equal, np.eye(len(made), dtype=bool))
    assert softcap(50) == softcap(50.0) == softcap(np.int64(50)) and softcap(50) != causal()
    assert pickle.loads(pickle.dumps(made)) == copy.deepcopy(made) == made
    assert all(jax.tree.unflatten(*reversed(jax.tree.flatten(x))) == x for x in made)


def test_scores_without_arrays_are_static_and_those_with_say_why_not():
    assert len({hash(make()) for make in STATIC * 3}) > len(STATIC) / 2
    assert not any(jax.tree.leaves(make()) for make in STATIC)

    @functools.partial(jax.jit, static_argnums=1)
    @chex.assert_max_traces(len(STATIC) - 3)
    def asked(x, made):
        return made.dense(2, 2).sum() + x

    for make in STATIC * 2:
        if "alibi()" not in repr(make()):
            asked(0, make())
    for make in WITH_ARRAYS:
        with pytest.raises(TypeError, match=r"a score with arrays has no hash \(.*static"):
            hash(make())


@pytest.mark.parametrize("number", range(len(STATIC + WITH_ARRAYS)))
def test_scores_are_written_down_by_jax_export(number):
    made = (STATIC + WITH_ARRAYS)[number]()
    exported = export.export(jax.jit(lambda x: x >> softcap(3.0)))(made)
    assert export.deserialize(exported.serialize()).call(made) == made >> softcap(3.0)


def test_a_rule_of_ones_own_cannot_be_written_down_and_says_so():
    made = score(lambda x, q, k: x)
    exported = export.export(jax.jit(lambda made: made.dense(3, 3)))(made)
    with pytest.raises(TypeError, match="score holds what cannot be written down"):
        exported.serialize()


@pytest.mark.parametrize("make", WITH_ARRAYS[:4] + WITH_ARRAYS[-1:], ids=lambda make: repr(make()))
def test_gradients_of_arrays_are_those_of_the_rule(make):
    made = jax.tree.map(jnp.asarray, make())

    def loss(made):
        return (made.dense(3, 4, logit=LOGITS[:3, :4]) ** 2).sum()

    slopes = jax.grad(loss)(made)
    along = jax.tree.map(jnp.ones_like, made)
    pushed = jax.jvp(loss, (made,), (along,))[1]
    near = [loss(jax.tree.map(lambda x, sign=sign: x + sign * 1e-2, made)) for sign in (1, -1)]
    total = sum(float(x.sum()) for x in jax.tree.leaves(slopes))
    np.testing.assert_allclose([total, pushed], [(near[0] - near[1]) / 2e-2] * 2, rtol=2e-2)


# ---- What is odd is refused by name --------------------------------------------------------------

NOT_POSITIVE = [
    0,
    -1,
    np.nan,
    np.inf,
    10**400,
    1e39,
    1e-40,
    np.float32(-1),
    np.float32([1, 0]),
    np.float32([[-1]]),
    jnp.float32(np.nan),
]
NOT_FLOATS = [True, "x", 1j, np.array([1, 2]), np.ones(2, bool), [None], jnp.int32(3)]
REFUSED = {
    **{
        f"softcap {x!r}": (lambda x=x: softcap(x), ValueError, "softcap: cap") for x in NOT_POSITIVE
    },
    **{f"softcap {x!r}": (lambda x=x: softcap(x), TypeError, "softcap: cap") for x in NOT_FLOATS},
    "temperature 0": (lambda: temperature(0), ValueError, "temperature: value is 0.0"),
    "temperature True": (lambda: temperature(True), TypeError, "temperature: value"),
    "no cap": (lambda: softcap(None), TypeError, "softcap: cap"),
    "slopes nan": (lambda: alibi(np.nan), ValueError, "alibi: slopes is nan"),
    "slopes of ints": (lambda: alibi(np.arange(4)), TypeError, "alibi: slopes has dtype int64"),
    "slopes of 3 axes": (lambda: alibi(ONES((1, 1, 4))), ValueError, "alibi: slopes has shape"),
    "heads 0": (lambda: alibi_slopes(0), ValueError, "num_heads is 0"),
    "heads 4.0": (lambda: alibi_slopes(4.0), TypeError, "num_heads is 4.0"),
    "drawn for no heads": (lambda: alibi().dense(2, 2), ValueError, "slopes is None"),
    "direction no": (
        lambda: relative_bias(ONES(32), bidirectional="no"),
        TypeError,
        "bidirectional",
    ),
    "very far": (lambda: relative_bias(ONES(32), max_distance=2**30), ValueError, "max_distance"),
    "logit [T]": (lambda: softcap(1.0).dense(2, 2, logit=ONES(2)), ValueError, "logit has shape"),
    "even table": (lambda: relative_positions(ONES(4)), ValueError, "table has shape.*odd"),
    "no table": (lambda: relative_positions(ONES(0)), ValueError, "table has shape.*odd"),
    "number": (lambda: relative_positions(1.0), ValueError, r"table has shape \(\)"),
    "table of ints": (lambda: relative_positions(np.arange(3)), TypeError, "table has dtype int64"),
    "table of 4 axes": (lambda: relative_positions(ONES((1, 1, 1, 3))), ValueError, "table has sh"),
    "transposed": (lambda: relative_bias(ONES((32, 4))), ValueError, r"\(32, 4\).*transposed"),
    "ints": (lambda: relative_bias(np.ones((4, 32), int)), TypeError, "table has dtype int64"),
    "one bucket": (lambda: relative_bias(ONES((4, 1)), 1), ValueError, "num_buckets gives 0"),
    "no buckets": (lambda: relative_bias(ONES((4, 0)), 0), ValueError, "num_buckets is 0"),
    "too near": (lambda: relative_bias(ONES((4, 8)), 8, 2), ValueError, "max_distance is 2;.* 2"),
    "a half": (lambda: relative_bias(ONES((4, 8)), 8, 9.5), TypeError, "max_distance is 9.5"),
    ">> function": (lambda: A >> abs, TypeError, r">> joins scores.*score\(fn\)"),
    ">> mask": (lambda: A >> causal(), TypeError, ">> joins scores.*causal"),
    "an index": (lambda: score(lambda x, q, k: q), TypeError, "score: fn.*one floating number"),
    "a vector": (lambda: score(lambda x, q, k: x * ONES(3)), TypeError, "one floating number"),
    "two arguments": (lambda: score(lambda q, k: q), TypeError, "score: fn"),
    "no function": (lambda: score(3), TypeError, "score: fn"),
    "ranks": (lambda: score(lambda x, q, k: x, ranks=[1]), ValueError, "score: ranks has 1"),
    "rank": (lambda: score(abs, ONES(3), ranks=[2]), ValueError, "score: ranks has 2"),
    "shift 1.5": (lambda: A.shift(1.5), TypeError, "q_start has dtype float64"),
    "starts": (lambda: A.shift(0, np.zeros((1, 1, 1), int)), ValueError, "kv_start has shape"),
    "positions": (lambda: A.at(ONES(3), None), TypeError, "q_positions has dtype float32"),
    "a position": (lambda: A.at(None, np.int32(3)), ValueError, "kv_positions has shape"),
    "too few": (lambda: B.at(np.arange(3), None).dense(4, 4), ValueError, r"q_positions.*0 to 3"),
    "too few, later": (
        lambda: B.at(np.arange(3), None).shift(1).dense(3, 4),
        ValueError,
        "q_positions.*1 to 3",
    ),
    "lead": (
        lambda: (softcap(ONES(3)) >> alibi(ONES(4))).lead,
        ValueError,
        r"alibi: slopes has shape.*\b3\b",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_odd_is_refused_by_name(name):
    call, error, message = REFUSED[name]
    with pytest.raises(error, match=message):
        call()


def test_values_that_are_traced_are_not_looked_at():
    for value in (0.0, -1.0, np.nan):
        jax.eval_shape(lambda cap: softcap(cap).dense(1, 1), value)
    with pytest.raises(TypeError, match="softcap: cap has dtype int32"):
        jax.eval_shape(lambda cap: softcap(cap).dense(1, 1), 3)
