"""What every contender of `training.py` is given: pairs, sizes, parameters, schedule, batches."""

import dataclasses
import functools
from typing import Any

import jax
import numpy as np

from flaxattn.models import EncoderDecoder, EncoderDecoderConfig
from flaxattn.text.supply import PackedPairs
from flaxattn.text.tokenizer import Tokenizer
from flaxattn.text.tokens import TokenizedPairs
from flaxattn.training.schedule import learning_rate
from flaxattn.translation.config import RunConfig, TranslationTraining
from flaxattn.translation.initial import init_params
from flaxattn.translation.text.corpus import load_corpus

__all__ = ["PaddedPairs", "Problem", "by_length", "evenly", "pad", "prepare"]

VALID_PAIRS = 256

Pair = tuple[np.ndarray, np.ndarray]  # int32 ids of source and target, each with its end token


@dataclasses.dataclass(frozen=True)
class Problem:
    """Plain data, so that it can be handed to another process."""

    model: EncoderDecoderConfig
    training: TranslationTraining
    params: Any  # flaxattn's tree in NumPy: where every contender starts
    rates: np.ndarray  # the learning rate of each update
    train: list[Pair]
    valid: list[Pair]
    tokens_per_update: int  # real target tokens
    pad_id: int = Tokenizer.pad_id
    bos_id: int = Tokenizer.bos_id

    @property
    def longest(self) -> int:
        """Of all sentences."""
        return max(len(ids) for pair in self.train + self.valid for ids in pair)


def prepare(config: RunConfig, steps: int) -> Problem:
    """The data, sizes and optimizer of `config`, for a race of at most so many `steps`.

    What users of PyTorch and linen would have to write themselves is off: R-Drop, subword dropout,
    the moving average, microbatches. The warm-up is a third of the race.
    """
    training = dataclasses.replace(
        config.training,
        steps=steps,
        warmup_steps=steps // 3,
        cooldown_steps=0,
        microbatches=1,
        r_drop=0.0,
        subword_dropout=0.0,
        ema_decay=0.0,
    )
    corpus = load_corpus(config.data, print)
    tokenizer = Tokenizer.train(
        (text for pair in corpus.train for text in pair), config.model.vocab_size
    )
    model = dataclasses.replace(config.model, vocab_size=tokenizer.vocab_size)
    train, valid = (
        [
            pair
            for pair in zip(*map(tokenizer.encode, zip(*pairs, strict=True)), strict=True)
            if max(map(len, pair)) <= training.sequence_length
        ]
        for pairs in (corpus.train, corpus.valid)
    )
    return Problem(
        model,
        training,
        jax.device_get(init_params(EncoderDecoder(model, pad_id=tokenizer.pad_id), training.seed)),
        np.asarray(learning_rate(training)(np.arange(steps))),
        train,
        valid[:VALID_PAIRS],
        _tokens_per_update(train, training),
    )


def _tokens_per_update(pairs: list[Pair], training: TranslationTraining) -> int:
    """Those of a packed batch, on average; the others take as many."""
    packed = PackedPairs(
        TokenizedPairs.of(*zip(*pairs, strict=True)),
        batch_size=training.batch_size,
        sequence_length=training.sequence_length,
    )
    return round(sum(len(target) for _, target in pairs) / packed.batches_per_epoch)


def by_length(lengths: np.ndarray, tokens: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Buckets: pairs of like length together, sorted by target, then source; batches shuffled.

    Args:
      lengths: int [n, 2], source and target.
      tokens: real target tokens of a batch, which the last pair may exceed.

    Returns:
      For each batch the indices of its pairs.
    """
    order = rng.permutation(len(lengths))
    order = order[np.lexsort(lengths[order].T)]
    batch = (np.cumsum(lengths[order, 1]) - 1) // tokens
    batches = np.split(order, np.flatnonzero(np.diff(batch)) + 1)
    return [batches[i] for i in rng.permutation(len(batches))]


def evenly(lengths: np.ndarray, tokens: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Random batches of the same number of pairs, of `tokens` target tokens on average."""
    size = min(round(tokens / lengths[:, 1].mean()), len(lengths))
    order = rng.permutation(len(lengths))
    return list(order[: len(order) // size * size].reshape(-1, size))


class PaddedPairs:
    """An endless supply of padded batches, each a pure function of the step.

    Args:
      batching: `by_length` or `evenly`.
      length: of every row; None: of the longest in the batch.
    """

    def __init__(self, problem: Problem, batching: Any, length: int | None = None) -> None:
        self._pairs, self._length = problem.train, length
        lengths = np.array([[len(ids) for ids in pair] for pair in problem.train])

        def epoch(number: int) -> list[np.ndarray]:
            rng = np.random.default_rng([problem.training.seed, number])
            return batching(lengths, problem.tokens_per_update, rng)

        self._epoch = functools.lru_cache(maxsize=2)(epoch)
        self.batches_per_epoch = len(epoch(0))

    def batch(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Source and target, int32 [B, L] each, 0 for padding."""
        number, index = divmod(step, self.batches_per_epoch)
        batches = self._epoch(number)
        return pad([self._pairs[i] for i in batches[index % len(batches)]], self._length)


def pad(pairs: list[Pair], length: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Source and target, int32 [B, L] each; `length` None: of the longest of each side."""

    def side(rows: tuple[np.ndarray, ...]) -> np.ndarray:
        cells = np.full((len(rows), length or max(map(len, rows))), Tokenizer.pad_id, np.int32)
        for row, ids in zip(cells, rows, strict=True):
            row[: len(ids)] = ids
        return cells

    source, target = (side(rows) for rows in zip(*pairs, strict=True))
    return source, target
