"""What a run would do, shown without doing it: data, time, memory, and parameters."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh

from flaxattn.training.devices import data_mesh, place
from flaxattn.training.parameters.freezing import path_of
from flaxattn.training.screen import Screen, duration
from flaxattn.training.train_step import (
    init_state,
    make_eval_step,
    make_optimizer,
    make_train_step,
)
from flaxattn.translation.config import RunConfig
from flaxattn.translation.preparation import Prepared

__all__ = ["dry_run", "parameter_table"]

TIMED_STEPS, TIMED_SECONDS = 5, 10.0  # as many as the one, or as long as the other


def dry_run(prepared: Prepared, config: RunConfig, screen: Screen) -> None:
    """Shows a sample of the data, how long training would take, its memory, and the parameters."""
    mesh = data_mesh()
    _show_data(prepared, screen)
    _show_time(prepared, config, mesh, screen)
    screen.headline("Parameters")
    for line in parameter_table(prepared.params):
        screen.say(line)


def _show_data(prepared: Prepared, screen: Screen) -> None:
    screen.headline("Data")
    for pair in prepared.corpus.train[:3]:
        for side, ids in zip(("source", "target"), prepared.tokenizer.encode(pair), strict=True):
            screen.say(f"  {side}  {' '.join(prepared.tokenizer.pieces(ids.tolist()))}")
    batch = prepared.train.batch(0)
    for name, array in batch._asdict().items():
        screen.say(f"  batch.{name:<18} {array.dtype} {list(array.shape)}")
    share = float((batch.target_segment_ids != 0).mean())
    screen.say(f"  share of target cells that are tokens: {share:.1%}")


def _show_time(prepared: Prepared, config: RunConfig, mesh: Mesh, screen: Screen) -> None:
    """Compiles and takes some steps, and says how long all would take."""
    training, bos_id = config.training, prepared.tokenizer.bos_id
    screen.headline("Time and memory")
    optimizer = make_optimizer(training, prepared.params)
    step = make_train_step(prepared.model, optimizer, training, bos_id=bos_id, mesh=mesh)
    state = place(init_state(prepared.params, optimizer, training), mesh)
    batch = place(prepared.train.batch(0), mesh, "data")
    began = time.perf_counter()
    compiled = step.lower(state, batch).compile()
    screen.say(f"  compiled in {time.perf_counter() - began:.1f} s")
    if memory := compiled.memory_analysis():
        screen.say(f"  temporary memory of a step: {memory.temp_size_in_bytes / 2**20:.0f} MiB")
    state, seconds = _time_steps(lambda state: compiled(state, batch)[0], state)
    evaluate = make_eval_step(prepared.model, bos_id=bos_id)
    _, pass_seconds = _time_steps(lambda _: evaluate(state.model, batch), None)
    validations = -(-training.steps // training.valid_every)
    validation = pass_seconds * prepared.valid.batches_per_epoch
    screen.say(f"  a step: {seconds:.3g} s; a validation: {validation:.2g} s without translations")
    all_of_it = duration(training.steps * seconds + validations * validation)
    screen.say(f"  {training.steps} steps and {validations} validations: about {all_of_it}")


def _time_steps(step: Callable[[Any], Any], state: Any) -> tuple[Any, float]:
    """The state after some steps, and the seconds that one takes; the first is not counted."""
    state = jax.block_until_ready(step(state))
    times: list[float] = []
    while len(times) < TIMED_STEPS and sum(times) < TIMED_SECONDS:
        began = time.perf_counter()
        state = jax.block_until_ready(step(state))
        times.append(time.perf_counter() - began)
    return state, statistics.median(times)


def parameter_table(params: Any) -> list[str]:
    """One line per array, with its path, shape and size, and one with the total."""
    rows = [
        (path_of(path), x.shape, x.size) for path, x in jax.tree_util.tree_leaves_with_path(params)
    ]
    width = max(len(path) for path, _, _ in rows)
    lines = [f"  {path:<{width}}  {list(shape)!s:<16} {size:>10,}" for path, shape, size in rows]
    return [*lines, f"  {'total':<{width}}  {'':<16} {sum(row[2] for row in rows):>10,}"]
