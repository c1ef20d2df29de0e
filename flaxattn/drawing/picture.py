"""A mask as a picture: its cells, and beside them the blocks that its plan knows.

The one file here that needs matplotlib, and so the one that `flaxattn.drawing` does not import by
itself.
"""

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from flaxattn.drawing.explain import flat, share_skipped
from flaxattn.masks import BlockPlan, Mask

__all__ = ["Picture", "show", "show_all"]

SEEN, PARTIAL, HIDDEN, LINE, INK = "#2f6db5", "#bcd3ee", "#f3f4f6", "#ffffff", "#1f2933"
MOST_ROWS = 4  # of examples and heads
GRID_UP_TO = 64  # finer cells are drawn without lines between them
SIZE = 2.6  # inches of a panel


class Picture(Figure):
    """A matplotlib figure that shows itself as the result of a notebook's cell."""

    def _repr_png_(self) -> bytes:
        file = io.BytesIO()
        self.savefig(file, format="png", dpi=110)
        return file.getvalue()


def show(mask: Mask, q_len: int, kv_len: int, *, block: int | None = None) -> Picture:
    """Draws which keys each query sees, and beside it which blocks are empty, partial and full.

    Args:
      mask: of which the first few examples and heads are drawn, if it has several.
      q_len, kv_len: T and S.
      block: queries and keys of a block; default: about a sixth of the longer side, since the
        hundreds that `attend` takes would be one block of a small picture.

    Raises:
      ValueError if an array inside the mask is shorter than the positions asked for.

    >>> from flaxattn.drawing.picture import show
    >>> cells, blocks = show(causal() & sliding_window(3), 12, 12).axes
    >>> blocks.get_title("left")
    'blocks of 2: 58% of the work skipped'
    """
    plan = _plan(mask, q_len, kv_len, block)
    cells = flat(mask.dense(q_len, kv_len))
    states = flat(plan.state)
    count = min(max(len(cells), len(states)), MOST_ROWS)
    figure = Picture(figsize=(2 * SIZE + 0.6, SIZE * count + 0.5), layout="constrained")
    axes = figure.subplots(count, 2, squeeze=False)
    for row in range(count):
        _draw_cells(axes[row, 0], cells[row % len(cells)])
        _draw_blocks(axes[row, 1], states[row % len(states)], plan)
        seen = ": ".join(filter(None, (_place(mask.lead, row), "what each query sees")))
        axes[row, 0].set_title(seen, fontsize=9, color=INK, loc="left")
    axes[0, 1].set_title(_skipped(plan), fontsize=9, color=INK, loc="left")
    return figure


def show_all(masks: Mapping[str, tuple[Mask, int, int]], *, columns: int = 4) -> Picture:
    """Draws the cells of many masks in one picture, each under its name.

    Args:
      masks: name -> (mask, q_len, kv_len); of several examples or heads the first is drawn.
    """
    rows = -(-len(masks) // columns)
    size = (columns * (SIZE - 0.5), rows * (SIZE - 0.2))
    figure = Picture(figsize=size, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis, (name, (mask, q_len, kv_len)) in zip(axes, masks.items(), strict=False):
        _draw_cells(axis, flat(mask.dense(q_len, kv_len))[0], labels=False)
        axis.set_title(name, fontsize=8, color=INK, family="monospace")
    for axis in axes[len(masks) :]:
        axis.set_visible(False)
    return figure


def _plan(mask: Mask, q_len: int, kv_len: int, block: int | None) -> BlockPlan:
    size = block or max(1, round(max(q_len, kv_len) / 6))
    return mask.plan(q_len, kv_len, block_q=size, block_kv=size)


def _place(lead: tuple[int, ...], row: int) -> str:
    """Which example and head a row of the picture is, of a mask with such leading axes."""
    index = np.unravel_index(row, lead)
    names = zip(("example", "head"), index, lead, strict=False)
    return ", ".join(f"{name} {i}" for name, i, size in names if size > 1)


def _skipped(plan: BlockPlan) -> str:
    return f"blocks of {plan.block_q}: {share_skipped(plan):.0%} of the work skipped"


def _draw_cells(axis: Axes, cells: np.ndarray, *, labels: bool = True) -> None:
    """A square for each pair of a query (downwards) and a key (to the right)."""
    height, width = cells.shape
    _frame(axis, width, height)
    for t, s in zip(*np.nonzero(cells), strict=True):
        axis.add_patch(Rectangle((s, t), 1, 1, color=SEEN, linewidth=0))
    if max(height, width) <= GRID_UP_TO:
        lines: dict[str, Any] = {"colors": LINE, "linewidth": 0.6}
        axis.hlines(np.arange(1, height), 0, width, **lines)
        axis.vlines(np.arange(1, width), 0, height, **lines)
    if labels:
        axis.set_xlabel("key", fontsize=8, color=INK)
        axis.set_ylabel("query", fontsize=8, color=INK)


def _draw_blocks(axis: Axes, state: np.ndarray, plan: BlockPlan) -> None:
    """A square for each block: left out where it is empty, hatched where it is partial."""
    _frame(axis, plan.kv_len, plan.q_len)
    looks: dict[int, dict[str, Any]] = {
        1: {"facecolor": PARTIAL, "edgecolor": SEEN, "hatch": "////", "linewidth": 0},
        2: {"facecolor": SEEN, "linewidth": 0},
    }
    for (i, j), kind in np.ndenumerate(state):
        corner = (j * plan.block_kv, i * plan.block_q)
        size = (plan.block_kv, plan.block_q)
        if kind:
            axis.add_patch(Rectangle(corner, *size, **looks[int(kind)]))
        axis.add_patch(Rectangle(corner, *size, fill=False, edgecolor=LINE, linewidth=1.2))
    axis.set_xlabel("empty: skipped   hatched: partial   solid: full", fontsize=8, color=INK)


def _frame(axis: Axes, width: int, height: int) -> None:
    axis.set(
        xlim=(0, max(width, 1)), ylim=(max(height, 1), 0), xticks=[], yticks=[], aspect="equal"
    )
    axis.set_facecolor(HIDDEN)
    for spine in axis.spines.values():
        spine.set_visible(False)
