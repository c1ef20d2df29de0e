"""Every pattern and some compositions: each entry is code, and its pictures are drawn from it."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

import flaxattn.masks
from flaxattn.masks import Mask

__all__ = ["GALLERY", "Entry", "evaluate", "save"]


@dataclasses.dataclass(frozen=True)
class Entry:
    """A mask as one would write it, with the lengths it is drawn at."""

    code: str
    """An expression of flaxattn's masks and `np`."""
    words: str
    """What it is for."""
    q_len: int = 24
    kv_len: int = 24
    block: int = 4
    """Queries and keys of a block of the plan."""

    @property
    def mask(self) -> Mask:
        """What the code gives.

        Raises:
          ValueError if it gives no mask, or nothing at all.
        """
        return evaluate(self.code)


def evaluate(code: str) -> Mask:
    """The mask that an expression of flaxattn's masks and `np` gives: it is run as Python.

    Raises:
      ValueError if the expression cannot be understood, or gives no mask.

    >>> evaluate("causal() & sliding_window(3)")
    (causal() & sliding_window(left=3, right=3))
    """
    names: dict[str, Any] = {n: v for n, v in vars(flaxattn.masks).items() if not n.startswith("_")}
    try:
        mask = eval(code, names | {"np": np})  # the person's own words, or those below
    except Exception as error:
        raise ValueError(f"{code!r} gives no mask: {type(error).__name__}: {error}") from error
    if not isinstance(mask, Mask):
        raise ValueError(f"{code!r} gives a {type(mask).__name__}; expected a mask.")
    return mask


_DOCUMENTS = "np.repeat([1, 2, 3, 0], [9, 6, 5, 4])"

GALLERY = {
    "full": Entry("full()", "everything is seen: an encoder without padding"),
    "causal": Entry("causal()", "itself and what is before: a decoder"),
    "sliding_window": Entry("sliding_window(4)", "the neighbours on both sides"),
    "prefix": Entry("prefix(9)", "the first keys alone"),
    "chunked": Entry("chunked(8)", "the own chunk alone"),
    "dilated": Entry("dilated(3)", "every third key, counted from the own place"),
    "lengths": Entry("lengths(q_lengths=20, kv_lengths=14)", "what padding leaves"),
    "valid": Entry("valid(np.arange(24) % 9 < 6)", "keys chosen one by one"),
    "same_segment": Entry(f"same_segment({_DOCUMENTS})", "packed documents; 0 is padding"),
    "global_tokens": Entry("global_tokens(3)", "a few that see all and are seen by all"),
    "from_dense": Entry("from_dense(np.eye(24, dtype=bool)[::-1])", "any array of booleans"),
    "where": Entry(
        "where(lambda q, kv: (q - kv) & (q - kv - 1) == 0) & causal()",
        "a rule of one's own: 0, 1, 2, 4, 8 ... steps back (LogSparse, arXiv:1907.00235)",
    ),
    "causal_window": Entry("causal() & sliding_window(6)", "the last few (Mistral, Gemma)"),
    "packed_causal": Entry(f"causal() & same_segment({_DOCUMENTS})", "packed decoder rows"),
    "prefix_lm": Entry("causal() | prefix(7)", "a prefix read both ways (T5, arXiv:1910.10683)"),
    "block_causal": Entry("causal() | chunked(6)", "frames: each sees itself and those before"),
    "strided": Entry(
        "causal() & (sliding_window(5) | dilated(6))",
        "the last few and every sixth (Sparse Transformer, arXiv:1904.10509)",
    ),
    "longformer": Entry(
        "sliding_window(3) | global_tokens(2)", "neighbours and a few for all, arXiv:2004.05150"
    ),
    "attention_sinks": Entry(
        "causal() & (sliding_window(6) | prefix(2))",
        "the last few and the very first (StreamingLLM, arXiv:2309.17453)",
    ),
    "cross": Entry(
        "same_segment(np.repeat([1, 2, 3, 0], [7, 6, 5, 6]), np.repeat([1, 2, 3], [8, 4, 6]))",
        "packed translations see their own sources",
        kv_len=18,
    ),
    "decoding": Entry("causal().shift(q_start=16)", "four tokens more, after 16", q_len=4),
    "positions": Entry(
        "causal().at(*[np.r_[0:4, 20:24, 4:8, 16:20, 8:16]] * 2)",
        "a row in zigzag order, shared out evenly among devices",
    ),
    "heads": Entry(
        "causal() & sliding_window(np.array([[1, 5, 12]]))", "a window of its own for each head"
    ),
    "not": Entry("~sliding_window(4)", "the opposite of a mask"),
}


def save(folder: Path, entries: Mapping[str, Entry] = GALLERY) -> list[Path]:
    """Writes a PNG for each entry, and `gallery.png` of all together; needs matplotlib.

    Args:
      folder: made if it is not there.

    Returns:
      The files. The names of entries that are no names of files are replaced by numbers.
    """
    from flaxattn.drawing.picture import show, show_all  # only pictures need matplotlib

    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for number, (name, entry) in enumerate(entries.items(), 1):
        file = folder / f"{name if name.isidentifier() else number}.png"
        show(entry.mask, entry.q_len, entry.kv_len, block=entry.block).savefig(file, dpi=110)
        files.append(file)
    if len(entries) > 1:
        masks = {name: (entry.mask, entry.q_len, entry.kv_len) for name, entry in entries.items()}
        files.append(folder / "gallery.png")
        show_all(masks).savefig(files[-1], dpi=110)
    return files
