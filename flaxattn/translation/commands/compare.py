"""Tells whether translations are better than others, or by chance alone."""

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro

from flaxattn.ranges import Range, check_fields
from flaxattn.text.lines import read_lines
from flaxattn.translation.commands.kept import BLEU_TOKENIZER, KeptTest, kept_test

__all__ = ["Compare"]


@dataclasses.dataclass(frozen=True)
class Compare:
    """Compares translations of the same text with the first, by paired bootstrap resampling.

    $ flaxattn compare runs/a runs/b                        what both runs kept of one test split
    $ flaxattn compare a.txt b.txt --references my.de       any aligned files
    """

    systems: tyro.conf.Positional[tuple[Path, ...]]
    """Files of translations, or folders of runs; the first is the baseline."""
    references: tuple[Path, ...] = ()
    """Files of references, one or several for each translation. None: those that the runs kept."""
    bleu_tokenizer: str | None = None
    """SacreBLEU's tokenizer. None: that of the first run, or 13a."""
    samples: Annotated[int, Range(100, 1_000_000)] = 1000
    """Texts drawn with replacement from the whole."""

    def __post_init__(self) -> None:
        check_fields(self)

    def run(self) -> None:
        """Prints of each system and metric the score, its 95% interval, and the p-value."""
        from flaxattn.translation.text.comparing import compare
        from flaxattn.translation.text.scoring import check_tokenizer

        names = [str(path) for path in self.systems]
        if len({*names}) < len(names) or len(names) < 2:
            raise ValueError("compare: expected two or more files or folders, each once.")
        kept = {path: kept_test(path) for path in self.systems if path.is_dir()}
        of_runs = next((x.bleu_tokenizer for x in kept.values()), BLEU_TOKENIZER)
        check_tokenizer(tokenizer := self.bleu_tokenizer or of_runs)
        files = [kept[path].hypothesis if path in kept else path for path in self.systems]
        found = compare(
            dict(zip(names, map(read_lines, files), strict=True)),
            [read_lines(path) for path in self.references or self._kept([*kept.values()])],
            tokenizer=tokenizer,
            samples=self.samples,
        )
        width = max(map(len, names))
        for x in found:
            p = "baseline" if x.p is None else f"p = {x.p:.4f}"
            print(f"{x.metric:<8} {x.system:<{width}} {x.value:6.2f} ± {x.interval:.2f}  {p}")
        for signature in dict.fromkeys(x.signature for x in found):
            print(signature)

    def _kept(self, kept: list[KeptTest]) -> list[Path]:
        """The references that all the runs kept.

        Raises:
          ValueError if one is no run, or they are not the same.
        """
        if len(kept) < len(self.systems):
            raise ValueError("--references: expected a file or several, unless runs are compared.")
        first, *others = [x.reference for x in kept]
        for path in others:
            if path.read_bytes() != first.read_bytes():
                raise ValueError(f"{path} and {first} are not of the same test split.")
        return [first]
