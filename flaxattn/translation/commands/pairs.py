"""Two aligned files and the model that looks at their pairs: what several commands begin with."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from flaxattn.text.lines import read_lines
from flaxattn.translation.commands.screen import SCREEN

if TYPE_CHECKING:
    from flaxattn.translation.decoding.forced import PairScorer

__all__ = ["pieces", "read_sides", "scorer_of"]

PIECE = 4096  # pairs that are looked at, and written of, together


def read_sides(first: Path, second: Path) -> tuple[list[str], list[str]]:
    """The lines of two files.

    Raises:
      ValueError if they have not as many lines, or none.
    """
    sides = read_lines(first), read_lines(second)
    if len(sides[0]) != len(sides[1]):
        raise ValueError(
            f"{first} has {len(sides[0])} lines and {second} {len(sides[1])}; line i of one must "
            "be the translation of line i of the other."
        )
    if not sides[0]:
        raise ValueError(f"{first} and {second} are empty: there is nothing to look at.")
    return sides


def scorer_of(folder: Path, pairs: int, batch_size: int) -> "PairScorer":
    """The model in a folder, on devices that suit so many pairs."""
    SCREEN.say(f"loading {folder}")
    from flaxattn.training.devices import split_cpu
    from flaxattn.translation.decoding.forced import PairScorer
    from flaxattn.translation.trained.loading import load

    split_cpu(min(pairs, batch_size))
    return PairScorer(*load(folder), batch_size=batch_size)


def pieces(sources: list[str], targets: list[str]) -> Iterator[tuple[int, list[str], list[str]]]:
    """The pairs in pieces, and how many went before each; of blank lines the person is told."""
    for at in range(0, len(sources), PIECE):
        yield at, sources[at : at + PIECE], targets[at : at + PIECE]
    blank = [
        i
        for i, (x, y) in enumerate(zip(sources, targets, strict=True), 1)
        if not (x.strip() and y.strip())
    ]
    if blank:
        shown = ", ".join(map(str, blank[:5])) + ", ..." * (len(blank) > 5)
        SCREEN.warn(
            f"{len(blank)} of {len(sources)} pairs have a blank side (line {shown}): for each an "
            "empty line is written."
        )
