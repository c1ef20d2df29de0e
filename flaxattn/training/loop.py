"""The training loop: dispatch a step, read the metrics of earlier ones, validate, checkpoint."""

from typing import NamedTuple

import jax

from flaxattn.training.home import Home
from flaxattn.training.interruption import InterruptedRun, Interruption
from flaxattn.training.keeping import Keeping, NothingKept, restored
from flaxattn.training.log import NoLog, RunLog
from flaxattn.training.mesh import make_mesh, place_batch
from flaxattn.training.metrics import Metrics, Tally
from flaxattn.training.optimizer import make_optimizer
from flaxattn.training.processes import Agreement, any_process, on_first, whole
from flaxattn.training.run_folder import check_space
from flaxattn.training.screen import Screen
from flaxattn.training.storage.checkpoints import size_of
from flaxattn.training.task import Task
from flaxattn.training.train_step import make_train_step, spread_state
from flaxattn.training.trees import Params
from flaxattn.training.validation import Validation, stale

__all__ = ["Trained", "train"]


class Trained(NamedTuple):
    """The outcome of training, counted from step 0, however often it was resumed."""

    params: Params  # of the model to use: the mean of those that were kept
    steps: int
    seconds: float  # compilation, validation and checkpoints included
    units: float  # `Sums.units` of all batches


def train(task: Task, home: Home | None, screen: Screen) -> Trained:
    """Trains a task, from the latest whole checkpoint in `home` if there is one.

    Nothing waits for the device inside the loop, save to validate and to write a checkpoint.

    Args:
      home: the run's folder; None in a process that is not the first.

    Raises:
      InterruptedRun if the process was asked to stop, DivergedError if the loss ceased to be
      finite, SaveError or OSError if there is no room or the folder is gone; whatever is raised,
      what the last checkpoint holds is kept.
    """
    config = task.config.training
    mesh, optimizer = make_mesh(config.mesh), make_optimizer(config, task.params, task.axes)
    state = spread_state(task.params, task.axes, optimizer, config, mesh)
    shardings = jax.tree.map(lambda x: x.sharding, state)
    step_once = make_train_step(task.loss, optimizer, config, mesh=mesh, shardings=shardings)
    validation, agreement = Validation(task, mesh, screen), Agreement()
    on_first(lambda: check_space(task.config, size_of(state), size_of(state.model)))
    keeping = Keeping(home, config, screen.warn) if home else NothingKept()
    with Interruption() as interruption, keeping as kept:
        state, progress = restored(kept, state)
        tally, start = Tally.of(progress), int(state.step)
        ends = {*config.ended_at, config.steps}
        if start:
            screen.say(f"Resumed from the checkpoint of step {start}.")
        with (
            RunLog(home.path, start) if home else NoLog() as log,
            screen.progress("training", config.steps, start) as bar,
        ):
            metrics = Metrics(task, log, bar, tally)
            for step in range(start + 1, config.steps + 1):
                if config.patience and stale(tally.history) >= config.patience:
                    screen.say(f"Stopped early: no better model in {config.patience} validations.")
                    break
                batch = place_batch(task.batch(step - 1), mesh)
                state, sums = step_once(state, batch)
                metrics.add(step, sums)
                validate = step % config.valid_every == 0 or step in ends
                if validate:
                    metrics.flush(step)
                    tally.history.append(validation.report(step, state.model, log))
                stop = agreement.asked(interruption.requested)
                if validate or stop:
                    kept.keep(whole(state), metrics.progress(), log, validated=validate)
                    metrics.restart_clock()
                if stop:
                    raise InterruptedRun(step)
            params = kept.average(whole(state), metrics.progress(), log)
        if any_process(interruption.requested):
            raise InterruptedRun(int(state.step))
        return Trained(params, int(state.step), metrics.seconds, tally.units)
