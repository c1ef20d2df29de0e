"""The training loop: dispatch a step, read the metrics of earlier ones, validate, checkpoint."""

from typing import NamedTuple

from flaxattn.training.devices import data_mesh, place
from flaxattn.training.home import Home
from flaxattn.training.interruption import InterruptedRun, Interruption
from flaxattn.training.keeping import Keeping
from flaxattn.training.metrics import Metrics, Tally
from flaxattn.training.reporting import RunLog
from flaxattn.training.run_folder import check_space
from flaxattn.training.screen import Screen
from flaxattn.training.storage.checkpoints import size_of
from flaxattn.training.task import Task
from flaxattn.training.train_step import init_state, make_optimizer, make_train_step
from flaxattn.training.trees import Params
from flaxattn.training.validation import Validation, stale

__all__ = ["Trained", "train"]


class Trained(NamedTuple):
    """The outcome of training, counted from step 0, however often it was resumed."""

    params: Params  # of the model to use: the mean of those that were kept
    steps: int
    seconds: float  # compilation, validation and checkpoints included
    units: float  # `Sums.units` of all batches


def train(task: Task, home: Home, screen: Screen) -> Trained:
    """Trains a task, from the latest whole checkpoint in `home` if there is one.

    Nothing waits for the device inside the loop, save to validate and to write a checkpoint.

    Raises:
      InterruptedRun if the process was asked to stop, DivergedError if the loss ceased to be
      finite, SaveError or OSError if there is no room or the folder is gone; whatever is raised,
      what the last checkpoint holds is kept.
    """
    config, mesh = task.config.training, data_mesh()
    optimizer = make_optimizer(config, task.params)
    step_once = make_train_step(task.loss, optimizer, config, mesh=mesh)
    validation = Validation(task, mesh, screen)
    state = place(init_state(task.params, optimizer, config), mesh)
    check_space(task.config, size_of(state), size_of(state.model))
    with Interruption() as interruption, Keeping(home, config, screen.warn) as kept:
        state, progress = kept.restore(state)
        tally, start = Tally.of(progress), int(state.step)
        ends = {*config.ended_at, config.steps}
        if start:
            screen.say(f"Resumed from the checkpoint of step {start}.")
        with (
            RunLog(home.path, start) as log,
            screen.progress("training", config.steps, start) as bar,
        ):
            metrics = Metrics(task, log, bar, tally)
            for step in range(start + 1, config.steps + 1):
                if config.patience and stale(tally.history) >= config.patience:
                    screen.say(f"Stopped early: no better model in {config.patience} validations.")
                    break
                batch = place(task.batch(step - 1), mesh, "data")
                state, sums = step_once(state, batch)
                metrics.add(step, sums)
                validate = step % config.valid_every == 0 or step in ends
                if validate:
                    metrics.flush(step)
                    tally.history.append(validation.report(step, state.model, log))
                if validate or interruption.requested:
                    kept.keep(state, metrics.progress(), log, validated=validate)
                    metrics.restart_clock()
                if interruption.requested:
                    raise InterruptedRun(step)
            params = kept.average(state, metrics.progress(), log)
        if interruption.requested:
            raise InterruptedRun(int(state.step))
        return Trained(params, int(state.step), metrics.seconds, tally.units)
