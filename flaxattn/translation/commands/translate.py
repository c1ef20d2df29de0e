"""Translates texts: arguments, a file, or standard input line by line."""

import contextlib
import dataclasses
import io
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TextIO

import tyro

from flaxattn.ranges import Range, check_fields
from flaxattn.text.opening import check_kind, opened_text
from flaxattn.text.streaming import chunks
from flaxattn.training.screen import printable
from flaxattn.training.storage.apart import check_apart, check_outside, with_partial
from flaxattn.training.storage.files import replacing
from flaxattn.training.storage.json_data import from_older, read_object
from flaxattn.training.storage.layout import CONFIG
from flaxattn.translation.commands.constraint_options import ConstraintOptions, ForTexts
from flaxattn.translation.commands.screen import SCREEN
from flaxattn.translation.config import DecodingConfig
from flaxattn.translation.layout import OF_EXPORTED, OF_RUN, OWN_FOLDERS

if TYPE_CHECKING:
    from flaxattn.training.programs import Programs
    from flaxattn.translation.decoding.translator import Translation
    from flaxattn.translation.trained.loading import Loaded

__all__ = ["Translate", "kept_decoding"]

STDIN, STDOUT = 0, 1
FEW = 8  # rows of a batch that is far from full: each number of rows is compiled for


@dataclasses.dataclass(frozen=True)
class Translate:
    """Translates texts with a trained model: arguments, a file, or standard input line by line.

    $ flaxattn translate runs/tiny "The old man sees a dog."
    $ flaxattn translate runs/tiny --input my.en --output my.de
    $ echo "The old man sees a dog." | flaxattn translate runs/tiny
    $ flaxattn translate runs/tiny "The old man sees a dog." --explain attention.html
    """

    folder: tyro.conf.Positional[Path]
    """The folder of a run, or of an exported model."""
    texts: tyro.conf.Positional[tuple[str, ...]] = ()
    """Texts to translate. None: those of --input."""
    input: Path | None = None
    """A file of one text per line. None: standard input."""
    output: Path | None = None
    """The file to write to; until all is translated, what has been lies beside it, in a file that
    ends in .partial. None: standard output."""
    n_best: Annotated[int, Range(1, 1000)] = 1
    """Translations given for each text, best first, one per line."""
    scores: bool = False
    """Write the score and a tab before each translation."""
    json: bool = False
    """Write a JSON object for each text, on one line: its translations with scores, the
    log-probabilities of their tokens, and word alignments."""
    batch_size: Annotated[int, Range(1, 100_000)] = 64
    """Texts translated together, at most."""
    explain: Path | None = None
    """Also write a page on which the attention in each translation is seen (.html), or a figure
    of it in one translation (.png)."""
    ensemble: tuple[Path, ...] = ()
    """Folders of other models with the same tokenizer, which are asked as well: the mean of their
    probabilities is taken at each token."""
    constraints: Annotated[ConstraintOptions, tyro.conf.arg(name="")] = ConstraintOptions()
    decoding: Annotated[DecodingConfig, tyro.conf.arg(name="")] = DecodingConfig()

    def __post_init__(self) -> None:
        check_fields(self)

    def run(self) -> None:
        """Answers every text, in order; blank lines with blank lines."""
        most = self.decoding.beam_size
        if self.n_best > most and not self.decoding.sampling:
            raise ValueError(
                f"--n-best {self.n_best}: expected at most as many as --beam-size, {most}; or "
                "--sampling."
            )
        if self.texts and self.input:
            raise ValueError("--input: expected either a file or texts as arguments, not both.")
        self._check_explained(len(self.texts))
        if self.input:
            check_kind(self.input)
        if self.ensemble and (self.explain or self.json):
            option = "--explain" if self.explain else "--json"
            raise ValueError(f"{option}: tells of one model; leave out --ensemble.")
        self.constraints.check()
        self._check_files()
        with _opened(self.output) as output, self.constraints.opened() as for_texts:
            loaded, programs = self._loaded()
            explained = self._translate(loaded, programs, output, for_texts)
        if self.explain:
            self._explain(self.explain, loaded, explained)

    def _translate(
        self, loaded: "Loaded", programs: "Programs", output: TextIO, for_texts: ForTexts
    ) -> "list[tuple[str, list[Translation]]]":
        """Writes the translations of every text, and gives both if they are to be explained."""
        from flaxattn.translation.decoding.translator import Translator

        most, few, done = self.batch_size, min(FEW, self.batch_size), 0
        rows = sorted({few if self.input else 1, few, most})
        others = self._others(loaded)
        translator = Translator(
            *loaded, batch_size=most, others=others, programs=programs, rows=rows
        )
        lines, at_limit = self._writer(loaded), list[int]()
        explained: list[tuple[str, list[Translation]]] = []
        for texts in self._pieces():
            self._check_explained(done + len(texts))
            asked = for_texts(len(texts))
            found = translator.translate(texts, n_best=self._sought(), first=done, **asked)
            output.writelines(lines(texts, [best[: self.n_best] for best in found]))
            output.flush()
            numbered = enumerate(found, done + 1)
            at_limit += [number for number, best in numbered if best[0].at_limit]
            done += len(texts)
            explained += zip(texts, found, strict=True) if self.explain else ()
        if at_limit:
            SCREEN.say(_of_limit(at_limit))
        return explained

    def _check_files(self) -> None:
        """Raises ValueError if something would be written over what is read or kept."""
        written: dict[str, Path | int] = {"standard output": STDOUT}
        if self.output:
            written = with_partial("--output", self.output)
        if self.explain:
            written |= with_partial("--explain", self.explain)
        kept = OF_RUN | OF_EXPORTED
        for folder in (self.folder, *self.ensemble):
            check_outside(written, folder, folders=OWN_FOLDERS, names=kept)
        read: dict[str, Path | int] = {**self.constraints.files}
        if not self.texts:
            read |= {"--input": self.input or STDIN}
        check_apart(written, read)

    def _check_explained(self, texts: int) -> None:
        """Raises ValueError if so many texts cannot be explained, if they are to be."""
        if self.explain:
            from flaxattn.translation.decoding.explanation import check_target

            check_target(self.explain, texts)

    def _sought(self) -> int:
        """How many translations of each text."""
        if self.explain is None:
            return self.n_best
        from flaxattn.translation.decoding.explaining import hypotheses_sought

        return max(self.n_best, hypotheses_sought(self.decoding))

    def _explain(
        self, path: Path, loaded: "Loaded", explained: "list[tuple[str, list[Translation]]]"
    ) -> None:
        from flaxattn.translation.decoding.explaining import explain_translations
        from flaxattn.translation.decoding.explanation import write

        model, params, tokenizer, config = loaded
        texts, found = [text for text, _ in explained], [found for _, found in explained]
        size = write(path, explain_translations(model, params, tokenizer, texts, found, config))
        SCREEN.say(f"wrote {path}, {size / 1000:,.0f} kB")

    def _loaded(self) -> "tuple[Loaded, Programs]":
        """The model, to be decoded as the command says, and the programs kept for it."""
        began = time.perf_counter()
        SCREEN.say(f"loading {self.folder}")
        import jax  # so late that help and errors in the command come at once

        from flaxattn.memory import keep_freed_memory
        from flaxattn.training.devices import describe_devices, split_cpu
        from flaxattn.training.programs import keep_programs
        from flaxattn.translation.trained.loading import load

        keep_freed_memory()
        if self.texts or self.input:
            split_cpu(min(len(self.texts) or self.batch_size, self.batch_size))
        programs = keep_programs()
        loaded = load(self.folder, programs)
        size = sum(x.size for x in jax.tree.leaves(loaded.params))
        SCREEN.say(
            f"{size:,} parameters on {describe_devices()}, {time.perf_counter() - began:.1f} s; "
            "texts of a new length are compiled for"
        )
        return loaded._replace(decoding=self.decoding), programs

    def _others(self, loaded: "Loaded") -> "list[Loaded]":
        """The other models of an ensemble; raises ValueError if their tokens are others."""
        from flaxattn.translation.trained.loading import load

        others = [load(folder) for folder in self.ensemble]
        for folder, other in zip(self.ensemble, others, strict=True):
            if other.tokenizer.model != loaded.tokenizer.model:
                raise ValueError(
                    f"--ensemble {folder}: has another tokenizer than {self.folder}; expected the "
                    "same, as models trained on the same text with the same --vocab-size have it."
                )
        return others

    def _pieces(self) -> Iterator[list[str]]:
        if self.texts:
            yield list(self.texts)
        elif self.input:
            with opened_text(self.input) as stream:
                yield from chunks(stream, str(self.input))
        else:
            if sys.stdin.isatty():
                SCREEN.say("type a text and press enter; end with control-D")
            yield from chunks(sys.stdin.buffer, "standard input")

    def _writer(
        self, loaded: "Loaded"
    ) -> "Callable[[list[str], list[list[Translation]]], Iterator[str]]":
        """What gives the lines that are written of some texts and what was found of each."""
        if not self.json:
            return lambda texts, found: (self._line(one) for several in found for one in several)
        from flaxattn.translation.commands.json_lines import of_translations
        from flaxattn.translation.decoding.forced import PairScorer

        scorer = PairScorer(*loaded, batch_size=self.batch_size)
        return lambda texts, found: (f"{x}\n" for x in of_translations(scorer, texts, found))

    def _line(self, translation: "Translation") -> str:
        seen = not self.output and sys.stdout.isatty()
        text = printable(translation.text) if seen else translation.text
        return f"{translation.score:.4f}\t" * self.scores + f"{text}\n"


def kept_decoding(folder: Path) -> DecodingConfig:
    """How the model in `folder` is to be decoded, as far as its `config.json` says.

    Of an exported model this is checked against the manifest when it is loaded.

    Raises:
      ValueError if that is damaged.
    """
    from flaxattn.translation.trained.loading import is_exported
    from flaxattn.translation.trained.record import read_run

    path = folder / CONFIG
    if not path.is_file():
        return DecodingConfig()
    if not is_exported(folder):
        return read_run(folder).decoding
    return from_older(DecodingConfig, read_object(path).get("decoding", {}), f"{path}, decoding")


def _of_limit(numbers: list[int]) -> str:
    shown = ", ".join(map(str, numbers[:5])) + ", ..." * (len(numbers) > 5)
    several = "s" * (len(numbers) > 1)
    return (
        f"{len(numbers)} translation{several} (of text {shown}) ended at the limit of length; "
        "--max-ratio raises it"
    )


@contextlib.contextmanager
def _opened(path: Path | None) -> Iterator[TextIO]:
    """The file at a path, which is replaced once all is in it, or standard output."""
    if path is None:
        yield sys.stdout
        return
    kept = lambda partial: SCREEN.say(f"what was translated is kept in {partial}")  # noqa: E731
    with replacing(path, kept) as file:
        text = io.TextIOWrapper(file, "utf-8", write_through=True)
        try:
            yield text
        finally:
            text.detach()  # else it would close the file
