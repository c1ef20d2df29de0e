"""An endless, shuffled supply of batches of packed sentence pairs, of one part or of several."""

import collections
import math
from collections.abc import Sequence

import numpy as np

from flaxattn.text.packing import Batch, to_batch
from flaxattn.text.pairs import BLOCK
from flaxattn.text.tokens import TokenizedPairs
from flaxattn.text.windows import Resample, Row, Rows

__all__ = ["ROUND", "PackedPairs"]

ROUND = 1 << 12  # rows in which every part of the training text has its share
MIXING_SEED = 4321  # fixed: which row is of which part says nothing of a run


class PackedPairs:
    """Batches by their steps.

    Args:
      tokens: the ids of the pairs, each sentence ending in the end token.
      batch_size: R, rows in a batch.
      sequence_length: L, cells in a row; pairs with a longer side are left out (`left_out`
        counts them).
      seed: of the order.
      weights: the share of each part of `tokens` in the rows, up to a factor. None: there is one.
      resample: gives pairs anew for an epoch, as subword dropout does. Pairs that are then too
        long for a row keep their first ids.

    Raises:
      ValueError if no pair of a part fits a row.
    """

    def __init__(
        self,
        tokens: TokenizedPairs,
        *,
        batch_size: int,
        sequence_length: int,
        seed: int = 0,
        weights: Sequence[float] = (1.0,),
        resample: Resample | None = None,
    ) -> None:
        self.batch_size, self.sequence_length, self.seed = batch_size, sequence_length, seed
        self._parts: list[Rows] = []
        for blocks in tokens.parts:
            part = Rows(
                tokens,
                blocks,
                first=sum(len(part.windows) for part in self._parts),
                batch_size=batch_size,
                sequence_length=sequence_length,
                seed=seed,
                resample=resample,
            )
            _check_any(part, sequence_length)
            self._parts.append(part)
        self._part_of = _mixed(weights)
        shares = np.arange(len(weights)) == self._part_of[:, None]
        self._before = np.concatenate([np.zeros((1, len(weights)), int), shares.cumsum(axis=0)])
        self.left_out = sum(part.left_out for part in self._parts)
        self.batches_per_epoch = sum(part.per_epoch for part in self._parts) // batch_size

    @property
    def lengths(self) -> collections.Counter[tuple[int, int]]:
        """How often each (source, target) length occurs among the pairs."""
        return sum((part.lengths for part in self._parts), collections.Counter())

    @property
    def order(self) -> str:
        """How pairs are shuffled, if not all together: windows and shares, in words."""
        parts = [[len(window) for window in part.windows] for part in self._parts]
        if len(parts) == len(parts[0]) == 1:
            return ""
        return f"windows of {BLOCK} times {parts}, shares {self._before[-1].tolist()}"

    def epochs(self, steps: int) -> list[float]:
        """How often each part is seen in so many steps."""
        rows = self._rows_before(steps * self.batch_size)
        return [n / part.per_epoch for n, part in zip(rows, self._parts, strict=True)]

    def batch(self, step: int) -> Batch:
        """The batch of `step`: a pure function of the pairs, the seed and the step.

        Every epoch has as many batches as the first; the few rows by which another epoch's
        packing is longer are left out, and those by which it is shorter are empty. Of more than
        one window (see `Rows`) none are left out, save under subword dropout.
        """
        start = step * self.batch_size
        bounds = zip(*map(self._rows_before, (start, start + self.batch_size)), strict=True)
        rows = [part.rows(*of) for part, of in zip(self._parts, bounds, strict=True)]
        order = (self._part_of[(start + i) % ROUND] for i in range(self.batch_size))
        mixed: list[Row] = [next(rows[part]) for part in order]
        return to_batch(mixed, self.batch_size, self.sequence_length)

    def all_batches(self) -> list[Batch]:
        """Every pair once, in the order of the first epoch, where there is one part."""
        return [self.batch(step) for step in range(self.batches_per_epoch)]

    def _rows_before(self, row: int) -> list[int]:
        """Of the rows before this one, how many are of each part."""
        rounds, rest = divmod(row, ROUND)
        return (rounds * self._before[-1] + self._before[rest]).tolist()


def _mixed(weights: Sequence[float]) -> np.ndarray:
    """The part of each row of a round, in which each has its share: int [ROUND]."""
    ends = np.cumsum(weights) / np.sum(weights) * ROUND
    counts = np.diff(np.floor(ends + 0.5).astype(int), prepend=0)
    parts = np.repeat(np.arange(len(weights)), counts)
    return np.random.default_rng(MIXING_SEED).permutation(parts)


def _check_any(part: Rows, sequence_length: int) -> None:
    """Raises ValueError if no pair fits a row."""
    if not part.lengths:
        shortest = f"; the shortest needs {part.shortest}" if part.shortest < math.inf else ""
        raise ValueError(
            f"--sequence-length: no sentence pair fits a row of {sequence_length} tokens{shortest}."
        )
