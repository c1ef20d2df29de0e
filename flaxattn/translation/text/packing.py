"""Many sentence pairs in one row: batches of fixed shape in which nearly every cell is a token.

A batch is a pure function of (seed, step), so that a resumed run sees what it would have seen.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

__all__ = ["Batch", "PackedPairs", "pack_rows", "to_batch"]

OPEN_ROWS = 256  # rows that may still be added to; more fill better and pack more slowly


Ids = Sequence[np.ndarray]  # int32 [length], one for each sentence
Pair = tuple[np.ndarray, np.ndarray]


class Batch(NamedTuple):
    """Packed rows, int32 [R, L] each; ids 0 and segment 0 are padding."""

    source: np.ndarray
    source_segment_ids: np.ndarray
    target: np.ndarray
    target_segment_ids: np.ndarray


class PackedPairs:
    """An endless, shuffled supply of batches of packed sentence pairs.

    Args:
      sources, targets: int32 arrays of ids, one per sentence, each ending in the end token.
      batch_size: R, rows in a batch.
      sequence_length: L, cells in a row; pairs with a longer side are left out (`left_out`
        counts them).
      seed: of the order.
      left_out: how many pairs were too long to be given here (`lengths` are those of the others).
      resample: gives sources and targets anew for an epoch, as subword dropout does. Pairs that
        are then too long for a row keep their first ids.

    Raises:
      ValueError if no pair fits a row.
    """

    def __init__(
        self,
        sources: Ids,
        targets: Ids,
        *,
        batch_size: int,
        sequence_length: int,
        seed: int = 0,
        left_out: int = 0,
        resample: Callable[[int], tuple[Ids, Ids]] | None = None,
    ) -> None:
        lengths = _lengths(sources, targets)
        fitting = np.flatnonzero((lengths <= sequence_length).all(axis=1))
        if fitting.size == 0:
            shortest = f"; the shortest needs {lengths.max(axis=1).min()}" if len(lengths) else ""
            raise ValueError(
                f"--sequence-length: no sentence pair fits a row of {sequence_length} "
                f"tokens{shortest}."
            )
        self.left_out = left_out + len(sources) - fitting.size
        self.batch_size, self.sequence_length, self.seed = batch_size, sequence_length, seed
        self.lengths = lengths[fitting]
        self._pairs = [(sources[i], targets[i]) for i in fitting.tolist()]
        self._fitting, self._resample = fitting, resample
        self._epoch = functools.lru_cache(maxsize=2)(self._pack_epoch)
        self.batches_per_epoch = -(-len(self._epoch(0)) // batch_size)

    def batch(self, step: int) -> Batch:
        """The batch of `step`: a pure function of the pairs, the seed and the step.

        Every epoch has as many batches as the first; the few rows by which another epoch's
        packing is longer are left out, and those by which it is shorter are empty.
        """
        epoch, index = divmod(step, self.batches_per_epoch)
        rows = self._epoch(epoch)[index * self.batch_size : (index + 1) * self.batch_size]
        return to_batch(rows, self.batch_size, self.sequence_length)

    def all_batches(self) -> list[Batch]:
        """Every pair once, in the order of the first epoch."""
        return [self.batch(step) for step in range(self.batches_per_epoch)]

    def _pack_epoch(self, epoch: int) -> list[list[Pair]]:
        rng = np.random.default_rng([self.seed, epoch])
        pairs = self._pairs_of(epoch)
        order = rng.permutation(len(pairs))
        rows = pack_rows(_lengths(*zip(*pairs, strict=True)), self.sequence_length, order)
        return [[pairs[i] for i in rows[r]] for r in rng.permutation(len(rows))]

    def _pairs_of(self, epoch: int) -> list[Pair]:
        if self._resample is None:
            return self._pairs
        sources, targets = self._resample(epoch)
        new = [(sources[i], targets[i]) for i in self._fitting.tolist()]
        return [
            pair if max(map(len, pair)) <= self.sequence_length else first
            for pair, first in zip(new, self._pairs, strict=True)
        ]


def _lengths(sources: Ids, targets: Ids) -> np.ndarray:
    lengths = [[len(s), len(t)] for s, t in zip(sources, targets, strict=True)]
    return np.array(lengths, int).reshape(-1, 2)


def pack_rows(lengths: np.ndarray, sequence_length: int, order: np.ndarray) -> list[list[int]]:
    """Puts pairs into rows, each into the open row that it fills best.

    Args:
      lengths: int [n, 2], source and target; none above `sequence_length`.
      order: int [n], in which pairs are placed.

    Returns:
      For each row the indices of its pairs.
    """
    rows: list[list[int]] = [[] for _ in range(OPEN_ROWS)]
    space = np.full((OPEN_ROWS, 2), sequence_length)
    closed = []
    for i in order:
        left = space - lengths[i]
        room = np.where((left >= 0).all(axis=1), left.sum(axis=1), 2 * sequence_length + 1)
        best = int(room.argmin())
        if room[best] > 2 * sequence_length:  # it fits nowhere: close the fullest row
            best = int(space.sum(axis=1).argmin())
            closed.append(rows[best])
            rows[best], space[best] = [], sequence_length
        rows[best].append(int(i))
        space[best] -= lengths[i]
    return closed + [row for row in rows if row]


def to_batch(rows: Sequence[Sequence[Pair]], num_rows: int, sequence_length: int) -> Batch:
    """Lays the pairs of each row side by side, segments counted from 1; missing rows are empty."""
    batch = Batch(*(np.zeros((num_rows, sequence_length), np.int32) for _ in range(4)))
    for r, row in enumerate(rows):
        ends = [0, 0]
        for segment, pair in enumerate(row, 1):
            for side, ids in enumerate(pair):
                cells = slice(ends[side], ends[side] + len(ids))
                batch[2 * side][r, cells] = ids
                batch[2 * side + 1][r, cells] = segment
                ends[side] += len(ids)
    return batch
