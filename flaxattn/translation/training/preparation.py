"""From a configuration to everything training needs: text, tokens, packed rows, a model."""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from flaxattn.models import EncoderDecoder, EncoderDecoderConfig
from flaxattn.translation.config import RunConfig
from flaxattn.translation.parameters.freezing import labels
from flaxattn.translation.parameters.initial import init_params
from flaxattn.translation.text.corpus import Corpus, Pairs, Tell, load_corpus
from flaxattn.translation.text.packing import PackedPairs
from flaxattn.translation.text.tokenizer import Tokenizer
from flaxattn.translation.trained.loading import TOKENIZER, Loaded, load

__all__ = ["Prepared", "prepare"]


class Prepared(NamedTuple):
    """What training starts from."""

    corpus: Corpus
    tokenizer: Tokenizer
    model: EncoderDecoder
    params: Any  # before the first step
    train: PackedPairs
    valid: PackedPairs


def prepare(config: RunConfig, folder: Path | None = None, tell: Tell = print) -> Prepared:
    """Reads the corpus, learns the tokenizer or loads the one in `folder`, packs, makes the model.

    Nothing is written.

    Args:
      tell: as in `load_corpus`.

    Raises:
      ValueError or FileNotFoundError that names the file, line or option at fault.
    """
    _check_rows(config)
    start = _load_start(config.training.init_from) if config.training.init_from else None
    kept = start.tokenizer if start else _kept_tokenizer(folder)
    normalization = kept.normalization if kept else config.data.normalization
    corpus = load_corpus(dataclasses.replace(config.data, normalization=normalization), tell)
    tokenizer = kept or _learned_tokenizer(config, corpus)
    model_config = dataclasses.replace(config.model, vocab_size=tokenizer.vocab_size)
    model = EncoderDecoder(model_config, pad_id=tokenizer.pad_id)
    if start:
        check_architecture(start.model.config, model_config)
    params = start.params if start else init_params(model, config.training.seed)
    labels(params, config.training.freeze)
    return Prepared(
        corpus,
        tokenizer,
        model,
        params,
        _pack(corpus.train, tokenizer, config, config.training.subword_dropout),
        _pack(corpus.valid, tokenizer, config),
    )


def check_architecture(start: EncoderDecoderConfig, wanted: EncoderDecoderConfig) -> None:
    """Raises ValueError if the parameters of `start` do not fit the model that is wanted."""
    free = {"dtype", "remat"} | {name for name in vars(wanted) if name.endswith("dropout_rate")}
    differing = [
        f"--{name.replace('_', '-')} {value}"
        for name, value in vars(start).items()
        if name not in free and value != getattr(wanted, name)
    ]
    if differing:
        raise ValueError(
            f"--init-from: that run's model has {', '.join(differing)}; give the same here."
        )


def _load_start(folder: str) -> Loaded:
    try:
        return load(Path(folder))
    except (ValueError, OSError) as error:
        raise ValueError(f"--init-from: {error}") from error


def _kept_tokenizer(folder: Path | None) -> Tokenizer | None:
    if folder and (folder / TOKENIZER).exists():
        return Tokenizer.load(folder / TOKENIZER)
    return None


def _learned_tokenizer(config: RunConfig, corpus: Corpus) -> Tokenizer:
    return Tokenizer.train(
        (text for pair in corpus.train for text in pair),
        config.model.vocab_size,
        character_coverage=config.data.character_coverage,
        normalization=config.data.normalization,
    )


def _pack(
    pairs: Pairs, tokenizer: Tokenizer, config: RunConfig, subword_dropout: float = 0.0
) -> PackedPairs:
    training = config.training
    fitting = [p for p in pairs if all(tokenizer.fits(t, training.row_length) for t in p)]
    sides = [[pair[side] for pair in fitting] for side in (0, 1)]

    def resample(epoch: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
        source, target = (
            tokenizer.sample(texts, subword_dropout, (training.seed, epoch, side))
            for side, texts in enumerate(sides)
        )
        return source, target

    return PackedPairs(
        *(tokenizer.encode(texts) for texts in sides),
        rows=training.rows,
        row_length=training.row_length,
        seed=training.seed,
        resample=resample if subword_dropout else None,
        left_out=len(pairs) - len(fitting),
    )


def _check_rows(config: RunConfig) -> None:
    devices, training = jax.local_device_count(), config.training
    if training.rows % (devices * training.microbatches):
        raise ValueError(
            f"--rows is {training.rows}; expected a multiple of {devices} devices times "
            f"{training.microbatches} microbatches."
        )
