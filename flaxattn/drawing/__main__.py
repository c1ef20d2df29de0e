"""The gallery of masks and scores: `python -m flaxattn.drawing`."""

import argparse
import difflib
import sys
from collections.abc import Sequence
from pathlib import Path

from flaxattn.drawing.gallery import GALLERY, Entry, save
from flaxattn.drawing.terminal import draw

__all__ = ["main"]

EXAMPLES = """examples:
  python -m flaxattn.drawing                                   the whole gallery
  python -m flaxattn.drawing causal longformer                 some of it
  python -m flaxattn.drawing "causal() & sliding_window(3)"    a mask of one's own
  python -m flaxattn.drawing "alibi(0.5) >> softcap(9.0)"      a score
  python -m flaxattn.drawing --output pictures                 PNG files as well (needs matplotlib)
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Draws masks and scores in the terminal and to PNG; returns the exit code.

    Args:
      arguments: default: those of the process.
    """
    parser = argparse.ArgumentParser(
        prog="python -m flaxattn.drawing",
        description="Draws masks: what each query sees, and beside it the blocks of the plan, "
        "where · is empty and skipped, ▒ partial and █ full; and scores: what becomes of a logit.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", help=f"of: {', '.join(GALLERY)}; or an expression")
    parser.add_argument("--length", type=int, default=24, help="of expressions (default: 24)")
    parser.add_argument("--output", type=Path, help="a folder to write a PNG of each to")
    options = parser.parse_args(arguments)
    try:
        entries = {word: _entry(word, options.length) for word in options.names} or GALLERY
        print("\n\n\n".join(draw(name, entry) for name, entry in entries.items()))
        if options.output:
            files = save(options.output, entries)
            print(f"\nwrote {len(files)} pictures to {options.output}", file=sys.stderr)
    except (ImportError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _entry(word: str, length: int) -> Entry:
    """An entry of the gallery, or one for an expression."""
    if word in GALLERY:
        return GALLERY[word]
    if "(" not in word:
        near = difflib.get_close_matches(word, GALLERY, 1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(
            f"{word!r} is not in the gallery; expected one of {', '.join(GALLERY)}, or an "
            f"expression such as 'causal() & sliding_window(3)'.{hint}"
        )
    if length < 1:
        raise ValueError(f"--length is {length}; expected at least 1.")
    return Entry(word, "", length, length, max(1, length // 6))


if __name__ == "__main__":
    sys.exit(main())
