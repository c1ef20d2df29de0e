"""Text that a language model writes, token by token as it comes."""

import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flaxattn.layers import CachePosition
from flaxattn.search.sampling import keep_likely
from flaxattn.tasks.config import SamplingConfig
from flaxattn.tasks.modules import Module
from flaxattn.tasks.storing import Loaded
from flaxattn.training.trees import Params
from flaxattn.types import PyTree

__all__ = ["generate"]

STEP = 64  # cells of a cache and tokens of a beginning come in multiples: fewer programs
UNFINISHED = "\ufffd"  # ends a text whose last character has not all its bytes yet


def generate(loaded: Loaded, beginning: str, sampling: SamplingConfig) -> Iterator[str]:
    """What the model writes after a beginning, piece by piece.

    The outcome depends on the arguments alone. It ends at the end of a document, or after
    `max_tokens`.

    Args:
      loaded: a model of the task `language`.

    Raises:
      ValueError if it is of another task.
    """
    if loaded.task != "language":
        raise ValueError(f"a model of the task {loaded.task} writes no text; expected language.")
    given, written, told = loaded.tokenizer.encode([beginning])[0][:-1].tolist(), [], ""
    start = loaded.tokenizer.decode([given])[0]
    for token in _tokens(loaded, given, sampling):
        written.append(token)
        text = loaded.tokenizer.decode([[*given, *written]])[0][len(start) :]
        if not text.endswith(UNFINISHED):
            yield text[len(told) :]
            told = text


def _tokens(loaded: Loaded, given: list[int], sampling: SamplingConfig) -> Iterator[int]:
    """The tokens that are written, without that of the end."""
    tokenizer, module = loaded.tokenizer, loaded.module
    ids = [tokenizer.bos_id, *given]
    padded = np.full((1, -(-len(ids) // STEP) * STEP), tokenizer.pad_id, np.int32)
    padded[0, : len(ids)] = ids
    cells = -(-(padded.shape[1] + sampling.max_tokens) // STEP) * STEP
    key = jax.random.key(sampling.sampling_seed)
    choose = (sampling.temperature, sampling.top_k, sampling.top_p)
    token, cache = _read(module, cells, choose, loaded.params, padded, len(ids), key)
    for index in range(len(ids), len(ids) + sampling.max_tokens):
        if int(token[0, 0]) == tokenizer.eos_id:
            return
        yield int(token[0, 0])
        token, cache = _next(module, choose, loaded.params, cache, token, index, key)


Choose = tuple[float, int | None, float | None]  # temperature, top_k, top_p


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _read(
    module: Module,
    cells: int,
    choose: Choose,
    params: Params,
    tokens: jax.Array,
    count: jax.Array,
    key: jax.Array,
) -> tuple[jax.Array, PyTree]:
    """The token after the first `count` of the tokens [1, P]; the others are written over."""
    position = CachePosition(0, length=cells)
    logits, cache = _step(module, {"params": params}, tokens, position)
    last = jax.lax.dynamic_index_in_dim(logits, count - 1, axis=1, keepdims=False)
    return _chosen(last, choose, jax.random.fold_in(key, count)), cache


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=3)
def _next(
    module: Module,
    choose: Choose,
    params: Params,
    cache: PyTree,
    token: jax.Array,
    index: jax.Array,
    key: jax.Array,
) -> tuple[jax.Array, PyTree]:
    """The token after that of an index."""
    variables = {"params": params, "cache": cache}
    logits, cache = _step(module, variables, token, CachePosition(index))
    return _chosen(logits[:, 0], choose, jax.random.fold_in(key, index + 1)), cache


def _step(
    module: Module, variables: PyTree, tokens: jax.Array, position: CachePosition
) -> tuple[jax.Array, PyTree]:
    apply: Any = module.apply
    logits, changed = apply(
        variables,
        tokens,
        cache_position=position,
        deterministic=True,
        method="decode_step",
        mutable=["cache"],
    )
    return logits, changed["cache"]


def _chosen(logits: jax.Array, choose: Choose, key: jax.Array) -> jax.Array:
    """float32 [1, V] -> int32 [1, 1]."""
    temperature, top_k, top_p = choose
    if temperature == 0:
        return logits.argmax(axis=-1, keepdims=True).astype(jnp.int32)
    below = logits - logits.max(axis=-1, keepdims=True)  # no temperature makes 0 infinite
    likely = keep_likely(below / jnp.float32(temperature), top_k, top_p)
    return jax.random.categorical(key, likely, axis=-1)[:, None].astype(jnp.int32)
