"""The rows of one part of a corpus, without end: packed window by window, anew in each epoch.

A window is so many pairs as are shuffled and packed together; memory holds a few. It has the same
pairs in every epoch, of blocks from all over the part, and the same number of places for rows: so
which row stands where follows from its number alone. In a new epoch windows come in another order,
and within each the pairs are shuffled and packed anew.
"""

import collections
import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from flaxattn.text.ahead import Ahead
from flaxattn.text.packing import Pair, pack_rows
from flaxattn.text.tokens import TokenizedPairs, Tokens

__all__ = ["Resample", "Row", "Rows", "windows_of"]

WINDOW = 256  # blocks, at most
LOOKED_AT = 64  # blocks of a window, that tell what subword dropout does
ORDER, WINDOWS, BLOCKS = 0, 2, 3  # what is drawn, beside the ids of sides 0 and 1

Row = list[Pair]
Resample = Callable[[np.ndarray, tuple[int, int, int]], Tokens]
"""Gives the pairs of some blocks anew for (seed, epoch, window), as subword dropout does."""


class Packed(NamedTuple):
    """A window as an epoch has it."""

    tokens: Tokens
    rows: list[list[int]]

    def row(self, number: int) -> Row:
        """The pairs of a row; none in a place that has no row."""
        return [self.tokens.pair(i) for i in self.rows[number]] if number < len(self.rows) else []


def windows_of(blocks: range, seed: int) -> list[np.ndarray]:
    """The blocks of each window: all in their order if they are one, else from all over."""
    if len(blocks) <= WINDOW:
        return [np.array(blocks, int)]
    order = np.random.default_rng([seed, 0, BLOCKS]).permutation(len(blocks))
    parts = np.array_split(order, -(-len(blocks) // WINDOW))
    return [blocks.start + np.sort(part) for part in parts]


class Rows:
    """The rows of one part of a corpus, by their numbers, from 0 on.

    Args:
      tokens: the ids of all parts.
      blocks: of this part.
      first: the number of its first window, among the windows of all parts.
      resample: subword dropout; a pair that is then too long for a row keeps its first ids.

    Attributes:
      per_epoch: places for rows in an epoch, a multiple of the batch.
      lengths: how often each (source, target) length occurs among the pairs that fit a row.
      left_out: how many pairs do not.
      shortest: the longer side of the shortest pair, of those that were encoded; else infinite.
    """

    def __init__(
        self,
        tokens: TokenizedPairs,
        blocks: range,
        *,
        first: int,
        batch_size: int,
        sequence_length: int,
        seed: int,
        resample: Resample | None,
    ) -> None:
        self._tokens, self._first, self._seed = tokens, first, seed
        self._sequence_length, self._resample = sequence_length, resample
        self.windows = windows_of(blocks, seed)
        self.lengths: collections.Counter[tuple[int, int]] = collections.Counter()
        self.left_out, self.shortest = 0, math.inf
        self._places = self._planned()
        self.per_epoch = -(-sum(self._places) // batch_size) * batch_size
        self._packed = Ahead(lambda number: self._pack(*divmod(number, len(self.windows))))

    def rows(self, start: int, stop: int) -> Iterator[Row]:
        """Those with the numbers from `start` to `stop`."""
        while start < stop:
            epoch, at = divmod(start, self.per_epoch)
            ends = np.cumsum([self._places[window] for window in self._order(epoch)])
            ends[-1] = self.per_epoch  # what the batch rounds up is the last one's
            place = int(np.searchsorted(ends, at, side="right"))
            begin, end = int(ends[place - 1]) if place else 0, int(ends[place])
            packed = self._packed[epoch * len(self.windows) + place]
            count = min(stop - start, end - at)
            yield from (packed.row(at - begin + i) for i in range(count))
            start += count

    def _order(self, epoch: int) -> np.ndarray:
        """The windows of an epoch."""
        rng = np.random.default_rng([self._seed, epoch, WINDOWS, self._first])
        return rng.permutation(len(self.windows))

    def _planned(self) -> list[int]:
        """The places for rows of each window, from its packing in the first epoch.

        Under subword dropout some blocks tell by how much more they are for all.
        """
        places, growth = [], self._growth() if self._resample else 1.0
        for window, blocks in enumerate(self.windows):
            plain = self._tokens.read(blocks)
            self._count(plain)
            found = len(self._packed_in(0, window, plain, plain).rows)
            places.append(round(found * growth))
        return places

    def _growth(self) -> float:
        """How many more rows there are under subword dropout, of a window if there is one alone."""
        blocks = self.windows[0] if len(self.windows) == 1 else self.windows[0][:LOOKED_AT]
        plain = self._tokens.read(blocks)
        sampled = self._sampled(0, 0, blocks, plain)
        more, found = (len(self._packed_in(0, 0, ids, plain).rows) for ids in (sampled, plain))
        return more / max(found, 1)

    def _count(self, plain: Tokens) -> None:
        fitting = plain.lengths[plain.fitting(self._sequence_length)]
        found, counts = np.unique(fitting, axis=0, return_counts=True)
        self.lengths.update(dict(zip(map(tuple, found.tolist()), counts.tolist(), strict=True)))
        self.left_out += len(plain.lengths) - len(fitting)
        encoded = plain.lengths[(plain.lengths > 0).all(axis=1)].max(axis=1)
        self.shortest = min([self.shortest, *encoded.tolist()])

    def _pack(self, epoch: int, place: int) -> Packed:
        """The window in a place of an epoch."""
        window = int(self._order(epoch)[place])
        blocks = self.windows[window]
        plain = self._tokens.read(blocks)
        if self._resample:
            sampled = self._sampled(epoch, window, blocks, plain)
            return self._packed_in(epoch, window, sampled, plain)
        packed = self._packed_in(epoch, window, plain, plain)
        if len(self.windows) > 1 and len(packed.rows) > self._places[window]:
            # Then every pair is there in the rows of the first epoch, for which there is room.
            rows = self._packed_in(0, window, plain, plain).rows
            rng = self._rng(epoch, window)
            return Packed(plain, [rows[r] for r in rng.permutation(len(rows))])
        return packed

    def _packed_in(self, epoch: int, window: int, tokens: Tokens, plain: Tokens) -> Packed:
        """A window with these ids, of the pairs that fit a row as they are plainly."""
        rng = self._rng(epoch, window)
        fitting = plain.fitting(self._sequence_length)
        order = fitting[rng.permutation(len(fitting))]
        rows = pack_rows(tokens.lengths, self._sequence_length, order)
        return Packed(tokens, [rows[r] for r in rng.permutation(len(rows))])

    def _rng(self, epoch: int, window: int) -> np.random.Generator:
        return np.random.default_rng([self._seed, epoch, ORDER, self._first + window])

    def _sampled(self, epoch: int, window: int, blocks: np.ndarray, plain: Tokens) -> Tokens:
        """The ids of an epoch, and the first ones where these are too many for a row."""
        assert self._resample
        new = self._resample(blocks, (self._seed, epoch, self._first + window))
        long = np.flatnonzero(new.lengths.max(axis=1) > self._sequence_length)
        return new.replaced(long, plain) if long.size else new
