"""Training under `accelerator.py`: updates of the project's own trainer, on random words."""

import dataclasses
import time
from typing import Any

import jax
import numpy as np
from flaxattn_training import Contender
from training_problem import Pair, Problem

from configs.multi30k import MULTI30K
from flaxattn.attention import table
from flaxattn.models import EncoderDecoder, EncoderDecoderConfig
from flaxattn.translation.config import TranslationTraining
from flaxattn.translation.initial import init_params

__all__ = ["MODELS", "trained"]

ROUNDS, ROUND_SECONDS, UPDATES = 5, 1.0, 1000
# Whatever a preset has: rows stay comparable.
PLAIN = dict(optimizer="adamw", r_drop=0.0, subword_dropout=0.0, average=1)
AUTO = table.best

# The sizes, the rows of a batch, and the mean length of a text: of Multi30k, and of paragraphs.
MODELS = {
    "multi30k": (MULTI30K.model, MULTI30K.training, 14),
    "100M": (
        EncoderDecoderConfig(
            vocab_size=16_000,
            features=768,
            ff_features=3072,
            num_heads=12,
            encoder_layers=6,
            decoder_layers=6,
            dtype="bfloat16",
        ),
        TranslationTraining(batch_size=16, sequence_length=2048),
        200,
    ),
}


def trained(model: str, implementation: str, tiny: bool = False) -> dict[str, Any]:
    """Real tokens, of source and target, that are learned from in a second."""
    table.best = _choosing(implementation)  # for all layers
    contender = Contender(_problem(*MODELS[model], tiny=tiny))
    rates = []
    for step in range(3):
        contender.update(step)
        contender.wait()
    step, rounds = 3, 1 if tiny else ROUNDS
    for _ in range(rounds):
        tokens, began = 0, time.perf_counter()
        while time.perf_counter() - began < ROUND_SECONDS:
            for _ in range(1 if tiny else 5):
                count = contender.update(step)
                tokens, step = tokens + count.source_tokens + count.target_tokens, step + 1
            contender.wait()
        rates.append(tokens / (time.perf_counter() - began))
    return {"tokens_per_s": float(np.median(rates)), "parameters": contender.parameters}


def _choosing(implementation: str) -> Any:
    """What `auto` is to choose, by the name of an implementation, or of itself."""
    if implementation != "auto" and implementation not in table.IMPLEMENTATIONS:
        raise ValueError(f"this flaxattn has no {implementation} implementation")
    if implementation == "auto":
        return AUTO
    return lambda q_len, kv_len: table.Choice(implementation, "asked for")


def _problem(
    model: EncoderDecoderConfig, training: TranslationTraining, mean: int, *, tiny: bool
) -> Problem:
    training = dataclasses.replace(
        training, steps=UPDATES, warmup_steps=10, cooldown_steps=0, **PLAIN
    )
    if tiny:
        model = dataclasses.replace(model, features=16, ff_features=16, num_heads=2)
        model = dataclasses.replace(model, encoder_layers=1, decoder_layers=1, vocab_size=100)
        training, mean = dataclasses.replace(training, batch_size=2, sequence_length=64), 14
    cells = training.batch_size * training.sequence_length
    pairs = _pairs(20 * cells // mean, mean, training.sequence_length, model.vocab_size)
    params = jax.device_get(init_params(EncoderDecoder(model), training.seed))
    rates = np.full(UPDATES, 1e-4)
    return Problem(model, training, params, rates, pairs, pairs[:8], cells)


def _pairs(count: int, mean: int, longest: int, vocab_size: int) -> list[Pair]:
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(np.log(mean), 0.4, (count, 2)), 2, longest).astype(int)
    return [
        tuple(rng.integers(4, vocab_size, n).astype(np.int32) for n in pair) for pair in lengths
    ]
