"""Everything a run depends on, as plain frozen data: defaults, meanings and units in one place."""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

from flaxattn.models import EncoderDecoderConfig

__all__ = ["DataConfig", "RunConfig", "TrainingConfig", "config_hash", "to_json"]


BLEU_TOKENIZERS = ("13a", "char", "intl", "ja-mecab", "ko-mecab", "none", "zh")


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Which sentence pairs are learned and scored."""

    data_dir: str = "."
    """The folder that the files below are relative to."""
    train: tuple[str, ...] = ()
    """Training text: two aligned files (source target), or one TSV file (source TAB target).
    None: the built-in English-German corpus."""
    valid: tuple[str, ...] = ()
    """Validation text. None: pairs held out of the training text."""
    test: tuple[str, ...] = ()
    """Test text. None: pairs held out of the training text."""
    held_out: int = 1000
    """How many pairs to hold out for each split that has no files; at most a tenth of all."""
    builtin_pairs: int = 30_000
    """How many training pairs to draw from the built-in corpus."""
    bleu_tokenizer: str = "13a"
    """SacreBLEU's tokenizer for the target language: 13a, zh, ja-mecab, ko-mecab, intl, char."""
    character_coverage: float = 0.9998
    """Share of the characters of the text that get tokens of their own; the rest become bytes."""


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """How the model is trained."""

    steps: int = 1000
    """Updates of the parameters."""
    rows: int = 32
    """Packed rows in a batch, all devices and microbatches together."""
    row_length: int = 64
    """Cells in a row, source and target each; longer sentences are left out and counted."""
    microbatches: int = 1
    """Parts a batch is computed in, one after another, to save memory; they divide `rows`."""
    learning_rate: float = 2e-3
    """The highest rate, reached at the end of the warm-up."""
    warmup_steps: int = 400
    """Steps of linear warm-up; then the rate falls with the inverse square root of the step."""
    cooldown_steps: int = 0
    """The last steps, in which the rate falls linearly to zero."""
    label_smoothing: float = 0.1
    """Share of the probability that the loss spreads over all tokens."""
    adam_b1: float = 0.9
    """Adam's decay of the mean of gradients."""
    adam_b2: float = 0.98
    """Adam's decay of the mean of squared gradients."""
    weight_decay: float = 0.0
    """Decoupled weight decay."""
    clip_norm: float = 1.0
    """Gradients are scaled down to at most this global norm."""
    seed: int = 0
    """Of parameters, data order and dropout."""
    log_every: int = 20
    """Steps between lines of the log."""
    valid_every: int = 500
    """Steps between validation losses; checkpoints are written then, too."""
    keep_checkpoints: int = 2
    """How many of the latest checkpoints are kept."""


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """One run: its folder, data, model and training."""

    output: str
    """The run's folder. A run found there is resumed if it has the same configuration."""
    model: EncoderDecoderConfig
    data: DataConfig = DataConfig()
    training: TrainingConfig = TrainingConfig()

    def __post_init__(self) -> None:
        training, model, data = self.training, self.model, self.data
        for part, names in (
            (training, ("steps", "rows", "row_length", "microbatches", "log_every", "valid_every")),
            (training, ("keep_checkpoints",)),
            (model, ("vocab_size", "features", "ff_features", "num_heads")),
            (model, ("encoder_layers", "decoder_layers")),
            (data, ("held_out", "builtin_pairs")),
        ):
            for name in names:
                _check(getattr(part, name) >= 1, name, "at least 1")
        _check(training.seed >= 0, "seed", "at least 0")
        _check(training.rows % training.microbatches == 0, "rows", "a multiple of microbatches")
        _check(model.features % model.num_heads == 0, "features", "a multiple of num_heads")
        known = data.bleu_tokenizer in BLEU_TOKENIZERS
        _check(known, "bleu_tokenizer", f"one of {', '.join(BLEU_TOKENIZERS)}")
        for split in ("train", "valid", "test"):
            files = getattr(self.data, split)
            _check(len(files) <= 2, split, "two aligned files, or one TSV file")


def _check(holds: bool, name: str, expected: str) -> None:
    if not holds:
        option = name.replace("_", "-")
        raise ValueError(f"--{option}: expected {expected}.")


def to_json(config: RunConfig) -> dict[str, Any]:
    """The configuration as JSON-able data."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def config_hash(config: RunConfig) -> str:
    """Twelve hex digits that name the configuration, wherever its output and data lie."""
    data = to_json(config)
    del data["output"], data["data"]["data_dir"]
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:12]


def data_path(config: DataConfig, name: str) -> Path:
    """Where the file called `name` lies."""
    return Path(config.data_dir).expanduser() / Path(name).expanduser()
