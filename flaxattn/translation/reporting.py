"""What a run says: on the screen, in JSON lines, to TensorBoard."""

import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import rich.console
import rich.progress
import rich.text
import tensorboardX

__all__ = ["RunLog", "Screen"]


class Screen:
    """The person's screen: lines, and a progress bar where there is a terminal."""

    def __init__(self) -> None:
        self._console = rich.console.Console(
            soft_wrap=True, highlight=False, markup=False, emoji=False
        )

    @property
    def is_terminal(self) -> bool:
        """Whether a person is looking, rather than a file."""
        return self._console.is_terminal

    def say(self, text: str) -> None:
        """One line of text, above the progress bar if there is one."""
        self._console.print(text)

    def headline(self, text: str) -> None:
        """A line that stands out."""
        if self.is_terminal:
            self._console.rule(rich.text.Text(text, style="bold"))
        else:
            self.say(f"== {text} ==")

    def warn(self, text: str) -> None:
        """A line that warns."""
        self._console.print(rich.text.Text("Warning:", style="bold yellow"), text)

    @contextlib.contextmanager
    def progress(self, task: str, total: int, done: int = 0) -> Iterator["Progress"]:
        """A bar for `total` units of work, of which `done` are done already."""
        columns = (
            rich.progress.TextColumn("{task.description}"),
            rich.progress.BarColumn(),
            rich.progress.MofNCompleteColumn(),
            rich.progress.TimeElapsedColumn(),
            rich.progress.TimeRemainingColumn(),
            rich.progress.TextColumn("{task.fields[status]}"),
        )
        with rich.progress.Progress(
            *columns, console=self._console, disable=not self.is_terminal
        ) as bar:
            handle = bar.add_task(task, total=total, completed=done, status="")
            yield Progress(self, bar, handle)


class Progress:
    """How far one piece of work is: a bar on a terminal, plain lines elsewhere."""

    def __init__(self, screen: Screen, bar: rich.progress.Progress, handle: Any) -> None:
        self._screen, self._bar, self._handle = screen, bar, handle

    def advance(self, count: int = 1) -> None:
        """`count` more units are done."""
        self._bar.advance(self._handle, count)

    def show(self, done: int, status: str) -> None:
        """What there is to say after `done` units."""
        if self._screen.is_terminal:
            self._bar.update(self._handle, status=status)
        else:
            self._screen.say(f"step {done:>6}  {status}")


class RunLog:
    """The record of a run: `log.jsonl` and TensorBoard's event files, both appended to."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "log.jsonl"
        self._lines = self._path.open("a", encoding="utf-8")
        self._board = tensorboardX.SummaryWriter(str(folder / "tensorboard"), write_to_disk=True)

    def last(self, kind: str, step: int) -> dict[str, Any]:
        """The last row of `kind` at or before `step`; empty if there is none."""
        return (self.rows(kind, step) or [{}])[-1]

    def rows(self, kind: str, step: int) -> list[dict[str, Any]]:
        """All rows of `kind` at or before `step`, the last of each step, by step."""
        rows = map(json.loads, self._path.read_text(encoding="utf-8").splitlines())
        found = {row["step"]: row for row in rows if row["kind"] == kind and row["step"] <= step}
        return [found[step] for step in sorted(found)]

    def write(self, kind: str, step: int, values: dict[str, Any]) -> None:
        """One row of `kind` ("train", "valid", "sample"), which also goes to TensorBoard."""
        row = {"kind": kind, "step": step, "time": round(time.time(), 3), **values}
        self._lines.write(json.dumps(row) + "\n")
        self._lines.flush()
        for name, value in values.items():
            if isinstance(value, int | float):
                self._board.add_scalar(f"{kind}/{name}", value, step)
            else:
                self._board.add_text(f"{kind}/{name}", str(value), step)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._board.close()
        self._lines.close()
