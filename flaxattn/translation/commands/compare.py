"""Tells whether translations are better than others, or by chance alone."""

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro

from flaxattn.ranges import Range, check_fields
from flaxattn.text.lines import read_lines
from flaxattn.translation.layout import TEST

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
    bleu_tokenizer: str = "13a"
    """SacreBLEU's tokenizer."""
    samples: Annotated[int, Range(100, 1_000_000)] = 1000
    """Texts drawn with replacement from the whole."""

    def __post_init__(self) -> None:
        check_fields(self)

    def run(self) -> None:
        """Prints of each system and metric the score, its 95% interval, and the p-value."""
        from flaxattn.translation.text.comparing import compare
        from flaxattn.translation.text.scoring import check_tokenizer

        check_tokenizer(self.bleu_tokenizer)
        names = [str(path) for path in self.systems]
        if len({*names}) < len(names) or len(names) < 2:
            raise ValueError("compare: expected two or more files or folders, each once.")
        texts = {name: read_lines(_file(Path(name), "hypothesis")) for name in names}
        found = compare(
            texts,
            [read_lines(path) for path in self.references or self._kept()],
            tokenizer=self.bleu_tokenizer,
            samples=self.samples,
        )
        width = max(map(len, names))
        for x in found:
            p = "baseline" if x.p is None else f"p = {x.p:.4f}"
            print(f"{x.metric:<8} {x.system:<{width}} {x.value:6.2f} ± {x.interval:.2f}  {p}")
        for signature in dict.fromkeys(x.signature for x in found):
            print(signature)

    def _kept(self) -> list[Path]:
        """The references that all the runs kept.

        Raises:
          ValueError if one is no run, or they are not the same.
        """
        if not all(path.is_dir() for path in self.systems):
            raise ValueError("--references: expected a file or several, unless runs are compared.")
        paths = [_file(path, "reference") for path in self.systems]
        for path in paths[1:]:
            if path.read_bytes() != paths[0].read_bytes():
                raise ValueError(f"{path} and {paths[0]} are not of the same test split.")
        return paths[:1]


def _file(path: Path, side: str) -> Path:
    """The file at a path, or of a run what it kept there, unchanged."""
    if not path.is_dir():
        return path
    from flaxattn.translation.trained.record import read_result

    read_result(path)  # raises where the test split is not as it was written
    return path / TEST[side]
