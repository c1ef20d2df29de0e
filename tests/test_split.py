"""What kernels are given of a rule: parts that are the rule itself, and few; words where not."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import mask_cases
import numpy as np
import pytest
import score_cases
from attention_cases import Shape, enable_x64, older

import flaxattn
from flaxattn import (
    Mask,
    causal,
    from_dense,
    full,
    lengths,
    prefix,
    same_segment,
    sliding_window,
    where,
)
from flaxattn.attention.chunks import Fixed, Inputs, Setting
from flaxattn.attention.dropout import keep
from flaxattn.attention.fused.rules import tile_rule
from flaxattn.attention.fused.split import split
from flaxattn.attention.scoring import halves
from flaxattn.drawing.gallery import MASKS, SCORES
from flaxattn.masks.leaves import child, mask_type, over_heads

B, N = mask_cases.B, mask_cases.N
T, S = 11, 13
EXPRESSIONS, AT_ONCE = 200, 20


@dataclasses.dataclass
class Rule:
    """What tiles ask, of a mask, a score, or seeds of dropout."""

    mask: object = None
    score: object = None
    seeds: object = None
    rate: float = 0.0
    kv_len: int = S
    block_kv: int = 1
    derived: bool = False

    @functools.cached_property
    def parts(self):
        some = others = None
        if self.score is not None:
            score = self.score.for_heads(N)
            floating = [jnp.issubdtype(x.dtype, jnp.floating) for x in jax.tree.leaves(score)]
            some, others = halves(score, floating)
        query, key = (jnp.zeros((1, n, 1, 1)) for n in (T, self.kv_len))
        inputs = Inputs(query, key, None, None, None, some)
        setting = Setting(1, self.block_kv, self.rate, self.mask is not None)
        mask = full() if self.mask is None else jax.tree.map(jnp.asarray, self.mask)
        fixed = Fixed(mask, None, None, None, score=others, seeds=self.seeds)
        partial = self.mask is not None
        return tile_rule(setting, inputs, fixed, partial=partial, derived=self.derived)

    def tiles(self, logits=None, q_idx=None, kv_idx=None):
        """The answers [B, N, T, S], each value of one side spread over the tile, as in a kernel."""
        q_idx = jnp.arange(T, dtype=jnp.int32) if q_idx is None else q_idx
        kv_idx = jnp.arange(self.kv_len, dtype=jnp.int32) if kv_idx is None else kv_idx
        shape = (B, N, q_idx.size, kv_idx.size)
        parts = self.parts.split
        assert parts.why_not is None, parts.why_not
        outside = parts.outside(self.parts.arrays, q_idx, kv_idx)
        kept = jnp.float32, jnp.int32, jnp.uint32
        assert all(x.dtype in kept for x in jax.tree.leaves(outside))

        def spread(x):
            return jnp.broadcast_to(x, shape)

        tables = [x[..., q_idx[:, None], kv_idx] for x in self.parts.tables]
        tiles = parts.tile(
            [spread(x) for x in (jnp.zeros(()) if logits is None else logits, *tables)],
            [spread(x[..., :, None]) for x in outside.of_queries],
            [spread(x[..., None, :]) for x in outside.of_keys],
            [spread(x[..., None, None]) for x in outside.of_heads],
            spread,
        )
        return self.parts.answers(tiles)


def count(rule):
    """Values of queries, of keys, of heads, and operations; one that is read as a boolean, too."""
    parts = rule.parts.split
    values = (parts.of_queries, parts.of_keys, parts.of_heads)
    read = sum(x.aval.dtype == bool for side in values for x in side)
    return (*map(len, values), len(parts.of_tile) + read)


def four_axes(dense):
    return jnp.expand_dims(dense, {2: (0, 1), 3: (1,), 4: ()}[dense.ndim])


@functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
def seen_and_dense(masks):
    """For each mask what tiles say is seen, and what it draws: [B, N, T, S]."""
    found = []
    for mask in masks:
        seen = Rule(mask).tiles().seen
        seen = jnp.ones((B, N, T, S), bool) if seen is None else seen
        found.append((seen, jnp.broadcast_to(four_axes(mask.dense(T, S)), seen.shape)))
    return found


def assert_split_is_dense(masks):
    for mask, (seen, dense) in zip(masks, seen_and_dense(masks), strict=True):
        np.testing.assert_array_equal(seen, dense, err_msg=repr(mask))


# ---- Masks ---------------------------------------------------------------------------------------


def test_masks_of_the_gallery_are_their_parts():
    masks = [
        entry.value
        for name, entry in MASKS.items()
        if name != "from_dense" and np.prod(entry.value.lead, dtype=int) in (1, N)
    ]
    assert len(masks) >= len(MASKS) - 2
    assert_split_is_dense(masks)


SPLITTABLE = tuple(name for name in mask_cases.PATTERNS if name != "dense")


def in_jax_or_numpy(rng, mask):
    """Some of its arrays as jax's, which then are known nowhere."""
    return jax.tree.map(lambda x: jnp.asarray(x) if rng.random() < 0.5 else x, mask)


@pytest.mark.thorough(quick=1)
@pytest.mark.parametrize("start", range(0, EXPRESSIONS, AT_ONCE))
def test_random_expressions_are_their_parts(start):
    rng = np.random.default_rng(start)
    masks = [mask_cases.random_mask(rng, 1 + i % 3, SPLITTABLE).mask for i in range(AT_ONCE)]
    assert_split_is_dense([in_jax_or_numpy(rng, mask) for mask in masks])


def near(q, k, reach, turned):
    return (abs(q - k) <= reach) & ~((q + k) % 3 == turned)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.uint32, bool, jnp.bfloat16])
def test_rules_of_ones_own_are_their_parts_with_arrays_of_any_dtype(dtype):
    rng = np.random.default_rng(0)
    ages = [jnp.asarray(rng.integers(0, 9, (*lead, S)), dtype) for lead in ((), (B,), (B, N))]
    rules = [older, jax.jit(older), lambda q, k, age: jax.nn.relu(age[q]) == age[k]]
    if dtype is bool:
        rules[2] = lambda q, k, age: age[q] ^ age[k]
    masks = [where(rule, age) for rule in rules for age in ages]
    masks += [causal() & mask for mask in masks[:3]]
    masks.append(where(near, 4, jnp.asarray([[0, 1, 2]], jnp.int32), ranks=(0, 0)))
    assert_split_is_dense(masks)


@pytest.mark.parametrize("answer", [True, False, np.bool_(True)])
def test_a_rule_may_answer_with_a_constant(answer):
    masks = [where(lambda q, k: answer), causal() & where(lambda q, k: answer)]
    for mask in masks:
        seen = Rule(mask).tiles().seen
        expected = np.asarray(mask(np.arange(T)[:, None], np.arange(S)[None])) & np.ones(
            (T, S), bool
        )
        np.testing.assert_array_equal(True if seen is None else seen[0, 0], expected)


def test_what_is_known_of_all_pairs_is_not_asked():
    assert Rule(full()).parts.names == ()
    assert Rule(full(), block_kv=4).parts.names == ("seen",)  # keys end within a block
    assert Rule(score=flaxattn.alibi(0.5), derived=True).parts.names == ("logit",)
    assert Rule(score=flaxattn.softcap(3.0), derived=True).parts.names == ("logit", "slope")


def test_keys_past_the_last_one_are_hidden_in_a_block_that_they_fill():
    rng = np.random.default_rng(0)
    for mask in (full(), causal(), mask_cases.random_mask(rng, 2, SPLITTABLE).mask):
        rule, kv_idx = Rule(mask, block_kv=4), jnp.arange(16, dtype=jnp.int32)
        seen = jax.jit(lambda kv_idx, rule=rule: rule.tiles(kv_idx=kv_idx).seen)(kv_idx)
        dense = jnp.broadcast_to(four_axes(mask.dense(T, S)), (B, N, T, S))
        np.testing.assert_array_equal(seen[..., :S], dense)
        assert not seen[..., S:].any()


LAST = 2**31 - 2
FAR = np.array([0, 1, 2, 5, LAST // 2, LAST - 5, LAST - 1, LAST], np.int32)


@functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
def seen_and_expected(masks):
    """For each mask what tiles say is seen at `FAR`, and what its rule says: [B, N, T, S]."""
    far, shape, found = jnp.asarray(FAR), (B, N, FAR.size, FAR.size), []
    for mask in masks:
        seen = Rule(mask).tiles(q_idx=far, kv_idx=far).seen
        expected = over_heads(lambda m: jnp.asarray(m(far[:, None], far[None])), mask)
        seen = jnp.ones(shape, bool) if seen is None else seen
        found.append((seen, jnp.broadcast_to(four_axes(expected), shape)))
    return found


@pytest.mark.thorough(quick=1)
@pytest.mark.parametrize("seed", range(4))
def test_parts_hold_up_to_the_last_index_of_all(seed):
    rng = np.random.default_rng(seed)
    ends = (-(2**31), 1 - 2**31, -7, 0, 7, 2**31 - 1)
    masks = [
        mask_cases.random_mask(rng, 2, SPLITTABLE).mask.shift(*map(int, rng.choice(ends, 2)))
        for _ in range(AT_ONCE)
    ]
    masks += [where(lambda q, k: q + k >= 0), where(lambda q, k: causal()(q * 3, k))]  # may wrap
    for mask, (seen, expected) in zip(masks, seen_and_expected(masks), strict=True):
        np.testing.assert_array_equal(seen, expected, err_msg=repr(mask))


IDS = np.ones((B, S), int)
SIZES = {  # values of queries, of keys, of heads, and operations
    "causal": (causal(), (1, 1, 0, 1)),
    "window": (causal() & sliding_window(4), (2, 1, 0, 3)),
    "window of each head": (causal() & sliding_window(np.array([[2, 3, 4]])), (2, 1, 0, 3)),
    "segments": (same_segment(IDS), (2, 2, 0, 3)),
    "packed": (causal() & same_segment(IDS), (2, 2, 0, 3)),
    "packed, and a window": (causal() & same_segment(IDS) & sliding_window(4), (3, 2, 0, 5)),
    "prefix": (causal() | prefix(3), (1, 1, 0, 1)),
    "ragged": (lengths(np.array([4, 9]), np.array([5, 9])), (1, 1, 0, 1)),
    "ragged, causal": (causal() & lengths(kv_lengths=np.array([5, 9])), (1, 1, 0, 1)),
    "either": (causal() | sliding_window(None, 3), (1, 1, 0, 1)),
    "the diagonal": (where(lambda q, k: q == k) & lengths(3, 4), (1, 1, 0, 1)),
    "the opposite": (~causal() & same_segment(IDS), (2, 2, 0, 3)),
    "the same twice": (causal() & (causal() | prefix(3)) & causal(), (2, 2, 0, 3)),
}


@pytest.mark.parametrize("name", SIZES)
def test_little_is_left_for_a_tile(name):
    mask, most = SIZES[name]
    assert all(np.array(count(Rule(mask))) <= most), count(Rule(mask))
    assert_split_is_dense([mask])


def test_all_that_is_left_of_the_gallery_is_little():
    counts = [count(Rule(e.value)) for name, e in MASKS.items() if name != "from_dense"]
    assert np.sum(counts, axis=0)[[0, 1]].max() <= 36
    assert np.sum(counts, axis=0)[3] <= 62


# ---- Scores and dropout --------------------------------------------------------------------------


def assert_score_is_its_parts(score):
    logits = np.random.default_rng(0).standard_normal((B, N, T, S)).astype(np.float32) * 3

    def dense(logits):
        q, k = jnp.arange(T)[:, None], jnp.arange(S)[None]
        return vmapped(score.for_heads(N), logits, q, k)

    answers = jax.jit(lambda x: Rule(score=score, derived=True).tiles(x))(logits)
    expected, pull = jax.vjp(dense, jnp.asarray(logits))
    slope = jnp.ones_like(logits) if answers.slope is None else answers.slope
    close = functools.partial(np.testing.assert_allclose, rtol=3e-6, atol=3e-6)
    close(answers.logit, expected)
    close(slope, pull(jnp.ones_like(expected))[0])


def vmapped(score, logits, q, k):
    """The score of each example's and head's own logits."""
    arrays, tree = jax.tree.flatten(score)
    leads = [len(leaf.lead) for leaf in score.leaves()]
    arrays = [
        jnp.broadcast_to(
            jnp.reshape(x, (*np.shape(x)[:n], *(1,) * (2 - n), *np.shape(x)[n:])),
            (B, N, *np.shape(x)[n:]),
        )
        for x, n in zip(arrays, leads, strict=True)
    ]

    def one(logits, arrays):
        return jax.tree.unflatten(tree, arrays)(logits, q, k)

    return jax.vmap(jax.vmap(one))(logits, arrays)


UNSPLITTABLE = ("relative_positions", "relative_bias", "score", "sandwich", "temperature", "alibi")


@pytest.mark.parametrize("name", [n for n in SCORES if n not in UNSPLITTABLE])
def test_scores_of_the_gallery_are_their_parts(name):
    assert_score_is_its_parts(SCORES[name].value)


@pytest.mark.parametrize("seed", range(12))
def test_random_scores_are_their_parts(seed):
    gathers = {score_cases.PATTERNS.index(p) for p in (score_cases.clipped, score_cases.bucketed)}
    rng = np.random.default_rng(seed)
    while True:
        seed = int(rng.integers(10**6))
        chosen = np.random.default_rng(seed)
        picked = chosen.choice(len(score_cases.PATTERNS), chosen.integers(1, 4), replace=False)
        if not gathers & set(picked.tolist()):
            break
    make, rules = score_cases.random_score(seed, Shape(B, T, S, N, 1, 1, 1))
    assert_score_is_its_parts(make(score_cases.as_floats(rules.arrays)))


def test_what_dropout_keeps_is_its_parts():
    seeds = jax.random.bits(jax.random.key(0), (B, N, 2), jnp.uint32)
    kept = jax.jit(lambda seeds: Rule(causal(), seeds=seeds, rate=0.3).tiles().kept)(seeds)
    expected = jax.vmap(jax.vmap(lambda x: keep(x, jnp.arange(T), jnp.arange(S), 0.3)))(seeds)
    np.testing.assert_array_equal(kept, expected)


def test_a_mask_a_score_and_dropout_are_asked_at_once():
    seeds = jax.random.bits(jax.random.key(1), (B, N, 2), jnp.uint32)
    mask = causal() & same_segment(np.arange(B * S).reshape(B, S) // 4)
    rule = Rule(mask, flaxattn.softcap(2.0), seeds, 0.5, derived=True)
    assert rule.parts.names == ("logit", "slope", "seen", "kept")
    logits = np.random.default_rng(0).standard_normal((B, N, T, S)).astype(np.float32)
    answers = jax.jit(rule.tiles)(logits)
    np.testing.assert_allclose(answers.logit, 2 * np.tanh(logits / 2), rtol=2e-6)
    np.testing.assert_allclose(answers.slope, 1 - np.tanh(logits / 2) ** 2, rtol=1e-5, atol=1e-6)
    dense = jnp.broadcast_to(mask.dense(T, S)[:, None], answers.seen.shape)
    np.testing.assert_array_equal(answers.seen, dense)


# ---- Why not, in words ---------------------------------------------------------------------------

RNG = np.random.default_rng(0)
FEATURES = RNG.standard_normal((S, 4)).astype(np.float32)
TABLE = RNG.random((T, S)) < 0.5


@mask_type
class Backwards(Mask):
    """The last query is asked about as the first."""

    mask: Mask = child()

    def __call__(self, q_idx, kv_idx):
        return self.mask(T - 1 - q_idx, kv_idx)


REFUSED = {
    "dense, shifted": (
        Rule(causal() & ~from_dense(np.ones((T + 1, S), bool)).shift(1, 0)),
        "from_dense: array is looked up by a query and a key index at once",
    ),
    "dense, in a mask that asks it about others": (
        Rule(Backwards(from_dense(TABLE))),
        "from_dense: array is looked up by a query and a key index at once",
    ),
    "gathered": (
        Rule(where(lambda q, k, table: table[q, k], TABLE, ranks=(2,))),
        "where: array 0 is looked up by",
    ),
    "gathered from what it closes over": (
        Rule(where(lambda q, k: jnp.asarray(TABLE)[q, k])),
        "an array of its own is looked up by",
    ),
    "vectors": (
        Rule(where(lambda q, k, f: (f[q] * f[k]).sum() > 0, FEATURES, ranks=(2,))),
        r"where: array 0 gives an array of shape \(4,\) for an index",
    ),
    "T5's table": (
        Rule(score=flaxattn.relative_bias(np.zeros((N, 32), np.float32))),
        "relative_bias: table is looked up by a query and a key index at once",
    ),
    "distances": (
        Rule(score=flaxattn.relative_positions(np.zeros(5, np.float32))),
        "relative_positions: table is looked up by",
    ),
    "an operation that kernels have not": (
        Rule(where(lambda q, k: jnp.sin(jnp.asarray(q - k, jnp.float32)) > 0)),
        "it asks for sin of a query and a key together",
    ),
    "narrow numbers": (
        Rule(where(lambda q, k, age: age[q] + age[k] > 5, np.zeros(S, np.int8))),
        "it computes in int8 for pairs, and a kernel does in 32 bits",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_kernel_can_do_is_told_in_words(name):
    rule, words = REFUSED[name]
    with pytest.raises(AssertionError, match=words):
        rule.tiles()


def test_masks_that_are_given_whole_are_read_in_tiles():
    per_example, per_head = (RNG.random((*lead, T, S)) < 0.5 for lead in ((B,), (B, N)))
    assert_split_is_dense(
        [
            from_dense(TABLE),
            causal() & ~from_dense(np.stack([TABLE, TABLE])[:B]),
            from_dense(per_head) | sliding_window(3),
            ~(from_dense(per_example) & ~from_dense(per_head) & causal()),
            where(lambda q, k: q != k + 1) & (from_dense(TABLE) | from_dense(TABLE[:, :1])),
        ]
    )
    assert len(Rule(from_dense(TABLE) | from_dense(TABLE[:, :1])).parts.tables) == 1


def test_a_dense_mask_of_one_row_or_column_can_be_split():
    assert_split_is_dense(
        [from_dense(TABLE[:1]), from_dense(TABLE[:, :1]), from_dense(TABLE[:1, :1])]
    )


# ---- Settings of jax -----------------------------------------------------------------------------


def test_parts_are_the_rule_where_64_bits_are_on():
    rng = np.random.default_rng(5)
    masks = [mask_cases.random_mask(rng, names=SPLITTABLE).mask for _ in range(10)]
    with enable_x64(True):
        assert_split_is_dense(masks)
        wide = where(lambda q, k, x: x[q] + x[k] > 1, np.zeros(S), ranks=(1,))
        assert "it computes in float64 for pairs" in Rule(wide).parts.split.why_not


def test_parts_are_made_inside_of_other_transformations():
    ids = np.random.default_rng(0).integers(0, 3, (4, B, S))
    mask = causal() & same_segment(ids)

    def seen(ids):
        return Rule(causal() & same_segment(ids)).tiles().seen

    found = jax.jit(jax.vmap(jax.checkpoint(seen)))(ids)
    expected = jax.vmap(lambda ids: (causal() & same_segment(ids)).dense(T, S))(ids)
    assert mask.lead == (4, B)
    np.testing.assert_array_equal(found, jnp.broadcast_to(expected[:, :, None], found.shape))


def test_parts_are_made_inside_of_shard_map():
    mesh = jax.make_mesh((1,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec("x")
    ids = np.random.default_rng(0).integers(0, 3, (B, S))

    def outside(ids):
        rule = Rule(causal() & same_segment(ids) & sliding_window(4))
        indices = (jnp.arange(n, dtype=jnp.int32) for n in (T, S))
        return rule.parts.split.outside(rule.parts.arrays, *indices)

    sharded = jax.shard_map(outside, mesh=mesh, in_specs=spec, out_specs=spec)
    jax.tree.map(np.testing.assert_array_equal, jax.jit(sharded)(ids), jax.jit(outside)(ids))


def test_long_expressions_are_split():
    mask = functools.reduce(lambda a, b: a & b, [sliding_window(i) for i in range(60, 0, -1)])
    assert count(Rule(mask)) == (2, 1, 0, 3)
    assert_split_is_dense([mask])


def test_a_split_is_of_any_rule():
    def rule(x, q, k, weight):
        return [x * weight[q], jax.lax.stop_gradient(weight[k]) + 1.0, True, 2]

    parts = split(rule, [jnp.float32], [jax.ShapeDtypeStruct((5,), jnp.float32)])
    assert [parts.constant(i) for i in range(4)] == [None, None, 1.0, 2.0]
    assert (len(parts.of_queries), len(parts.of_keys), len(parts.of_tile)) == (1, 1, 1)
