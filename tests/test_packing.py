"""Packing: every pair once, source and target together, the same for the same seed and step."""

import collections
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flaxattn.text.packing import pack_rows
from flaxattn.text.supply import PackedPairs
from flaxattn.text.tokens import TokenizedPairs, Tokens

lengths_of_pairs = st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1)


def make_pairs(lengths):
    """Sentences no two of whose tokens are equal: a token says whose it is and where it stands."""
    tokens = itertools.count(1)
    return [
        [np.array(list(itertools.islice(tokens, n)), np.int32) for n in pair] for pair in lengths
    ]


def make_packed(lengths, *, batch_size=4, sequence_length=9, seed=0):
    sources, targets = zip(*make_pairs(lengths), strict=True)
    return PackedPairs(
        TokenizedPairs.of(sources, targets),
        batch_size=batch_size,
        sequence_length=sequence_length,
        seed=seed,
    )


def as_tuples(lengths):
    return [tuple(tuple(side.tolist()) for side in pair) for pair in make_pairs(lengths)]


def unpack(batch):
    """The pairs of a batch, read cell by cell, in order."""
    pairs = []
    for row in zip(*batch, strict=True):
        source, source_segments, target, target_segments = (x.tolist() for x in row)
        for segment in range(1, max(source_segments + target_segments) + 1):
            pairs.append(
                tuple(
                    tuple(token for token, s in zip(ids, segments, strict=True) if s == segment)
                    for ids, segments in [(source, source_segments), (target, target_segments)]
                )
            )
    return pairs


def unpack_epoch(packed, epoch):
    steps = range(epoch * packed.batches_per_epoch, (epoch + 1) * packed.batches_per_epoch)
    return [pair for step in steps for pair in unpack(packed.batch(step))]


def realistic_lengths(count):
    """Like sentences: 4 to 40 tokens, the target about as long as the source."""
    rng = np.random.default_rng(0)
    source = np.clip(rng.poisson(rng.gamma(6.0, 2.5, count)), 4, 40)
    return np.stack([source, np.clip(source + rng.integers(-3, 6, count), 4, 45)], axis=1).tolist()


def assert_equal_batches(first, second):
    for name, array in first._asdict().items():
        np.testing.assert_array_equal(array, getattr(second, name), err_msg=name)


# ---- Every pair once -------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(lengths_of_pairs, st.integers(1, 5), st.integers(1, 12), st.integers(0, 3))
def test_every_pair_that_fits_is_in_an_epoch_once_with_its_translation(
    lengths, batch_size, sequence_length, seed
):
    fitting = [pair for pair in as_tuples(lengths) if max(map(len, pair)) <= sequence_length]
    if not fitting:
        return
    packed = make_packed(lengths, batch_size=batch_size, sequence_length=sequence_length, seed=seed)
    found = [pair for batch in packed.all_batches() for pair in unpack(batch)]
    assert collections.Counter(found) == collections.Counter(fitting)
    assert packed.left_out == len(lengths) - len(fitting)


@settings(deadline=None, max_examples=30)
@given(lengths_of_pairs, st.integers(1, 3))
def test_no_pair_is_twice_in_a_later_epoch(lengths, epoch):
    found = unpack_epoch(make_packed(lengths), epoch)
    assert len(set(found)) == len(found)
    assert set(found) <= set(as_tuples(lengths))


def test_a_later_epoch_leaves_out_next_to_nothing():
    lengths = realistic_lengths(1500)
    packed = make_packed(lengths, batch_size=16, sequence_length=64)
    for epoch in (1, 2):
        found = set(unpack_epoch(packed, epoch))
        assert len(found) > 0.99 * len(lengths)


def test_every_epoch_has_every_pair_where_all_are_equally_long():
    lengths = [(4, 3)] * 37
    packed = make_packed(lengths)
    for epoch in range(3):
        assert sorted(unpack_epoch(packed, epoch)) == as_tuples(lengths)


@settings(deadline=None, max_examples=60)
@given(lengths_of_pairs, st.integers(0, 3))
def test_segments_lie_side_by_side_from_1_on_and_the_rest_is_zero(lengths, step):
    batch = make_packed(lengths).batch(step)
    sides = [(batch.source, batch.source_segment_ids), (batch.target, batch.target_segment_ids)]
    for ids, segments in sides:
        assert ids.shape == segments.shape == (4, 9)
        assert ids.dtype == segments.dtype == np.int32
        np.testing.assert_array_equal(ids != 0, segments != 0)
        for row in segments.tolist():
            cells = [s for s in row if s]
            assert row == cells + [0] * (len(row) - len(cells))
            assert cells == sorted(cells)
            assert sorted(set(cells)) == list(range(1, len(set(cells)) + 1))
    for source, target in zip(batch.source_segment_ids, batch.target_segment_ids, strict=True):
        assert set(source.tolist()) - {0} == set(target.tolist()) - {0}


@settings(deadline=None, max_examples=60)
@given(lengths_of_pairs, st.randoms(use_true_random=False))
def test_rows_hold_every_index_once_and_no_more_than_fits(lengths, random):
    order = list(range(len(lengths)))
    random.shuffle(order)
    rows = pack_rows(np.array(lengths), 9, np.array(order))
    assert sorted(i for row in rows for i in row) == sorted(order)
    for row in rows:
        assert row
        assert max(sum(lengths[i][side] for i in row) for side in (0, 1)) <= 9


def test_a_row_is_filled_to_its_last_cell():
    batch = make_packed([(4, 1), (5, 8)], batch_size=1).batch(0)
    assert (batch.source_segment_ids != 0).all() and (batch.target_segment_ids != 0).all()


@pytest.mark.parametrize("epoch", [0, 1, 2])
def test_nine_cells_in_ten_are_tokens_at_realistic_lengths(epoch):
    packed = make_packed(realistic_lengths(3000), batch_size=32, sequence_length=64)
    steps = range(epoch * packed.batches_per_epoch, (epoch + 1) * packed.batches_per_epoch)
    batches = [packed.batch(step) for step in steps]
    sides = [side != 0 for b in batches for side in (b.source_segment_ids, b.target_segment_ids)]
    assert np.mean(sides) > 0.9


# ---- A pure function of seed and step --------------------------------------------------------

MANY = [(1 + i % 5, 1 + i % 4) for i in range(200)]


def test_a_batch_is_the_same_in_any_order_of_calls_and_from_a_fresh_object():
    first, second = make_packed(MANY), make_packed(MANY)
    steps = [0, 3, 5 * first.batches_per_epoch + 1, 1, 2 * first.batches_per_epoch - 1, 10**6]
    batches = {step: first.batch(step) for step in steps}
    for step in reversed(steps):
        assert_equal_batches(second.batch(step), batches[step])
        assert_equal_batches(first.batch(step), batches[step])


def test_changing_a_batch_that_was_given_changes_no_later_one():
    packed = make_packed(MANY)
    before = packed.batch(0)
    given_out = packed.batch(0)
    for array in given_out:
        array[:] = 99
    assert_equal_batches(packed.batch(0), before)


def test_another_epoch_has_another_order_and_other_neighbours():
    packed = make_packed(MANY)
    first, second = unpack_epoch(packed, 0), unpack_epoch(packed, 1)
    assert first != second
    neighbours = [set(itertools.pairwise(pairs)) for pairs in (first, second)]
    assert len(neighbours[0] & neighbours[1]) < 20


def test_rows_stand_in_no_order_of_how_they_were_packed():
    """Else the emptiest, packed last, would be trained on last in every epoch."""
    lengths = realistic_lengths(200)
    places = []
    for seed in range(40):
        packed = make_packed(lengths, batch_size=1, sequence_length=64, seed=seed)
        tokens = [int((batch.target_segment_ids != 0).sum()) for batch in packed.all_batches()]
        places.append(np.argmin(tokens) / len(tokens))
    assert 0.3 < np.mean(places) < 0.7
    assert min(places) < 0.1 and max(places) > 0.9


def test_another_seed_has_another_order():
    assert unpack_epoch(make_packed(MANY), 0) != unpack_epoch(make_packed(MANY, seed=1), 0)


def test_an_epoch_of_one_seed_is_no_epoch_of_another():
    epochs = [
        tuple(unpack_epoch(make_packed(MANY, seed=seed), epoch))
        for seed in (0, 1, 2)
        for epoch in (0, 1, 2)
    ]
    assert len(set(epochs)) == 9


# ---- Edges -----------------------------------------------------------------------------------


def test_pairs_too_long_on_either_side_are_left_out_and_counted():
    packed = make_packed([(9, 9), (10, 1), (1, 10), (11, 11), (2, 2)])
    assert packed.left_out == 3
    found = [len(side) for pair in unpack_epoch(packed, 0) for side in pair]
    assert sorted(found) == [2, 2, 9, 9]


def test_nothing_that_fits_is_an_error_that_says_how_long_rows_must_be():
    with pytest.raises(ValueError, match=r"--sequence-length.*\b9\b.*\b11\b"):
        make_packed([(11, 3), (2, 12)])


def test_fewer_pairs_than_rows_leave_rows_of_zeros():
    packed = make_packed([(9, 2), (9, 3)])
    assert packed.batches_per_epoch == 1
    for step in range(4):
        batch = packed.batch(step)
        assert sorted(unpack(batch)) == as_tuples([(9, 2), (9, 3)])
        for array in batch:
            assert array.shape == (4, 9)
            assert (array.any(axis=1)).sum() == 2


def test_batches_per_epoch_counts_the_last_that_is_not_full():
    assert make_packed([(9, 9)] * 8).batches_per_epoch == 2
    assert make_packed([(9, 9)] * 9).batches_per_epoch == 3
    assert len(make_packed([(9, 9)] * 9).all_batches()) == 3


# ---- Sentences anew in each epoch ------------------------------------------------------------

LENGTHS = [(3, 4)] * 30 + [(9, 2), (12, 1)]


def resampled(**options):
    """In epoch e every token is 1000 * (e + 1) more than the first; pair 5 gets too long."""
    sources, targets = zip(*make_pairs(LENGTHS), strict=True)
    asked = []

    def resample(blocks, seed):
        _, epoch, window = seed
        assert (blocks.tolist(), window) == ([0], 0)
        asked.append(epoch)
        new = [[ids + 1000 * (epoch + 1) for ids in side] for side in (sources, targets)]
        new[0][5] = np.arange(7000, 7010, dtype=np.int32)
        return Tokens.of(*new)

    tokens = TokenizedPairs.of(sources, targets)
    packed = PackedPairs(tokens, batch_size=4, sequence_length=9, resample=resample, **options)
    return packed, asked


def test_every_epoch_has_its_own_ids_of_every_pair_from_the_first_on():
    packed, _ = resampled()
    first = as_tuples(LENGTHS)[:-1]
    assert packed.left_out == 1
    for epoch in (0, 1, 4):
        shift = 1000 * (epoch + 1)
        expected = [tuple(tuple(t + shift for t in side) for side in pair) for pair in first]
        expected[5] = first[5]  # too long for a row when sampled anew
        assert sorted(unpack_epoch(packed, epoch)) == sorted(expected)


def test_resampled_batches_are_the_same_in_any_order_of_calls_and_from_a_fresh_object():
    (packed, asked), (fresh, _) = resampled(), resampled()
    n = packed.batches_per_epoch
    steps = [0, 3 * n + 1, 1, 2 * n - 1, n, 3 * n]
    batches = {step: packed.batch(step) for step in steps}
    for step in reversed(steps):
        assert_equal_batches(fresh.batch(step), batches[step])
        assert_equal_batches(packed.batch(step), batches[step])
    asked.clear()
    for step in range(5 * n, 7 * n):
        packed.batch(step)
    assert asked.count(5) == asked.count(6) == 1  # an epoch is drawn once, perhaps ahead
