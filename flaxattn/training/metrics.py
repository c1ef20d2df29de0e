"""What training reports of itself: sums of a window of steps, read when they are there."""

import dataclasses
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from flaxattn.training.compilations import count_compilations
from flaxattn.training.log import Log
from flaxattn.training.renamed import renamed
from flaxattn.training.schedule import learning_rate
from flaxattn.training.screen import Progress, duration
from flaxattn.training.task import Sums, Task

__all__ = ["AHEAD", "DivergedError", "Metrics", "Tally", "total"]

# Steps that wait for the device, at most: sums between CPU devices never end with many more.
AHEAD = 20
MAX_SKIPPED = 5  # batches in a row


class DivergedError(ArithmeticError):
    """Several batches in a row gave no finite loss or gradient."""


def total(sums: Sequence[Sums]) -> Sums:
    """The sums of several batches added up on the host."""
    return jax.tree.map(lambda *values: np.sum(values, dtype=np.float64), *jax.device_get(sums))


@dataclasses.dataclass
class Tally:
    """What training has counted so far; a checkpoint keeps it, so that a resumed run goes on."""

    units: float = 0.0  # of all batches
    seconds: float = 0.0
    skipped_in_a_row: int = 0
    # The sums that are not reported yet: the numbers of each, in the order of their tree.
    window: list[list[float]] = dataclasses.field(default_factory=list)
    history: list[float] = dataclasses.field(default_factory=list)  # the metric of each validation

    @classmethod
    def of(cls, progress: dict[str, Any]) -> "Tally":
        """The tally in the progress that a checkpoint keeps, also one of an older version."""
        return cls(**renamed(progress, [field.name for field in dataclasses.fields(cls)]))


class Metrics:
    """Reads the sums of a window of steps one step after it ended, so as not to wait for it.

    Args:
      task: says what is reported of sums.
      log, progress: are told of it.
      tally: what had been counted before.
    """

    def __init__(self, task: Task, log: Log, progress: Progress, tally: Tally) -> None:
        self.tally = tally
        self._began = time.perf_counter() - tally.seconds
        self._task, self._config = task, task.config.training
        self._log, self._progress = log, progress
        self._rate = learning_rate(self._config)
        self._compilations = count_compilations()
        self._window: list[Any] = [np.array(x, np.float32) for x in tally.window]
        self._structure: Any = None  # of the tree of sums
        self._ended: tuple[int, list[Any]] | None = None
        self._first: tuple[int, float] | None = None  # a step and when it had been reported
        self.restart_clock()

    def add(self, step: int, sums: Sums) -> None:
        """Takes the sums of `step`, which may still be computing, and reports earlier ones.

        Raises:
          DivergedError if too many batches in a row were skipped.
        """
        self._report_ended()
        numbers, self._structure = jax.tree.flatten(sums)
        if any(np.ndim(x) for x in numbers):
            raise ValueError(f"The loss gives sums {jax.tree.map(np.shape, sums)}; expected [].")
        self._window.append(numbers)
        if len(self._window) > AHEAD:
            jax.block_until_ready(self._window[-1 - AHEAD])
        self._progress.advance()
        if step % self._config.log_every == 0:
            self._end_window(step)

    def flush(self, step: int) -> None:
        """Reports all that is left, waiting for it. Raises as `add` does."""
        self._report_ended()
        self._end_window(step)
        self._report_ended()

    def progress(self) -> dict[str, Any]:
        """The tally as JSON-able data, waiting for sums that are still computing."""
        self._report_ended()
        self.tally.window = np.array(jax.device_get(self._window), np.float32).tolist()
        self.tally.seconds = round(self.seconds, 2)
        return dataclasses.asdict(self.tally)

    @property
    def seconds(self) -> float:
        """Since training began, less the time between an interruption and its resumption."""
        return time.perf_counter() - self._began

    def restart_clock(self) -> None:
        """Leaves the time since the last report out of the speed."""
        self._clock = time.perf_counter()

    def _end_window(self, step: int) -> None:
        if self._window:
            self._ended, self._window = (step, self._window), []

    def _report_ended(self) -> None:
        if self._ended is None:
            return
        (step, numbers), self._ended = self._ended, None
        window = [self._structure.unflatten(x) for x in jax.device_get(numbers)]
        sums = total(window)
        seconds = time.perf_counter() - self._clock
        self.restart_clock()
        self.tally.units += float(sums.units)
        values = self._task.means(sums) | {
            "learning_rate": float(self._rate(np.int32(step - 1))),
            self._task.unit: self.tally.units,
            "skipped": int(sums.skipped),
        }
        speed = round(float(sums.units) / seconds, 1)
        self._log.write("train", step, values)
        self._log.write_speed(
            step,
            {
                f"{self._task.unit}_per_second": speed,
                "seconds": round(self.seconds, 2),
                "compilations": count_compilations() - self._compilations,
            },
        )
        self._progress.show(step, self._status(values, speed), self._remaining(step))
        self._count_skipped(step, window)

    def _status(self, values: dict[str, Any], speed: float) -> str:
        """What a person sees of the values."""
        means = [f"{name} {values[name]:.3f}" for name in ("loss", *self._task.shown)]
        parts = [*means, f"{speed:.0f} {self._task.unit.replace('_', ' ')}/s"]
        if values["skipped"]:
            parts.append(f"{values['skipped']} batches skipped")
        return "  ".join(parts)

    def _remaining(self, step: int) -> str:
        """How long the rest will take, by all since the first report: that one compiled, too."""
        first, began = self._first = self._first or (step, time.perf_counter())
        if step in (first, self._config.steps):
            return ""
        seconds = (time.perf_counter() - began) / (step - first) * (self._config.steps - step)
        return f"{duration(seconds)} left"

    def _count_skipped(self, last: int, window: list[Sums]) -> None:
        for step, sums in enumerate(window, last + 1 - len(window)):
            in_a_row = self.tally.skipped_in_a_row + 1 if sums.skipped else 0
            self.tally.skipped_in_a_row = in_a_row
            if in_a_row == MAX_SKIPPED:
                raise DivergedError(
                    f"steps {step + 1 - in_a_row} to {step} gave no finite loss or gradient and "
                    "changed nothing. Try a lower --learning-rate, more --warmup-steps or a lower "
                    "--clip-norm in another folder, and look at the training data around there."
                )
