"""From a configuration to everything training needs: text, tokens, packed rows, a model."""

import dataclasses
import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from flaxattn.models import EncoderDecoder, EncoderDecoderConfig
from flaxattn.translation.config import RunConfig, portable, to_json
from flaxattn.translation.corpus import Corpus, Pairs, load_corpus
from flaxattn.translation.freezing import labels
from flaxattn.translation.json_data import read_object
from flaxattn.translation.loading import CONFIG, TOKENIZER, Loaded, load
from flaxattn.translation.packing import PackedPairs
from flaxattn.translation.tokenizer import Tokenizer
from flaxattn.translation.train_step import init_params

__all__ = ["Prepared", "check_folder", "open_folder", "prepare"]

CHANGE_NO_MODEL = {"keep_checkpoints", "log_every", "patience", "samples"}


class Prepared(NamedTuple):
    """What training starts from."""

    corpus: Corpus
    tokenizer: Tokenizer
    model: EncoderDecoder
    params: Any  # before the first step
    train: PackedPairs
    valid: PackedPairs


def check_folder(config: RunConfig) -> None:
    """Raises ValueError if the run's folder holds a run that cannot be taken further."""
    folder = Path(config.output)
    kept = folder / CONFIG
    if kept.exists():
        differing = _differences(read_object(kept), to_json(config))
        if differing:
            raise ValueError(
                f"{folder} holds a run with other settings ({', '.join(differing)}). "
                "Name another folder with --output, or delete that one."
            )


def open_folder(config: RunConfig, tokenizer: Tokenizer) -> Path:
    """The run's folder, made if need be, with the configuration and the tokenizer in it."""
    check_folder(config)
    folder = Path(config.output)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).write_text(json.dumps(to_json(config), indent=2) + "\n")
    tokenizer.save(folder / TOKENIZER)
    return folder


def prepare(config: RunConfig, folder: Path | None = None) -> Prepared:
    """Reads the corpus, learns the tokenizer or loads the one in `folder`, packs, makes the model.

    Nothing is written.

    Raises:
      ValueError or FileNotFoundError that names the file, line or option at fault.
    """
    _check_rows(config)
    start = _load_start(config.training.init_from) if config.training.init_from else None
    corpus = load_corpus(config.data)
    tokenizer = start.tokenizer if start else _tokenizer(config, corpus, folder)
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


def _tokenizer(config: RunConfig, corpus: Corpus, folder: Path | None) -> Tokenizer:
    if folder and (folder / TOKENIZER).exists():
        return Tokenizer.load(folder / TOKENIZER)
    return Tokenizer.train(
        (text for pair in corpus.train for text in pair),
        config.model.vocab_size,
        character_coverage=config.data.character_coverage,
    )


def _pack(
    pairs: Pairs, tokenizer: Tokenizer, config: RunConfig, subword_dropout: float = 0.0
) -> PackedPairs:
    training = config.training
    sides = [[pair[side] for pair in pairs] for side in (0, 1)]

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
    )


def _check_rows(config: RunConfig) -> None:
    devices, training = jax.local_device_count(), config.training
    if training.rows % (devices * training.microbatches):
        raise ValueError(
            f"--rows is {training.rows}; expected a multiple of {devices} devices times "
            f"{training.microbatches} microbatches."
        )


def _differences(kept: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """The settings that differ and matter to the steps already made."""
    flat_kept, flat_wanted = (
        data["data"] | data["model"] | data["training"] for data in map(portable, (kept, wanted))
    )
    free = set(CHANGE_NO_MODEL)
    if not flat_kept["cooldown_steps"]:
        free.add("steps")  # a finished run may be trained on
    names = (flat_kept.keys() | flat_wanted.keys()) - free
    return sorted(n for n in names if flat_kept.get(n) != flat_wanted.get(n))
