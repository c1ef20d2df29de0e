"""What one does with the model of a task on the command line: let it write, tag, or label."""

import dataclasses
import itertools
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from flaxattn.tasks.config import SamplingConfig
from flaxattn.tasks.rules import EXPORTED
from flaxattn.text.opening import opened_text
from flaxattn.text.streaming import chunks
from flaxattn.training.screen import printable
from flaxattn.training.storage.layout import RESULT
from flaxattn.training.storage.manifest import read_sealed
from flaxattn.translation.commands.export import Export as ExportTranslator
from flaxattn.translation.commands.screen import SCREEN

if TYPE_CHECKING:
    from flaxattn.tasks.storing import Loaded

__all__ = ["Classify", "Export", "Generate", "Label"]


@dataclasses.dataclass(frozen=True)
class Generate:
    """Goes on with a text, token by token as a language model writes it.

    $ flaxattn generate runs/language "The old"
    $ flaxattn generate runs/language "The old" --temperature 0.7 --top-p 0.9
    $ echo "The old" | flaxattn generate runs/language
    $ flaxattn generate runs/language "The old" --explain attention.html
    """

    folder: tyro.conf.Positional[Path]
    """The folder of a run of the task language, or of its exported model."""
    text: tyro.conf.Positional[str | None] = None
    """The beginning. None: standard input, each line a beginning of its own."""
    explain: Path | None = None
    """Also write a page on which the attention in all of it is seen (.html), or a figure of it in
    one text (.png)."""
    sampling: Annotated[SamplingConfig, tyro.conf.arg(name="")] = SamplingConfig()

    def run(self) -> None:
        """Writes the beginning and what follows it."""
        _check_explained(self.explain, 1)
        loaded = _loaded("language", self.folder)
        from flaxattn.tasks.generating import generate

        given, explained = () if self.text is None else (self.text,), list[str]()
        for text in itertools.chain.from_iterable(_pieces(given, None)):
            explained.append(text)
            _check_explained(self.explain, len(explained))
            sys.stdout.write(_shown(text))
            for piece in generate(loaded, text, self.sampling):
                sys.stdout.write(_shown(piece))
                sys.stdout.flush()
                explained[-1] += piece
            sys.stdout.write("\n")
        _explain(self.explain, loaded, explained)


@dataclasses.dataclass(frozen=True)
class Label:
    """Tags the words of sentences, which are parted by spaces: a word, a tab and its tag a line.

    $ flaxattn label runs/labelling "In Jordan Chelsea broke an arm ."
    $ flaxattn label runs/labelling --input my.txt > my.conll
    $ flaxattn label runs/labelling "In Jordan Chelsea broke an arm ." --explain attention.html
    """

    folder: tyro.conf.Positional[Path]
    """The folder of a run of the task labelling, or of its exported model."""
    texts: tyro.conf.Positional[tuple[str, ...]] = ()
    """Sentences. None: those of --input."""
    input: Path | None = None
    """A file of one sentence per line. None: standard input."""
    explain: Path | None = None
    """Also write a page on which the attention in each sentence is seen (.html), or a figure of it
    in one sentence (.png)."""

    def run(self) -> None:
        """Answers each sentence, in order, with a blank line behind it."""
        _check_explained(self.explain, max(len(self.texts), 1))
        loaded = _loaded("labelling", self.folder)
        from flaxattn.tasks.labelling import label

        explained = list[str]()
        for texts in _pieces(self.texts, self.input):
            _check_explained(self.explain, len(explained) + len(texts))
            sentences = [loaded.tokenizer.normalize_source(text).split() for text in texts]
            for words, tags in zip(sentences, label(loaded, sentences), strict=True):
                for word, tag in zip(words, tags, strict=True):
                    print(f"{_shown(word)}\t{tag}")
                print(flush=True)
            explained += map(" ".join, sentences if self.explain else ())
        _explain(self.explain, loaded, explained)


@dataclasses.dataclass(frozen=True)
class Classify:
    """Gives each text its label, with the probability that the model gives it, and a tab between.

    $ flaxattn classify runs/classification "Although the tea was good, the soup was bad."
    $ flaxattn classify runs/classification --input my.txt --all
    $ flaxattn classify runs/classification "The tea was good." --explain attention.html
    """

    folder: tyro.conf.Positional[Path]
    """The folder of a run of the task classification, or of its exported model."""
    texts: tyro.conf.Positional[tuple[str, ...]] = ()
    """Texts. None: those of --input."""
    input: Path | None = None
    """A file of one text per line. None: standard input."""
    all: bool = False
    """Tell the probability of every label, the likeliest first."""
    explain: Path | None = None
    """Also write a page on which the attention in each text is seen (.html), or a figure of it in
    one text (.png)."""

    def run(self) -> None:
        """Answers each text, in order, with one line."""
        _check_explained(self.explain, max(len(self.texts), 1))
        loaded = _loaded("classification", self.folder)
        from flaxattn.tasks.classification import classify

        explained = list[str]()
        for texts in _pieces(self.texts, self.input):
            _check_explained(self.explain, len(explained) + len(texts))
            normal = [loaded.tokenizer.normalize_source(text) for text in texts]
            for probabilities in classify(loaded, normal):
                ranked = sorted(probabilities.items(), key=lambda item: -item[1])
                told = ranked if self.all else ranked[:1]
                print("\t".join(f"{_shown(name)}\t{share:.4f}" for name, share in told), flush=True)
            explained += normal if self.explain else ()
        _explain(self.explain, loaded, explained)


@dataclasses.dataclass(frozen=True)
class Export(ExportTranslator):
    """Writes the model of a run, of any task, to a folder that stands on its own, with a card.

    $ flaxattn export runs/tiny tiny-en-de
    """

    def run(self) -> None:
        """Writes the folder, or refuses."""
        from flaxattn.tasks.storing import export, load, task_of

        task = task_of(self.run_folder)
        if task is None:
            super().run()
            return
        if task == "spans":  # whose model is one of translation
            path = self.run_folder / EXPORTED
            raise ValueError(f"{path} is an exported model already; copy it.")
        from flaxattn.training.record import is_outdated, run_name

        path = self.run_folder / RESULT
        result = read_sealed(path) if path.exists() and not is_outdated(self.run_folder) else {}
        told = {name: x for name, x in result.items() if name != "sha256"}
        export(self.folder, load(self.run_folder), result=told, name=run_name(self.run_folder))
        SCREEN.say(f"wrote {self.folder}; README.md there tells of it")


def _pieces(texts: Sequence[str], path: Path | None) -> Iterator[Sequence[str]]:
    """The texts that are given, or the lines of a file or of standard input, some at a time.

    Raises:
      ValueError if both are given; FileNotFoundError or ValueError naming file and line.
    """
    if texts and path:
        raise ValueError("--input: expected either a file or texts as arguments, not both.")
    if texts:
        yield texts
    elif path:
        with opened_text(path) as stream:
            yield from chunks(stream, str(path))
    else:
        yield from chunks(sys.stdin.buffer, "standard input")


def _check_explained(path: Path | None, texts: int) -> None:
    """Raises ValueError or FileNotFoundError if so many cannot be explained there, if at all."""
    if path:
        from flaxattn.translation.decoding.explanation import check_target

        check_target(path, texts)


def _explain(path: Path | None, loaded: "Loaded", texts: Sequence[str]) -> None:
    """Writes the page or the figure, if one is wanted."""
    if path is None:
        return
    from flaxattn.tasks.explaining import explain
    from flaxattn.translation.decoding.explanation import write

    size = write(path, [explain(loaded, text) for text in texts if text.strip()])
    SCREEN.say(f"wrote {path}, {size / 1000:,.0f} kB")


def _shown(text: str) -> str:
    return printable(text) if sys.stdout.isatty() else text


def _loaded(task: str, folder: Path) -> "Loaded":
    """The model of a task in a folder.

    Raises:
      ValueError or FileNotFoundError if there is none, it is damaged, or of another task.
    """
    SCREEN.say(f"loading {folder}")
    from flaxattn.memory import keep_freed_memory
    from flaxattn.tasks.storing import load  # so late that help and errors come at once
    from flaxattn.training.devices import describe_devices

    keep_freed_memory()
    loaded = load(folder)
    if loaded.task != task:
        raise ValueError(f"{folder}: its model is of the task {loaded.task}; expected {task}.")
    SCREEN.say(f"on {describe_devices()}; the first text is compiled for")
    return loaded
