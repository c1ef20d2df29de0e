"""What a run would do, shown without doing it: shapes, parameters, data, and the compilation."""

import time
from typing import Any

import jax

from flaxattn.translation.config import RunConfig
from flaxattn.translation.devices import data_mesh, place
from flaxattn.translation.parameters.freezing import path_of
from flaxattn.translation.training.preparation import Prepared
from flaxattn.translation.training.reporting import Screen
from flaxattn.translation.training.train_step import init_state, make_optimizer, make_train_step

__all__ = ["dry_run", "parameter_table"]


def dry_run(prepared: Prepared, config: RunConfig, screen: Screen) -> None:
    """Shows a sample of the data, the shapes and the parameters, and compiles the step."""
    mesh, optimizer = data_mesh(), make_optimizer(config.training, prepared.params)
    tokenizer = prepared.tokenizer
    screen.headline("Data")
    for pair in prepared.corpus.train[:3]:
        for side, ids in zip(("source", "target"), tokenizer.encode(pair), strict=True):
            screen.say(f"  {side}  {' '.join(tokenizer.pieces(ids.tolist()))}")
    batch = prepared.train.batch(0)
    for name, array in batch._asdict().items():
        screen.say(f"  batch.{name:<18} {array.dtype} {list(array.shape)}")
    share = float((batch.target_segment_ids != 0).mean())
    screen.say(f"  share of target cells that are tokens: {share:.1%}")
    screen.headline("Parameters")
    state = init_state(prepared.params, optimizer, config.training)
    for line in parameter_table(state.params):
        screen.say(line)
    screen.headline("Compilation")
    step = make_train_step(
        prepared.model, optimizer, config.training, bos_id=tokenizer.bos_id, mesh=mesh
    )
    began = time.perf_counter()
    compiled = step.lower(place(state, mesh), place(batch, mesh, "data")).compile()
    screen.say(f"  compiled in {time.perf_counter() - began:.1f} s")
    if memory := compiled.memory_analysis():
        screen.say(f"  temporary memory of a step: {memory.temp_size_in_bytes / 2**20:.0f} MiB")


def parameter_table(params: Any) -> list[str]:
    """One line per array, with its path, shape and size, and one with the total."""
    rows = [
        (path_of(path), x.shape, x.size) for path, x in jax.tree_util.tree_leaves_with_path(params)
    ]
    width = max(len(path) for path, _, _ in rows)
    lines = [f"  {path:<{width}}  {list(shape)!s:<16} {size:>10,}" for path, shape, size in rows]
    return [*lines, f"  {'total':<{width}}  {'':<16} {sum(row[2] for row in rows):>10,}"]
