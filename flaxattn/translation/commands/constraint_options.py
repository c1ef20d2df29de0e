"""What translations must have: options of the command, and files with a line for each text."""

import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import TypedDict

from flaxattn.text.opening import check_kind, opened_text
from flaxattn.text.streaming import chunks

__all__ = ["ForTexts", "ConstraintOptions"]


class OfTexts(TypedDict):
    """Of each text, as `Translator.translate` takes it."""

    beginnings: list[str] | None
    terms: list[list[str]] | None


ForTexts = Callable[[int], OfTexts]
"""The constraints of so many texts more."""


@dataclasses.dataclass(frozen=True)
class ConstraintOptions:
    """What translations must have."""

    beginning: str = ""
    """Whole words that every translation begins with."""
    beginnings: Path | None = None
    """A file with what the translation of each text begins with, one per line; it may be blank."""
    terms: tuple[str, ...] = ()
    """Terms that every translation must have: whole words, or several in a row in quotes."""
    terms_file: Path | None = None
    """A file with the terms of the translation of each text, one text per line, tabs between
    terms; it may be blank."""

    @property
    def files(self) -> dict[str, Path]:
        """What is read, by its options."""
        named = {"--beginnings": self.beginnings, "--terms-file": self.terms_file}
        return {name: path for name, path in named.items() if path}

    def check(self) -> None:
        """Raises ValueError if options exclude each other, or a file cannot be read."""
        for one, other in (("beginning", "beginnings"), ("terms", "terms_file")):
            if getattr(self, one) and getattr(self, other):
                raise ValueError(
                    f"--{one}: expected either it, for all texts, or --{other.replace('_', '-')}, "
                    "not both."
                )
        for path in self.files.values():
            check_kind(path)

    @contextlib.contextmanager
    def opened(self) -> Iterator[ForTexts]:
        """Those of each text; once all were translated the files must be at their ends."""
        with contextlib.ExitStack() as stack:
            lines = {
                name: (stack.enter_context(contextlib.closing(_lines(path))), f"{name} {path}")
                for name, path in self.files.items()
            }

            def for_texts(count: int) -> OfTexts:
                found = {name: _next(*file, count) for name, file in lines.items()}
                same, terms = [self.beginning] * count, [[*self.terms]] * count
                if "--terms-file" in found:
                    terms = [line.split("\t") for line in found["--terms-file"]]
                return {
                    "beginnings": found.get("--beginnings", same if self.beginning else None),
                    "terms": terms if self.terms or self.terms_file else None,
                }

            yield for_texts
            for file, name in lines.values():
                if next(file, None) is not None:
                    raise ValueError(f"{name}: has more lines than there are texts.")


def _lines(path: Path) -> Generator[str]:
    with opened_text(path) as stream:
        for piece in chunks(stream, str(path)):
            yield from piece


def _next(lines: Iterator[str], name: str, count: int) -> list[str]:
    found = list(itertools.islice(lines, count))
    if len(found) < count:
        raise ValueError(f"{name}: ends before the texts do; expected a line for each.")
    return found
