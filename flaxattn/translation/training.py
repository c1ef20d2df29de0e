"""The training loop: dispatch a step, read the metrics of earlier ones, validate, checkpoint."""

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from flaxattn.translation.checkpoints import Checkpoints
from flaxattn.translation.config import TrainingConfig
from flaxattn.translation.loss import Sums
from flaxattn.translation.preparation import Prepared
from flaxattn.translation.reporting import Progress, RunLog, Screen
from flaxattn.translation.train_step import (
    TrainState,
    data_mesh,
    init_state,
    learning_rate,
    make_eval_step,
    make_optimizer,
    make_train_step,
    place,
)

__all__ = ["Metrics", "Trained", "means", "total", "train"]


class Trained(NamedTuple):
    """The outcome of training, counted from step 0, however often it was resumed."""

    state: TrainState
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
        }
        self._log.write("train", step, values)
        self._progress.show(
            step,
            f"loss {values['loss']:.3f}  accuracy {values['accuracy']:.3f}  "
            f"{values['target_tokens_per_second']:.0f} tokens/s",
        )


def train(prepared: Prepared, config: TrainingConfig, folder: Path, screen: Screen) -> Trained:
    """Trains until `config.steps`, from the latest checkpoint in `folder` if there is one.

    Nothing waits for the device inside the loop, save to validate and to write a checkpoint.
    """
    mesh, bos_id = data_mesh(), prepared.tokenizer.bos_id
    optimizer = make_optimizer(config)
    train_step = make_train_step(prepared.model, optimizer, config, bos_id=bos_id, mesh=mesh)
    eval_step = make_eval_step(prepared.model, bos_id=bos_id)
    state = place(init_state(prepared.model, optimizer, config.seed), mesh)
    with (
        Checkpoints(folder / "checkpoints", keep=config.keep_checkpoints) as checkpoints,
        RunLog(folder) as log,
    ):
        state = checkpoints.restore_latest(state)
        start = int(state.step)
        if start:
            screen.say(f"Resumed from the checkpoint of step {start}.")
        with screen.progress("training", config.steps, start) as progress:
            metrics = Metrics(config, log, progress, start)
            for step in range(start + 1, config.steps + 1):
                batch = place(prepared.train.batch(step - 1), mesh, "data")
                state, sums = train_step(state, batch)
                metrics.add(step, sums)
                if step % config.valid_every == 0 or step == config.steps:
                    metrics.flush(step)
                    checkpoints.save(step, state)
                    batches = (place(b, mesh, "data") for b in prepared.valid.all_batches())
                    losses = [eval_step(state.params, batch) for batch in batches]
                    _report_validation(step, means(total(losses)), log, screen)
                    metrics.restart_clock()
        return Trained(state, metrics.seconds, metrics.target_tokens)


def total(sums: Sequence[Sums]) -> Sums:
    """The sums of several batches added up on the host."""
    return jax.tree.map(lambda *values: np.sum(values, dtype=np.float64), *jax.device_get(sums))


def means(sums: Sums) -> dict[str, float]:
    """Loss and negative log-likelihood per token in nats, perplexity, and accuracy."""
    tokens = max(float(sums.tokens), 1.0)
    nll = float(sums.nll) / tokens
    return {
        "loss": float(sums.loss) / tokens,
        "nll": nll,
        "perplexity": math.exp(min(nll, 100.0)),
        "accuracy": float(sums.correct) / tokens,
    }


def _report_validation(step: int, values: dict[str, float], log: RunLog, screen: Screen) -> None:
    log.write("valid", step, values)
    screen.say(
        f"step {step:>6}  validation  nll {values['nll']:.3f}  "
        f"perplexity {values['perplexity']:.2f}  accuracy {values['accuracy']:.3f}"
    )
