"""What the translation of a text must have: a beginning and terms, as tokens.

Both are whole words: what follows begins a word, is punctuation, or the end. In scripts that are
written without spaces any character may follow.
"""

import functools
import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from flaxattn.text.normalization import normalize_targets
from flaxattn.text.tokenizer import Tokenizer
from flaxattn.translation.decoding.constraint_arrays import UNCONSTRAINED, ConstraintArrays

__all__ = ["TextConstraints", "arrays_of", "most_terms", "constraints_of_texts"]

# Thai to Lao, Burmese, Khmer, Japanese and Chinese.
UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
    "\U00020000-\U0003ffff]"
)
STOP = "。"  # with which no character of a word is one token
BYTE = re.compile("<0x([0-9A-F]{2})>")


class TextConstraints(NamedTuple):
    """What one translation must have, as tokens."""

    beginning: tuple[int, ...] = ()
    terms: tuple[tuple[int, ...], ...] = ()

    @property
    def size(self) -> int:
        """For how many tokens there must be room."""
        return len(self.beginning) + sum(map(len, self.terms))


def constraints_of_texts(
    tokenizer: Tokenizer,
    count: int,
    beginnings: Sequence[str] | None,
    terms: Sequence[Sequence[str]] | None,
) -> list[TextConstraints]:
    """What is asked of the translations of `count` texts; blank is nothing.

    Raises:
      ValueError if there are not as many beginnings, or lists of terms, as texts.
    """
    for name, given in (("beginnings", beginnings), ("terms", terms)):
        if given is not None and (isinstance(given, str) or len(given) != count):
            raise ValueError(
                f"{name} has {len(given)} entries; expected one for each text, {count}."
            )
    return [
        TextConstraints(_ids(tokenizer, beginning), tuple(dict.fromkeys(_terms(tokenizer, some))))
        for beginning, some in zip(beginnings or [""] * count, terms or [()] * count, strict=True)
    ]


def _terms(tokenizer: Tokenizer, terms: Sequence[str]) -> Iterable[tuple[int, ...]]:
    if isinstance(terms, str):
        raise ValueError(f"terms has {terms!r} for a text; expected a list of terms.")
    head = _ids(tokenizer, STOP)
    for term in terms:
        ids = _ids(tokenizer, term)
        if UNSPACED.match(term):  # in the midst of a text no space comes before it
            inside = _ids(tokenizer, STOP + term)
            ids = inside[len(head) :] if inside[: len(head)] == head else ids
        if ids:
            yield ids


def _ids(tokenizer: Tokenizer, text: str) -> tuple[int, ...]:
    """As a translation has them."""
    (text,) = normalize_targets([text.strip()], tokenizer.normalization)
    (ids,) = tokenizer.encode([text]) if text else ([0],)
    return tuple(map(int, ids[:-1]))


@functools.lru_cache(maxsize=8)
def _follow(tokenizer: Tokenizer) -> np.ndarray:
    """bool [V]: the tokens before which a word has ended."""
    return np.array([_ends_word(x) for x in tokenizer.pieces(range(tokenizer.vocab_size))])


def _ends_word(piece: str) -> bool:
    """Whether a word ends before it.

    >>> [_ends_word(piece) for piece in ("▁Hund", ".", "e", "<0xC3>", "<0x21>", "犬")]
    [True, True, False, False, True, True]
    """
    byte = BYTE.fullmatch(piece)
    first = chr(int(byte[1], 16)) if byte else piece[:1]
    if byte and not first.isascii():
        return False  # the first of several that may be a letter
    inside = first.isalnum() or first == "_" or unicodedata.category(first).startswith("M")
    return not inside or UNSPACED.match(first) is not None


def most_terms(constraints: Sequence[TextConstraints]) -> int:
    """No fewer tokens than the terms of any one translation have: a power of two."""
    return _power(max(sum(map(len, one.terms)) for one in constraints))


def arrays_of(
    tokenizer: Tokenizer, constraints: Sequence[TextConstraints], rows: int
) -> ConstraintArrays:
    """The arrays of `rows` translations, the first of them with these constraints."""
    constraints = [*constraints, *[TextConstraints()] * (rows - len(constraints))]
    if not any(one.size for one in constraints):
        return UNCONSTRAINED
    beginnings = terms = None
    if any(one.beginning for one in constraints):
        length = max(8, _power(max(len(one.beginning) for one in constraints)))
        beginnings = _padded([one.beginning for one in constraints], length)
    if any(one.terms for one in constraints):
        count = _power(max(len(one.terms) for one in constraints))
        length = _power(max(len(term) for one in constraints for term in one.terms))
        ids, lengths = _padded(
            [term for one in constraints for term in (*one.terms, *[()] * count)[:count]], length
        )
        terms = ids.reshape(rows, count, length), lengths.reshape(rows, count)
    return ConstraintArrays(beginnings, terms, _follow(tokenizer))


def _padded(rows: Sequence[Sequence[int]], length: int) -> tuple[np.ndarray, np.ndarray]:
    """int32 [R, length] and [R]."""
    ids = np.zeros((len(rows), length), np.int32)
    for row, values in enumerate(rows):
        ids[row, : len(values)] = values
    return ids, np.array([len(row) for row in rows], np.int32)


def _power(count: int) -> int:
    """The least power of two that is no less."""
    return 1 << max(0, count - 1).bit_length()
