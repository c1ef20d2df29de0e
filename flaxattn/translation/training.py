"""The training loop: dispatch a step, read the metrics of earlier ones, validate, checkpoint."""

from pathlib import Path
from typing import Any, NamedTuple

from flaxattn.translation.checkpoints import Checkpoints, Models
from flaxattn.translation.config import RunConfig
from flaxattn.translation.loading import MODELS
from flaxattn.translation.metrics import Metrics
from flaxattn.translation.preparation import Prepared
from flaxattn.translation.reporting import RunLog, Screen
from flaxattn.translation.train_step import (
    data_mesh,
    init_state,
    make_optimizer,
    make_train_step,
    place,
)
from flaxattn.translation.validation import Validation, stale

__all__ = ["Trained", "train"]


class Trained(NamedTuple):
    """The outcome of training, counted from step 0, however often it was resumed."""

    params: Any  # of the model to use: the mean of those that were kept
    steps: int
    seconds: float  # compilation, validation and checkpoints included
    target_tokens: float


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
        history = [validation.metric(row) for row in log.rows("valid", start)]
        with screen.progress("training", training.steps, start) as progress:
            metrics = Metrics(training, log, progress, start)
            for step in range(start + 1, training.steps + 1):
                if training.patience and stale(history) >= training.patience:
                    screen.say(
                        f"Stopped early: no better model in {training.patience} validations."
                    )
                    break
                batch = place(prepared.train.batch(step - 1), mesh, "data")
                state, sums = step_once(state, batch)
                metrics.add(step, sums)
                if step % training.valid_every == 0 or step == training.steps:
                    metrics.flush(step)
                    history.append(_validate(validation, step, state.model, log, screen))
                    models.save(step, state.model, history[-1])
                    checkpoints.save(step, state)
                    metrics.restart_clock()
        params = models.average(state.model)
        return Trained(params, int(state.step), metrics.seconds, metrics.target_tokens)


def _validate(validation: Validation, step: int, params: Any, log: RunLog, screen: Screen) -> float:
    """Measures and reports a model, and gives its metric: more is better."""
    values = validation.measure(params)
    for line in validation.report(step, params, values, log):
        screen.say(line)
    return validation.metric(values)
