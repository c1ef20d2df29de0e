"""What turns gradients into updates: AdamW, or Muon for the matrices of a model."""

from typing import Any

import jax
import optax
from optax import contrib

from flaxattn.training.config import TrainingConfig
from flaxattn.training.parameters.freezing import freeze, path_of
from flaxattn.training.parameters.kernels import kernels_of
from flaxattn.training.schedule import learning_rate
from flaxattn.training.trees import Params
from flaxattn.types import PyTree

__all__ = ["make_optimizer"]

EPSILON = 1e-9  # of Adam


def make_optimizer(
    config: TrainingConfig, params: Params = None, axes: PyTree = None
) -> optax.GradientTransformation:
    """The optimizer of `config` under its schedule, after clipping of the global norm.

    Args:
      params: the tree of parameters; needed only for Muon, and where some are frozen.
      axes: the logical names of their axes, which tell Muon what is a matrix.

    Raises:
      ValueError if `config.freeze` fits no parameter, or leaves none to train.
    """
    made = _muon(config, params, axes) if config.optimizer == "muon" else _adamw(config)
    clipped = optax.chain(optax.clip_by_global_norm(config.clip_norm), made)
    return freeze(clipped, config.freeze, params)


def _adamw(config: TrainingConfig) -> optax.GradientTransformation:
    return optax.adamw(
        learning_rate(config),
        b1=config.adam_b1,
        b2=config.adam_b2,
        eps=EPSILON,
        weight_decay=config.weight_decay,
    )


def _muon(config: TrainingConfig, params: Params, axes: PyTree) -> optax.GradientTransformation:
    """Muon (Jordan et al. 2024) for kernels, Adam for embeddings, norms and biases."""
    sides = {
        "/".join(path): contrib.MuonDimensionNumbers(
            tuple(range(len(inputs))), tuple(range(len(inputs), len(inputs) + len(outputs)))
        )
        for path, (inputs, outputs) in kernels_of(params, axes).items()
        if path[-1] == "kernel"
    }

    def sides_of(updates: Any) -> Any:
        return jax.tree_util.tree_map_with_path(lambda path, _: sides[path_of(path)], updates)

    def label(path: jax.tree_util.KeyPath, _: Any) -> str:
        return "muon" if path_of(path) in sides else "adam"

    rate = learning_rate(config)
    parts = {
        "muon": contrib.muon(
            lambda step: config.muon_rate / config.learning_rate * rate(step),
            weight_decay=config.weight_decay,
            muon_weight_dimension_numbers=sides_of,
        ),
        "adam": _adamw(config),
    }
    return optax.multi_transform(parts, jax.tree_util.tree_map_with_path(label, params))
