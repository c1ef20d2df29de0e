"""BPE-dropout: every word in many spellings, which a seed alone decides.

SentencePiece samples too, but from a generator that is seeded differently in every process, so a
run could not be repeated. Here all words of a length are spelt together, by NumPy, which leaves
Python to the thread that trains meanwhile.
"""

import re
from collections.abc import Iterator, Sequence

import numpy as np
import sentencepiece

__all__ = ["SPACE", "SubwordDropout"]

SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # SentencePiece's sign for the space before a word
STAND_IN = "\ud800"  # stands for that sign where a text has it; no text has a lone surrogate
TEXTS = 1 << 13  # whose words are in memory together
CELLS = 1 << 17  # symbols of the words that are spelt together
NONE = np.iinfo(np.int32).max  # no merge
BYTES = 4  # of a character, at most


class SubwordDropout:
    """Spells texts with the merges of a BPE model, some left out at random.

    This is algorithm 1 of Provilkov et al. (2020, arXiv:1910.13267): at each step every merge that
    could be made is left out with some probability, and of the others the one that was learned
    first is made, until none is left.

    Symbols have numbers here: pieces that merges lead to first, in the order they were learned in.

    Args:
      processor: a BPE model with byte fallback, in which no piece holds a space but at its start.
      symbols: its tokens that are taken wherever they stand, and never merged.
    """

    def __init__(
        self, processor: sentencepiece.SentencePieceProcessor, symbols: Sequence[str] = ()
    ) -> None:
        self._eos_id = processor.eos_id()
        ids = range(processor.get_piece_size())
        special = processor.is_control, processor.is_unknown, processor.is_byte
        normal = [i for i in ids if not any(is_special(i) for is_special in special)]
        learned_first = sorted(normal, key=processor.get_score, reverse=True)
        own = {processor.id_to_piece(i): i for i in learned_first}
        pieces = [piece for piece in own if piece not in symbols]
        # Characters that are no piece of their own are bytes, but where they are merged.
        loose = sorted({x for piece in pieces for x in piece} - {*pieces, *symbols})
        byte_ids = [processor.piece_to_id(f"<0x{byte:02X}>") for byte in range(256)]
        spellings = [[own[piece]] for piece in (*pieces, *symbols)]
        spellings += [[byte_ids[byte] for byte in x.encode()] for x in loose]
        self._numbers = {x: n for n, x in enumerate((*pieces, *symbols, *loose))}
        self._first_byte = len(spellings)
        spellings += [[i] for i in byte_ids]
        self._spellings = np.full((len(spellings), BYTES), -1, np.int32)
        for n, spelling in enumerate(spellings):
            self._spellings[n, : len(spelling)] = spelling
        longest_first = sorted(map(re.escape, symbols), key=len, reverse=True)
        self._first = re.compile("|".join([*longest_first, "."]), re.DOTALL)
        self._pairs, self._merges = self._merging(pieces, {*pieces, *loose})

    def _merging(self, pieces: Sequence[str], parts: set[str]) -> tuple[np.ndarray, np.ndarray]:
        """Pairs of numbers, sorted, and what they merge to; the first is none."""
        halves = ((piece[:at], piece[at:]) for piece in pieces for at in range(1, len(piece)))
        found = {
            _pair(self._numbers[a], self._numbers[b]): self._numbers[a + b]
            for a, b in halves
            if a in parts and b in parts
        }
        found[-1] = NONE
        pairs = np.array(sorted(found), np.int64)
        return pairs, np.array([found[pair] for pair in pairs.tolist()], np.int32)

    def sample(self, texts: Sequence[str], dropout: float, seed: Sequence[int]) -> list[np.ndarray]:
        """The ids of each text, with the end token at its end: int32 [length].

        Args:
          dropout: more than 0 and less than 1, the share of merges left out.
          seed: integers; the outcome depends on the arguments alone.
        """
        rng = np.random.default_rng(list(seed))
        parts = (texts[i : i + TEXTS] for i in range(0, len(texts), TEXTS))
        return [ids for part in parts for ids in self._sample(part, dropout, rng)]

    def _sample(
        self, texts: Sequence[str], dropout: float, rng: np.random.Generator
    ) -> list[np.ndarray]:
        different = dict[str, int]()
        words = [[different.setdefault(x, len(different)) for x in _words(text)] for text in texts]
        which = np.array([word for text in words for word in text], np.int64)
        spelt = [*self._spelt([*different], which, dropout, rng)]
        counts = np.zeros(len(which), np.int64)
        for places, _, own in spelt:
            counts[places] = own
        text_of = np.repeat(np.arange(len(texts)), [len(text) for text in words])
        starts = np.cumsum(counts) - counts + text_of  # an end token for each text before
        ends = np.cumsum(np.bincount(text_of, counts, len(texts)).astype(np.int64) + 1)
        ids = np.full(ends[-1], self._eos_id, np.int32)
        for places, own_ids, own in spelt:
            ids[np.repeat(starts[places], own) + _ranges(own)] = own_ids
        return np.split(ids, ends[:-1])

    def _spelt(
        self, different: Sequence[str], which: np.ndarray, dropout: float, rng: np.random.Generator
    ) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Of some words at a time: their places, all their ids, and how many each has.

        Args:
          which: of the different words, at each place.
        """
        symbols = [self._symbols(word) for word in different]
        lengths = np.array([len(x) for x in symbols], np.int64)
        for length in np.unique(lengths):
            alike = np.flatnonzero(lengths == length)  # words
            rows = np.array([symbols[word] for word in alike], np.int32)
            places, size = np.flatnonzero(lengths[which] == length), max(CELLS // int(length), 1)
            for part in (places[i : i + size] for i in range(0, len(places), size)):
                own = rows[np.searchsorted(alike, which[part])]
                for at, left in self._merged(own, dropout, rng):
                    ids = self._spellings[left]
                    counts = (ids >= 0).sum(axis=(1, 2))
                    yield part[at], ids[ids >= 0], counts

    def _symbols(self, word: str) -> list[int]:
        """The numbers of its characters, and of symbols that are taken wherever they stand."""
        numbers = list[int]()
        for x in self._first.findall(SPACE + word):
            if x in self._numbers:
                numbers.append(self._numbers[x])
            else:
                own = x.replace(STAND_IN, SPACE).encode()
                numbers += [self._first_byte + byte for byte in own]
        return numbers

    def _merged(
        self, rows: np.ndarray, dropout: float, rng: np.random.Generator
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """What words of one length, int32 [words, symbols], become: which, and their symbols."""
        which = np.arange(len(rows))
        merges = self._merge(rows[:, :-1], rows[:, 1:])
        while merges.size:
            left = np.where(rng.random(merges.shape, np.float32) < dropout, NONE, merges)
            at, every = left.argmin(axis=1), np.arange(len(left))
            into = left[every, at]
            goes_on = into < NONE
            yield which[~goes_on], rows[~goes_on]
            which, rows, merges, at, into = (x[goes_on] for x in (which, rows, merges, at, into))
            every = np.arange(len(rows))
            rows[every, at] = into
            rows, merges = _without(rows, at + 1), _without(merges, at)
            for place in (at - 1, at):
                there = (place >= 0) & (place < merges.shape[1])
                one, place = every[there], place[there]
                merges[one, place] = self._merge(rows[one, place], rows[one, place + 1])
        yield which, rows

    def _merge(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """What neighbours merge to, or `NONE`: the lowest was learned first."""
        pairs = _pair(left.astype(np.int64), right)
        at = np.searchsorted(self._pairs, pairs, side="right") - 1
        return np.where(self._pairs[at] == pairs, self._merges[at], NONE)


def _pair(left: np.ndarray | int, right: np.ndarray | int) -> np.ndarray | int:
    """Two numbers as one."""
    return left << 32 | right


def _without(rows: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Rows [n, length] with the entry at `at` [n] of each left out."""
    kept = np.arange(rows.shape[1]) != at[:, None]
    return rows[kept].reshape(len(rows), rows.shape[1] - 1)


def _ranges(counts: np.ndarray) -> np.ndarray:
    """0, 1, 2, ... for each count, one after the other."""
    return np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)


def _words(text: str) -> list[str]:
    return [word for word in text.replace(SPACE, STAND_IN).split(" ") if word]
