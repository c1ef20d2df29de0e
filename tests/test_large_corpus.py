"""Corpora that do not fit memory: windows, parts with weights, what is kept where, the worker."""

import bz2
import collections
import gzip
import itertools
import lzma
import os
import threading
import time
import tracemalloc

import numpy as np
import pytest
from test_corpus import numbered_pairs, write, write_pairs
from test_packing import assert_equal_batches, make_pairs, realistic_lengths, unpack

from flaxattn.ranges import FieldError
from flaxattn.text import holding_out, reading, records, sampling, windows
from flaxattn.text.ahead import Ahead
from flaxattn.text.pairs import BLOCK, StoredPairs
from flaxattn.text.records import Records, place_for
from flaxattn.text.supply import ROUND, PackedPairs
from flaxattn.text.tokens import TokenizedPairs, Tokens
from flaxattn.training.storage.files import SaveError
from flaxattn.translation.config import DataConfig
from flaxattn.translation.naming import corpora
from flaxattn.translation.text.corpus import load_corpus

LENGTHS = realistic_lengths(9 * BLOCK + 7)
PAIRS = make_pairs(LENGTHS)
AS_TUPLES = [tuple(tuple(side.tolist()) for side in pair) for pair in PAIRS]


@pytest.fixture
def small_windows(monkeypatch):
    """Of two blocks: five of them are what a corpus of nine and a bit is packed in."""
    monkeypatch.setattr(windows, "WINDOW", 2)


def tokens_of(*parts):
    return TokenizedPairs([[Tokens.of(*zip(*part, strict=True))] for part in parts], 1 << 31)


def packed(*parts, seed=0, **options):
    parts = parts or (PAIRS,)
    return PackedPairs(tokens_of(*parts), batch_size=8, sequence_length=64, seed=seed, **options)


def epoch_of(supply, epoch):
    """All pairs of an epoch, of one part."""
    steps = range(epoch * supply.batches_per_epoch, (epoch + 1) * supply.batches_per_epoch)
    return [pair for step in steps for pair in unpack(supply.batch(step))]


def shifted(blocks, seed):
    """Ids anew for an epoch and a window: a token of each side twice, and once too many."""
    _, epoch, window = seed
    numbers = (i for b in blocks.tolist() for i in range(len(PAIRS))[b * BLOCK :][:BLOCK])
    new = [[np.append(side, side[epoch]) for side in PAIRS[i]] for i in numbers]
    new[window][0] = np.arange(70, dtype=np.int32)
    return Tokens.of(*zip(*new, strict=True))


# ---- Windows ---------------------------------------------------------------------------------


@pytest.mark.usefixtures("small_windows")
def test_every_epoch_has_every_pair_once_whatever_the_windows():
    supply = packed()
    for epoch in range(4):
        assert collections.Counter(epoch_of(supply, epoch)) == collections.Counter(AS_TUPLES)


@pytest.mark.usefixtures("small_windows")
def test_an_epoch_that_needs_more_rows_than_the_first_still_has_every_pair_once():
    lengths = np.random.default_rng(1).integers(2, 10, (5 * BLOCK, 2)).tolist()
    pairs = make_pairs(lengths)
    supply = PackedPairs(tokens_of(pairs), batch_size=4, sequence_length=10)
    expected = sorted(tuple(tuple(side.tolist()) for side in pair) for pair in pairs)
    for epoch in range(4):
        assert sorted(epoch_of(supply, epoch)) == expected


@pytest.mark.usefixtures("small_windows")
@pytest.mark.parametrize("resample", [None, shifted], ids=["plain", "resampled"])
def test_a_step_is_the_same_from_a_fresh_object_in_any_order_and_with_or_without_a_worker(
    monkeypatch, resample
):
    first = packed(resample=resample)
    n = first.batches_per_epoch
    steps = [3 * n + 2, 0, n - 1, n, 2 * n + n // 2, 1]
    batches = {step: first.batch(step) for step in steps}
    walked = packed(resample=resample)
    for step in range(2 * n):
        batch = walked.batch(step)
        if step in batches:
            assert_equal_batches(batch, batches[step])
    monkeypatch.setattr(Ahead, "__getitem__", lambda self, number: self._make(number))
    alone = packed(resample=resample)
    for step in reversed(steps):
        assert_equal_batches(alone.batch(step), batches[step])


@pytest.mark.usefixtures("small_windows")
def test_windows_are_from_all_over_and_come_in_another_order_in_every_epoch():
    blocks = [window.tolist() for window in windows.windows_of(range(3, 43), seed=1)]
    assert sorted(itertools.chain(*blocks)) == list(range(3, 43))
    assert sum(abs(a - b) > 1 for a, b in blocks) > 10
    orders = [
        [tuple(packed(seed=seed)._parts[0]._order(epoch).tolist()) for epoch in range(9)]
        for seed in (0, 1)
    ]
    assert orders[0] != orders[1] and min(len({*of_seed}) for of_seed in orders) > 6


@pytest.mark.usefixtures("small_windows")
def test_ids_anew_are_seen_in_every_epoch_and_first_ones_where_they_are_too_many():
    supply = packed(resample=shifted)
    for epoch in (0, 2):
        found = epoch_of(supply, epoch)
        longer = {tuple((*side, side[epoch]) for side in pair) for pair in AS_TUPLES}
        assert len({*found}) == len(found) > 0.98 * len(PAIRS)
        assert {*found} <= longer | {*AS_TUPLES}
        assert 0 < sum(pair in AS_TUPLES for pair in found) <= 5


def test_a_corpus_of_one_window_is_packed_as_it_has_always_been():
    """Runs that began with an older version go on, and results stay those of their seeds."""
    supply = packed(seed=5)

    def rows_of(epoch):
        rng = np.random.default_rng([5, epoch])
        open_rows, closed = [[] for _ in range(256)], []
        left = np.full((256, 2), 64)
        for i in rng.permutation(len(LENGTHS)):
            room = [
                sum(after) if min(after := left[r] - LENGTHS[i]) >= 0 else 1000 for r in range(256)
            ]
            best = int(np.argmin(room))
            if room[best] == 1000:
                best = int(left.sum(axis=1).argmin())
                closed.append(open_rows[best])
                open_rows[best], left[best] = [], 64
            open_rows[best].append(AS_TUPLES[i])
            left[best] -= LENGTHS[i]
        rows = closed + [row for row in open_rows if row]
        return [rows[r] for r in rng.permutation(len(rows))]

    n = supply.batches_per_epoch
    for epoch in (0, 1):
        expected = rows_of(epoch)
        for index in (0, 1, n // 2):
            rows = expected[8 * index : 8 * index + 8]
            assert unpack(supply.batch(epoch * n + index)) == [pair for row in rows for pair in row]


def test_how_pairs_are_shuffled_is_told_unless_it_is_as_ever(monkeypatch):
    assert packed().order == ""
    weighted = packed(PAIRS[:99], PAIRS[99:], weights=[1, 2]).order
    monkeypatch.setattr(windows, "WINDOW", 2)
    found = [packed().order, packed(PAIRS[:-BLOCK]).order, weighted]
    assert len({*found}) == 3 and "" not in found


# ---- Parts and weights -----------------------------------------------------------------------


def of_first(batches, first):
    """Rows of each batch that hold pairs of the first part, and all rows that hold any."""
    tokens = {token for pair in first for side in pair for token in side.tolist()}
    rows = [row for batch in batches for row in batch.source if row.any()]
    return sum(int(row[0]) in tokens for row in rows), len(rows)


def test_each_part_has_its_share_of_the_rows_and_its_pairs_once_in_its_own_epochs():
    small, large = PAIRS[: BLOCK + 5], PAIRS[BLOCK + 5 :]
    supply = packed(small, large, weights=[3, 1])
    steps = ROUND // 32
    counts = collections.Counter()
    batches = [supply.batch(step) for step in range(steps)]
    for batch in batches:
        counts.update(unpack(batch))
    found, rows = of_first(batches, small)
    assert 0.72 < found / rows < 0.76  # a part's last rows of an epoch may be empty
    epochs = supply.epochs(steps)
    assert epochs[0] > 5 > 1 > epochs[1]
    times = {counts[pair] for pair in AS_TUPLES[: BLOCK + 5]}
    assert times <= {int(epochs[0]), int(epochs[0]) + 1}
    assert {counts[pair] for pair in AS_TUPLES[BLOCK + 5 :]} == {0, 1}


def test_weights_change_nothing_by_a_factor_and_batches_are_a_function_of_the_step():
    parts = PAIRS[:300], PAIRS[300:]
    first, second = packed(*parts, weights=[1, 3]), packed(*parts, weights=[0.5, 1.5])
    for step in (700, 3, 70_000, 0):
        assert_equal_batches(first.batch(step), second.batch(step))


def test_every_batch_of_parts_is_a_mixture():
    supply = packed(PAIRS[:1200], PAIRS[1200:], weights=[1, 1])
    shares = [of_first([supply.batch(step)], PAIRS[:1200]) for step in range(30)]
    assert sum(0 < found < rows for found, rows in shares) > 25


@pytest.mark.parametrize(
    "names, expected",
    [
        ("a b", [(1, [("a", "b")])]),
        ("a", [(1, [("a",)])]),
        ("a.tsv b.tsv.gz", [(1, [("a.tsv",), ("b.tsv.gz",)])]),
        ("a.en a.de b.tsv c.en c.de", [(1, [("a.en", "a.de"), ("b.tsv",), ("c.en", "c.de")])]),
        ("2 a b .5 c", [(2, [("a", "b")]), (0.5, [("c",)])]),
        ("1 a b c.tsv 3 d e", [(1, [("a", "b"), ("c.tsv",)]), (3, [("d", "e")])]),
        ("", []),
    ],
)
def test_files_are_corpora_two_and_two_or_by_their_name_and_numbers_are_weights(names, expected):
    assert corpora(names.replace(" .5", " 0.5").split()) == expected


@pytest.mark.parametrize(
    "names, message",
    [
        ("a b c", "expected for each corpus two aligned files"),
        ("a b.tsv", "expected for each corpus two aligned files"),
        ("1 2 a b", "has no file; expected"),
        ("a b 2 c d", "gives no weight to a; expected"),
        ("0 a b", "has the weight 0; expected one above 0"),
        ("5000 a b 1 c d", r"has the weight 1; expected at least 1\.22095 beside the others"),
    ],
)
def test_files_that_are_no_corpora_are_refused(names, message):
    with pytest.raises(FieldError, match=message):
        DataConfig(train=tuple(names.split()))


# ---- Files -----------------------------------------------------------------------------------


def loaded(folder, *names, **options):
    valid = write_pairs(folder, "valid", numbered_pairs(3, "valid"))
    config = DataConfig(data_dir=str(folder), train=names, valid=valid, test=valid, **options)
    return load_corpus(config, print).train


def test_several_corpora_are_one_after_another_and_those_with_weights_are_parts(tmp_path):
    first = write_pairs(tmp_path, "a", numbered_pairs(300, "a"))
    second = write_pairs(tmp_path, "b", numbered_pairs(20, "b"))
    write(tmp_path / "c.tsv", "one\teins\n")
    pairs = numbered_pairs(300, "a") + numbered_pairs(20, "b")
    together = loaded(tmp_path, *first, *second, "c.tsv")
    assert [*together] == [*pairs, ("one", "eins")] and len(together.parts) == 1
    apart = loaded(tmp_path, "1", *first, "0.5", *second)
    assert [*apart] == pairs
    assert [*apart.part(0)] == pairs[:300] and [*apart.part(1)] == pairs[300:]


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
def test_packed_text_is_the_same_corpus_in_pieces_of_any_size(tmp_path, monkeypatch, pack):
    pairs = [(f"größe {i}" * (i % 7 + 1), f"大小 {i}") for i in range(700)]
    names = write_pairs(tmp_path, "plain", pairs)
    for side in ("en", "de"):
        content = (tmp_path / f"plain.{side}").read_bytes()
        (tmp_path / f"packed.{side}").write_bytes(pack(content))
    for piece in (7, 1000, 1 << 18):
        monkeypatch.setattr(reading, "PIECE", piece)
        for files in (names, ("packed.en", "packed.de"), ("plain.en", "packed.de")):
            assert [*loaded(tmp_path, *files)] == pairs


def test_a_file_of_the_last_corpus_that_is_missing_is_told_before_any_is_read(tmp_path, capsys):
    names = write_pairs(tmp_path, "a", [("e\u0301", "x")] * 5)
    with pytest.raises(FileNotFoundError, match=r"none\.de: no such file"):
        loaded(tmp_path, *names, "a.en", "none.de")
    assert "normalised" not in capsys.readouterr().out


def test_line_numbers_count_on_from_piece_to_piece(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "PIECE", 64)
    names = write_pairs(tmp_path, "a", numbered_pairs(90))
    with (tmp_path / names[1]).open("ab") as file:
        file.write(b"\xff\n")
    with (tmp_path / names[0]).open("ab") as file:
        file.write(b"fine\n")
    with pytest.raises(ValueError, match=r"a\.de, line 91: invalid UTF-8 at byte 0"):
        loaded(tmp_path, *names)
    assert len(loaded(tmp_path, *names, invalid_lines="skip")) == 90


# ---- Held out, and learned from --------------------------------------------------------------


def held_out(pairs, count, splits=2, parts=1):
    stored = StoredPairs([pairs[i::parts] for i in range(parts)])
    train, lists = holding_out.hold_out(stored, splits, count, print)
    return train, lists


@pytest.mark.parametrize("count, size", [(5, 5), (1000, 30)])
def test_of_many_pairs_as_many_are_held_out_by_the_same_laws(monkeypatch, count, size):
    monkeypatch.setattr(holding_out, "AT_ONCE", 10)
    pairs = numbered_pairs(300) + [(f"x{i} source", f"another {i}") for i in range(0, 300, 3)]
    train, lists = held_out(pairs, count)
    sources = [{source for source, _ in found} for found in (train, *lists)]
    assert [len(found) for found in lists] == [size, size] == [len(x) for x in sources[1:]]
    assert not (sources[0] & sources[1] or sources[0] & sources[2] or sources[1] & sources[2])
    assert len(train) == sum(source in sources[0] for source, _ in pairs)
    backwards = held_out(pairs[::-1], count)
    assert [sorted(found) for found in lists] == [sorted(found) for found in backwards[1]]
    places = [pairs.index(pair) for pair in lists[0] if pair in pairs]
    assert min(places) < 150 < max(places)


def test_parts_stay_parts_when_pairs_are_held_out():
    pairs = numbered_pairs(100)
    train, lists = held_out(pairs, 4, parts=2)
    gone = {*itertools.chain(*lists)}
    assert [*train.part(1)] == [pair for pair in pairs[1::2] if pair not in gone]


def test_a_tokenizer_is_learned_from_all_pairs_or_from_a_sample_from_all_over(monkeypatch):
    pairs = StoredPairs([numbered_pairs(1000)])
    assert [*sampling.sample(pairs)] == [*pairs]
    monkeypatch.setattr(sampling, "MOST", 100)
    found = [*sampling.sample(pairs)]
    assert found == [*sampling.sample(pairs)] and len({*found}) == 100
    places = [[*pairs].index(pair) for pair in found]
    assert [place // 10 for place in places] == list(range(100))
    assert len({place % 10 for place in places}) == 10


# ---- Records ---------------------------------------------------------------------------------


def test_records_are_read_in_any_order_from_memory_and_from_the_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "MOST_IN_MEMORY", 1000)
    kept, expected = Records(tmp_path), []
    for i in range(60):
        expected.append(os.urandom(i))
        kept.append(expected[-1])
        assert kept[i // 2] == expected[i // 2]
    assert [kept[i] for i in reversed(range(60))] == expected[::-1] and len(kept) == 60
    assert kept._file._rolled and not [*tmp_path.iterdir()]  # a kill leaves nothing behind


def test_stored_pairs_are_a_sequence_of_pairs():
    pairs = numbered_pairs(2 * BLOCK + 3)
    stored = StoredPairs([pairs[:10], [], pairs[10:]])
    assert len(stored) == len(pairs) and [*stored] == pairs
    assert [stored[i] for i in (0, 9, 10, -1)] == [pairs[i] for i in (0, 9, 10, -1)]
    assert stored[5:300:7] == pairs[5:300:7] and stored[:2] == pairs[:2]
    assert [len(part) for part in stored.parts] == [1, 0, 2]
    with pytest.raises(IndexError):
        stored[len(pairs)]


def test_no_room_for_records_is_told_with_the_place(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "MOST_IN_MEMORY", 10)
    kept = Records(tmp_path)
    kept._file.close()
    with open("/dev/full", "r+b", buffering=0) as full:
        kept._file = full
        full.seek = lambda *_: 0
        with pytest.raises(SaveError, match=r"could not be written: No space.*--output"):
            kept.append(b"x" * 100)


def test_records_lie_beside_the_runs_folder_which_need_not_be_there(tmp_path):
    assert place_for(tmp_path / "runs" / "a") == tmp_path
    (tmp_path / "file").touch()
    assert place_for(tmp_path / "file" / "a") is None


def peak_of(count, folder):
    """Bytes that Python and NumPy held at most while a corpus was read, packed and trained on."""
    names = write_pairs(folder, f"{count}", numbered_pairs(count))
    tracemalloc.start()
    pairs = loaded(folder, *names)
    ids = (
        Tokens.of(*[[np.arange(n % 9 + 2, dtype=np.int32) for n in range(len(block))]] * 2)
        for block in map(pairs.block, pairs.parts[0])
    )
    tokens = TokenizedPairs([ids], 1 << 16)
    supply = PackedPairs(tokens, batch_size=8, sequence_length=16)
    for step in range(0, 2 * supply.batches_per_epoch, supply.batches_per_epoch // 5):
        supply.batch(step)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def test_memory_does_not_grow_with_the_corpus(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "MOST_IN_MEMORY", 1 << 14)
    monkeypatch.setattr(reading, "PIECE", 1 << 12)
    monkeypatch.setattr(windows, "WINDOW", 2)
    peak_of(100, tmp_path)  # what is made once
    small, large = peak_of(3_000, tmp_path), peak_of(15_000, tmp_path)
    assert large < 2 * small  # the worker makes what is held at once a matter of chance


# ---- The worker ------------------------------------------------------------------------------


def test_what_comes_next_is_made_before_it_is_asked_for_and_once():
    made = []
    ahead = Ahead(lambda number: made.append(number) or number**2)
    assert [ahead[i] for i in (0, 0, 1, 2, 2)] == [0, 0, 1, 4, 4]
    while threading.active_count() > 1 and len(made) < 4:
        time.sleep(0.01)
    assert sorted(made) == [0, 1, 2, 3]


def test_an_error_of_the_worker_is_raised_by_the_step_that_needs_it_and_no_thread_stays():
    def resample(blocks, seed):
        if seed[1] == 1:
            raise MemoryError("no room for epoch 1")
        return tokens_of(PAIRS).read(blocks)

    threads = {*threading.enumerate()}
    supply = packed(resample=resample)
    n = supply.batches_per_epoch
    for step in (0, n - 1):
        supply.batch(step)
    with pytest.raises(MemoryError, match="epoch 1"):
        supply.batch(n)
    supply.batch(2 * n)
    for thread in {*threading.enumerate()} - threads:
        thread.join(10)
    assert {*threading.enumerate()} <= threads
