"""Everything a run depends on, as plain frozen data: defaults, meanings and units in one place."""

import dataclasses
import hashlib
import json
import os
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from flaxattn.models import EncoderDecoderConfig
from flaxattn.ranges import FieldError, Range, check_fields
from flaxattn.training.storage.json_data import from_older, same_fields

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


NO_OPTION = {"option": False}  # of fields that a run keeps but nobody gives
MAX_RATIO = 1.5  # of the length of a translation to that of its source, the least that is chosen
Normalization = Literal["none", "nfc", "nfkc"]
NORMALIZATIONS: tuple[Normalization, ...] = get_args(Normalization)
BLEU_TOKENIZERS = ("13a", "char", "intl", "ja-mecab", "ko-mecab", "none", "zh")


# Steps are counted exactly in float32, seeds in int32; what is kept or shown has no end but sense.
Steps = Annotated[int, Range(1, 10_000_000)]
StepsOrZero = Annotated[int, Range(0, 10_000_000)]
Count = Annotated[int, Range(1, 10_000)]
CountOrZero = Annotated[int, Range(0, 10_000)]
Size = Annotated[int, Range(1, 1_000_000)]
Share = Annotated[float, Range(0, 1, below=True)]
Seed = Annotated[int, Range(0, 2**31 - 1)]
Ratio = Annotated[float, Range(0, 100)]


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Which sentence pairs are learned and scored."""

    data_dir: str = "."
    """The folder that the files below are relative to. Files given without it are relative to the
    current folder."""
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
    held_out: Annotated[int, Range(1, 10_000_000)] = 1000
    """How many pairs to hold out for each split that has no files, each with a source of its own;
    at most a tenth of all."""
    builtin_pairs: Size = 30_000
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
    character_coverage: Annotated[float, Range(0.98, 1)] = 0.9998
    """Share of the characters of the text that get tokens of their own; the rest become bytes."""

    def __post_init__(self) -> None:
        check_fields(self)
        if self.bleu_tokenizer not in BLEU_TOKENIZERS:
            expected = ", ".join(BLEU_TOKENIZERS)
            raise FieldError(
                "bleu_tokenizer", f"is {self.bleu_tokenizer!r}; expected one of {expected}."
            )
        if self.columns and not len(self.columns) == len({*self.columns}) == 2:
            raise FieldError("columns", f"is {self.columns}; expected two different columns.")
        for split in ("train", "valid", "test"):
            if len(files := getattr(self, split)) > 2:
                raise FieldError(
                    split, f"has {len(files)} files; expected two aligned files, or one TSV file."
                )


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """How the model is trained."""

    steps: Steps = 1000
    """Updates of the parameters. With others than the preset's, the counts of steps below scale
    unless they are given; more of them continue a run that has ended."""
    rows: Size = 32
    """Packed rows in a batch, all devices and microbatches together."""
    row_length: Size = 64
    """Cells in a row, source and target each; longer sentences are left out and counted."""
    microbatches: Size = 1
    """Parts a batch is computed in, one after another, to save memory; they divide `rows`."""
    learning_rate: Annotated[float, Range(0, 10, above=True)] = 2e-3
    """The highest rate, reached at the end of the warm-up."""
    warmup_steps: StepsOrZero = 400
    """Steps of linear warm-up; then the rate falls with the inverse square root of the step."""
    cooldown_steps: StepsOrZero = 0
    """The last steps, in which the rate falls linearly to zero."""
    label_smoothing: Share = 0.1
    """Share of the probability that the loss spreads over all tokens."""
    r_drop: Annotated[float, Range(0, 1000)] = 0.0
    """Weight of the divergence between two passes with different dropout (arXiv:2106.14448); it
    doubles the cost of a step. 0: one pass."""
    subword_dropout: Share = 0.0
    """Share of BPE's merges left out at random in training text, anew in each epoch
    (arXiv:1910.13267)."""
    adam_b1: Share = 0.9
    """Adam's decay of the mean of gradients."""
    adam_b2: Share = 0.98
    """Adam's decay of the mean of squared gradients."""
    weight_decay: Annotated[float, Range(0, 100)] = 0.0
    """Decoupled weight decay."""
    clip_norm: Annotated[float, Range(0, 1e9, above=True)] = 1.0
    """Gradients are scaled down to at most this global norm."""
    ema_decay: Share = 0.0
    """Decay per step of a moving average of the parameters, which is validated and used instead
    of them. 0: none."""
    seed: Seed = 0
    """Of parameters, data order, subword dropout and dropout."""
    log_every: Steps = 20
    """Steps between lines of the log."""
    valid_every: Steps = 500
    """Steps between validations; checkpoints are written then, too."""
    metric: Literal["nll", "bleu", "chrf"] = "nll"
    """What the best models are best at, on the validation split; scores cost a translation."""
    patience: CountOrZero = 0
    """Validations without a better metric after which training stops early. 0: never."""
    samples: CountOrZero = 2
    """Validation sentences translated for the log at every validation."""
    keep_checkpoints: Count = 2
    """How many of the latest checkpoints are kept, to resume from."""
    average: Count = 1
    """How many models, one for each validation, are averaged in the end."""
    select: Literal["best", "last"] = "best"
    """Which models those are."""
    init_from: str = ""
    """Folder of a run whose parameters, architecture and tokenizer training starts from."""
    freeze: tuple[str, ...] = ()
    """Parameters that stay as they are, by path, e.g. encoder or */layer_0/*; see --dry-run."""
    ended_at: tuple[Steps, ...] = dataclasses.field(default=(), metadata=NO_OPTION)
    """The `steps` with which the run had ended each time before it was continued."""
    cooled_for: tuple[StepsOrZero, ...] = dataclasses.field(default=(), metadata=NO_OPTION)
    """The `cooldown_steps` it had then."""

    def __post_init__(self) -> None:
        check_fields(self)
        if self.rows % self.microbatches:
            raise FieldError(
                "rows", f"is {self.rows}; expected a multiple of microbatches, {self.microbatches}."
            )
        ends = (*self.ended_at, self.steps)
        if sorted(set(ends)) != [*ends] or len(self.cooled_for) != len(self.ended_at):
            raise FieldError(
                "ended_at", f"is {self.ended_at}; expected rising numbers below steps."
            )


@dataclasses.dataclass(frozen=True)
class DecodingConfig:
    """How a translation is sought."""

    beam_size: Annotated[int, Range(1, 1000)] = 5
    """Prefixes that are pursued side by side; 1: the most likely token, one after another."""
    length_penalty: Annotated[float, Range(0, 5)] = 1.0
    """Exponent of the length penalty by which log-probabilities are divided (arXiv:1609.08144)."""
    max_ratio: Ratio | None = None
    """The longest translation has so many tokens for each token of the source, and 8 more. None:
    chosen by training, 1.5 or so much that at most a thousandth of its targets are longer."""
    min_ratio: Ratio = 0.0
    """The shortest translation has so many tokens for each token of the source."""
    max_source: Annotated[int, Range(1, 100_000)] = 1024
    """Tokens of a source that are read; of a longer one the rest is left out, with a warning."""
    sampling: bool = False
    """Draw tokens at random instead of seeking the most likely translation."""
    temperature: Annotated[float, Range(1e-6, 1000)] = 1.0
    """Of sampling: logits are divided by it."""
    top_k: Size | None = None
    """Of sampling: draw from so many of the most likely tokens. None: from all."""
    top_p: Annotated[float, Range(0, 1, above=True)] | None = None
    """Of sampling: draw from the most likely tokens that together have this probability."""
    sampling_seed: Seed = 0
    """Of sampling."""

    def __post_init__(self) -> None:
        check_fields(self)
        most = MAX_RATIO if self.max_ratio is None else self.max_ratio
        if self.min_ratio > most:
            raise FieldError(
                "min_ratio", f"is {self.min_ratio}; expected at most max_ratio, {most}."
            )


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
        model, r_drop = self.model, self.training.r_drop
        rates = (model.dropout_rate, model.attention_dropout_rate, model.activation_dropout_rate)
        if model.positions == "learned" and model.max_positions < self.training.row_length:
            raise FieldError(
                "max_positions",
                f"is {model.max_positions}; expected at least as many as --row-length, "
                f"{self.training.row_length}: later positions would have nothing of their own.",
            )
        if r_drop and not any(rates):
            raise FieldError(
                "r_drop",
                f"is {r_drop}; expected 0, since without dropout both passes are the same, or "
                "--dropout-rate above 0.",
            )


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
    Of a run that was never continued nothing is said of that, either.
    """
    training = data["training"]
    start = training.get("init_from", "")
    training = training | {"init_from": Path(start).absolute().name if start else ""}
    if not training.get("ended_at"):
        training = _without(_without(training, "ended_at"), "cooled_for")
    return _without(data, "output") | {
        "data": _without(data["data"], "data_dir"),
        "training": training,
    }


def _without(data: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in data.items() if key != name}


def data_path(config: DataConfig, name: str) -> Path:
    """Where the file called `name` lies."""
    return Path(os.path.expanduser(config.data_dir)) / os.path.expanduser(name)
