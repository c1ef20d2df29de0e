"""Bounds of blocks: sound for every expression, exact for every named pattern."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flaxattn import (
    causal,
    chunked,
    dilated,
    from_dense,
    full,
    global_tokens,
    lengths,
    prefix,
    same_segment,
    sliding_window,
    valid,
    where,
)
from flaxattn.masks.blocks import Blocks

T, S = 37, 29
RNG = np.random.default_rng(0)
IDS = np.r_[np.sort(RNG.integers(1, 6, T - 4)), np.zeros(4, int)]

NAMED = {
    "full": full(),
    "causal": causal(),
    "symmetric window": sliding_window(5),
    "window back": sliding_window(3, 0),
    "window without end ahead": sliding_window(3, None),
    "window without end back": sliding_window(None, 2),
    "window without ends": sliding_window(None),
    "prefix": prefix(7),
    "chunked": chunked(6),
    "dilated": dilated(4),
    "dilated by one": dilated(1),
    "lengths": lengths(11, 20),
    "valid, sparse": valid(RNG.random(S) < 0.3),
    "segments": same_segment(IDS, IDS[:S]),
    "segments, none of padding": same_segment(np.sort(IDS), np.sort(IDS)[:S], padding=None),
    "segments, padding of 5": same_segment(np.sort(IDS), np.sort(IDS)[8:], padding=5),
    "first tokens global": global_tokens(3),
    "some tokens global": global_tokens(RNG.random(T) < 0.2),
    "dense": from_dense(RNG.random((T, S)) < 0.1),
    "dense, shared queries": from_dense(RNG.random((1, S)) < 0.5),
}
BATCHED = {
    "lengths": lengths(kv_lengths=np.array([3, 20])),
    "valid": valid(RNG.random((2, S)) < 0.9),
    "window per head": sliding_window(jnp.array([[3, 0, 9]]), 0),
    "segments": same_segment(np.stack([IDS, np.roll(IDS, 3)]), np.stack([IDS[:S], IDS[8:]])),
    "dense": from_dense(RNG.random((2, 1, 1, S)) < 0.5),
}


ANYWHERE = RNG.permutation(T), RNG.permutation(S)


def blocks_of(dense, block_q, block_kv):
    """Whether any and whether all cells of each pair of blocks are seen, by looking."""
    starts_q, starts_kv = range(0, dense.shape[-2], block_q), range(0, dense.shape[-1], block_kv)
    cells = [[dense[..., i : i + block_q, j : j + block_kv] for j in starts_kv] for i in starts_q]
    some, every = (
        np.stack([np.stack([f(c, axis=(-2, -1)) for c in row], -1) for row in cells], -2)
        for f in (np.any, np.all)
    )
    return some, every


def bounds_and_cells(mask, block_q, block_kv):
    bounds = mask.bounds(Blocks.of(T, block_q), Blocks.of(S, block_kv))
    return bounds, mask.outer(jnp.arange(T), jnp.arange(S))


def bounds_and_truth(mask, block_q, block_kv, bounds_and_cells=bounds_and_cells):
    bounds, cells = bounds_and_cells(mask, block_q, block_kv)
    truth = blocks_of(np.asarray(cells), block_q, block_kv)
    return [np.broadcast_to(b, t.shape) for b, t in zip(bounds, truth, strict=True)], truth


@pytest.mark.thorough(quick=40)
@pytest.mark.parametrize("sizes", [(5, 7), (8, 8), (1, 1), (64, 64)])
@pytest.mark.parametrize("name", NAMED)
def test_named_pattern_is_exact_and_so_is_its_opposite(name, sizes):
    for mask in (NAMED[name], ~NAMED[name], NAMED[name].shift(2, 5)):
        bounds, truth = bounds_and_truth(mask, *sizes)
        np.testing.assert_array_equal(bounds, truth)


ENDS_TELL = {"full", "causal", "prefix", "lengths", "first tokens global", "dilated by one"}
CELLS_TELL = {"valid, sparse", "some tokens global", "dense", "dense, shared queries"}


@pytest.mark.thorough(quick=8)
@pytest.mark.parametrize("sizes", [(5, 7), (8, 8), (1, 1)])
@pytest.mark.parametrize("name", sorted(ENDS_TELL | CELLS_TELL))
def test_pattern_at_positions_in_any_order_is_exact_and_so_is_its_opposite(name, sizes):
    for mask in (NAMED[name].at(*ANYWHERE), ~NAMED[name].shift(3, 2).at(ANYWHERE[0], None)):
        bounds, truth = bounds_and_truth(mask, *sizes)
        np.testing.assert_array_equal(bounds, truth)


@pytest.mark.parametrize("name", ["symmetric window", "chunked"])
def test_window_or_chunk_in_any_order_is_full_just_where_it_is(name):
    (some, every), (any_seen, all_seen) = bounds_and_truth(NAMED[name].at(*ANYWHERE), 2, 3)
    np.testing.assert_array_equal(every, all_seen)
    assert all_seen.any() and not (any_seen & ~some).any() and not some.all()


@pytest.mark.parametrize("name", NAMED)
def test_pattern_at_runs_of_positions_that_blocks_meet_is_exact(name):
    """As in a zigzag order of chunks."""
    q_order, kv_order = (np.r_[0:4, 12:28, 4:12, 28:n] for n in (T, S))
    bounds, truth = bounds_and_truth(NAMED[name].at(q_order, kv_order), 1, 4)
    np.testing.assert_array_equal(bounds, truth)


def test_index_without_a_position_is_known_to_see_nothing():
    for mask in (full().at(np.arange(20), None), full().at(None, np.arange(-9, 13))):
        bounds, truth = bounds_and_truth(mask, 5, 7)
        np.testing.assert_array_equal(bounds, truth)


@pytest.mark.parametrize("module", [np, jnp])
@pytest.mark.parametrize("kind", [valid, global_tokens])
def test_bounds_of_an_array_without_entries_are_exact(kind, module):
    hides = kind(module.zeros(0, bool)).shift(np.array(0), np.array(0))  # arrays: not looked at
    for mask in (hides, ~hides):
        bounds, truth = bounds_and_truth(mask, 5, 7)
        np.testing.assert_array_equal(bounds, truth)


def test_cells_at_positions_of_positions_are_counted_where_they_stand():
    order, again = ANYWHERE[1], RNG.permutation(S)
    for name in ("valid, sparse", "dense"):
        bounds, truth = bounds_and_truth(NAMED[name].at(None, order).at(None, again), 5, 7)
        np.testing.assert_array_equal(bounds, truth)


def test_bounds_at_known_positions_are_known_while_tracing():
    mask = (causal() & same_segment(IDS, IDS[:S])).at(*ANYWHERE).shift(1, 1).at(*ANYWHERE)
    found = mask.bounds(Blocks.of(T, 5), Blocks.of(S, 7))
    assert isinstance(found.some, np.ndarray)
    traced = jax.jit(lambda mask: mask.bounds(Blocks.of(T, 5), Blocks.of(S, 7)))
    np.testing.assert_array_equal(traced(mask), found)


@pytest.mark.thorough(quick=3)
@pytest.mark.parametrize("name", BATCHED)
def test_batched_pattern_is_exact_where_each_example_and_head_has_its_own_bounds(name):
    bounds, truth = bounds_and_truth(BATCHED[name], 5, 7)
    np.testing.assert_array_equal(bounds, truth)


def test_start_that_is_traced_gives_the_same_bounds():
    mask = causal() & sliding_window(4) & same_segment(IDS, IDS[:S])
    expected = mask.shift(3, 1).bounds(Blocks.of(T, 5), Blocks.of(S, 7))
    traced = jax.jit(
        lambda mask, q, kv: mask.shift(q, kv).bounds(Blocks.of(T, 5), Blocks.of(S, 7))
    )(mask, 3, 1)
    np.testing.assert_array_equal(traced, expected)


def test_bounds_of_what_is_known_are_known_while_tracing():
    assert isinstance(NAMED["segments"].bounds(Blocks.of(T, 5), Blocks.of(S, 7)).some, np.ndarray)


def test_rule_of_ones_own_is_always_partial():
    bounds = where(lambda q, k: q > k).bounds(Blocks.of(T, 5), Blocks.of(S, 7))
    assert bounds.some.all() and not bounds.every.any()


LEAVES = [*NAMED.values(), *BATCHED.values(), where(lambda q, k: (q * k) % 3 == 0)]
STARTS = st.one_of(
    st.integers(-6, 11),
    st.sampled_from([np.array([0, 5]), np.array([-3, 2]), np.array([[1, 7, 30]])]),
)


Q_POSITIONS, KV_POSITIONS = (
    st.sampled_from([None, *(RNG.integers(-2, n + 2, (*lead, n)) for lead in [(), (2,), (1, 3)])])
    for n in (T, S)
)


def expressions(depth):
    """Masks of `depth` operators over one another, all of which may be shifts or positions."""
    if depth == 0:
        return st.sampled_from(LEAVES)
    deep, any_depth = expressions(depth - 1), st.one_of(*map(expressions, range(depth)))
    return st.one_of(
        st.builds(lambda a: ~a, deep),
        st.builds(lambda a, b: a & b, deep, any_depth),
        st.builds(lambda a, b: a | b, any_depth, deep),
        st.builds(lambda a, q, kv: a.shift(q, kv), deep, STARTS, STARTS),
        st.builds(lambda a, q, kv: a.at(q, kv), deep, Q_POSITIONS, KV_POSITIONS),
    )


def in_a_program(mask, *sizes):
    """What NumPy holds is known there; one program compiles sooner than all operations of it."""
    return jax.jit(lambda: bounds_and_cells(mask, *sizes))()


@pytest.mark.thorough
@settings(max_examples=60, deadline=None, derandomize=True)
@given(expressions(3), st.sampled_from([(5, 7), (8, 8), (16, 4)]))
def test_empty_block_sees_nothing_and_full_block_everything(mask, sizes):
    (some, every), (any_seen, all_seen) = bounds_and_truth(mask, *sizes, in_a_program)
    assert not (any_seen & ~some).any()
    assert not (every & ~all_seen).any()


def made_inside(array):
    """An array that a program makes of a constant, when called in one."""
    return jnp.asarray(array) & jnp.asarray(True)


@pytest.mark.parametrize("shape", [(2, 11, 13), (2, 1, 11, 13), (11, 13)], ids=str)
@pytest.mark.parametrize("kind", [np.asarray, jnp.asarray, made_inside])
def test_bounds_of_a_known_mask_are_the_same_in_a_program_that_knows_it(shape, kind):
    """XLA of jax 0.7 folds sums of constants over blocks into wrong numbers."""
    rng, blocks = np.random.default_rng(0), (Blocks.of(11, 4), Blocks.of(13, 3))
    for chance in (0.05, 0.1, 0.5, 0.9, 0.95):
        cells = rng.random(shape) < chance
        held = cells if kind is made_inside else kind(cells)  # by the program
        inside = jax.jit(lambda x, held=held: (x, from_dense(kind(held)).bounds(*blocks)))(1.0)[1]
        expected = np.array([drawn(c) for c in cells.reshape(-1, 11, 13)]).swapaxes(0, 1)
        for found, of_all in zip(inside, expected, strict=True):
            np.testing.assert_array_equal(np.reshape(found, of_all.shape), of_all)


def drawn(cells):
    """`some` and `every` of blocks of 4 by 3, by looking at each cell: bool [2, Q, K]."""
    blocks = [[cells[q : q + 4, k : k + 3] for k in range(0, 13, 3)] for q in range(0, 11, 4)]
    return [[[f(block) for block in row] for row in blocks] for f in (np.any, np.all)]
