"""Everything a run depends on, as plain frozen data: defaults, meanings and units in one place."""

import dataclasses
import os
import re
from pathlib import Path
from typing import Annotated, Literal

from flaxattn.models import EncoderDecoderConfig
from flaxattn.ranges import FieldError, Range, check_fields
from flaxattn.text.normalization import Normalization
from flaxattn.training.config import CountOrZero, Seed, Share, Size, TrainingConfig
from flaxattn.translation.naming import corpora, others

__all__ = [
    "BLEU_TOKENIZERS",
    "MAX_RATIO",
    "DataConfig",
    "DecodingConfig",
    "Quantization",
    "RunConfig",
    "TranslationTraining",
    "check_sampling",
    "data_path",
    "tokenizer_path",
]

MAX_RATIO = 1.5  # of the length of a translation to that of its source, the least that is chosen
BLEU_TOKENIZERS = ("13a", "char", "intl", "ja-mecab", "ko-mecab", "none", "zh")
Ratio = Annotated[float, Range(0, 100)]

# What CTranslate2 can keep weights as.
Quantization = Literal[
    "float32",
    "float16",
    "bfloat16",
    "int16",
    "int8",
    "int8_float32",
    "int8_float16",
    "int8_bfloat16",
]


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Which sentence pairs are learned and scored."""

    data_dir: str = "."
    """The folder that the files below are relative to. Files given without it are relative to the
    current folder."""
    train: tuple[str, ...] = ()
    """Training text: two aligned files (source target), or one TSV file (source TAB target). None:
    the built-in English-German corpus. Of several such corpora, whose TSV files end in .tsv, a
    number before one is its weight: the share of rows that it and what follows it get."""
    valid: tuple[str, ...] = ()
    """Validation text. None: pairs held out of the training text."""
    more_valid: tuple[str, ...] = ()
    """More validation text, of which the log tells as well, and by which no model is chosen: for
    each corpus two aligned files, or one TSV file that ends in .tsv. It is told apart by the name
    of its first file."""
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
    tokenizer: str = ""
    """A SentencePiece model of your own, instead of one that is learned from the training text: a
    file, relative to the current folder."""
    symbols: tuple[str, ...] = ()
    """Strings without spaces, such as <date>, that are one token each wherever they stand. What the
    tokenizer of --tokenizer or --init-from lacks of them is added to it: the vocabulary grows."""
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
        for symbol in self.symbols:
            if not symbol or re.search(r"[\s\0\u2581]", symbol) or self.symbols.count(symbol) > 1:
                raise FieldError(
                    "symbols", f"has {symbol!r}; expected strings without spaces, each once."
                )
        for split in ("valid", "test"):
            if len(names := getattr(self, split)) > 2:
                raise FieldError(
                    split, f"has {len(names)} files; expected two aligned files, or one TSV file."
                )
        corpora(self.train)
        others(self.more_valid)


@dataclasses.dataclass(frozen=True)
class TranslationTraining(TrainingConfig):
    """How a translator is trained: as any model is, and what is of translation alone."""

    sequence_length: Size = 64
    """Tokens in a row, source and target each, of as many sentences as fit; longer sentences are
    left out and counted."""
    label_smoothing: Share = 0.1
    """Share of the probability that the loss spreads over all tokens."""
    r_drop: Annotated[float, Range(0, 1000)] = 0.0
    """Weight of the divergence between two passes with different dropout (arXiv:2106.14448); it
    doubles the cost of a step. 0: one pass."""
    subword_dropout: Share = 0.0
    """Share of BPE's merges left out at random in training text, anew in each epoch
    (arXiv:1910.13267)."""
    metric: Literal["nll", "bleu", "chrf"] = "nll"
    """What the best models are best at, on the validation split; scores cost a translation."""
    samples: CountOrZero = 2
    """Validation sentences translated for the log at every validation."""


@dataclasses.dataclass(frozen=True)
class DecodingConfig:
    """How a translation is sought."""

    beam_size: Annotated[int, Range(1, 1000)] = 5
    """Prefixes that are pursued side by side; 1: greedy, one likeliest token after another."""
    length_penalty: Annotated[float, Range(0, 5)] = 1.0
    """Exponent of the length penalty by which log-probabilities are divided (arXiv:1609.08144)."""
    max_ratio: Ratio | None = None
    """The longest translation has so many tokens for each token of the source, and 8 more. None:
    chosen by training, 1.5 or so much that at most a thousandth of its targets are longer."""
    min_ratio: Ratio = 0.0
    """The shortest translation has so many tokens for each token of the source."""
    beam_groups: Annotated[int, Range(1, 1000)] = 1
    """Groups of beams, each of which avoids the tokens that earlier ones take at the same place
    (arXiv:1610.02424); they divide the beams. 1: all together."""
    diversity: Annotated[float, Range(0, 100)] = 0.5
    """Of groups: what a token costs for each beam of an earlier group that takes it."""
    no_repeat_ngram: Annotated[int, Range(0, 1000)] = 0
    """No so many tokens in a row come twice in a translation. 0: they may."""
    max_source_length: Annotated[int, Range(1, 100_000)] = 1024
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
        if self.beam_groups > 1 and self.beam_size % self.beam_groups:
            raise FieldError(
                "beam_groups",
                f"is {self.beam_groups}; expected one that divides beam_size, {self.beam_size}.",
            )


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """One run: its folder, data, model and training."""

    output: str
    """The run's folder. A run found there is resumed if it has the same configuration."""
    model: EncoderDecoderConfig
    data: DataConfig = DataConfig()
    training: TranslationTraining = TranslationTraining()
    decoding: DecodingConfig = DecodingConfig()

    def __post_init__(self) -> None:
        model, r_drop, length = self.model, self.training.r_drop, self.training.sequence_length
        rates = (model.dropout_rate, model.attention_dropout_rate, model.activation_dropout_rate)
        if model.positions == "learned" and model.max_positions < length:
            raise FieldError(
                "max_positions",
                f"is {model.max_positions}; expected at least as many as --sequence-length, "
                f"{length}: later positions would have nothing of their own.",
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


def data_path(config: DataConfig, name: str) -> Path:
    """Where the file called `name` lies."""
    return Path(os.path.expanduser(config.data_dir)) / os.path.expanduser(name)


def tokenizer_path(config: DataConfig) -> Path | None:
    """Where the tokenizer of one's own lies, if there is one."""
    return Path(os.path.expanduser(config.tokenizer)).absolute() if config.tokenizer else None
