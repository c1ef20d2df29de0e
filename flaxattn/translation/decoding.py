"""Greedy translation with a trained model."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flaxattn.models import EncoderDecoder
from flaxattn.translation.tokenizer import Tokenizer

__all__ = ["greedy_decode", "translate"]

SHAPE_STEP = 8  # lengths are rounded up to multiples of this, so that few shapes are compiled


@functools.partial(jax.jit, static_argnames=("model", "max_length", "bos_id", "eos_id"))
def greedy_decode(
    model: EncoderDecoder,
    params: Any,
    source: jax.Array,
    *,
    max_length: int,
    bos_id: int,
    eos_id: int,
    limits: jax.Array | None = None,
) -> jax.Array:
    """The most likely token, one after another, until every row has ended.

    Args:
      source: int `[B, S]`, padded with the model's `pad_id`.
      max_length: T, of the translations, the end token included.
      limits: int `[B]`, the most tokens of each translation; None: T.

    Returns:
      int32 `[B, T]`: tokens up to and including `eos_id`, then `pad_id`.
    """
    apply: Any = functools.partial(model.apply, {"params": params})
    segment_ids = (source != model.pad_id).astype(jnp.int32)
    encoded = apply(source, segment_ids, deterministic=True, method="encode")
    batch = source.shape[0]
    limits = jnp.full(batch, max_length) if limits is None else limits
    all_seen = jnp.ones((batch, max_length), jnp.int32)

    def extend(carry: tuple[Any, Any, Any]) -> tuple[Any, Any, Any]:
        t, inputs, ended = carry
        decoded = apply(
            inputs[:, :-1], encoded, segment_ids, all_seen, deterministic=True, method="decode"
        )
        logits = apply(decoded[:, t], method="logits")
        token = jnp.where(ended, model.pad_id, logits.argmax(axis=-1).astype(jnp.int32))
        ended = ended | (token == eos_id) | (t + 1 >= limits)
        return t + 1, inputs.at[:, t + 1].set(token), ended

    def unfinished(carry: tuple[Any, Any, Any]) -> jax.Array:
        t, _, ended = carry
        return (t < max_length) & ~ended.all()

    inputs = jnp.full((batch, max_length + 1), model.pad_id, jnp.int32).at[:, 0].set(bos_id)
    start = (jnp.zeros((), jnp.int32), inputs, jnp.zeros((batch,), bool))
    return jax.lax.while_loop(unfinished, extend, start)[1][:, 1:]


def translate(
    model: EncoderDecoder,
    params: Any,
    tokenizer: Tokenizer,
    texts: Sequence[str],
    *,
    batch_size: int = 64,
    progress: Callable[[int], None] = lambda done: None,
) -> list[str]:
    """The greedy translation of each text, in the order given; blank texts stay blank.

    Args:
      batch_size: texts translated together; they are sorted by length first.
      progress: called with the number of texts finished since the last call.
    """
    sources = tokenizer.encode(texts)
    answers = [""] * len(texts)
    order = sorted(
        (i for i in range(len(texts)) if texts[i].strip()), key=lambda i: len(sources[i])
    )
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        length = _round_up(max(len(sources[i]) for i in chosen))
        source = np.full((batch_size, length), tokenizer.pad_id, np.int32)
        for row, i in enumerate(chosen):
            source[row, : len(sources[i])] = sources[i]
        limits = np.zeros(batch_size, np.int32)  # rows without a text end at once
        limits[: len(chosen)] = [_longest_translation(len(sources[i])) for i in chosen]
        tokens = greedy_decode(
            model,
            params,
            source,
            max_length=_round_up(_longest_translation(length)),
            bos_id=tokenizer.bos_id,
            eos_id=tokenizer.eos_id,
            limits=limits,
        )
        for i, text in zip(chosen, tokenizer.decode(np.asarray(tokens)), strict=False):
            answers[i] = " ".join(text.split())  # one line, whatever bytes were decoded
        progress(len(chosen))
    return answers


def _longest_translation(source_length: int) -> int:
    return source_length * 3 // 2 + 8


def _round_up(length: int) -> int:
    return -(-length // SHAPE_STEP) * SHAPE_STEP
