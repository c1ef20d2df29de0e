"""What a run says: on the screen, in JSON lines, to TensorBoard."""

import contextlib
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self, TextIO

import rich.console
import rich.progress
import rich.text
import tensorboardX

from flaxattn.translation.storage.files import write_whole

__all__ = ["RunLog", "Screen"]

LOG, SPEED = "log.jsonl", "speed.jsonl"


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
    """The record of a run: `log.jsonl`, `speed.jsonl` and TensorBoard's event files.

    What is learned stands in `log.jsonl`, which is the same to the byte however often a run was
    interrupted; what depends on the machine and the hour in `speed.jsonl`.

    Args:
      folder: of the run.
      start: the step that training goes on from; rows of later ones are taken out of the files.
    """

    def __init__(self, folder: Path, start: int = 0) -> None:
        self._log, self._speed = (_reopened(folder / name, start) for name in (LOG, SPEED))
        self._board = tensorboardX.SummaryWriter(
            str(folder / "tensorboard"), purge_step=start + 1, write_to_disk=True
        )

    def write(self, kind: str, step: int, values: dict[str, Any]) -> None:
        """One row of `kind` ("train", "valid", "sample"), which also goes to TensorBoard."""
        _write_row(self._log, {"kind": kind, "step": step, **values})
        for name, value in values.items():
            if isinstance(value, int | float):
                self._board.add_scalar(f"{kind}/{name}", value, step)
            else:
                self._board.add_text(f"{kind}/{name}", str(value), step)

    def write_speed(self, step: int, values: dict[str, float]) -> None:
        """One row of `speed.jsonl`, with the time of day in seconds of the epoch."""
        _write_row(self._speed, {"step": step, "time": round(time.time(), 3), **values})
        for name, value in values.items():
            self._board.add_scalar(f"speed/{name}", value, step)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._board.close()
        self._log.close()
        self._speed.close()


def _reopened(path: Path, start: int) -> TextIO:
    """The file, to append to, with only those of its rows that lie before or at a step."""
    kept = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    write_whole(path, b"".join(row + b"\n" for row in kept if _step_of(row) <= start))
    return path.open("a", encoding="utf-8")


def _step_of(row: bytes) -> float:
    """The step of a row; of one that cannot be read, none that is kept."""
    try:
        return float(json.loads(row)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf


def _write_row(file: TextIO, row: dict[str, Any]) -> None:
    file.write(json.dumps(row) + "\n")
    file.flush()
