"""What the folders of the tasks' runs must know: settings that may change, files, data."""

import os
from collections.abc import Mapping, Sequence, Set
from pathlib import Path

from flaxattn.tasks.config import (
    ClassificationRun,
    DenoisingRun,
    LabellingRun,
    LanguageRun,
    SamplingConfig,
    SpansRun,
    TextRun,
)
from flaxattn.training.task import RunRules

__all__ = ["EXPORTED", "LABELS", "RULES", "TOKENIZER", "path_of_text"]

TOKENIZER, LABELS, EXPORTED = "tokenizer.model", "labels.json", "model"

OF_TEXTS = {"train", "valid", "test", "held_out", "builtin_texts", "invalid_lines", "normalization"}
OF_TEXTS |= {"documents", "word_column", "tag_column", "columns"}
FREE = {"samples", *SamplingConfig.__dataclass_fields__}  # what changes no model


def path_of_text(name: str) -> Path:
    """A file that an option names."""
    return Path(os.path.expanduser(name))


def _free(config: TextRun) -> Set[str]:
    return FREE


def _inputs(config: TextRun) -> Mapping[str, Sequence[Path]]:
    data = config.data
    splits = {"--train": data.train, "--valid": data.valid, "--test": data.test}
    return {option: [path_of_text(name) for name in names] for option, names in splits.items()}


def _rules(config: type[TextRun], *, has_labels: bool = False) -> RunRules:
    return RunRules(
        config=config,
        files=(TOKENIZER, LABELS) if has_labels else (TOKENIZER,),
        results=(EXPORTED,),
        data="texts",
        of_data=OF_TEXTS,
        free=_free,
        inputs=_inputs,
    )


RULES: dict[str, RunRules] = {
    "denoising": _rules(DenoisingRun),
    "spans": _rules(SpansRun),
    "language": _rules(LanguageRun),
    "labelling": _rules(LabellingRun, has_labels=True),
    "classification": _rules(ClassificationRun, has_labels=True),
}
