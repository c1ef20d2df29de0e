"""Block plans: literal states, lists that are what loops say, and what `explain` prints of them."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attention_cases import older

from flaxattn import (
    alibi,
    attend,
    causal,
    chunked,
    explain,
    from_dense,
    full,
    global_tokens,
    lengths,
    prefix,
    prepare,
    same_segment,
    sliding_window,
    softcap,
    valid,
    where,
)
from flaxattn.attention.costs import draw_plan
from flaxattn.drawing.explain import share_skipped
from flaxattn.masks import BlockPlan

RNG = np.random.default_rng(0)


def kinds(dense, block_q, block_kv):
    """0, 1 or 2 for each pair of blocks of a bool [T, S], by looking; a short key block is no 2."""
    (q_len, kv_len), state = dense.shape, []
    for i in range(0, q_len, block_q):
        state.append([])
        for j in range(0, kv_len, block_kv):
            cells = dense[i : i + block_q, j : j + block_kv]
            whole = cells.shape[1] == block_kv and cells.all()
            state[-1].append(2 if whole else int(cells.any()))
    return state


def listed(state):
    """The lists of a state [rows][columns]: full ones, then partial, then empty."""
    blocks, num_full, num_live = [], [], []
    for row in state:
        of_kind = [[j for j, kind in enumerate(row) if kind == wanted] for wanted in (2, 1, 0)]
        blocks.append(of_kind[0] + of_kind[1] + of_kind[2])
        num_full.append(len(of_kind[0]))
        num_live.append(len(of_kind[0]) + len(of_kind[1]))
    return blocks, num_full, num_live


def assert_lists(lists, state):
    """The lists are those of `state` [*lead, rows, columns], each example and head on its own."""
    lead = state.shape[:-2]
    assert lists.blocks.shape == state.shape
    assert lists.num_full.shape == lists.num_live.shape == state.shape[:-1]
    assert {array.dtype for array in lists} == {np.dtype(np.int32)}
    for at in np.ndindex(lead):
        blocks, num_full, num_live = listed(np.asarray(state[at]).tolist())
        assert np.asarray(lists.blocks[at]).tolist() == blocks
        assert np.asarray(lists.num_full[at]).tolist() == num_full
        assert np.asarray(lists.num_live[at]).tolist() == num_live


# States.

PACKED = np.array([1, 1, 2, 2, 2, 0])
LITERAL = {
    "causal": (causal(), (6, 6, 2, 2), [[1, 0, 0], [2, 1, 0], [2, 2, 1]]),
    "causal by one": (causal(), (3, 3, 1, 1), [[2, 0, 0], [2, 2, 0], [2, 2, 2]]),
    "causal, more keys": (causal(), (2, 6, 2, 2), [[1, 0, 0]]),
    "causal later": (causal().shift(q_start=4), (2, 6, 2, 2), [[2, 2, 1]]),
    "window": (sliding_window(2), (6, 6, 2, 2), [[2, 1, 0], [1, 2, 1], [0, 1, 2]]),
    "window back": (sliding_window(1, 0), (6, 6, 2, 2), [[1, 0, 0], [1, 1, 0], [0, 1, 1]]),
    "prefix": (prefix(4), (4, 6, 2, 2), [[2, 2, 0], [2, 2, 0]]),
    "prefix within a block": (prefix(3), (4, 6, 2, 2), [[2, 1, 0], [2, 1, 0]]),
    "prefix or causal": (causal() | prefix(4), (6, 6, 2, 2), [[2, 2, 0], [2, 2, 0], [2, 2, 1]]),
    "chunks": (chunked(2), (6, 6, 2, 2), [[2, 0, 0], [0, 2, 0], [0, 0, 2]]),
    "lengths": (lengths(2, 3), (4, 4, 2, 2), [[2, 1], [0, 0]]),
    "packed": (same_segment(PACKED), (6, 6, 2, 2), [[2, 0, 0], [0, 2, 1], [0, 1, 1]]),
    "global": (global_tokens(2), (6, 6, 2, 2), [[2, 2, 2], [2, 0, 0], [2, 0, 0]]),
    "opposite of causal": (~causal(), (6, 6, 2, 2), [[1, 2, 2], [0, 1, 2], [0, 0, 1]]),
    "nothing": (~full(), (4, 4, 2, 2), [[0, 0], [0, 0]]),
    "everything, short key block": (full(), (5, 5, 2, 2), [[2, 2, 1], [2, 2, 1], [2, 2, 1]]),
    "everything, one short key block": (full(), (3, 3, 2, 4), [[1], [1]]),
    "everything, short query block": (full(), (5, 4, 4, 2), [[2, 2], [2, 2]]),
    "a rule of one's own": (where(lambda q, k: q >= k), (4, 4, 2, 2), [[1, 1], [1, 1]]),
}  # fmt: skip


@pytest.mark.parametrize("name", LITERAL)
def test_state_of_a_small_plan(name):
    mask, (q_len, kv_len, block_q, block_kv), state = LITERAL[name]
    plan = mask.plan(q_len, kv_len, block_q=block_q, block_kv=block_kv)
    assert plan.state.dtype == np.int8
    assert plan.state.tolist() == state
    assert (plan.q_len, plan.kv_len, plan.block_q, plan.block_kv) == (
        q_len,
        kv_len,
        block_q,
        block_kv,
    )
    assert plan.mask is mask


T, S = 37, 29
IDS = np.r_[np.repeat([1, 2, 3, 4], 8), np.zeros(5, int)]

EXACT = {
    "shared": causal() & sliding_window(9, 0),
    "shared, packed": causal() & same_segment(IDS, IDS[:S]),
    "examples": lengths(kv_lengths=np.array([3, 29, 0])),
    "examples, flags": valid(np.arange(S) < np.array([[28], [13]])) & lengths(np.array([7, 37])),
    "heads": sliding_window(np.array([[1, 20, 40, 2]]), np.array([[1, 20, 40, 0]])),
    "examples and heads": lengths(kv_lengths=RNG.integers(0, S, (2, 3))),
    "examples and, apart, heads": lengths(kv_lengths=np.array([[5], [29]]))
    & sliding_window(np.array([[3, 40]])),
    "dense": from_dense(RNG.random((2, 2, T, S)) < 0.9),
}
LEADS = [(), (), (3,), (2,), (1, 4), (2, 3), (2, 2), (2, 2)]


@pytest.mark.thorough(quick=8)
@pytest.mark.parametrize("sizes", [(8, 4), (5, 7), (64, 64), (1, 29)], ids=str)
@pytest.mark.parametrize("name", EXACT)
def test_state_and_lists_are_what_loops_say_whatever_divides(name, sizes):
    mask, lead = EXACT[name], LEADS[list(EXACT).index(name)]
    plan = mask.plan(T, S, block_q=sizes[0], block_kv=sizes[1])
    state = np.asarray(plan.state)
    assert state.shape == (*lead, -(-T // sizes[0]), -(-S // sizes[1]))
    dense = np.asarray(mask.dense(T, S)).reshape(-1, T, S)
    looked = np.array([kinds(each, *sizes) for each in dense]).reshape(state.shape)
    if "apart" in name:  # an And is exact only where one side decides
        assert ((state == looked) | (state == 1)).all()
    else:
        np.testing.assert_array_equal(state, looked)
    assert_lists(plan.live, state)
    assert_lists(plan.transpose(), state.swapaxes(-1, -2))


@pytest.mark.thorough
def test_lists_of_random_states_are_full_then_partial_then_empty():
    """Any state there is, through masks of blocks: 0, half or all of the cells of each."""
    for seed, lead in enumerate([(), (3,), (2, 3), (1, 2), (2, 1)]):
        state = np.random.default_rng(seed).integers(0, 3, (*lead, 5, 7))
        cells = np.stack([state == 2, state > 0], axis=-1)  # [*lead, 5, 7, 2]
        array = np.repeat(cells.reshape(*lead, 5, 14), 3, axis=-2)
        plan = from_dense(array).plan(15, 14, block_q=3, block_kv=2)
        np.testing.assert_array_equal(plan.state, state)
        assert_lists(plan.live, state)
        assert_lists(plan.transpose(), state.swapaxes(-1, -2))


def test_last_short_key_block_is_never_full():
    for kv_len in range(1, 13):
        state = full().plan(6, kv_len, block_q=2, block_kv=4).state
        assert (state[:, : kv_len // 4] == 2).all()
        assert (state[:, kv_len // 4 :] == 1).all()
        assert state.shape == (3, -(-kv_len // 4))


@pytest.mark.thorough
def test_plan_is_stored_once_for_what_is_shared():
    """Leading axes are there only where the leaves of the mask have them."""
    window, padding = sliding_window(np.arange(1, 5)[None]), lengths(kv_lengths=np.array([9, 12]))
    for mask, lead in (
        (causal() & sliding_window(3), ()),
        (causal() & padding, (2,)),
        (causal() & window, (1, 4)),
        (causal() & lengths(kv_lengths=np.array([[9], [12]])), (2, 1)),
        (window & padding, (2, 4)),
    ):
        plan = mask.plan(12, 12, block_q=4, block_kv=3)
        assert plan.state.shape == plan.live.blocks.shape == (*lead, 3, 4)
        assert plan.bounds.some.shape == plan.bounds.every.shape == (*lead, 3, 4)
        assert plan.live.num_full.shape == plan.live.num_live.shape == (*lead, 3)
        assert plan.transpose().blocks.shape == (*lead, 4, 3)


def test_plan_holds_as_much_as_its_blocks_and_its_mask():
    """At 65536 a dense mask would hold 4 GiB."""
    ids = jax.ShapeDtypeStruct((65536,), jnp.int32)
    plan = jax.eval_shape(lambda ids: draw_plan(causal() & same_segment(ids), 65536, 65536), ids)
    held = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(plan))
    assert held < 2**20


@pytest.mark.parametrize("lengths_", [(0, 5), (5, 0), (0, 0)], ids=str)
def test_plan_of_nothing_has_no_blocks(lengths_):
    plan = draw_plan(causal(), *lengths_)
    assert plan.state.shape == tuple(min(n, 1) for n in lengths_)
    assert plan.live.num_live.sum() == 0


# What is known while tracing, and what is not.


def traced(mask):
    return jax.tree.map(jnp.asarray, mask)


MASKS = [
    causal() & same_segment(IDS, IDS[:S]),
    sliding_window(np.array(4), np.array(0)) | global_tokens(np.arange(T) == 20),
    causal() & lengths(kv_lengths=np.array([3, 29])),
    ~prefix(np.array([[3, 9]])) & valid(np.arange(S) != 5),
    where(older, RNG.integers(0, 3, T)) | causal().shift(q_start=np.array([0, 6])),
]


@pytest.mark.thorough(quick=3)
@pytest.mark.parametrize("mask", MASKS, ids=range(len(MASKS)))
def test_plan_under_jit_with_traced_leaves_has_the_same_values(mask):
    draw = functools.partial(type(mask).plan, q_len=T, kv_len=S, block_q=5, block_kv=7)
    inside = jax.jit(lambda mask: (draw(mask), draw(mask).transpose()))(traced(mask))
    assert all(isinstance(x, jax.Array) for x in jax.tree.leaves(inside))
    outside = draw(mask), draw(mask).transpose()
    chex.assert_trees_all_equal_shapes_and_dtypes(inside, outside)
    for a, b in zip(jax.tree.leaves(inside), jax.tree.leaves(outside), strict=True):
        np.testing.assert_array_equal(a, b)


def test_plan_of_what_is_known_is_numpy_even_while_tracing():
    plans = []

    @jax.jit
    def call(x):
        plans.append((causal() & same_segment(IDS, IDS[:S])).plan(T, S, block_q=5, block_kv=7))
        return x

    call(0.0)
    for array in (*plans[0].bounds, *plans[0].live, plans[0].state, *plans[0].transpose()):
        assert isinstance(array, np.ndarray)


def test_plan_goes_through_jit_and_is_used_again_without_a_new_trace():
    """One plan for the layers of a step: the same values in, new values in, traced once."""

    @jax.jit
    @chex.assert_max_traces(n=1)
    def two_layers(query, plan):
        assert (plan.q_len, plan.kv_len, plan.block_q, plan.block_kv) == (12, 12, 4, 4)
        return attend(attend(query, query, query, plan), query, query, plan)

    query = np.random.default_rng(0).standard_normal((2, 12, 2, 3)).astype(np.float32)
    for lengths_ in ([12, 7], [1, 12]):
        mask = causal() & lengths(kv_lengths=np.array(lengths_))
        plan = jax.tree.map(jnp.asarray, mask.plan(12, 12, block_q=4, block_kv=4))
        once = attend(query, query, query, mask, implementation="dense")
        expected = attend(once, query, query, mask, implementation="dense")
        np.testing.assert_allclose(two_layers(query, plan), expected, atol=2e-6)


def test_plan_is_a_pytree_of_its_arrays():
    plan = (causal() & same_segment(IDS)).plan(T, T, block_q=5, block_kv=7)
    leaves, treedef = jax.tree.flatten(plan)
    assert len(leaves) == 2 + 2 + 3  # ids of queries and keys; bounds; lists
    again = jax.tree.unflatten(treedef, leaves)
    assert isinstance(again, BlockPlan)
    assert (again.q_len, again.kv_len, again.block_q, again.block_kv) == (T, T, 5, 7)
    np.testing.assert_array_equal(again.state, plan.state)
    np.testing.assert_array_equal(again.mask.dense(T, T), plan.mask.dense(T, T))


# Positions that are given.


def zigzag(length, devices):
    """The order in which a causal row is shared out: the first chunk with the last, and so on."""
    chunks = np.arange(length).reshape(2 * devices, -1)
    return np.concatenate([chunks[[i, -1 - i]].ravel() for i in range(devices)])


def padded_left(rule, kv_lengths, length):
    """The rule of rows of these lengths that end where their arrays end."""
    positions = np.arange(length) - (length - kv_lengths[:, None])
    return rule.at(positions, positions) & same_segment((positions >= 0).astype(int))


def packed(rule, lengths_):
    """The rule of segments whose positions begin at 0, and the same of positions of the row."""
    ids = np.repeat(np.arange(len(lengths_)) + 1, lengths_)
    positions = np.concatenate([np.arange(n) for n in lengths_])
    return rule & same_segment(ids), rule.at(positions, positions) & same_segment(ids)


LONG = 4096
ENDS = np.random.default_rng(0).integers(LONG // 4, LONG, 8)
ORDER = zigzag(LONG, 4)
WINDOW = causal() & sliding_window(512)
IN_ORDER_OR_NOT = {
    "zigzag": (causal(), causal().at(ORDER, ORDER)),
    "zigzag window": (WINDOW, WINDOW.at(ORDER, ORDER)),
    "padded on the left": (causal() & lengths(ENDS, ENDS), padded_left(causal(), ENDS, LONG)),
    "window, padded on the left": (WINDOW & lengths(ENDS, ENDS), padded_left(WINDOW, ENDS, LONG)),
    "packed": packed(causal(), [900, 1700, 600, 896]),
}


@pytest.mark.parametrize("name", IN_ORDER_OR_NOT)
def test_rows_at_given_positions_skip_what_rows_in_order_skip(name):
    in_order, given = (share_skipped(draw_plan(mask, LONG, LONG)) for mask in IN_ORDER_OR_NOT[name])
    assert in_order > 0.4 and 0.9 * in_order <= given <= 1.1 * in_order


@pytest.mark.thorough(quick=1)
@pytest.mark.parametrize("name", ["zigzag", "padded on the left"])
def test_plan_at_given_positions_attends_as_the_dense_mask(name):
    order, ends = zigzag(48, 3), np.array([48, 31])
    mask = {"zigzag": WINDOW.at(order, order), "padded on the left": padded_left(WINDOW, ends, 48)}
    query, key, value = np.random.default_rng(1).standard_normal((3, 2, 48, 2, 5)).astype("f")
    plan = mask[name].plan(48, 48, block_q=8, block_kv=4)
    assert (np.asarray(plan.state) == 0).mean() > 0.3
    dense = attend(query, key, value, mask[name], implementation="dense")
    np.testing.assert_allclose(attend(query, key, value, plan), dense, atol=2e-6)


# Sizes.


SIZES = {"q_len": 0, "kv_len": 0, "block_q": 1, "block_kv": 1}  # and the least of each
DRAWN = {
    "plan": lambda sizes: causal().plan(**{"q_len": 6, "kv_len": 6, "block_q": 2} | sizes),
    "dense": lambda sizes: causal().dense(**{"q_len": 6, "kv_len": 6} | sizes),
    "prepare": lambda sizes: prepare(causal(), **{"q_len": 6, "kv_len": 6} | sizes),
    "explain": lambda sizes: explain(causal(), **{"q_len": 6, "kv_len": 6} | sizes),
}
OF_SIZES = [(use, name) for use in DRAWN for name in SIZES if use == "plan" or "len" in name]


@pytest.mark.parametrize("use, name", OF_SIZES)
def test_size_that_is_none_is_an_error_that_names_it(use, name):
    def draw(size):
        DRAWN[use](({"block_kv": 2} if use == "plan" else {}) | {name: size})

    for size in (6.0, "6", None, True, np.float32(6), np.arange(2)):
        with pytest.raises(TypeError, match=f"^{name} is .*; expected an integer"):
            draw(size)
    for size in (SIZES[name] - 1, -5):
        with pytest.raises(ValueError, match=f"^{name} is {size}; expected at least {SIZES[name]}"):
            draw(size)
    with pytest.raises(ValueError, match=f"^{name} is {2**31}; expected at most"):
        draw(2**31)
    draw(np.int64(6))


def test_leaf_that_is_too_short_is_an_error():
    with pytest.raises(ValueError, match="valid: kv_valid"):
        valid(np.ones(6, bool)).plan(6, 7, block_q=2, block_kv=2)


def test_blocks_are_no_longer_than_what_they_cut():
    plan = draw_plan(causal(), 37, 29)
    assert (plan.block_q, plan.block_kv) == (37, 29)
    assert plan.state.tolist() == [[1]]


CHOSEN = {
    "causal": (causal(), 512),
    "full": (full(), 512),
    "narrow window": (sliding_window(64, 0), 256),
    "small chunks": (chunked(256), 256),
    "large chunks": (chunked(2048), 512),
}


@pytest.mark.parametrize("name", CHOSEN)
def test_query_blocks_are_tall_where_a_mask_that_is_known_is_wide(name):
    mask, height = CHOSEN[name]
    plan = draw_plan(mask, 4096, 4096)
    assert (plan.block_q, plan.block_kv) == (height, 256)
    assert plan.state.shape == (4096 // height, 16)


def test_query_blocks_of_a_mask_that_is_traced_are_those_that_suit_most():
    plan = jax.jit(lambda n: draw_plan(prefix(n), 4096, 4096))(4000)
    assert (plan.block_q, plan.block_kv) == (256, 256)


def test_prepare_gives_a_plan_where_auto_uses_one_and_else_the_mask():
    mask = causal()
    assert prepare(mask, 362, 362) is mask  # 131044 logits
    plan = prepare(mask, 363, 363)  # 131769
    assert isinstance(plan, BlockPlan)
    assert plan.mask is mask
    assert (plan.q_len, plan.kv_len) == (363, 363)
    assert prepare(mask, 1, 131072) is mask
    assert isinstance(prepare(mask, 1, 131073), BlockPlan)


# Attention by a plan.


@pytest.mark.thorough
def test_plan_of_sorted_segments_attends_as_the_dense_mask():
    rng = np.random.default_rng(1)
    ids = np.sort(rng.integers(1, 9, (2, 61)), axis=1)
    ids[1, 50:] = 0
    query, key, value = rng.standard_normal((3, 2, 61, 2, 5)).astype(np.float32)
    mask = causal() & same_segment(ids)
    plan = mask.plan(61, 61, block_q=8, block_kv=4)
    assert (np.asarray(plan.state) == 0).mean() > 0.7
    dense = attend(query, key, value, mask, implementation="dense")
    np.testing.assert_allclose(attend(query, key, value, plan), dense, atol=2e-6)


# In words.

EXPLAINED = {
    "causal": (
        causal(),
        (1024, 1024),
        """\
causal(): 1024 queries, 1024 keys, blocks of 256 x 256
▒···
█▒··
██▒·
███▒
· empty 37.5%   ▒ partial 25.0%   █ full 37.5%
skipped: 37.5% of the blocks, 37.5% of the FLOPs of dense attention
implementation="auto" chooses "blockwise": 1024 x 1024 logits per head; blocks are
faster above about 360 x 360""",
    ),
    "small": (
        prefix(3),
        (5, 7),
        """\
prefix(length=3): 5 queries, 7 keys, blocks of 5 x 7
▒
· empty 0.0%   ▒ partial 100.0%   █ full 0.0%
skipped: 0.0% of the blocks, 0.0% of the FLOPs of dense attention
implementation="auto" chooses "dense": 5 x 7 logits per head; blocks are faster above
about 360 x 360""",
    ),
    "short blocks count as what they hold": (
        prefix(256),
        (100, 384),
        """\
prefix(length=256): 100 queries, 384 keys, blocks of 100 x 256
█·
· empty 50.0%   ▒ partial 0.0%   █ full 50.0%
skipped: 50.0% of the blocks, 33.3% of the FLOPs of dense attention
implementation="auto" chooses "dense": 100 x 384 logits per head; blocks are faster
above about 360 x 360""",
    ),
    "batched": (
        causal() & lengths(kv_lengths=np.array([512, 256, 0, 0])),
        (512, 512),
        """\
(causal() & lengths(kv_lengths=int32[4])): 512 queries, 512 keys, blocks of 256 x 256
▒·
█▒
· empty 68.8%   ▒ partial 18.8%   █ full 12.5%   (map: the first of 4 plans; shares: of all)
skipped: 68.8% of the blocks, 68.8% of the FLOPs of dense attention
implementation="auto" chooses "blockwise": 512 x 512 logits per head; blocks are faster
above about 360 x 360""",
    ),
}


@pytest.mark.parametrize("name", EXPLAINED)
def test_explain_says(name):
    mask, sizes, text = EXPLAINED[name]
    assert explain(mask, *sizes) == text


def test_explain_names_the_score_and_draws_the_same_map():
    mask, score = causal() & sliding_window(300), alibi(jnp.ones(8)) >> softcap(50.0)
    first, *others = explain(mask, 1024, 1024).splitlines()
    named = "score: (alibi(slopes=float32[8]) >> softcap(cap=50.0))"
    assert explain(mask, 1024, 1024, score).splitlines() == [first, named, *others]
    assert "\nscore: alibi()\n" in explain(mask, 6, 6, score=alibi())


@pytest.mark.parametrize("score", [softcap, lambda logit, q, k: logit, causal(), 2.0])
def test_explain_says_what_is_no_score(score):
    with pytest.raises(TypeError, match=r"^score is .*; expected a Score"):
        explain(causal(), 6, 6, score)


@pytest.mark.parametrize("sizes", [(0, 4), (4, 0)], ids=str)
def test_explain_of_nothing_is_no_error(sizes):
    assert explain(full(), *sizes).startswith(f"full(): {sizes[0]} queries, {sizes[1]} keys")


def map_of(mask, length):
    return [line for line in explain(mask, length, length).splitlines() if set(line) <= set("·▒█")]


def test_explain_shrinks_a_large_map_to_32_rows_of_64():
    """64 x 128 blocks; a chunk of 2048 is two rows and four columns of the map."""
    expected = ["·" * (4 * c) + "████" + "·" * (60 - 4 * c) for c in range(16) for _ in range(2)]
    assert map_of(chunked(2048), 32768) == expected


def test_explain_calls_cells_of_a_shrunk_map_partial_where_they_are_mixed():
    """A row of the map stands for 1024 queries, a column for 512 keys."""
    expected = ["█" * (2 * r) + "▒▒" + "·" * (62 - 2 * r) for r in range(32)]
    assert map_of(causal(), 32768) == expected
    assert map_of(prefix(512 * 5 + 256), 32768) == ["█████▒" + "·" * 58] * 32
