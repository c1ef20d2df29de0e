"""Everything a run depends on, as plain frozen data: defaults, meanings and units in one place."""

import dataclasses
import hashlib
import json
import os
from pathlib import Path
from typing import Any, Literal, get_args

from flaxattn.models import EncoderDecoderConfig
from flaxattn.translation.storage.json_data import from_older, same_fields

__all__ = [
    "DataConfig",
    "DecodingConfig",
    "RunConfig",
    "TrainingConfig",
    "at_home",
    "check_sampling",
    "config_hash",
    "from_json",
    "portable",
    "to_json",
]


MAX_RATIO = 1.5  # of the length of a translation to that of its source, the least that is chosen
Normalization = Literal["none", "nfc", "nfkc"]
NORMALIZATIONS: tuple[Normalization, ...] = get_args(Normalization)
BLEU_TOKENIZERS = ("13a", "char", "intl", "ja-mecab", "ko-mecab", "none", "zh")


def _check(holds: bool, name: str, expected: str) -> None:
    if not holds:
        option = name.replace("_", "-")
        raise ValueError(f"--{option}: expected {expected}.")


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
    columns: tuple[str, ...] = ()
    """The columns of a TSV file that are source and target: two numbers from 1, or two names that
    stand in its first line. None: the first two."""
    held_out: int = 1000
    """How many pairs to hold out for each split that has no files, each with a source of its own;
    at most a tenth of all."""
    builtin_pairs: int = 30_000
    """How many training pairs to draw from the built-in corpus."""
    invalid_lines: Literal["error", "skip"] = "error"
    """What to do about lines that are not valid UTF-8 or have a NUL: stop at the first, or leave
    their pairs out and count them."""
    bleu_tokenizer: str = "13a"
    """SacreBLEU's tokenizer for the target language: 13a, zh, ja-mecab, ko-mecab, intl, char."""
    normalization: Normalization = "nfc"
    """How Unicode is spelt, also when translating: nfc brings texts to the form NFC, and every
    white space in a source to a plain space; nfkc brings sources to NFKC instead, which makes ﬁ fi,
    ² 2 and Ａ A; none takes texts as they are. A tokenizer that is there already decides it."""
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
    r_drop: float = 0.0
    """Weight of the divergence between two passes with different dropout (arXiv:2106.14448); it
    doubles the cost of a step. 0: one pass."""
    subword_dropout: float = 0.0
    """Share of BPE's merges left out at random in training text, anew in each epoch
    (arXiv:1910.13267)."""
    adam_b1: float = 0.9
    """Adam's decay of the mean of gradients."""
    adam_b2: float = 0.98
    """Adam's decay of the mean of squared gradients."""
    weight_decay: float = 0.0
    """Decoupled weight decay."""
    clip_norm: float = 1.0
    """Gradients are scaled down to at most this global norm."""
    ema_decay: float = 0.0
    """Decay per step of a moving average of the parameters, which is validated and used instead
    of them. 0: none."""
    seed: int = 0
    """Of parameters, data order, subword dropout and dropout."""
    log_every: int = 20
    """Steps between lines of the log."""
    valid_every: int = 500
    """Steps between validations; checkpoints are written then, too."""
    metric: Literal["nll", "bleu", "chrf"] = "nll"
    """What the best models are best at, on the validation split; scores cost a translation."""
    patience: int = 0
    """Validations without a better metric after which training stops early. 0: never."""
    samples: int = 2
    """Validation sentences translated for the log at every validation."""
    keep_checkpoints: int = 2
    """How many of the latest checkpoints are kept, to resume from."""
    average: int = 1
    """How many models, one for each validation, are averaged in the end."""
    select: Literal["best", "last"] = "best"
    """Which models those are."""
    init_from: str = ""
    """Folder of a run whose parameters and tokenizer training starts from."""
    freeze: tuple[str, ...] = ()
    """Parameters that stay as they are, by path, e.g. encoder or */layer_0/*; see --dry-run."""


@dataclasses.dataclass(frozen=True)
class DecodingConfig:
    """How a translation is sought."""

    beam_size: int = 5
    """Prefixes that are pursued side by side; 1: the most likely token, one after another."""
    length_penalty: float = 1.0
    """Exponent of the length penalty by which log-probabilities are divided (arXiv:1609.08144)."""
    max_ratio: float | None = None
    """The longest translation has so many tokens for each token of the source, and 8 more. None:
    chosen by training, 1.5 or so much that at most a thousandth of its targets are longer."""
    min_ratio: float = 0.0
    """The shortest translation has so many tokens for each token of the source."""
    max_source: int = 1024
    """Tokens of a source that are read; of a longer one the rest is left out, with a warning."""
    sampling: bool = False
    """Draw tokens at random instead of seeking the most likely translation."""
    temperature: float = 1.0
    """Of sampling: logits are divided by it."""
    top_k: int | None = None
    """Of sampling: draw from so many of the most likely tokens. None: from all."""
    top_p: float | None = None
    """Of sampling: draw from the most likely tokens that together have this probability."""
    sampling_seed: int = 0
    """Of sampling."""

    def __post_init__(self) -> None:
        _check(self.beam_size >= 1, "beam_size", "at least 1")
        _check(self.length_penalty >= 0, "length_penalty", "at least 0")
        most = MAX_RATIO if self.max_ratio is None else self.max_ratio
        _check(0 <= self.min_ratio <= most, "min_ratio", f"from 0 to max_ratio, {most}")
        _check(self.max_source >= 1, "max_source", "at least 1")
        _check(self.temperature > 0, "temperature", "more than 0")
        _check(self.top_k is None or self.top_k >= 1, "top_k", "at least 1")
        _check(self.top_p is None or 0 < self.top_p <= 1, "top_p", "more than 0 and at most 1")


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """One run: its folder, data, model and training."""

    output: str
    """The run's folder. A run found there is resumed if it has the same configuration."""
    model: EncoderDecoderConfig
    data: DataConfig = DataConfig()
    training: TrainingConfig = TrainingConfig()
    decoding: DecodingConfig = DecodingConfig()

    def __post_init__(self) -> None:
        training, model, data = self.training, self.model, self.data
        for part, names in (
            (training, "steps rows row_length microbatches log_every valid_every"),
            (training, "keep_checkpoints average"),
            (model, "vocab_size features ff_features num_heads encoder_layers decoder_layers"),
            (data, "held_out builtin_pairs"),
        ):
            for name in names.split():
                _check(getattr(part, name) >= 1, name, "at least 1")
        for name in "seed patience samples r_drop weight_decay".split():
            _check(getattr(training, name) >= 0, name, "at least 0")
        for part, names in (
            (training, "label_smoothing subword_dropout ema_decay"),
            (model, "dropout_rate attention_dropout_rate activation_dropout_rate"),
        ):
            for name in names.split():
                _check(0 <= getattr(part, name) < 1, name, "at least 0 and less than 1")
        rates = (model.dropout_rate, model.attention_dropout_rate, model.activation_dropout_rate)
        _check(
            any(rates) or not training.r_drop,
            "r_drop",
            "0, since without dropout both passes are the same, or --dropout-rate above 0",
        )
        _check(training.rows % training.microbatches == 0, "rows", "a multiple of microbatches")
        _check(model.features % model.num_heads == 0, "features", "a multiple of num_heads")
        known = data.bleu_tokenizer in BLEU_TOKENIZERS
        _check(known, "bleu_tokenizer", f"one of {', '.join(BLEU_TOKENIZERS)}")
        two = len(data.columns) == len({*data.columns}) == 2
        _check(two or not data.columns, "columns", "two different columns")
        for split in ("train", "valid", "test"):
            files = getattr(self.data, split)
            _check(len(files) <= 2, split, "two aligned files, or one TSV file")


def check_sampling(given: DecodingConfig, default: DecodingConfig) -> None:
    """Raises ValueError if `given` says how to sample, unlike `default`, but does not sample."""
    for name in ("temperature", "top_k", "top_p", "sampling_seed"):
        same = getattr(given, name) == getattr(default, name)
        option = f"--{name.replace('_', '-')}"
        if not (given.sampling or same):
            raise ValueError(f"{option} is for sampling: give --sampling, too, or leave it out.")


def at_home(config: RunConfig) -> RunConfig:
    """The configuration with `~` in the folders of runs replaced by what it stands for."""
    start = os.path.expanduser(config.training.init_from)
    return dataclasses.replace(
        config,
        output=os.path.expanduser(config.output),
        training=dataclasses.replace(config.training, init_from=start),
    )


def to_json(config: RunConfig) -> dict[str, Any]:
    """The configuration as JSON-able data."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def from_json(data: Any, where: str) -> RunConfig:
    """The configuration that `to_json` made data of; what an older one had not has its default.

    Args:
      where: the file it is from, for errors.

    Raises:
      ValueError that names the part and the field.
    """
    parts = {
        "model": EncoderDecoderConfig,
        "data": DataConfig,
        "training": TrainingConfig,
        "decoding": DecodingConfig,
    }
    same_fields(data, ["output", *parts], where)
    if not isinstance(data["output"], str):
        raise ValueError(f"{where}: output is {data['output']!r}; expected a folder.")
    read = {name: from_older(kind, data[name], f"{where}, {name}") for name, kind in parts.items()}
    try:
        return RunConfig(data["output"], **read)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def config_hash(config: RunConfig) -> str:
    """Twelve hex digits that name the configuration, wherever files and folders lie."""
    data = portable(to_json(config))
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:12]


def portable(data: dict[str, Any]) -> dict[str, Any]:
    """A configuration as JSON-able data, less the places that differ from machine to machine.

    As data files keep their names but not their folder, so does the run that training starts from.
    """
    start = data["training"].get("init_from", "")
    name = Path(start).absolute().name if start else ""
    return _without(data, "output") | {
        "data": _without(data["data"], "data_dir"),
        "training": data["training"] | {"init_from": name},
    }


def _without(data: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in data.items() if key != name}


def data_path(config: DataConfig, name: str) -> Path:
    """Where the file called `name` lies."""
    return Path(os.path.expanduser(config.data_dir)) / os.path.expanduser(name)
