"""The record of a run: in JSON lines, and for TensorBoard."""

import json
import math
import os
import time
from pathlib import Path
from typing import Any, Protocol, Self, TextIO

from flaxattn.training.storage.files import read_regular, write_whole
from flaxattn.training.storage.layout import LOG, SPEED, TENSORBOARD

__all__ = ["Log", "NoLog", "RunLog"]


class Log(Protocol):
    """What is told of a run, row by row."""

    def write(self, kind: str, step: int, values: dict[str, Any]) -> None:
        """What is learned."""

    def write_speed(self, step: int, values: dict[str, float]) -> None:
        """How fast."""

    def contents(self) -> dict[str, bytes]:
        """What has been written, by the name of the file."""

    def mend(self) -> None:
        """Writes anew what someone has deleted."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *exception: object) -> None: ...


class NoLog:
    """Of a process that tells nothing, since another does."""

    def write(self, kind: str, step: int, values: dict[str, Any]) -> None:
        pass

    def write_speed(self, step: int, values: dict[str, float]) -> None:
        pass

    def contents(self) -> dict[str, bytes]:
        return {}

    def mend(self) -> None:
        pass

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        pass


class RunLog:
    """The record of a run: `log.jsonl`, `speed.jsonl` and TensorBoard's event files.

    What is learned stands in `log.jsonl`, which is the same to the byte however often a run was
    interrupted; what depends on the machine and the hour in `speed.jsonl`.

    Args:
      folder: of the run.
      start: the step that training goes on from; rows of later ones are taken out of the files.
    """

    def __init__(self, folder: Path, start: int = 0) -> None:
        import tensorboardX  # so late that commands which train nothing do not wait for it

        self._folder = folder
        self._log, self._speed = (_reopened(folder / name, start) for name in (LOG, SPEED))
        self._board = tensorboardX.SummaryWriter(
            str(folder / TENSORBOARD), purge_step=start + 1, write_to_disk=True
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

    def contents(self) -> dict[str, bytes]:
        """What is in the files, which are readable here even if someone has deleted them."""
        files = {LOG: self._log.fileno(), SPEED: self._speed.fileno()}
        return {name: os.pread(file, os.fstat(file).st_size, 0) for name, file in files.items()}

    def mend(self) -> None:
        """Writes the files anew that someone has deleted meanwhile, if their folder is there."""
        contents = self.contents()
        gone = [name for name in contents if not (self._folder / name).exists()]
        if gone and self._folder.is_dir():
            self._log.close()
            self._speed.close()
            for name in gone:
                write_whole(self._folder / name, contents[name])
            self._log, self._speed = (
                (self._folder / name).open("a+", encoding="utf-8") for name in (LOG, SPEED)
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._board.close()
        self._log.close()
        self._speed.close()


def _reopened(path: Path, start: int) -> TextIO:
    """The file, to append to, with only those of its rows that lie before or at a step."""
    kept = read_regular(path).split(b"\n")[:-1] if path.exists() else []
    write_whole(path, b"".join(row + b"\n" for row in kept if _step_of(row) <= start))
    return path.open("a+", encoding="utf-8")


def _step_of(row: bytes) -> float:
    """The step of a row; of one that cannot be read, none that is kept."""
    try:
        return float(json.loads(row)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf


def _write_row(file: TextIO, row: dict[str, Any]) -> None:
    file.write(json.dumps(row) + "\n")
    file.flush()
