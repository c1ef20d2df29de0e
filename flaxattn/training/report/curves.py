"""How values went while a model learned, drawn as SVG that takes the colours of its page."""

import io
import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["KINDS", "Curve", "curves_of", "drawn"]

KINDS = {"train": "training", "valid": "validation"}
APART = {"step", "skipped"}  # numbers that are no curves
WIDTH, HEIGHT = 4.2, 2.3  # inches
# What matplotlib is told, and what the page's style has instead.
COLOURS = {"#010203": "var(--quiet)", "#040506": "var(--line)"}
LINES = {"train": ("#070809", "var(--first)"), "valid": ("#0a0b0c", "var(--second)")}


class Curve(NamedTuple):
    """The values of one name, e.g. `loss`."""

    name: str
    lines: Mapping[str, tuple[list[int], list[float]]]
    """Of each kind, `train` and `valid`, the steps and what was seen there."""


def curves_of(rows: Sequence[Mapping[str, Any]], unit: str) -> list[Curve]:
    """The curves in the rows of a log, in the order in which they come there.

    Args:
      unit: what is counted, which is no curve.

    >>> curves_of([{"kind": "valid", "step": 2, "loss": 4.0, "tokens": 9}], "tokens")
    [Curve(name='loss', lines={'valid': ([2], [4.0])})]
    """
    found: dict[str, dict[str, tuple[list[int], list[float]]]] = {}
    for row in rows:
        if row["kind"] not in KINDS:
            continue
        for name, value in row.items():
            if name not in APART | {unit} and isinstance(value, int | float):
                lines = found.setdefault(name, {})
                steps, values = lines.setdefault(row["kind"], ([], []))
                steps.append(row["step"])
                values.append(value)
    return [
        Curve(name, lines)
        for name, lines in found.items()
        if not any(lines == found[other] for other in itertools.takewhile(name.__ne__, found))
    ]


def drawn(curve: Curve) -> str:
    """The curve as an `svg` element."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": curve.name}):
        figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
        figure.patch.set_alpha(0)
        _draw(figure.subplots(), curve)
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    svg = file.getvalue()
    for told, meant in (*COLOURS.items(), *LINES.values()):
        svg = svg.replace(told, meant)
    return svg[svg.index("<svg") :]


def _draw(ax: "Axes", curve: Curve) -> None:
    quiet, faint = COLOURS
    for kind, (steps, values) in curve.lines.items():
        alone = len(steps) == 1
        ax.plot(steps, values, color=LINES[kind][0], linewidth=1.4, marker="o" if alone else "")
    shown = [value for _, values in curve.lines.values() for value in values]
    if 0 < min(shown) < max(shown) / 50 and max(shown) > 1:  # not shares, nor rates
        ax.set_yscale("log")
    ax.patch.set_alpha(0)
    ax.set_xlabel("step", color=quiet, fontsize=8)
    ax.tick_params(colors=quiet, labelsize=8, length=0, which="both")
    ax.grid(color=faint, linewidth=0.6)
    for spine in ax.spines.values():
        spine.set_visible(False)
