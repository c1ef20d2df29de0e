"""Scores translations against references."""

import dataclasses
import json
from pathlib import Path

import tyro

from flaxattn.text.lines import read_lines
from flaxattn.translation.commands.screen import SCREEN
from flaxattn.translation.layout import TEST

__all__ = ["Score"]


@dataclasses.dataclass(frozen=True)
class Score:
    """Scores translations against references with SacreBLEU; needs no model.

    $ flaxattn score runs/tiny                    what the run kept of its test split
    $ flaxattn score my.hypothesis my.reference   any two aligned files
    """

    files: tyro.conf.Positional[tuple[Path, ...]]
    """The folder of a run; or translations and references, a line each."""
    bleu_tokenizer: str | None = None
    """SacreBLEU's tokenizer. None: that of the run, or 13a."""
    json: bool = False
    """Print JSON."""

    def run(self) -> None:
        """Prints BLEU, BLEU lower-cased and chrF with their signatures."""
        from flaxattn.translation.text.scoring import (
            check_tokenizer,
            doubt_of_spelling,
            doubt_of_tokenizer,
            score,
        )

        hypotheses, references, tokenizer = self._sources()
        check_tokenizer(tokenizer)
        sides = [read_lines(path) for path in (hypotheses, references)]
        if len(sides[0]) != len(sides[1]):
            raise ValueError(
                f"{hypotheses} has {len(sides[0])} lines and {references} {len(sides[1])}; line i "
                "of one must be the translation of line i of the other."
            )
        if not sides[0]:
            raise ValueError(f"{hypotheses} and {references} are empty: there is nothing to score.")
        for doubt in (doubt_of_tokenizer(sides[1], tokenizer), doubt_of_spelling(*sides)):
            if doubt:
                SCREEN.warn(doubt)
        found = score(*sides, tokenizer=tokenizer)
        if self.json:
            print(json.dumps({s.name: {"value": s.value, "signature": s.signature} for s in found}))
        else:
            for s in found:
                print(f"{s.name:<8} {s.value:6.2f}  {s.signature}")

    def _sources(self) -> tuple[Path, Path, str]:
        if len(self.files) == 2:
            return *self.files, self.bleu_tokenizer or "13a"
        if len(self.files) != 1 or not self.files[0].is_dir():
            raise ValueError(
                "score: expected the folder of a run, or two files, translations and references."
            )
        from flaxattn.training.record import has_begun
        from flaxattn.translation.trained.record import read_result, read_run

        folder = self.files[0]
        kept = read_run(folder).data.bleu_tokenizer if has_begun(folder) else "13a"
        read_result(folder)  # raises where the test split is not as it was written
        tokenizer = self.bleu_tokenizer or kept
        return folder / TEST["hypothesis"], folder / TEST["reference"], tokenizer
