"""What `accelerator.py` has found: kept row by row, and drawn as tables."""

import json
import os
import pathlib
from collections.abc import Iterable
from typing import Any

__all__ = ["Record"]


class Record:
    """Rows by the names of their jobs, in a file that is written anew with each of them.

    Raises ValueError where the rows that `out`.json holds are of another device.
    """

    def __init__(self, out: pathlib.Path) -> None:
        self._json, self._markdown = (out.with_name(out.name + end) for end in (".json", ".md"))
        self._kept: dict[str, Any] = {"about": {}, "rows": {}}
        if self._json.exists():
            self._kept = json.loads(self._json.read_text())

    @property
    def rows(self) -> dict[str, dict[str, Any]]:
        """By name."""
        return self._kept["rows"]

    def done(self, name: str) -> bool:
        """Whether there is such a row, and nothing failed."""
        return "error" not in self.rows.get(name, {"error": ""})

    def tell(self, about: dict[str, Any]) -> None:
        """What a worker says of the device and of versions."""
        old, new = (x.get("device") for x in (self._kept["about"], about))
        if old and new and old != new:
            raise ValueError(f"{self._json} is of {old}, and this is {new}: give another --out.")
        versions = self._kept["about"].get("versions", {}) | about.get("versions", {})
        self._kept["about"] |= about | {"versions": versions}

    def add(self, name: str, row: dict[str, Any]) -> None:
        """Keeps a row, on the disk too."""
        self.rows[name] = row
        self._json.parent.mkdir(parents=True, exist_ok=True)
        for path, text in (
            (self._json, json.dumps(self._kept, indent=1)),
            (self._markdown, self.tables()),
        ):
            new = path.with_name(path.name + ".new")
            new.write_text(text + "\n")
            os.replace(new, path)

    def tables(self) -> str:
        """All that has been found, in Markdown."""
        about = self._kept["about"]
        versions = ", ".join(f"{k} {v}" for k, v in about.get("versions", {}).items())
        made = [
            f"# {about.get('device', 'an unknown device')}",
            f"{versions}; bfloat16.",
            about.get("note", ""),
            self._checks(),
            self._ceiling(),
            self._attention(),
            self._kernels(),
            self._blocks(),
            self._training(),
        ]
        return "\n\n".join(x for x in made if x)

    def _of(self, part: str) -> list[dict[str, Any]]:
        return [row for row in self.rows.values() if row["part"] == part]

    def _checks(self) -> str:
        rows = self._of("correctness")
        lines = []
        for row in rows:
            given = row.get("error") or "; ".join(row["wrong"]) or "right"
            shares = " ".join(f"{k} {v:.2f}" for k, v in row.get("shares", {}).items())
            lines.append((row["case"], given, shares))
        return _table("Fused, beside float64", ("check", "", "error, of dense"), lines)

    def _ceiling(self) -> str:
        lines = [(row["contender"], _number(row)) for row in self._of("ceiling")]
        return _table("Matrix product", ("library", "TFLOP/s"), lines)

    @property
    def ceiling(self) -> float | None:
        """TFLOP/s of the matrix product in jax."""
        found = [row.get("tflops") for row in self._of("ceiling") if row["contender"] == "jax"]
        return found[0] if found else None

    def _attention(self) -> str:
        rows = self._of("attention")
        others = list(dict.fromkeys(row["contender"] for row in rows))
        found = {(row["case"], row["pass"], row["contender"]): row for row in rows}
        lines = [
            (case, kind, *(self._cell(found.get((case, kind, name))) for name in others))
            for kind in dict.fromkeys(row["pass"] for row in rows)
            for case in dict.fromkeys(row["case"] for row in rows if row["pass"] == kind)
        ]
        notes = {f"{row['contender']}: {row['error']}" for row in rows if "error" in row}
        table = _table("TFLOP/s, of what is seen", ("mask", "pass", *others), lines)
        return "\n".join([table, "", *(f"- {note}" for note in sorted(notes))]) if table else ""

    def _kernels(self) -> str:
        lines = []
        for row in self._of("attention"):
            longest = list(row.get("kernels_us", {}).items())[:3]
            told = ", ".join(f"{name.partition('_mosaic')[0]} {us:.0f}" for name, us in longest)
            if told:
                lines.append((row["case"], row["pass"], row["contender"], told))
        head = ("mask", "pass", "library", "the longest")
        return _table("Kernels by themselves, in microseconds", head, lines)

    def _cell(self, row: dict[str, Any] | None) -> str:
        if row is None or "error" in row:
            return "" if row is None else "–"
        cell = _number(row)
        if self.ceiling:
            cell += f" ({row['tflops'] / self.ceiling:.0%})"
        if "mask_ms" in row:  # and the mask is made for this call alone
            cell += (
                f", with its mask {row['tflops'] * row['ms'] / (row['ms'] + row['mask_ms']):.0f}"
            )
        return cell

    def _blocks(self) -> str:
        rows = self._of("blocks")
        sizes = list(dict.fromkeys(row["contender"] for row in rows))
        found = {(row["case"], row["pass"], row["contender"]): row for row in rows}
        lines = [
            (case, kind, *(self._cell(found.get((case, kind, size))) for size in sizes))
            for case, kind in dict.fromkeys((row["case"], row["pass"]) for row in rows)
        ]
        return _table("Sizes of blocks, TFLOP/s", ("mask", "pass", *sizes), lines)

    def _training(self) -> str:
        lines = [
            (row["case"], row["contender"], row.get("error") or f"{row['tokens_per_s']:,.0f}")
            for row in self._of("training")
        ]
        return _table("Training", ("model", "attention", "real tokens/s"), lines)


def _number(row: dict[str, Any]) -> str:
    return row.get("error") or f"{row['tflops']:.4g}"


def _table(title: str, head: Iterable[str], lines: list[tuple[str, ...]]) -> str:
    if not lines:
        return ""
    head = list(head)
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join([f"## {title}", "", *(f"| {' | '.join(row)} |" for row in rows)])
