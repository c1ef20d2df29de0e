"""A task of whose model low-rank adapters alone are learned; the parameters it starts from stay."""

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from jax.tree_util import Partial

from flaxattn.training.config import RunConfig, TrainingConfig
from flaxattn.training.mesh import make_mesh, place_like, shardings_like
from flaxattn.training.parameters.freezing import labels
from flaxattn.training.parameters.lora import adapter_axes, fresh_adapters, merged
from flaxattn.training.processes import are_several
from flaxattn.training.screen import Screen
from flaxattn.training.storage.adapter import write_adapter
from flaxattn.training.storage.layout import ADAPTER, MODELS, START
from flaxattn.training.storage.weights import read_weights
from flaxattn.training.task import Batch, Loss, Sums, Task, Tested
from flaxattn.training.trees import Params
from flaxattn.types import PyTree

__all__ = ["Adapted", "adapted", "kept_model", "parameter_counts"]


def adapted(task: Task) -> Task:
    """The task itself, or, with `--lora`, one whose parameters are the adapters alone.

    Raises:
      ValueError if these do not fit the parameters of the task.
    """
    training = task.config.training
    return Adapted(task, _fresh(task.params, task.axes, training)) if training.lora else task


def parameter_counts(task: Task) -> tuple[int, int]:
    """How many parameters are trained, and how many the model has."""
    if isinstance(task, Adapted):
        return _count(task.params), _count(task.base.params)
    told = zip(
        jax.tree.leaves(labels(task.params, task.config.training.freeze)),
        jax.tree.leaves(task.params),
        strict=True,
    )
    return sum(x.size for label, x in told if label == "trained"), _count(task.params)


def kept_model(
    folder: Path, training: TrainingConfig, shapes: Params, axes: PyTree, run: str | None
) -> Params:
    """The model of the run in a folder: the mean of those that it kept, with what it started from.

    Args:
      training: how it is trained.
      shapes, axes: of the model's parameters: what `Models.average` gives is like them, and the
        logical names of their axes.
      run: its name.

    Raises:
      ValueError if none is kept yet, or it does not fit.
    """
    from flaxattn.training.storage.checkpoints import Models  # so late that others need no orbax

    with Models(folder / MODELS, run=run) as models:
        if not training.lora:
            return models.average(shapes)
        place = jax.tree.leaves(shapes)[0].sharding
        low = jax.eval_shape(lambda: _fresh(shapes, axes, training))
        like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), low)
        start = read_weights(folder / START, shapes)
        return merged(start, models.average(like), training.lora_scale)


@dataclasses.dataclass(frozen=True)
class Adapted:
    """A `Task` whose parameters are adapters to those of another one.

    Args:
      base: the other one, whose own parameters stay as they are.
      params: the adapters, before the first step.
    """

    base: Task
    params: Params

    @property
    def config(self) -> RunConfig:
        return self.base.config

    @property
    def unit(self) -> str:
        return self.base.unit

    @property
    def shown(self) -> Sequence[str]:
        return self.base.shown

    @property
    def axes(self) -> PyTree:
        return adapter_axes(self.params, self.base.axes)

    def files(self) -> Mapping[str, bytes]:
        return self.base.files()

    def digests(self) -> Mapping[str, str]:
        return self.base.digests()

    def batch(self, step: int) -> Batch:
        return self.base.batch(step)

    def valid_batches(self) -> Sequence[Batch]:
        return self.base.valid_batches()

    @functools.cached_property
    def loss(self) -> Loss:
        """That of the merged model, bound to the parameters that stay, on the mesh."""
        loss, scale = self.base.loss, self._scale

        def of_adapters(fixed: Params, params: Params, batch: Batch, key: jax.Array | None) -> Sums:
            return loss(merged(fixed, params, scale), batch, key)

        return Partial(of_adapters, self._fixed)

    def means(self, sums: Sums) -> dict[str, float]:
        return self.base.means(sums)

    def validate(self, params: Params, means: dict[str, float]) -> tuple[dict[str, float], float]:
        return self.base.validate(self._model(params), means)

    def samples(self, params: Params) -> Iterable[Mapping[str, str]]:
        return self.base.samples(self._model(params))

    def test(self, params: Params, screen: Screen) -> Tested:
        return self.base.test(self._model(params), screen)

    def export(self, params: Params, folder: Path, result: Mapping[str, Any]) -> None:
        """Writes the merged model, and the adapters in a file of their own."""
        self.base.export(self._model(params), folder, result)
        write_adapter(folder / ADAPTER, params, self.base.params, self._scale)

    @property
    def _scale(self) -> float:
        return self.config.training.lora_scale

    @functools.cached_property
    def _fixed(self) -> Params:
        """The parameters that stay, spread over the mesh."""
        mesh, params = make_mesh(self.config.training.mesh), self.base.params
        return place_like(params, shardings_like(params, self.base.axes, mesh))

    def _model(self, params: Params) -> Params:
        """The merged parameters, where this process has all that they are made of."""
        return merged(self.base.params if are_several() else self._fixed, params, self._scale)


def _fresh(params: Params, axes: PyTree, training: TrainingConfig) -> Params:
    key = jax.random.key(training.seed)
    return fresh_adapters(params, axes, training.lora_on, training.lora, key)


def _count(params: Params) -> int:
    return sum(x.size for x in jax.tree.leaves(params))
