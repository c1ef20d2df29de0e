"""Plain text: a document is a paragraph, a line or a file."""

import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal, get_args

from flaxattn.text.pairs import Pair
from flaxattn.text.reading import texts_of
from flaxattn.training.screen import Tell

__all__ = ["By", "documents"]

By = Literal["paragraphs", "lines", "files"]


def documents(
    path: Path, tell: Tell, by: By = "paragraphs", *, skip_invalid: bool = False
) -> Iterator[Pair]:
    """The documents of a file, each beside an empty string; none is blank.

    Line breaks within one stay.

    Args:
      tell: is given what was left out, after the last document.
      by: blank lines part paragraphs; a file is all one document.
      skip_invalid: whether lines that are no text are left out.

    Raises:
      FileNotFoundError; ValueError if a line is no text or nothing is left, naming file and line.
    """
    if by not in get_args(By):
        raise ValueError(f"by must be one of {', '.join(get_args(By))}, not {by!r}.")
    invalid = found = 0
    pieces = texts_of(path, skip_invalid=skip_invalid)
    for document in _grouped(itertools.chain.from_iterable(pieces), by):
        texts = [line for line in document if line is not None]
        invalid += len(document) - len(texts)
        if (text := "\n".join(texts).strip("\n")).strip():
            found += 1
            yield text, ""
    if invalid:
        tell(f"{path}: left out {invalid} lines that are not valid UTF-8 or have a NUL.")
    if not found:
        raise ValueError(f"{path}: no text found.")


def _grouped(lines: Iterable[str | None], by: By) -> Iterator[list[str | None]]:
    """The lines of each document."""
    if by == "lines":
        return ([line] for line in lines)
    if by == "files":
        return iter([[*lines]])
    return (list(group) for _, group in itertools.groupby(lines, _is_blank))


def _is_blank(line: str | None) -> bool:
    return line is not None and not line.strip()
