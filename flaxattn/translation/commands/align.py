"""Aligns the words of texts and their translations."""

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro

from flaxattn.ranges import Range, check_fields
from flaxattn.translation.commands.pairs import pieces, read_sides, scorer_of

__all__ = ["Align"]


@dataclasses.dataclass(frozen=True)
class Align:
    """Aligns the words of texts and their translations, a line for each pair, as Pharaoh does.

    $ flaxattn align runs/tiny my.en my.de > my.align
    """

    folder: tyro.conf.Positional[Path]
    """The folder of a run, or of an exported model."""
    source: tyro.conf.Positional[Path]
    """A file of one text per line."""
    target: tyro.conf.Positional[Path]
    """A file of their translations."""
    batch_size: Annotated[int, Range(1, 100_000)] = 64
    """Pairs looked at together, at most."""

    def __post_init__(self) -> None:
        check_fields(self)

    def run(self) -> None:
        """Prints links of each pair, such as 0-0 1-2 2-1: words of source and target, from 0 on."""
        sides = read_sides(self.source, self.target)
        scorer = scorer_of(self.folder, len(sides[0]), self.batch_size)
        from flaxattn.translation.decoding.aligning import align, pharaoh

        for first, *texts in pieces(*sides):
            for links in align(scorer, *texts, first=first):
                print(pharaoh(links or []))
