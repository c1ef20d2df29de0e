"""What a model makes of texts that are not packed: batches of few shapes, in any order."""

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from flaxattn.tasks.modules import Module
from flaxattn.training.trees import Params

__all__ = ["logits_of"]

TOGETHER = 64  # texts
SHORTEST = 16  # cells of a row; longer ones have a power of two


def logits_of(module: Module, params: Params, texts: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The logits at each token of texts: of int [length] each, float32 [length, C].

    Texts of like length go together.
    """
    found: dict[int, np.ndarray] = {}
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    for start in range(0, len(order), TOGETHER):
        chosen = order[start : start + TOGETHER]
        of_batch = _of_batch(module, params, [texts[i] for i in chosen])
        for i, logits in zip(chosen, of_batch, strict=True):
            found[i] = logits
    return [found[i] for i in range(len(texts))]


def _of_batch(module: Module, params: Params, texts: list[np.ndarray]) -> Iterator[np.ndarray]:
    rows = TOGETHER if len(texts) > 1 else 1
    cells = max(SHORTEST, 1 << (max(map(len, texts)) - 1).bit_length())
    tokens, segment_ids = np.zeros((2, rows, cells), np.int32)
    for row, ids in enumerate(texts):
        tokens[row, : len(ids)], segment_ids[row, : len(ids)] = ids, 1
    logits = np.asarray(_logits(module, params, tokens, segment_ids))
    yield from (logits[row, : len(ids)] for row, ids in enumerate(texts))


@functools.partial(jax.jit, static_argnums=0)
def _logits(module: Module, params: Params, tokens: jax.Array, segment_ids: jax.Array) -> jax.Array:
    apply: Any = module.apply
    found: jax.Array = apply(
        {"params": params}, tokens, segment_ids=segment_ids, deterministic=True
    )
    return found
