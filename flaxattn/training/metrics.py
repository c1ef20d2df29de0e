"""What training reports of itself: sums of a window of steps, read when they are there."""

import dataclasses
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flaxattn.training.compilations import count_compilations
from flaxattn.training.reporting import RunLog
from flaxattn.training.schedule import learning_rate
from flaxattn.training.screen import Progress, duration
from flaxattn.translation.config import TrainingConfig
from flaxattn.translation.loss import DivergedError, Sums, means, total

__all__ = ["Metrics", "Tally"]

MAX_SKIPPED = 5  # batches in a row


@dataclasses.dataclass
class Tally:
    """What training has counted so far; a checkpoint keeps it, so that a resumed run goes on."""

    target_tokens: float = 0.0
    seconds: float = 0.0
    skipped_in_a_row: int = 0
    window: list[list[float]] = dataclasses.field(default_factory=list)  # sums not yet reported
    history: list[float] = dataclasses.field(default_factory=list)  # the metric of each validation


class Metrics:
    """Reads the sums of a window of steps one step after it ended, so as not to wait for it."""

    def __init__(
        self, config: TrainingConfig, log: RunLog, progress: Progress, tally: Tally
    ) -> None:
        self.tally = tally
        self._began = time.perf_counter() - tally.seconds
        self._config, self._log, self._progress = config, log, progress
        self._rate = learning_rate(config)
        self._compilations = count_compilations()
        self._window = [Sums(*map(jnp.float32, sums)) for sums in tally.window]
        self._ended: tuple[int, list[Sums]] | None = None
        self._first: tuple[int, float] | None = None  # a step and when it had been reported
        self.restart_clock()

    def add(self, step: int, sums: Sums) -> None:
        """Takes the sums of `step`, which may still be computing, and reports earlier ones.

        Raises:
          DivergedError if too many batches in a row were skipped.
        """
        self._report_ended()
        self._window.append(sums)
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
        (step, window), self._ended = self._ended, None
        window = jax.device_get(window)
        sums = total(window)
        seconds = time.perf_counter() - self._clock
        self.restart_clock()
        self.tally.target_tokens += float(sums.tokens)
        values = means(sums) | {
            "learning_rate": float(self._rate(np.int32(step - 1))),
            "target_tokens": self.tally.target_tokens,
            "skipped": int(sums.skipped),
        }
        speed = round(float(sums.tokens) / seconds, 1)
        self._log.write("train", step, values)
        self._log.write_speed(
            step,
            {
                "target_tokens_per_second": speed,
                "seconds": round(self.seconds, 2),
                "compilations": count_compilations() - self._compilations,
            },
        )
        self._progress.show(
            step,
            f"loss {values['loss']:.3f}  accuracy {values['accuracy']:.3f}  {speed:.0f} tokens/s"
            + (f"  {values['skipped']} batches skipped" if values["skipped"] else ""),
            self._remaining(step),
        )
        self._count_skipped(step, window)

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
                    "--clip-norm in another folder, and look at the training text around there."
                )
