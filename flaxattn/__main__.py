"""The commands: `flaxattn --help`, or `python -m flaxattn --help`."""

import functools
import importlib.util
import sys
from collections.abc import Sequence
from typing import Any

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit code.

    Args:
      arguments: default: those of the process.
    """
    from flaxattn.training.ending import exit_code
    from flaxattn.training.screen import sturdy_streams, warnings_told
    from flaxattn.translation.commands import SCREEN

    words = list(sys.argv[1:] if arguments is None else arguments)
    if [word for word in words if word != "--debug"][:1] == ["train"]:
        words.remove("train")
        return _train(words)
    debug = "--debug" in words
    with sturdy_streams(output=False), warnings_told(SCREEN):
        parsed = [word for word in words if word != "--debug"]
        return exit_code(lambda: _parse(parsed).run(), debug=debug)


def _train(words: list[str]) -> int:
    from flaxattn.translation.cli import main

    return main(_presets(), words, prog="flaxattn train")


def _presets() -> Any:
    """Those of `configs/`, which an installed package has within itself."""
    package = importlib.util.find_spec("flaxattn.configs") and "flaxattn.configs"
    return importlib.import_module(package or "configs").PRESETS


def _parse(words: list[str]) -> Any:
    """The command; how a model is decoded by default is known when its folder is."""
    from flaxattn.translation.commands import Translate, kept_decoding
    from flaxattn.translation.config import check_sampling
    from flaxattn.translation.text.arguments import check_words

    check_words(words)
    command = _command(words, Translate)
    if isinstance(command, Translate):
        decoding = kept_decoding(command.folder)
        if decoding != Translate.decoding:
            command = _command(words, functools.partial(Translate, decoding=decoding))
        check_sampling(command.decoding, decoding)
    return command


def _command(words: list[str], translate: Any) -> Any:
    from flaxattn.training.command_line import parsed
    from flaxattn.translation.commands import Export, Score, Train
    from flaxattn.translation.text.arguments import paths_at_home

    command = parsed(
        {"train": Train, "translate": translate, "score": Score, "export": Export},
        words,
        prog="flaxattn",
        description="Trains translators, and does what one does with a trained one.",
    )
    return paths_at_home(command)


if __name__ == "__main__":
    sys.exit(main())
