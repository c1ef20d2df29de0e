"""Scores translations against references, or by how likely a model finds them."""

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import tyro

from flaxattn.ranges import Range, check_fields
from flaxattn.translation.commands.kept import BLEU_TOKENIZER, kept_test
from flaxattn.translation.commands.pairs import pieces, read_sides, scorer_of
from flaxattn.translation.commands.screen import SCREEN

__all__ = ["Score"]


@dataclasses.dataclass(frozen=True)
class Score:
    """Scores translations against references with SacreBLEU, or by how likely a model finds them.

    $ flaxattn score runs/tiny                         what the run kept of its test split
    $ flaxattn score my.hypothesis my.reference        aligned files; needs no model
    $ flaxattn score my.hypothesis my.reference other.reference    several references for each
    $ flaxattn score runs/tiny --pairs my.en my.de     log-probabilities of given translations
    """

    files: tyro.conf.Positional[tuple[Path, ...]]
    """The folder of a run; or translations and references, a line each."""
    bleu_tokenizer: str | None = None
    """SacreBLEU's tokenizer. None: that of the run, or 13a."""
    json: bool = False
    """Print JSON; of --pairs a line for each, with the log-probability of each token."""
    pairs: tuple[Path, Path] | None = None
    """Two aligned files, texts and translations. For each pair the model of the run tells the
    log-probability of the translation, in nats, and a tab and that per token."""
    batch_size: Annotated[int, Range(1, 100_000)] = 64
    """Of --pairs: looked at together, at most."""

    def __post_init__(self) -> None:
        check_fields(self)

    def run(self) -> None:
        """Prints BLEU, BLEU lower-cased and chrF with their signatures; or log-probabilities."""
        if self.pairs:
            self._score_pairs(*self.pairs)
            return
        from flaxattn.translation.text.scoring import (
            check_tokenizer,
            doubt_of_spelling,
            doubt_of_tokenizer,
            score,
        )

        hypotheses, references, tokenizer = self._sources()
        check_tokenizer(tokenizer)
        sides = [read_sides(hypotheses, path) for path in references]
        lines, texts = sides[0][0], [text for _, text in sides]
        doubts = doubt_of_tokenizer(texts[0], tokenizer), doubt_of_spelling(lines, texts[0])
        for doubt in filter(None, doubts):
            SCREEN.warn(doubt)
        found = score(lines, *texts, tokenizer=tokenizer)
        if self.json:
            print(json.dumps({s.name: {"value": s.value, "signature": s.signature} for s in found}))
        else:
            for s in found:
                print(f"{s.name:<8} {s.value:6.2f}  {s.signature}")

    def _score_pairs(self, sources: Path, targets: Path) -> None:
        """Prints a line for each pair; an empty one, or null, where a side is blank."""
        if len(self.files) != 1:
            raise ValueError("--pairs: expected one folder before it, of a run or a model.")
        sides = read_sides(sources, targets)
        scorer = scorer_of(self.files[0], len(sides[0]), self.batch_size)
        from flaxattn.translation.commands.json_lines import of_pair

        for first, *texts in pieces(*sides):
            for found in scorer.score(*texts, first=first):
                if self.json:
                    print(of_pair(scorer.tokenizer, found))
                else:
                    each = found and (found.log_prob, found.log_prob / len(found.tokens))
                    print("\t".join(f"{x:.6f}" for x in each or ()))

    def _sources(self) -> tuple[Path, list[Path], str]:
        if len(self.files) > 1:
            hypotheses, *references = self.files
            return hypotheses, references, self.bleu_tokenizer or BLEU_TOKENIZER
        if len(self.files) != 1 or not self.files[0].is_dir():
            raise ValueError(
                "score: expected the folder of a run, or files: translations and references."
            )
        kept = kept_test(self.files[0])
        return kept.hypothesis, [kept.reference], self.bleu_tokenizer or kept.bleu_tokenizer
