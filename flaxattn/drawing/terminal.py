"""Masks and scores drawn with characters: cells and blocks, and shades of what is added."""

import itertools

import numpy as np

from flaxattn.drawing.explain import SYMBOLS, flat, share_skipped
from flaxattn.drawing.gallery import Entry
from flaxattn.drawing.scored import LOGITS, curves, differs, heat
from flaxattn.masks import Mask
from flaxattn.scores import Score

__all__ = ["draw"]

HALVES = np.array([[" ", "▄"], ["▀", "█"]])  # of the upper and the lower cell
SHADES = np.array([" ", "░", "▒", "▓", "█"])  # hidden, and from the least to the most
MARGIN = "  "


def draw(name: str, entry: Entry) -> str:
    """An entry of the gallery as text.

    Of a mask two queries a line, the plan's blocks to their right; of a score what becomes of a
    logit of 0, or of several.

    >>> print(draw("causal", Entry("causal()", "a decoder", q_len=4, kv_len=4, block=2)))
    causal: a decoder
      causal()
    <BLANKLINE>
      █▄     ▒▒··
      ███▄   ██▒▒
    <BLANKLINE>
      left: what each query sees; right: blocks of 2, 25% of the work skipped
    """
    value = entry.value
    under = f", under {entry.under}" if isinstance(value, Score) and entry.under != "full()" else ""
    first = " (the first of several)" if value.lead else ""
    lines = _of_score(value, entry) if isinstance(value, Score) else _of_mask(value, entry)
    return "\n".join(
        [
            *([f"{name}: {entry.words}"] if entry.words else []),
            f"{MARGIN}{entry.code}{under}{first}",
            "",
            *(f"{MARGIN}{line}".rstrip() for line in lines),
        ]
    )


def _of_mask(mask: Mask, entry: Entry) -> list[str]:
    """The cells, and to their right the blocks."""
    plan = mask.plan(entry.q_len, entry.kv_len, block_q=entry.block, block_kv=entry.block)
    cells = _cells(flat(mask.dense(entry.q_len, entry.kv_len))[0])
    blocks = ["".join(row) for row in SYMBOLS[flat(plan.state)[0]].repeat(2, 1)]
    lines = itertools.zip_longest(cells, blocks, fillvalue="")
    return [
        *(f"{left:<{entry.kv_len}}   {right}" for left, right in lines),
        "",
        f"left: what each query sees; right: blocks of {entry.block}, "
        f"{share_skipped(plan):.0%} of the work skipped",
    ]


def _of_score(score: Score, entry: Entry) -> list[str]:
    """Shades of what becomes of a logit of 0; where that is one thing, numbers for other logits."""
    cells = heat(score, entry.mask, entry.q_len, entry.kv_len)[0, 0]
    if np.isnan(cells).all():
        return ["nothing is seen"]
    if not differs(cells):
        rows = {"logit": LOGITS, "becomes": curves(score, cells, (0, 0))[1][0]}
        return [f"{word:<8}" + "".join(f"{x:8.2f}" for x in rows[word][::5]) for word in rows]
    low, high = np.nanmin(cells), np.nanmax(cells)
    levels = np.where(np.isnan(cells), -1, (cells - low) / (high - low) * 3).round().astype(int)
    return [
        *("".join(row) for row in SHADES[levels[1::2] + 1]),
        "",
        f"every second query; a logit of 0 becomes {low:.2f} {SHADES[1]} to {high:.2f} {SHADES[4]}",
    ]


def _cells(dense: np.ndarray) -> list[str]:
    """bool [T, S] as half as many lines of S characters."""
    even = np.pad(dense, ((0, dense.shape[0] % 2), (0, 0))).astype(int)
    return ["".join(line) for line in HALVES[even[::2], even[1::2]]]
