"""The page of a run: one file that stands alone, without a script and without network."""

import base64
import html
import importlib.resources
import itertools
import string
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from flaxattn.pages import style_of
from flaxattn.training.report.curves import KINDS, Curve, curves_of, drawn
from flaxattn.training.task import Picture

__all__ = ["page"]

Row = Mapping[str, Any]


def page(
    name: str,
    headline: str,
    result: Row,
    rows: Sequence[Row],
    unit: str,
    lines: Sequence[str] = (),
    pictures: Sequence[Picture] = (),
) -> str:
    """The HTML of a page on a run that has ended.

    Args:
      name: of the run.
      headline, lines: what the test said.
      result: the row of results.
      rows: those of its log.
      unit: what its log counts.
    """
    parts = {
        "result": _table(result),
        "curves": "".join(map(_curve, curves_of(rows, unit))),
        "samples": _samples([row for row in rows if row["kind"] == "sample"]),
        "pictures": "".join(map(_picture, pictures)),
        "lines": f"<pre>{_text(chr(10).join(lines).strip(chr(10)))}</pre>" if lines else "",
    }
    sections = (_section(title, parts[part]) for part, title in TITLES.items())
    return string.Template(_file("page.html")).substitute(
        name=_text(name),
        headline=_text(headline),
        style=style_of(__package__, "page.css"),
        sections="\n".join(filter(None, sections)),
    )


TITLES = {
    "curves": "How it learned",
    "samples": "What it made of validation examples",
    "pictures": "What it attends to",
    "lines": "The test",
    "result": "The run",
}


def _file(name: str) -> str:
    return importlib.resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def _text(value: object) -> str:
    return html.escape(str(value))


def _section(title: str, content: str) -> str:
    return f"<section><h2>{title}</h2>{content}</section>" if content else ""


def _table(values: Row) -> str:
    cells = (f"<dt>{_text(key)}</dt><dd>{_text(value)}</dd>" for key, value in _flat(values))
    return f"<dl>{''.join(cells)}</dl>"


def _flat(values: Row, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        name = f"{prefix}{key}".replace("_", " ")
        if isinstance(value, Mapping):
            yield from _flat(value, f"{name}, ")
        else:
            yield name, value


def _curve(curve: Curve) -> str:
    last = ", ".join(
        f'<span class="{kind}">{KINDS[kind]} {values[-1]:.4g}</span>'
        for kind, (_, values) in curve.lines.items()
    )
    title = _text(curve.name.replace("_", " "))
    said = f"<figcaption><b>{title}</b> {last}</figcaption>"
    return f"<figure>{said}{drawn(curve)}</figure>"


def _samples(rows: Sequence[Row]) -> str:
    """Of each example what stays the same, and how what the model made of it changed."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        *given, _ = _values(row)
        found.setdefault(repr(given), []).append(row)
    return "".join(map(_sample, found.values()))


def _values(row: Row) -> list[tuple[str, Any]]:
    return [(key, value) for key, value in row.items() if key not in ("kind", "step")]


def _sample(rows: Sequence[Row]) -> str:
    *given, (name, _) = _values(rows[0])
    made = [(row["step"], _values(row)[-1][1]) for row in rows]
    changes = [next(group) for _, group in itertools.groupby(made, key=lambda pair: pair[1])]
    cells = [*given, *((f"{name}, step {step}", text) for step, text in changes)]
    return f"<article>{_table(dict(cells))}</article>"


def _picture(picture: Picture) -> str:
    caption, data = _text(picture.caption), base64.b64encode(picture.svg).decode("ascii")
    image = f'<img alt="{caption}" src="data:image/svg+xml;base64,{data}">'
    return f"<figure class=wide><figcaption>{caption}</figcaption>{image}</figure>"
