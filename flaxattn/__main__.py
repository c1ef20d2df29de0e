"""The commands for a trained model: `flaxattn --help`, or `python -m flaxattn --help`."""

import functools
import sys
import warnings
from collections.abc import Sequence
from typing import Any

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit code.

    Args:
      arguments: default: those of the process.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            _parse([word for word in words if word != "--debug"]).run()
    except (ValueError, OSError) as error:
        if debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return 130
    return 0


def _parse(words: list[str]) -> Any:
    """The command; how a model is decoded by default is known when its folder is."""
    from flaxattn.translation.commands import Translate, kept_decoding

    command = _command(words, Translate)
    if isinstance(command, Translate):
        decoding = kept_decoding(command.folder)
        if decoding != Translate.decoding:
            return _command(words, functools.partial(Translate, decoding=decoding))
    return command


def _command(words: list[str], translate: Any) -> Any:
    import tyro

    from flaxattn.translation.commands import Export, Score

    return tyro.extras.subcommand_cli_from_dict(
        {"translate": translate, "score": Score, "export": Export},
        prog="flaxattn",
        description="What one does with a trained model. To train one: train.py --help.",
        args=words,
        config=(tyro.conf.OmitArgPrefixes,),
    )


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"flaxattn: warning: {message}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
