"""TSV files: which two columns are source and target, and what a person is told of it."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from flaxattn.training.screen import Tell

__all__ = ["Columns", "Seen", "find_columns", "split_line"]

SHOWN = 40  # characters of a field
LOOKED_AT = 1000  # lines in which identifiers are looked for
NO_TAB = (
    "found no tab. One file is read as TSV; of two aligned files both are named: "
    "--train my.en my.de"
)
IDENTIFIER = re.compile(r"\S*\d\S*")


class Columns(NamedTuple):
    """Where source and target stand, counted from 0."""

    source: int
    target: int
    header: bool = False
    """Whether the first line has the columns' names and is no pair."""


def find_columns(path: Path, wanted: Sequence[str], lines: Sequence[str | None]) -> Columns:
    """The columns that are wanted.

    Args:
      path: for errors.
      wanted: two numbers from 1, or two names that stand in the first line; none: the first two.
      lines: of the file; None stands for one that is no text.

    Raises:
      ValueError if they are no numbers, and no names that the first line has.
    """
    if not wanted:
        return Columns(0, 1)
    if all(word.isdecimal() and int(word) for word in wanted):
        source, target = (int(word) - 1 for word in wanted)
        return Columns(source, target)
    names = [name.strip() for name in (lines[0] if lines and lines[0] else "").split("\t")]
    for word in wanted:
        if word not in names:
            raise ValueError(
                f"--columns: no {word!r} in the first line of {path}, which has "
                f"{', '.join(names)}; expected two of these, or two numbers from 1."
            )
    source, target = map(names.index, wanted)
    return Columns(source, target, header=True)


def split_line(line: str, columns: Columns, where: str) -> tuple[str, str]:
    """Source and target in a line; a blank line is blank on both sides.

    Args:
      where: the file and the line's number, for errors.

    Raises:
      ValueError if it has too few columns.
    """
    if not line.strip():
        return "", ""
    fields, needed = line.split("\t"), max(columns[:2]) + 1
    if len(fields) < needed:
        tab = NO_TAB if len(fields) == 1 else f"found {len(fields)} columns"
        expected = "source TAB target" if needed == 2 else f"{needed} columns with tabs between"
        raise ValueError(f"{where}: expected {expected}, {tab}.")
    return fields[columns.source], fields[columns.target]


class Seen:
    """What there is to tell of the columns of a TSV file, whose lines come in pieces."""

    def __init__(self) -> None:
        self._first: list[str] = []
        self._tabs = 0

    def look(self, lines: Iterable[str | None]) -> None:
        """Looks at some lines; None stands for one that is no text."""
        texts = [line for line in lines if line and line.strip()]
        self._first += texts[: LOOKED_AT - len(self._first)]
        self._tabs = max([self._tabs, *(line.count("\t") for line in texts)])

    def describe(self, path: Path, columns: Columns, tell: Tell) -> None:
        """Tells which columns are taken, with the first line, and which are not."""
        if not self._first:
            return
        rows = [line.split("\t") for line in self._first]
        others = [at for at in range(self._tabs + 1) if at not in columns[:2]]
        source, target = (f"column {at + 1}, {_shown(rows[0][at])}" for at in columns[:2])
        unused = f"; not used: {_numbers(others)}" if others else ""
        tell(f"{path}: the source is {source}; the target is {target}{unused}.")
        for at in columns[:2] if others else ():
            if all(IDENTIFIER.fullmatch(row[at].strip()) for row in rows):
                tell(
                    f"{path}: column {at + 1} looks like identifiers, not like text. --columns "
                    "says which two are source and target, for example --columns 2 3."
                )


def _numbers(columns: Sequence[int]) -> str:
    return f"column{'s' * (len(columns) > 1)} {', '.join(str(at + 1) for at in columns)}"


def _shown(field: str) -> str:
    return repr(field if len(field) <= SHOWN else f"{field[:SHOWN]}…")
