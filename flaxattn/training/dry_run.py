"""What training would do, shown without doing it: its time, its memory, and the parameters."""

import statistics
import time
from collections.abc import Callable
from typing import TypeVar

import jax
from jax.sharding import Mesh

from flaxattn.training.mesh import make_mesh, place_batch
from flaxattn.training.optimizer import make_optimizer
from flaxattn.training.parameters.freezing import path_of
from flaxattn.training.screen import Screen, duration
from flaxattn.training.task import Task
from flaxattn.training.train_step import (
    make_eval_step,
    make_train_step,
    spread_state,
)
from flaxattn.training.trees import Params

__all__ = ["dry_run"]

TIMED_STEPS, TIMED_SECONDS = 5, 10.0  # as many as the one, or as long as the other

State = TypeVar("State")


def dry_run(task: Task, screen: Screen) -> None:
    """Shows how long training would take, its memory, and the parameters."""
    _show_time(task, make_mesh(task.config.training.mesh), screen)
    screen.headline("Parameters")
    for line in _parameter_table(task.params):
        screen.say(line)


def _show_time(task: Task, mesh: Mesh, screen: Screen) -> None:
    """Compiles and takes some steps, and says how long all would take."""
    training = task.config.training
    screen.headline("Time and memory")
    optimizer = make_optimizer(training, task.params, task.axes)
    state = spread_state(task.params, task.axes, optimizer, training, mesh)
    shardings = jax.tree.map(lambda x: x.sharding, state)
    step = make_train_step(task.loss, optimizer, training, mesh=mesh, shardings=shardings)
    batch = place_batch(task.batch(0), mesh)
    began = time.perf_counter()
    compiled = step.compiled(state, batch)
    screen.say(f"  compiled in {time.perf_counter() - began:.1f} s")
    if memory := compiled.function.memory_analysis():
        screen.say(f"  temporary memory of a step: {memory.temp_size_in_bytes / 2**20:.0f} MiB")
    state, seconds = _time_steps(lambda state: compiled(state, batch)[0], state)
    evaluate = make_eval_step(task.loss, mesh=mesh)
    _, pass_seconds = _time_steps(lambda _: evaluate(state.model, batch), None)
    validations = -(-training.steps // training.valid_every)
    validation = pass_seconds * len(task.valid_batches())
    screen.say(
        f"  a step: {seconds:.3g} s; a validation: {validation:.2g} s without samples and scores"
    )
    all_of_it = duration(training.steps * seconds + validations * validation)
    screen.say(f"  {training.steps} steps and {validations} validations: about {all_of_it}")


def _time_steps(step: Callable[[State], State], state: State) -> tuple[State, float]:
    """The state after some steps, and the seconds that one takes; the first is not counted."""
    state = jax.block_until_ready(step(state))
    times: list[float] = []
    while len(times) < TIMED_STEPS and sum(times) < TIMED_SECONDS:
        began = time.perf_counter()
        state = jax.block_until_ready(step(state))
        times.append(time.perf_counter() - began)
    return state, statistics.median(times)


def _parameter_table(params: Params) -> list[str]:
    """One line per array, with its path, shape and size, and one with the total."""
    rows = [
        (path_of(path), x.shape, x.size) for path, x in jax.tree_util.tree_leaves_with_path(params)
    ]
    width = max(len(path) for path, _, _ in rows)
    lines = [f"  {path:<{width}}  {list(shape)!s:<16} {size:>10,}" for path, shape, size in rows]
    return [*lines, f"  {'total':<{width}}  {'':<16} {sum(row[2] for row in rows):>10,}"]
