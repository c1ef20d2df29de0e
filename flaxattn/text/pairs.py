"""Sentence pairs that need not fit memory: in blocks, which are read when they are asked for."""

import bisect
import itertools
from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import overload

from flaxattn.text.records import Records

__all__ = ["BLOCK", "Pair", "StoredPairs"]

BLOCK = 256  # pairs that are read and written together

Pair = tuple[str, str]


class StoredPairs(Sequence[Pair]):
    """The sentence pairs of one part or several, each part in blocks of its own.

    Args:
      parts: the (source, target) pairs of each; no text has a NUL.
      folder: as in `Records`.

    Attributes:
      parts: the blocks of each part.
    """

    def __init__(self, parts: Iterable[Iterable[Pair]], folder: Path | None = None) -> None:
        self._records = Records(folder)
        self._starts = array("Q", [0])  # pairs before each block
        self.folder, self.parts = folder, [self._added(part) for part in parts]

    def _added(self, pairs: Iterable[Pair]) -> range:
        first, rest = len(self._records), iter(pairs)
        while block := list(itertools.islice(rest, BLOCK)):
            self._records.append("\0".join(itertools.chain.from_iterable(block)).encode())
            self._starts.append(self._starts[-1] + len(block))
        return range(first, len(self._records))

    def block(self, number: int) -> list[Pair]:
        """The pairs of one block."""
        texts = iter(self._records[number].decode().split("\0"))
        return list(zip(texts, texts, strict=True))

    def part(self, number: int) -> Iterator[Pair]:
        """The pairs of one part."""
        return itertools.chain.from_iterable(map(self.block, self.parts[number]))

    def chosen(self, numbers: Iterable[int]) -> Iterator[Pair]:
        """The pairs of these numbers, which rise: each block is read once."""
        for at, group in itertools.groupby(numbers, self._block_of):
            block, start = self.block(at), self._starts[at]
            yield from (block[number - start] for number in group)

    def __len__(self) -> int:
        return self._starts[-1]

    def __iter__(self) -> Iterator[Pair]:
        return itertools.chain.from_iterable(map(self.block, range(len(self._records))))

    @overload
    def __getitem__(self, at: int) -> Pair: ...

    @overload
    def __getitem__(self, at: slice) -> list[Pair]: ...

    def __getitem__(self, at: int | slice) -> Pair | list[Pair]:
        numbers = range(len(self))[at]
        if isinstance(numbers, range):
            return list(self.chosen(numbers))
        return next(self.chosen([numbers]))

    def _block_of(self, number: int) -> int:
        return bisect.bisect_right(self._starts, number) - 1
