"""What training reports of itself: sums of a window of steps, read when they are there."""

import time

import numpy as np

from flaxattn.translation.compilations import count_compilations
from flaxattn.translation.config import TrainingConfig
from flaxattn.translation.loss import Sums, means, total
from flaxattn.translation.reporting import Progress, RunLog
from flaxattn.translation.train_step import learning_rate

__all__ = ["Metrics"]


class Metrics:
    """Reads the sums of a window of steps one step after it ended, so as not to wait for it."""

    def __init__(self, config: TrainingConfig, log: RunLog, progress: Progress, start: int) -> None:
        earlier = log.last("train", start)
        self.target_tokens = earlier.get("target_tokens", 0.0)
        self._began = time.perf_counter() - earlier.get("seconds", 0.0)
        self._config, self._log, self._progress = config, log, progress
        self._rate = learning_rate(config)
        self._compilations = count_compilations()
        self._window: list[Sums] = []
        self._ended: tuple[int, list[Sums]] | None = None
        self.restart_clock()

    def add(self, step: int, sums: Sums) -> None:
        """Takes the sums of `step`, which may still be computing, and reports earlier ones."""
        self._report_ended()
        self._window.append(sums)
        self._progress.advance()
        if step % self._config.log_every == 0:
            self._end_window(step)

    def flush(self, step: int) -> None:
        """Reports all that is left, waiting for it."""
        self._report_ended()
        self._end_window(step)
        self._report_ended()

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
        sums = total(window)
        seconds = time.perf_counter() - self._clock
        self.restart_clock()
        self.target_tokens += float(sums.tokens)
        values = means(sums) | {
            "learning_rate": float(self._rate(np.int32(step - 1))),
            "target_tokens_per_second": round(float(sums.tokens) / seconds, 1),
            "target_tokens": self.target_tokens,
            "seconds": round(self.seconds, 2),
            "compilations": count_compilations() - self._compilations,
        }
        self._log.write("train", step, values)
        self._progress.show(
            step,
            f"loss {values['loss']:.3f}  accuracy {values['accuracy']:.3f}  "
            f"{values['target_tokens_per_second']:.0f} tokens/s",
        )
