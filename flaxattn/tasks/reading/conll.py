"""CoNLL files: a word and its tag in each line, a blank line between sentences.

Tags come as BIO (IOB2), whatever the file has: IOB1, in which most entities begin with "I-", and
BIOES or BILOU, which mark the last words of entities and single ones, are told and converted.
"""

import collections
import itertools
import re
from collections.abc import Iterator
from pathlib import Path

from flaxattn.text.pairs import Pair
from flaxattn.text.reading import texts_of
from flaxattn.training.screen import Tell

__all__ = ["tagged_sentences"]

DOCUMENT = "-DOCSTART-"
TAG = re.compile(r"O|[BIESLU]-(\S+)")
BEGINS, INSIDE = "BSU", "IEL"
INVALID = "left out {} sentences with a line that is not valid UTF-8 or has a NUL"
BEGUN = 'took {} "I-" tags that begin an entity for "B-", as in IOB1'
ENDS = 'took {} tags that begin with "E", "S", "L" or "U" for "B-" and "I-": BIOES or BILOU'

Line = tuple[int, str | None]


def tagged_sentences(
    path: Path, tell: Tell, columns: tuple[int, int] = (1, -1), *, skip_invalid: bool = False
) -> Iterator[Pair]:
    """The sentences of a file: words with spaces between, and as many tags with spaces between.

    Columns are parted by tabs in a line that has one, else by spaces.

    Args:
      tell: is given, after the last sentence, what was converted or left out.
      columns: of the word and of the tag, from 1; from -1 backwards, counted from the last one.
      skip_invalid: whether sentences with a line that is no text are left out.

    Raises:
      FileNotFoundError; ValueError if a line is no text, has too few columns or no BIO tag, or if
      there is no sentence, naming file and line.
    """
    if 0 in columns or columns[0] == columns[1]:
        raise ValueError(
            f"columns {columns[0]} and {columns[1]}: expected two different numbers, from 1, or "
            "from -1 backwards."
        )
    lines = itertools.chain.from_iterable(texts_of(path, skip_invalid=skip_invalid))
    told, found = collections.Counter[str](), False
    for sentence in _sentences(enumerate(lines, 1)):
        if any(line is None for _, line in sentence):
            told[INVALID] += 1
            continue
        rows = [_row(line or "", columns, f"{path}, line {number}") for number, line in sentence]
        found = True
        yield " ".join(word for word, _ in rows), " ".join(_to_bio([tag for _, tag in rows], told))
    for what, count in told.items():
        tell(f"{path}: {what.format(count)}.")
    if not found:
        raise ValueError(f"{path}: no sentence found.")


def _sentences(lines: Iterator[Line]) -> Iterator[list[Line]]:
    """The numbered lines of each sentence."""
    for parting, group in itertools.groupby(lines, lambda line: _parts(line[1])):
        if not parting:
            yield [*group]


def _parts(line: str | None) -> bool:
    """Whether a line parts sentences, and has no word."""
    return line is not None and (not line.strip() or line.split()[0] == DOCUMENT)


def _row(line: str, columns: tuple[int, int], where: str) -> tuple[str, str]:
    """The word and the tag of a line."""
    separator = r"\t" if "\t" in line else " +"
    fields = [field.strip(" ") for field in re.split(separator, line.strip(" "))]
    needed = max(2, *(column if column > 0 else -column for column in columns))
    if len(fields) < needed:
        raise ValueError(
            f"{where}: expected {needed} columns or more, a word and its tag among them, found "
            f"{len(fields)}: {line!r}."
        )
    word, tag = (fields[column - (column > 0)] for column in columns)
    if not word or " " in word:
        raise ValueError(f"{where}: expected a word without spaces, found {word!r}.")
    if not TAG.fullmatch(tag):
        raise ValueError(
            f"{where}: expected a tag such as O, B-PER or I-PER, found {tag!r}; name the columns "
            "of word and tag if they are others."
        )
    return word, tag


def _to_bio(tags: list[str], told: collections.Counter[str]) -> list[str]:
    """The same entities in BIO; counts what had to be converted."""
    new: list[str] = []
    kind = None  # of the entity that is open
    for tag in tags:
        mark, _, inside = tag.partition("-")
        begins = mark in BEGINS or (mark in INSIDE and inside != kind)
        told.update([ENDS] if mark in "ESLU" else [BEGUN] if begins and mark == "I" else [])
        new.append(tag if mark == "O" else f"{'B' if begins else 'I'}-{inside}")
        kind = inside if mark in "BI" else None
    return new
