"""A run from its folder to its result: open or resume, train, test, keep it all."""

import contextlib
import hashlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flaxattn.memory import keep_freed_memory
from flaxattn.training.adapted import adapted, parameter_counts
from flaxattn.training.config import (
    Config,
    TrainingConfig,
    at_home,
    config_hash,
    from_json,
    to_json,
)
from flaxattn.training.continuing import continued
from flaxattn.training.devices import describe_devices, idle_accelerator, split_cpu
from flaxattn.training.dry_run import dry_run
from flaxattn.training.home import Home
from flaxattn.training.loop import Trained, train
from flaxattn.training.mesh import check_batch_size, describe_mesh, make_mesh, mesh_sizes
from flaxattn.training.processes import (
    ALONE,
    Rendezvous,
    are_several,
    by_first,
    check_same,
    is_first,
    join,
    on_first,
)
from flaxattn.training.record import check_names, has_begun
from flaxattn.training.report import write_page
from flaxattn.training.run_folder import check_folder, opened
from flaxattn.training.schedule import describe_rate, shortfall
from flaxattn.training.screen import Screen
from flaxattn.training.storage.files import SaveError, write_whole
from flaxattn.training.storage.layout import RESULT
from flaxattn.training.storage.manifest import sha256, write_sealed
from flaxattn.training.task import RunRules, Task

__all__ = ["Prepare", "run"]

Prepare = Callable[[Config, Path | None, Screen], Task]
"""Makes a task from its configuration, with a screen to tell what a person should know.

The folder is that of the run, if it has begun there: then what it began with is read from it.
"""


def run(
    config: Config,
    prepare: "Prepare[Config]",
    rules: RunRules,
    *,
    rendezvous: Rendezvous = ALONE,
    stop_before_training: bool = False,
    accept_changed_data: bool = False,
) -> dict[str, Any] | None:
    """Trains a task and tests what came of it, and returns the row of results.

    The run's folder then holds `config.json`, `data.json`, `checkpoints/`, `models/`, `log.jsonl`,
    `speed.jsonl`, `tensorboard/`, `result.json`, `report.html`, and what the task has of its own. A
    run that was interrupted goes on from its latest whole checkpoint, to the same bytes as one that
    was not; one that has ended goes on if it is given more steps.

    Args:
      rendezvous: where this process meets others that train with it, if there are any.
      stop_before_training: prepare, show what would be trained, compile, write nothing, stop.
      accept_changed_data: take a run further although its data is not what it began with.

    Raises:
      ValueError or OSError that says what to change, before any long work; what `train` raises.
    """
    check_names(rules)
    config = at_home(config)
    screen = _begin(config.training, rendezvous)
    config = _of_first(continued(config, rules), rules)
    begun = None
    if not stop_before_training:
        on_first(lambda: check_folder(config, rules))
        begun = Path(config.output) if has_begun(Path(config.output)) else None
    _tell_rate(config.training, screen)
    task = prepare(config, begun, screen)
    if not task.valid_batches():
        raise ValueError("There is no batch to validate with; expected at least one.")
    learner = adapted(task)
    _tell_parameters(learner, screen)
    if stop_before_training:
        dry_run(learner, screen)
        return None
    if are_several():
        check_same("data", _digest(task))
    with contextlib.ExitStack() as stack:
        folder = opened(task, rules, accept_changed_data=accept_changed_data)
        home = on_first(lambda: stack.enter_context(folder))
        trained = train(learner, home, screen)
        return by_first(lambda: _finish(learner, rules, trained, home, screen))


def _begin(config: TrainingConfig, rendezvous: Rendezvous) -> Screen:
    """Makes processes and devices ready, and gives the screen, on which these stand first."""
    keep_freed_memory()
    if rendezvous != ALONE:
        told = f"process {rendezvous.process} of {rendezvous.processes}"
        Screen(error=True).say(f"Waiting for all at {rendezvous.coordinator}: this is {told}.")
    processes = join(rendezvous)
    _split(config, processes)
    screen = Screen(silent=not is_first())
    mesh = make_mesh(config.mesh)
    screen.headline(f"Device: {describe_devices()}{describe_mesh(mesh)}")
    if warning := idle_accelerator():
        screen.warn(warning)
    check_batch_size(config.batch_size, config.microbatches, mesh)
    return screen


def _split(config: TrainingConfig, processes: int) -> None:
    """Makes as many CPU devices as the mesh has in each process, or as serve the rows."""
    sizes = mesh_sizes(config.mesh)
    rows = 0 if "data" in sizes else config.batch_size // config.microbatches // processes
    split_cpu(rows, max(math.prod(sizes.values()) // processes, 1))


def _digest(task: Task) -> str:
    """Of what a task has read and learned of its files."""
    files = {name: hashlib.sha256(x).hexdigest() for name, x in task.files().items()}
    return json.dumps([dict(task.digests()), files], sort_keys=True)


def _of_first(config: Config, rules: RunRules) -> Config:
    """The configuration that the first process has, which may know of the run's folder."""
    if not are_several():
        return config
    return from_json(rules.config, by_first(lambda: to_json(config)), "process 0")


def _tell_rate(config: TrainingConfig, screen: Screen) -> None:
    screen.say(describe_rate(config))
    if warning := shortfall(config):
        screen.warn(warning)


def _tell_parameters(task: Task, screen: Screen) -> None:
    trained, all_of_them = parameter_counts(task)
    if trained != all_of_them:
        share = trained / all_of_them
        screen.say(f"{trained:,} parameters are trained, {share:.2%} of {all_of_them:,}.")


def _finish(
    task: Task, rules: RunRules, trained: Trained, home: Home | None, screen: Screen
) -> dict[str, Any] | None:
    """Tests the model, and keeps and shows what came of that."""
    if not home:
        return None
    tested = task.test(trained.params, screen)
    folder = home.path if home.is_whole() else home.made_anew({})
    for name, content in tested.files.items():
        write_whole(folder / name, content)
    row = _result_row(task, rules, trained) | dict(tested.values)
    files = {name: sha256(folder / name) for name in tested.files}
    write_sealed(folder / RESULT, row | {"run": home.run, "files": files})
    task.export(trained.params, folder, row | {"run": home.run})
    for line in tested.lines:
        screen.say(line)
    if tested.headline:
        screen.headline(tested.headline)
    if not home.is_whole():
        raise SaveError(
            f"{home.path} was deleted or moved while the model was tested. The test's results "
            f"and the model are in {folder}; checkpoints and log are not."
        )
    screen.say(f"Trained {trained.seconds:.0f} s. Everything is in {folder}.")
    write_page(folder, task.unit, tested, row, screen)
    return row


def _result_row(task: Task, rules: RunRules, trained: Trained) -> dict[str, Any]:
    of_training, all_of_them = parameter_counts(task)
    return {
        "config": config_hash(task.config, rules.places),
        "seed": task.config.training.seed,
        "parameters": all_of_them,
        **({} if of_training == all_of_them else {"trained_parameters": of_training}),
        "hardware": describe_devices(),
        "steps": trained.steps,
        "training_seconds": round(trained.seconds, 1),
        f"{task.unit}_per_second": round(trained.units / trained.seconds, 1),
    }
