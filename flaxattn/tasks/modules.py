"""The model of each task, and parameters of it."""

from typing import Any

import jax
import jax.numpy as jnp

from flaxattn.models import (
    DecoderOnly,
    EncoderDecoder,
    EncoderDecoderConfig,
    MaskedTokens,
    TextLabels,
    TokenLabels,
    TransformerConfig,
)
from flaxattn.text.tokenizer import Tokenizer
from flaxattn.training.parameters.initial import Init
from flaxattn.training.trees import Params

__all__ = ["Architecture", "Module", "init_of", "module_of"]

Architecture = TransformerConfig | EncoderDecoderConfig
Module = DecoderOnly | EncoderDecoder | MaskedTokens | TextLabels | TokenLabels
HEADED: dict[str, Any] = {"labelling": TokenLabels, "classification": TextLabels}
OTHERS: dict[str, Any] = {
    "language": DecoderOnly,
    "denoising": MaskedTokens,
    "spans": EncoderDecoder,
}


def module_of(task: str, architecture: Architecture, num_labels: int = 0) -> Module:
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
        tokens = jnp.ones((1, 2), jnp.int32)
        inputs = [tokens, tokens] if isinstance(module, EncoderDecoder) else [tokens]
        return module.init(key, *inputs, deterministic=True)["params"]

    return init
