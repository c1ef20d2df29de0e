"""The training loop: dispatch a step, read the metrics of earlier ones, validate, checkpoint."""

from typing import Any, NamedTuple

from flaxattn.training.devices import data_mesh, place
from flaxattn.training.home import Home
from flaxattn.training.interruption import InterruptedRun, Interruption
from flaxattn.training.keeping import Keeping
from flaxattn.training.metrics import Metrics, Tally
from flaxattn.training.reporting import RunLog
from flaxattn.training.run_folder import check_space
from flaxattn.training.screen import Screen
from flaxattn.training.storage.checkpoints import size_of
from flaxattn.training.train_step import init_state, make_optimizer, make_train_step
from flaxattn.translation.config import RunConfig
from flaxattn.translation.preparation import Prepared
from flaxattn.translation.validation import Validation, stale

__all__ = ["Trained", "train"]


class Trained(NamedTuple):
    """The outcome of training, counted from step 0, however often it was resumed."""

    params: Any  # of the model to use: the mean of those that were kept
    steps: int
    seconds: float  # compilation, validation and checkpoints included
    target_tokens: float


def train(prepared: Prepared, config: RunConfig, home: Home, screen: Screen) -> Trained:
    """Trains as `config` says, from the latest whole checkpoint in `home` if there is one.

    Nothing waits for the device inside the loop, save to validate and to write a checkpoint.

    Raises:
      InterruptedRun if the process was asked to stop, DivergedError if the loss ceased to be
      finite, SaveError or OSError if there is no room or the folder is gone; whatever is raised,
      what the last checkpoint holds is kept.
    """
    training, mesh = config.training, data_mesh()
    optimizer = make_optimizer(training, prepared.params)
    bos_id = prepared.tokenizer.bos_id
    step_once = make_train_step(prepared.model, optimizer, training, bos_id=bos_id, mesh=mesh)
    validation = Validation(prepared, config, mesh)
    state = place(init_state(prepared.params, optimizer, training), mesh)
    check_space(config, size_of(state), size_of(state.model))
    with Interruption() as interruption, Keeping(home, training, screen.warn) as kept:
        state, progress = kept.restore(state)
        tally, start = Tally(**progress), int(state.step)
        ends = {*training.ended_at, training.steps}
        if start:
            screen.say(f"Resumed from the checkpoint of step {start}.")
        with (
            RunLog(home.path, start) as log,
            screen.progress("training", training.steps, start) as bar,
        ):
            metrics = Metrics(training, log, bar, tally)
            for step in range(start + 1, training.steps + 1):
                if training.patience and stale(tally.history) >= training.patience:
                    screen.say(
                        f"Stopped early: no better model in {training.patience} validations."
                    )
                    break
                batch = place(prepared.train.batch(step - 1), mesh, "data")
                state, sums = step_once(state, batch)
                metrics.add(step, sums)
                validate = step % training.valid_every == 0 or step in ends
                if validate:
                    metrics.flush(step)
                    tally.history.append(_validate(validation, step, state.model, log, screen))
                if validate or interruption.requested:
                    kept.keep(state, metrics.progress(), log, validated=validate)
                    metrics.restart_clock()
                if interruption.requested:
                    raise InterruptedRun(step)
            params = kept.average(state, metrics.progress(), log)
        if interruption.requested:
            raise InterruptedRun(int(state.step))
        return Trained(params, int(state.step), metrics.seconds, tally.target_tokens)


def _validate(validation: Validation, step: int, params: Any, log: RunLog, screen: Screen) -> float:
    """Measures and reports a model, and gives its metric: more is better."""
    values = validation.measure(params)
    for line in validation.report(step, params, values, log):
        screen.say(line)
    return validation.metric(values)
