"""A mask drawn with characters: its cells, and beside them its blocks."""

import itertools

import numpy as np

from flaxattn.drawing.explain import SYMBOLS, flat, share_skipped
from flaxattn.drawing.gallery import Entry

__all__ = ["draw"]

HALVES = np.array([[" ", "▄"], ["▀", "█"]])  # of the upper and the lower cell
MARGIN = "  "


def draw(name: str, entry: Entry) -> str:
    """An entry of the gallery as text: two queries a line, the plan's blocks to their right.

    >>> print(draw("causal", Entry("causal()", "a decoder", q_len=4, kv_len=4, block=2)))
    causal: a decoder
      causal()
    <BLANKLINE>
      █▄     ▒▒··
      ███▄   ██▒▒
    <BLANKLINE>
      left: what each query sees; right: blocks of 2, 25% of the work skipped
    """
    mask = entry.mask
    plan = mask.plan(entry.q_len, entry.kv_len, block_q=entry.block, block_kv=entry.block)
    cells = _cells(flat(mask.dense(entry.q_len, entry.kv_len))[0])
    blocks = ["".join(row) for row in SYMBOLS[flat(plan.state)[0]].repeat(2, 1)]
    lines = itertools.zip_longest(cells, blocks, fillvalue="")
    first = " (the first of several)" if mask.lead else ""
    return "\n".join(
        [
            *([f"{name}: {entry.words}"] if entry.words else []),
            f"{MARGIN}{entry.code}{first}",
            "",
            *(f"{MARGIN}{left:<{entry.kv_len}}   {right}".rstrip() for left, right in lines),
            "",
            f"{MARGIN}left: what each query sees; right: blocks of {entry.block}, "
            f"{share_skipped(plan):.0%} of the work skipped",
        ]
    )


def _cells(dense: np.ndarray) -> list[str]:
    """bool [T, S] as half as many lines of S characters."""
    even = np.pad(dense, ((0, dense.shape[0] % 2), (0, 0))).astype(int)
    return ["".join(line) for line in HALVES[even[::2], even[1::2]]]
