"""The first steps of each preset whose results are kept: `python tests/first_steps.py` renews them.

A result is of the code that made it. Steps that learn something else than they did then tell that
this code has changed, long before anybody trains again.
"""

import dataclasses
import json
from pathlib import Path

import jax

from configs import PRESETS
from flaxattn.training.mesh import data_mesh, place
from flaxattn.training.optimizer import make_optimizer
from flaxattn.training.train_step import init_state, make_train_step
from flaxattn.translation.config import DataConfig, RunConfig
from flaxattn.translation.preparation import prepare
from flaxattn.translation.task import TranslationTask

RESULTS = Path(__file__).parents[1] / "results"
FILE = RESULTS / "first_steps.json"
STEPS = 5


def kept_presets() -> list[str]:
    """The presets that have a folder of results."""
    return [name for name in PRESETS if (RESULTS / name / "result.json").exists()]


def first_losses(name: str) -> list[float]:
    """The loss of each of the first steps, of the preset as it is but on the built-in corpus."""
    config = _on_builtin_corpus(PRESETS[name])
    task, training = TranslationTask(config, prepare(config, print)), config.training
    mesh, optimizer = data_mesh(), make_optimizer(training, task.params, task.axes)
    step = make_train_step(task.loss, optimizer, training, mesh=mesh)
    state, losses = place(init_state(task.params, optimizer, training), mesh), []
    for i in range(STEPS):
        state, sums = step(state, place(task.batch(i), mesh, "data"))
        losses.append(round(task.means(jax.device_get(sums))["loss"], 5))
    return losses


def _on_builtin_corpus(preset: RunConfig) -> RunConfig:
    model = dataclasses.replace(preset.model, vocab_size=600)
    data = DataConfig(builtin_pairs=2000, held_out=100)
    return dataclasses.replace(preset, model=model, data=data)


if __name__ == "__main__":
    found = {name: first_losses(name) for name in kept_presets()}
    FILE.write_text(json.dumps(found, indent=2) + "\n")
