"""BPE-dropout: every word in many spellings, which a seed alone decides.

SentencePiece samples too, but from a generator that is seeded differently in every process, so a
run could not be repeated.
"""

import functools
import itertools
import re
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import sentencepiece

__all__ = ["SPACE", "SubwordDropout"]

SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # SentencePiece's sign for the space before a word
STAND_IN = "\ud800"  # stands for that sign where a text has it; no text has a lone surrogate
LONG = 40  # characters of words that are too rare, and of too many spellings, to be remembered
POOL = 4096  # random numbers drawn at once


class SubwordDropout:
    """Spells texts with the merges of a BPE model, some left out at random.

    This is algorithm 1 of Provilkov et al. (2020, arXiv:1910.13267): at each step every merge that
    could be made is left out with some probability, and of the others the one that was learned
    first is made, until none is left.

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
        self._ids = {processor.id_to_piece(i): i for i in normal}
        self._ranks = {piece: -processor.get_score(i) for piece, i in self._ids.items()}
        longest_first = sorted(map(re.escape, symbols), key=len, reverse=True)
        self._first = re.compile("|".join([*longest_first, "."]), re.DOTALL)
        self._byte_ids = [processor.piece_to_id(f"<0x{byte:02X}>") for byte in range(256)]
        self._spell_known = functools.lru_cache(maxsize=1 << 16)(self._merge)

    def sample(self, texts: Sequence[str], dropout: float, seed: Sequence[int]) -> list[np.ndarray]:
        """The ids of each text, with the end token at its end: int32 [length].

        Args:
          dropout: more than 0 and less than 1, the share of merges left out.
          seed: integers; the outcome depends on the arguments alone.
        """
        rng = np.random.default_rng(list(seed))
        first = map(int, rng.geometric(dropout, sum(len(_words(text)) for text in texts)))
        later = _endless(rng, dropout)
        rows = []
        for text in texts:  # whose words are made again, since memory should not hold all of them
            ids = [i for word in _words(text) for i in self._spell(word, next(first), later)]
            rows.append(np.array([*ids, self._eos_id], np.int32))
        return rows

    def _spell(self, word: str, first: int, later: Iterator[int]) -> tuple[int, ...]:
        """The ids of a word.

        Args:
          first: the trials until the first merge is left out; later: from one to the next.
        """
        if first > len(word):  # so many merges at most lead from characters to one piece
            return self._spell_known(word, ())
        drops = itertools.accumulate(later, initial=first - 1)
        if len(word) > LONG:
            return self._merge(word, drops)
        most = len(word) * (len(word) + 1) // 2  # merges that can be looked at, in all
        return self._spell_known(word, tuple(itertools.takewhile(lambda n: n < most, drops)))

    def _merge(self, word: str, drops: Iterable[int]) -> tuple[int, ...]:
        """The ids of a word.

        Args:
          drops: of the merges looked at, one after another, the numbers of those left out.
        """
        symbols, looked_at, drops = self._first.findall(SPACE + word), 0, iter(drops)
        drop = next(drops, None)
        while True:
            for _, at in self._merges(symbols):
                looked_at += 1
                if drop != looked_at - 1:
                    symbols[at : at + 2] = [symbols[at] + symbols[at + 1]]
                    break
                drop = next(drops, None)
            else:
                return tuple(i for symbol in symbols for i in self._ids_of(symbol))

    def _merges(self, symbols: list[str]) -> list[tuple[float, int]]:
        """The merges that can be made, as rank and place, the one to prefer first."""
        pairs = (a + b for a, b in itertools.pairwise(symbols))
        return sorted((self._ranks[p], at) for at, p in enumerate(pairs) if p in self._ranks)

    def _ids_of(self, symbol: str) -> list[int]:
        if symbol in self._ids:
            return [self._ids[symbol]]
        return [self._byte_ids[byte] for byte in symbol.replace(STAND_IN, SPACE).encode()]


def _words(text: str) -> list[str]:
    return [word for word in text.replace(SPACE, STAND_IN).split(" ") if word]


def _endless(rng: np.random.Generator, dropout: float) -> Iterator[int]:
    while True:
        yield from rng.geometric(dropout, POOL).tolist()
