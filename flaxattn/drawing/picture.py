"""Masks and scores as pictures: cells and blocks, or what becomes of logits.

The one file here that needs matplotlib, and so the one that `flaxattn.drawing` does not import by
itself.
"""

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from flaxattn.drawing.explain import flat, share_skipped
from flaxattn.drawing.gallery import Entry
from flaxattn.drawing.scored import LOGITS, curves, differs, heat
from flaxattn.masks import BlockPlan, Mask, full
from flaxattn.scores import Score

__all__ = ["Picture", "show", "show_all", "show_entry", "show_score"]

SEEN, PARTIAL, HIDDEN, LINE, INK = "#2f6db5", "#bcd3ee", "#f3f4f6", "#ffffff", "#1f2933"
SHADES = LinearSegmentedColormap.from_list("shades", ["#dfe9f5", SEEN, "#123a6b"])
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


def show_score(score: Score, q_len: int, kv_len: int, *, mask: Mask | None = None) -> Picture:
    """Draws what becomes of a logit of 0 for each query and key, and beside it of other logits.

    Args:
      score: of which the first few examples and heads are drawn, if it has several.
      q_len, kv_len: T and S.
      mask: what it hides is left out.

    >>> from flaxattn.drawing.picture import show_score
    >>> cells, curves = show_score(alibi(0.5), 12, 12, mask=causal()).axes
    >>> cells.get_title("left"), [text.get_text() for text in curves.get_legend().texts]
    ('0 becomes -5.5 to 0', ['itself', '5 back', '11 back'])
    """
    cells = heat(score, full() if mask is None else mask, q_len, kv_len)
    lead = cells.shape[:2]
    places = list(np.ndindex(lead))[:MOST_ROWS]
    count = len(places)
    figure = Picture(figsize=(2 * SIZE + 0.6, SIZE * count + 0.5), layout="constrained")
    axes = figure.subplots(count, 2, squeeze=False)
    for row, place in enumerate(places):
        _draw_heat(axes[row, 0], cells[place])
        _draw_curves(axes[row, 1], score, cells[place], place)
        became = ": ".join(filter(None, (_place(lead, row), _became(cells[place]))))
        axes[row, 0].set_title(became, fontsize=9, color=INK, loc="left")
    axes[0, 1].set_title("and other logits", fontsize=9, color=INK, loc="left")
    return figure


def show_entry(entry: Entry) -> Picture:
    """Draws an entry of the gallery, a mask or a score."""
    if isinstance(value := entry.value, Score):
        return show_score(value, entry.q_len, entry.kv_len, mask=entry.mask)
    return show(value, entry.q_len, entry.kv_len, block=entry.block)


def show_all(entries: Mapping[str, Entry], *, columns: int = 4) -> Picture:
    """Draws entries of the gallery in one picture, each under its name: the first of several.

    Of a mask the cells; of a score what becomes of a logit of 0, or of others if 0 stays one thing.
    """
    rows = -(-len(entries) // columns)
    size = (columns * (SIZE - 0.5), rows * (SIZE - 0.2))
    figure = Picture(figsize=size, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis, (name, entry) in zip(axes, entries.items(), strict=False):
        _draw_entry(axis, entry)
        axis.set_title(name, fontsize=8, color=INK, family="monospace")
    for axis in axes[len(entries) :]:
        axis.set_visible(False)
    return figure


def _draw_entry(axis: Axes, entry: Entry) -> None:
    """The panel of an entry among others."""
    value = entry.value
    if isinstance(value, Mask):
        _draw_cells(axis, flat(value.dense(entry.q_len, entry.kv_len))[0], labels=False)
        return
    cells = heat(value, entry.mask, entry.q_len, entry.kv_len)
    if differs(cells[0, 0]):
        _draw_heat(axis, cells[0, 0], labels=False)
        return
    for place in list(np.ndindex(cells.shape[:2]))[:MOST_ROWS]:
        _draw_curves(axis, value, cells[place], place, labels=False)


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
    _finish(axis, width, height, labels=labels)


def _draw_heat(axis: Axes, cells: np.ndarray, *, labels: bool = True) -> None:
    """A square for each pair that is seen, the darker the higher its logit."""
    height, width = cells.shape
    _frame(axis, width, height)
    if cells.size:
        axis.imshow(np.ma.masked_invalid(cells), SHADES, extent=(0, width, height, 0))
    _finish(axis, width, height, labels=labels)


def _finish(axis: Axes, width: int, height: int, *, labels: bool) -> None:
    """Lines between cells, and what the axes are."""
    if max(height, width) <= GRID_UP_TO:
        lines: dict[str, Any] = {"colors": LINE, "linewidth": 0.6}
        axis.hlines(np.arange(1, height), 0, width, **lines)
        axis.vlines(np.arange(1, width), 0, height, **lines)
    if labels:
        axis.set_xlabel("key", fontsize=8, color=INK)
        axis.set_ylabel("query", fontsize=8, color=INK)


def _draw_curves(
    axis: Axes, score: Score, cells: np.ndarray, place: tuple[int, int], *, labels: bool = True
) -> None:
    """New logits against logits, of keys near and far if they are not the same."""
    distances, new = curves(score, cells, place)
    if len(new) and np.allclose(new, new[0]):
        distances, new = distances[:1], new[:1]
    names = [f"{d} back" if d > 0 else f"{-d} ahead" if d else "itself" for d in distances]
    axis.axline((0, 0), slope=1, color=PARTIAL, linewidth=0.8, linestyle="--", label="_")
    for line, name, dark in zip(new, names, (1.0, 0.5, 0.15), strict=False):
        axis.plot(LOGITS, line, color=SHADES(dark), linewidth=1.6, label=name)
    ends, ticks = (LOGITS[0], LOGITS[-1]), LOGITS[::10]
    axis.set(xlim=ends, ylim=ends, xticks=ticks, yticks=ticks, aspect="equal")
    axis.tick_params(labelsize=6, colors=INK, length=2)
    for spine in axis.spines.values():
        spine.set_color(PARTIAL)
    if labels and len(new) > 1:
        axis.legend(fontsize=6, frameon=False)
    if labels:
        axis.set_xlabel("logit: dashed, as it was", fontsize=8, color=INK)


def _became(cells: np.ndarray) -> str:
    """What becomes of a logit of 0, in words."""
    if np.isnan(cells).all():
        return "nothing is seen"
    low, high = np.nanmin(cells), np.nanmax(cells)
    return f"0 becomes {low:.3g}" + (f" to {high:.3g}" if differs(cells) else "")


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
