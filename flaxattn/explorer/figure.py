"""A figure for papers: small multiples of chosen layers and heads, drawn by matplotlib."""

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from flaxattn.explorer.colours import scale
from flaxattn.explorer.seen import Attention

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

__all__ = ["figure", "svg"]

CELL, LABELS = 0.17, 0.75  # inches: of a cell, and of the tokens beside a map
SMALLEST, LARGEST = 1.1, 5.0  # inches: of a map
INK, QUIET, HIDDEN, HATCH = "#25262b", "#6b6d76", "#e9e8e4", "#b3b0aa"


def figure(
    attentions: Sequence[Attention], heads: Sequence[int] | None = None, *, title: str = ""
) -> "Figure":
    """A matplotlib figure, a row of maps for each attention and a column for each head.

    Needs matplotlib. `figure(...).savefig("attention.png", dpi=200)` writes it.

    Args:
      attentions: any, of any lengths.
      heads: which ones; None: all.

    Raises:
      ValueError if there is nothing to draw, or for a head that an attention does not have.

    >>> seen = Attention("attention", ["a", "b"], ["a", "b"], np.ones((4, 2, 2)) / 2)
    >>> len(figure([seen], heads=[0, 3]).axes)  # the third is the scale
    3
    """
    columns = _checked_heads(attentions, heads)
    from matplotlib.colors import ListedColormap

    drawn, axes, cell = _empty(attentions, len(columns), title)
    colours = ListedColormap(scale() / 255.0)
    for row, attention in zip(axes, attentions, strict=True):
        for ax, head in zip(row, columns, strict=True):
            image = _draw_map(ax, attention, head, colours)
            _label(ax, attention, head, size=36 * cell, leftmost=ax is row[0])
    _draw_scale(drawn, image, axes)
    if any(a.hidden(head).any() for a in attentions for head in columns):
        _hidden_legend(drawn)
    return drawn


def svg(attentions: Sequence[Attention], heads: Sequence[int] | None = None) -> bytes:
    """The same figure as an SVG file, the same to the byte each time.

    >>> seen = Attention("attention", ["a", "b"], ["a", "b"], np.ones((4, 2, 2)) / 2)
    >>> svg([seen])[:5]
    b'<?xml'
    """
    import matplotlib as mpl

    file = io.BytesIO()
    with mpl.rc_context({"svg.hashsalt": "attention"}):
        figure(attentions, heads).savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()


def _empty(
    attentions: Sequence[Attention], columns: int, title: str
) -> tuple["Figure", np.ndarray, float]:
    """A figure of a size that suits, the axes of its maps, and the inches of a cell."""
    from matplotlib.figure import Figure

    shapes = np.array([attention.weights.shape[1:] for attention in attentions])
    cell = min(CELL, LARGEST / shapes.max())
    sizes = np.maximum(shapes * cell, SMALLEST)
    heights, width = sizes[:, 0] + LABELS, sizes[:, 1].max() + 0.2
    size = (LABELS + columns * width + 0.8, heights.sum() + 0.5)
    drawn = Figure(figsize=size, layout="constrained", facecolor="white")
    if title:
        drawn.suptitle(title, fontsize=10, color=INK, parse_math=False)
    axes = drawn.subplots(len(attentions), columns, squeeze=False, height_ratios=list(heights))
    return drawn, axes, cell


def _checked_heads(attentions: Sequence[Attention], heads: Sequence[int] | None) -> list[int]:
    if not attentions:
        raise ValueError("attentions: expected at least one.")
    fewest = min(len(attention.weights) for attention in attentions)
    chosen = list(range(fewest) if heads is None else heads)
    if not chosen or not all(0 <= head < fewest for head in chosen):
        raise ValueError(f"heads are {chosen}; expected one or more, from 0 to {fewest - 1}.")
    return chosen


def _draw_map(ax: "Axes", attention: Attention, head: int, colours: "Colormap") -> "AxesImage":
    """The weights, and hatching over what is hidden."""
    from matplotlib.colors import ListedColormap

    weights, hidden = attention.weights[head], attention.hidden(head)
    image = ax.imshow(weights, cmap=colours, vmin=0, vmax=1, interpolation="nearest")
    if hidden.any():
        edges = [np.arange(n + 1) - 0.5 for n in weights.shape]
        ax.pcolor(
            edges[1],
            edges[0],
            np.ma.masked_where(~hidden, np.ones_like(weights)),
            cmap=ListedColormap([HIDDEN]),
            alpha=0.85,
            hatch="//////",
            edgecolor=HATCH,
            linewidth=0,
        )
    return image


def _label(ax: "Axes", attention: Attention, head: int, *, size: float, leftmost: bool) -> None:
    """The tokens as labels; as written, whatever signs of mathematics are in them."""
    text: dict[str, Any] = {"parse_math": False, "color": INK, "fontsize": size}
    queries = list(attention.q_tokens) if leftmost else []
    if leftmost and attention.q_writes is not None:
        queries = [f"{a} → {b}" for a, b in zip(queries, attention.q_writes, strict=True)]
    ax.set_yticks(range(len(queries)), queries, **text)
    keys = list(attention.kv_tokens)
    ax.set_xticks(range(len(keys)), keys, rotation=90, **text)
    ax.tick_params(length=0, pad=2)
    ax.set_title(f"head {head}", fontsize=7, color=QUIET, pad=3)
    if leftmost:
        ax.set_ylabel(f"{attention.kind}\nlayer {attention.layer}", fontsize=7, color=INK)
    for spine in ax.spines.values():
        spine.set(color="#d5d3cd", linewidth=0.5)


def _draw_scale(drawn: "Figure", image: "AxesImage", axes: np.ndarray) -> None:
    shrink = min(1.0, 2.2 / drawn.get_figheight())
    bar = drawn.colorbar(image, ax=list(axes.flat), shrink=shrink, aspect=14, pad=0.02)
    bar.set_label("weight", fontsize=8, color=QUIET)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=7, colors=QUIET, length=2)


def _hidden_legend(drawn: "Figure") -> None:
    from matplotlib.patches import Patch

    patch = Patch(facecolor=HIDDEN, edgecolor=HATCH, hatch="//////", linewidth=0)
    drawn.legend(
        [patch], ["hidden by the mask"], loc="outside lower right", fontsize=7, frameon=False
    )
