"""The ids of sentence pairs that need not fit memory, in blocks that go with those of the texts."""

import functools
import itertools
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from flaxattn.text.pairs import BLOCK, Pair, StoredPairs
from flaxattn.text.records import Records
from flaxattn.text.tokenizer import Tokenizer

__all__ = ["Ids", "TokenizedPairs", "Tokens", "encoded", "sampled", "tokenized"]

TOGETHER = 16  # blocks that are encoded together: so many texts keep SentencePiece's threads busy

Ids = Sequence[np.ndarray]  # int [length], one for each sentence
NO_IDS = np.zeros(0, np.int32)


class Tokens:
    """The ids of some pairs, in one array.

    Args:
      ids: int [all], the source and the target of one pair after those of another.
      lengths: int [n, 2].
    """

    def __init__(self, ids: np.ndarray, lengths: np.ndarray) -> None:
        ends = np.cumsum(lengths)
        self._ids, self.lengths = ids, lengths
        self._starts = (ends - lengths.ravel()).reshape(-1, 2)

    @classmethod
    def of(cls, sources: Ids, targets: Ids) -> "Tokens":
        """Those of pairs whose sides have arrays of their own."""
        sides = [*itertools.chain.from_iterable(zip(sources, targets, strict=True))]
        lengths = np.fromiter(map(len, sides), np.int32, len(sides)).reshape(-1, 2)
        return cls(np.concatenate([*sides, NO_IDS]), lengths)

    def replaced(self, numbers: np.ndarray, others: "Tokens") -> "Tokens":
        """These with the pairs of some numbers taken from others."""
        new = Tokens(np.concatenate([self._ids, others._ids]), self.lengths.copy())
        new._starts = self._starts.copy()
        new.lengths[numbers] = others.lengths[numbers]
        new._starts[numbers] = others._starts[numbers] + len(self._ids)
        return new

    def pair(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Source and target of one pair."""
        source, target = (self._ids[s : s + n] for s, n in zip(*self._of(number), strict=True))
        return source, target

    def fitting(self, sequence_length: int) -> np.ndarray:
        """The numbers of the pairs that have ids and fit a row: int [n]."""
        fit = (self.lengths > 0) & (self.lengths <= sequence_length)
        return np.flatnonzero(fit.all(axis=1))

    def part(self, start: int, stop: int) -> "Tokens":
        """The pairs of these numbers, of ids that stand one after another."""
        lengths = self.lengths[start:stop]
        begin = self._starts[start, 0] if len(lengths) else 0
        return Tokens(self._ids[begin : begin + lengths.sum()], lengths)

    def followed_by(self, others: "Tokens") -> "Tokens":
        """These and then the others."""
        if not len(self.lengths):
            return others
        lengths = np.concatenate([self.lengths, others.lengths])
        return Tokens(np.concatenate([self._ids, others._ids]), lengths)

    def blocks(self) -> Iterator["Tokens"]:
        """The same in blocks."""
        for first in range(0, len(self.lengths), BLOCK):
            yield self.part(first, first + BLOCK)

    def to_bytes(self, dtype: type) -> bytes:
        """As `TokenizedPairs` keeps them."""
        return self.lengths.astype(np.int32).tobytes() + self._ids.astype(dtype).tobytes()

    def _of(self, number: int) -> tuple[list[int], list[int]]:
        return self._starts[number].tolist(), self.lengths[number].tolist()


class TokenizedPairs:
    """The ids of all pairs, read block by block; a pair that surely fits no row has none.

    Args:
      parts: the pairs of each part, in pieces whose blocks are full, save the last.
      vocab_size: V.
      folder: as in `Records`.

    Attributes:
      parts: the blocks of each part.
    """

    def __init__(
        self, parts: Iterable[Iterable[Tokens]], vocab_size: int, folder: Path | None = None
    ) -> None:
        self._records, self._counts = Records(folder), array("I")
        self._dtype = np.uint16 if vocab_size <= 1 << 16 else np.int32
        self.parts = [self._added(part) for part in parts]

    @classmethod
    def of(cls, sources: Ids, targets: Ids) -> "TokenizedPairs":
        """One part, of pairs that fit memory."""
        return cls([[Tokens.of(sources, targets)]], 1 << 31)

    def _added(self, pieces: Iterable[Tokens]) -> range:
        first = len(self._records)
        for tokens in itertools.chain.from_iterable(piece.blocks() for piece in pieces):
            self._records.append(tokens.to_bytes(self._dtype))
            self._counts.append(len(tokens.lengths))
        return range(first, len(self._records))

    def read(self, blocks: Iterable[int]) -> Tokens:
        """The pairs of some blocks, one block after another."""
        lengths, ids = [np.zeros((0, 2), np.int32)], [np.zeros(0, self._dtype)]
        for block in blocks:
            record, cells = self._records[block], 2 * self._counts[block]
            lengths.append(np.frombuffer(record, np.int32, cells).reshape(-1, 2))
            ids.append(np.frombuffer(record, self._dtype, offset=4 * cells))
        return Tokens(np.concatenate(ids), np.concatenate(lengths))


def tokenized(pairs: StoredPairs, tokenizer: Tokenizer, sequence_length: int) -> TokenizedPairs:
    """The ids of pairs; those that surely fit no row, whatever they hold, are not encoded."""

    def encode(texts: list[Pair]) -> Tokens:
        return _encoded(texts, tokenizer, sequence_length, lambda _, texts: tokenizer.encode(texts))

    return encoded(pairs, encode, tokenizer.vocab_size)


def encoded(
    pairs: StoredPairs, encode: Callable[[list[Pair]], Tokens], most_ids: int
) -> TokenizedPairs:
    """What a function makes of pairs, some blocks at a time.

    Args:
      encode: gives as many pairs of ids as it is given of texts, or, where nothing is drawn anew
        in an epoch, any number.
      most_ids: above all ids.
    """
    parts = (_in_whole_blocks(_pieces(pairs, part, encode)) for part in pairs.parts)
    return TokenizedPairs(parts, most_ids, pairs.folder)


def _pieces(
    pairs: StoredPairs, blocks: range, encode: Callable[[list[Pair]], Tokens]
) -> Iterator[Tokens]:
    for first in range(0, len(blocks), TOGETHER):
        together = map(pairs.block, blocks[first : first + TOGETHER])
        yield encode([*itertools.chain.from_iterable(together)])


def _in_whole_blocks(pieces: Iterable[Tokens]) -> Iterator[Tokens]:
    """The same with what fills no block put before the next piece."""
    rest = Tokens.of([], [])
    for piece in pieces:
        piece = rest.followed_by(piece)
        whole = len(piece.lengths) // BLOCK * BLOCK
        if whole:
            yield piece.part(0, whole)
        rest = piece.part(whole, len(piece.lengths))
    if len(rest.lengths):
        yield rest


def sampled(
    pairs: StoredPairs,
    tokenizer: Tokenizer,
    sequence_length: int,
    dropout: float,
    *,
    blocks: Iterable[int],
    seed: tuple[int, int, int],
) -> Tokens:
    """The ids of the pairs of some blocks under subword dropout, as of (seed, epoch, window)."""
    texts = [*itertools.chain.from_iterable(map(pairs.block, blocks))]
    first, epoch, window = seed

    def sample(side: int, texts: list[str]) -> list[np.ndarray]:
        return tokenizer.sample(texts, dropout, (first, epoch, side, window))

    return _encoded(texts, tokenizer, sequence_length, sample)


def _encoded(
    texts: list[Pair],
    tokenizer: Tokenizer,
    sequence_length: int,
    encode: Callable[[int, list[str]], list[np.ndarray]],
) -> Tokens:
    """The ids of pairs by a function of a side and its texts; none of those that are too long."""
    fits = functools.partial(tokenizer.fits, length=sequence_length)
    long = [at for at, (source, target) in enumerate(texts) if not (fits(source) and fits(target))]
    left_out = {*long}
    fitting = [pair for at, pair in enumerate(texts) if at not in left_out] if long else texts
    sides = [encode(side, [pair[side] for pair in fitting]) for side in (0, 1)]
    for at in long:
        for ids in sides:
            ids.insert(at, NO_IDS)
    return Tokens.of(*sides)
