"""The model of each task, and parameters of it."""

from typing import Any

import jax
import jax.numpy as jnp

from flaxattn.models import DecoderOnly, MaskedTokens, TextLabels, TokenLabels, TransformerConfig
from flaxattn.text.tokenizer import Tokenizer
from flaxattn.training.parameters.initial import Init
from flaxattn.training.trees import Params

__all__ = ["Module", "init_of", "module_of"]

Module = DecoderOnly | MaskedTokens | TextLabels | TokenLabels
HEADED: dict[str, Any] = {"labelling": TokenLabels, "classification": TextLabels}
OTHERS: dict[str, Any] = {"language": DecoderOnly, "denoising": MaskedTokens}
TASKS = (*OTHERS, *HEADED)


def module_of(task: str, architecture: TransformerConfig, num_labels: int = 0) -> Module:
    """The model of a task.

    Args:
      num_labels: C, for tasks that have labels.
    """
    options: Any = {"pad_id": Tokenizer.pad_id}
    if task in HEADED:
        return HEADED[task](architecture, num_labels=num_labels, **options)
    return OTHERS[task](architecture, **options)


def init_of(module: Module) -> Init:
    """What makes the parameters of a model."""

    def init(key: jax.Array) -> Params:
        return module.init(key, jnp.ones((1, 2), jnp.int32), deterministic=True)["params"]

    return init
