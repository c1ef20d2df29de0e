"""The training loop: dispatch a step, read the metrics of earlier ones, validate, checkpoint."""

import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from flaxattn.translation.checkpoints import Checkpoints
from flaxattn.translation.compilations import count_compilations
from flaxattn.translation.config import RunConfig, TrainingConfig
from flaxattn.translation.loading import MODELS
from flaxattn.translation.loss import Sums, means, total
from flaxattn.translation.models import Models
from flaxattn.translation.preparation import Prepared
from flaxattn.translation.reporting import Progress, RunLog, Screen
from flaxattn.translation.train_step import (
    data_mesh,
    init_state,
    learning_rate,
    make_optimizer,
    make_train_step,
    place,
)
from flaxattn.translation.validation import Validation, stale

__all__ = ["Metrics", "Trained", "train"]


class Trained(NamedTuple):
    """The outcome of training, counted from step 0, however often it was resumed."""

    params: Any  # of the model to use: the mean of those that were kept
    steps: int
    seconds: float  # compilation, validation and checkpoints included
    target_tokens: float


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


def train(prepared: Prepared, config: RunConfig, folder: Path, screen: Screen) -> Trained:
    """Trains as `config` says, from the latest checkpoint in `folder` if there is one.

    Nothing waits for the device inside the loop, save to validate and to write a checkpoint.
    """
    training, mesh = config.training, data_mesh()
    optimizer = make_optimizer(training, prepared.params)
    bos_id = prepared.tokenizer.bos_id
    step_once = make_train_step(prepared.model, optimizer, training, bos_id=bos_id, mesh=mesh)
    validation = Validation(prepared, config, mesh)
    state = place(init_state(prepared.params, optimizer, training), mesh)
    with (
        Checkpoints(folder / "checkpoints", keep=training.keep_checkpoints) as checkpoints,
        Models(folder / MODELS, keep=training.average, select=training.select) as models,
        RunLog(folder) as log,
    ):
        state = checkpoints.restore_latest(state)
        start = int(state.step)
        if start:
            screen.say(f"Resumed from the checkpoint of step {start}.")
        scores = [validation.metric(row) for row in log.rows("valid", start)]
        with screen.progress("training", training.steps, start) as progress:
            metrics = Metrics(training, log, progress, start)
            for step in range(start + 1, training.steps + 1):
                if training.patience and stale(scores) >= training.patience:
                    screen.say(f"Stopped early: no better model in {stale(scores)} validations.")
                    break
                batch = place(prepared.train.batch(step - 1), mesh, "data")
                state, sums = step_once(state, batch)
                metrics.add(step, sums)
                if step % training.valid_every == 0 or step == training.steps:
                    metrics.flush(step)
                    values = validation.measure(state.model)
                    scores.append(validation.metric(values))
                    for line in validation.report(step, state.model, values, log):
                        screen.say(line)
                    models.save(step, state.model, scores[-1])
                    checkpoints.save(step, state)
                    metrics.restart_clock()
        params = models.average(state.model)
        return Trained(params, int(state.step), metrics.seconds, metrics.target_tokens)
