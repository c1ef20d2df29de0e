"""What runs on texts depend on, as plain frozen data: defaults, meanings and units in one place."""

import dataclasses
from typing import Annotated, Any, Literal

from flaxattn.models import EncoderDecoderConfig, TransformerConfig
from flaxattn.ranges import FieldError, Range, check_fields
from flaxattn.text.normalization import Normalization
from flaxattn.training.config import NO_OPTION, CountOrZero, Seed, Size, TrainingConfig

__all__ = [
    "DenoisingRun",
    "DenoisingTraining",
    "SpansRun",
    "SpansTraining",
    "ClassificationData",
    "ClassificationRun",
    "LabellingData",
    "LabellingRun",
    "LanguageData",
    "LanguageRun",
    "SamplingConfig",
    "TextData",
    "TextRun",
    "TextTraining",
]

Column = Annotated[int, Range(-1000, 1000)]


@dataclasses.dataclass(frozen=True)
class TextData:
    """Which texts are learned and tested."""

    train: tuple[str, ...] = ()
    """Files to train on; also packed by gzip, xz or bzip2. None: the built-in corpus."""
    valid: tuple[str, ...] = ()
    """Files to validate with. None: texts held out of the training text."""
    test: tuple[str, ...] = ()
    """Files to test with. None: texts held out of the training text."""
    held_out: Annotated[int, Range(1, 10_000_000)] = 1000
    """How many texts to hold out for each split that has no files; at most a tenth of all."""
    builtin_texts: Size = 20_000
    """How many training texts to draw from the built-in corpus."""
    invalid_lines: Literal["error", "skip"] = "error"
    """What to do about lines that are not valid UTF-8 or have a NUL: stop at the first, or leave
    them out and count them."""
    normalization: Normalization = "nfc"
    """How Unicode is spelt, also when the model is used: nfc, nfkc, or none, which takes texts as
    they are. A tokenizer that is there already decides it."""
    character_coverage: Annotated[float, Range(0.98, 1)] = 0.9998
    """Share of the characters of the text that get tokens of their own; the rest become bytes."""

    def __post_init__(self) -> None:
        check_fields(self)


@dataclasses.dataclass(frozen=True)
class LanguageData(TextData):
    """Which documents are learned and tested."""

    documents: Literal["paragraphs", "lines", "files"] = "paragraphs"
    """What a document is, none of which sees another: paragraphs between blank lines, lines, or
    whole files. One that is longer than a row is cut."""


@dataclasses.dataclass(frozen=True)
class LabellingData(TextData):
    """Which sentences are learned and tested: a word and its tag in each line."""

    word_column: Column = 1
    """The column of words, from 1; from -1 backwards, counted from the last one."""
    tag_column: Column = -1
    """That of tags: O, B-KIND at an entity's first word, I-KIND at others."""


@dataclasses.dataclass(frozen=True)
class ClassificationData(TextData):
    """Which texts are learned and tested: a label, a tab and a text in each line."""

    columns: tuple[str, ...] = ()
    """The columns that are label and text: two numbers from 1, or two names that stand in the first
    line. None: the first two."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.columns and not len(self.columns) == len({*self.columns}) == 2:
            raise FieldError("columns", f"is {self.columns}; expected two different columns.")


@dataclasses.dataclass(frozen=True)
class TextTraining(TrainingConfig):
    """How a model of texts is trained: as any is, and how its rows are filled."""

    sequence_length: Size = 128
    """Tokens in a row, of as many texts as fit."""
    samples: CountOrZero = 2
    """Texts of the validation split shown at every validation, with what the model makes of
    them."""


@dataclasses.dataclass(frozen=True)
class DenoisingTraining(TextTraining):
    """How hidden tokens are learned."""

    mask_rate: Annotated[float, Range(0, 1, above=True, below=True)] = 0.15
    """Share of the tokens that are hidden, anew in each step."""
    static_masks: bool = False
    """Hide the same tokens of a text whenever it comes."""


@dataclasses.dataclass(frozen=True)
class SpansTraining(TextTraining):
    """How texts with hidden spans are learned."""

    mask_rate: Annotated[float, Range(0, 1, above=True, below=True)] = 0.35
    """Share of the tokens that are hidden, anew in each step, in spans of three on average."""


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
    """How text is written."""

    max_tokens: Annotated[int, Range(1, 1_000_000)] = 100
    """How many tokens are written, at most."""
    temperature: Annotated[float, Range(0, 1000)] = 1.0
    """Logits are divided by it. 0: always the most likely token."""
    top_k: Size | None = None
    """Draw from so many of the most likely tokens. None: from all."""
    top_p: Annotated[float, Range(0, 1, above=True)] | None = None
    """Draw from the most likely tokens that together have this probability. None: from all."""
    sampling_seed: Seed = 0
    """Of what is drawn."""

    def __post_init__(self) -> None:
        check_fields(self)


@dataclasses.dataclass(frozen=True)
class TextRun:
    """One run on texts: its folder, model, data and training; `task` says what is learned."""

    output: str
    """The run's folder. A run found there is resumed if it has the same configuration."""
    model: Any  # of the architecture that the task has
    data: TextData = TextData()
    training: TextTraining = TextTraining()

    task: str = dataclasses.field(default="", metadata=NO_OPTION)

    def __post_init__(self) -> None:
        model, length = self.model, self.training.sequence_length
        if model.positions == "learned" and model.max_positions < length:
            raise FieldError(
                "max_positions",
                f"is {model.max_positions}; expected at least as many as --sequence-length, "
                f"{length}: later positions would have nothing of their own.",
            )


@dataclasses.dataclass(frozen=True)
class LanguageRun(TextRun):
    """A language model."""

    model: TransformerConfig
    task: Literal["language"] = dataclasses.field(default="language", metadata=NO_OPTION)
    data: LanguageData = LanguageData()
    sampling: SamplingConfig = SamplingConfig()


@dataclasses.dataclass(frozen=True)
class LabellingRun(TextRun):
    """A model that tags words."""

    model: TransformerConfig
    task: Literal["labelling"] = dataclasses.field(default="labelling", metadata=NO_OPTION)
    data: LabellingData = LabellingData()


@dataclasses.dataclass(frozen=True)
class ClassificationRun(TextRun):
    """A model that labels texts."""

    model: TransformerConfig
    task: Literal["classification"] = dataclasses.field(
        default="classification", metadata=NO_OPTION
    )
    data: ClassificationData = ClassificationData()


@dataclasses.dataclass(frozen=True)
class DenoisingRun(TextRun):
    """A model that tells hidden tokens."""

    model: TransformerConfig
    task: Literal["denoising"] = dataclasses.field(default="denoising", metadata=NO_OPTION)
    data: LanguageData = LanguageData()
    training: DenoisingTraining = DenoisingTraining()


@dataclasses.dataclass(frozen=True)
class SpansRun(TextRun):
    """An encoder-decoder that writes a text of which spans are hidden."""

    model: EncoderDecoderConfig
    task: Literal["spans"] = dataclasses.field(default="spans", metadata=NO_OPTION)
    data: LanguageData = LanguageData()
    training: SpansTraining = SpansTraining()
