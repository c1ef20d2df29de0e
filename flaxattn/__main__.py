"""The commands: `flaxattn --help`, or `python -m flaxattn --help`."""

import functools
import importlib.util
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:  # so late that help comes soon
    from flaxattn.translation.commands.align import Align
    from flaxattn.translation.commands.export import Export
    from flaxattn.translation.commands.score import Score
    from flaxattn.translation.commands.serve import Serve
    from flaxattn.translation.commands.translate import Translate

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit code.

    Args:
      arguments: default: those of the process.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = ["--debug"] * ("--debug" in words)
    words = [word for word in words if word != "--debug"]
    return _train(words[1:] + debug) if words[:1] == ["train"] else _run(words, bool(debug))


def _train(words: list[str]) -> int:
    configs = _configs()
    if words and words[0] in configs.TASKS:
        from flaxattn.tasks.training import main as train_task

        return train_task(words[0], configs.TASKS[words[0]], words[1:])
    from flaxattn.translation.cli import main

    return main(configs.PRESETS, words, prog="flaxattn train", tasks=[*configs.TASKS])


def _run(words: list[str], debug: bool) -> int:
    from flaxattn.training.ending import exit_code
    from flaxattn.training.programs import mending
    from flaxattn.training.screen import sturdy_streams, warnings_told
    from flaxattn.translation.commands.screen import SCREEN

    with sturdy_streams(output=False), warnings_told(SCREEN), mending():
        return exit_code(lambda: _parse(words).run(), debug=debug)


def _configs() -> ModuleType:
    """The presets: `configs/`, which lies in the package where it is installed, else beside it."""
    if importlib.util.find_spec("flaxattn.configs"):
        return importlib.import_module("flaxattn.configs")
    sys.path.insert(0, str(Path(__file__).parents[1]))  # before a `configs` of the person's own
    return importlib.import_module("configs")


def _parse(words: list[str]) -> "Translate | Score | Align | Serve | Export":
    """The command; how a model is decoded by default is known when its folder is."""
    from flaxattn.text.arguments import check_words
    from flaxattn.translation.commands.translate import Translate, kept_decoding
    from flaxattn.translation.config import check_sampling

    check_words(words)
    command = _command(words, Translate)
    if not isinstance(command, Translate):
        return command
    decoding = kept_decoding(command.folder)
    if decoding != Translate.decoding:
        again = _command(words, functools.partial(Translate, decoding=decoding))
        command = cast("Translate", again)
    check_sampling(command.decoding, decoding)
    return command


def _command(
    words: list[str], translate: "Callable[..., Translate]"
) -> "Translate | Score | Align | Serve | Export":
    from flaxattn.tasks.commands import Classify, Export, Generate, Label
    from flaxattn.text.arguments import paths_at_home
    from flaxattn.training.command_line import parsed
    from flaxattn.translation.commands.align import Align
    from flaxattn.translation.commands.compare import Compare
    from flaxattn.translation.commands.score import Score
    from flaxattn.translation.commands.serve import Serve
    from flaxattn.translation.commands.train import Train

    of_translation = {
        "translate": translate,
        "serve": Serve,
        "score": Score,
        "compare": Compare,
        "align": Align,
        "export": Export,
    }
    of_tasks = {"generate": Generate, "label": Label, "classify": Classify}
    command = parsed(
        {"train": Train} | of_translation | of_tasks,
        words,
        prog="flaxattn",
        description="Trains models of text, and does what one does with a trained one.",
    )
    return paths_at_home(command)


if __name__ == "__main__":
    sys.exit(main())
