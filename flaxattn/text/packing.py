"""Many sentence pairs in one row: batches of fixed shape in which nearly every cell is a token.

A batch is a pure function of (seed, step), so that a resumed run sees what it would have seen.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

__all__ = ["Batch", "Pair", "pack_rows", "to_batch"]

OPEN_ROWS = 256  # rows that may still be added to; more fill better and pack more slowly

Pair = tuple[np.ndarray, np.ndarray]


class Batch(NamedTuple):
    """Packed rows, int32 [R, L] each; ids 0 and segment 0 are padding."""

    source: np.ndarray
    source_segment_ids: np.ndarray
    target: np.ndarray
    target_segment_ids: np.ndarray


def pack_rows(lengths: np.ndarray, sequence_length: int, order: np.ndarray) -> list[list[int]]:
    """Puts pairs into rows, each into the open row that it fills best.

    Args:
      lengths: int [n, 2], source and target; none above `sequence_length`.
      order: int [n], in which pairs are placed.

    Returns:
      For each row the indices of its pairs.
    """
    rows: list[list[int]] = [[] for _ in range(OPEN_ROWS)]
    source, target = np.full((2, OPEN_ROWS), sequence_length)  # room that is left, and in all
    room = source + target
    full = 2 * sequence_length + 1
    closed = []
    for i, (s, t) in zip(order.tolist(), lengths[order].tolist(), strict=True):
        fitting = np.where((source >= s) & (target >= t), room, full)
        best = int(fitting.argmin())
        if fitting[best] == full:  # it fits nowhere: close the fullest row
            best = int(room.argmin())
            closed.append(rows[best])
            rows[best], source[best], target[best] = [], sequence_length, sequence_length
        rows[best].append(i)
        source[best] -= s
        target[best] -= t
        room[best] = source[best] + target[best]
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
