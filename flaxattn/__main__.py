"""The commands for a trained model: `flaxattn --help`, or `python -m flaxattn --help`."""

import sys
from collections.abc import Sequence

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit code.

    Args:
      arguments: default: those of the process.
    """
    import tyro

    from flaxattn.translation.commands import Score, Translate

    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    try:
        tyro.extras.subcommand_cli_from_dict(
            {"translate": Translate, "score": Score},
            prog="flaxattn",
            description="What one does with a trained model. To train one: train.py --help.",
            args=[word for word in words if word != "--debug"],
            config=(tyro.conf.OmitArgPrefixes,),
        ).run()
    except (ValueError, OSError) as error:
        if debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
