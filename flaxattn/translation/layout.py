"""The names of what translation adds to a run's folder, and of all that an exported model holds."""

from flaxattn.training.storage.layout import (
    CHECKPOINTS,
    CONFIG,
    MANIFEST,
    MODELS,
    OF_ANY_RUN,
    TENSORBOARD,
)

__all__ = [
    "CARD",
    "EXPORTED",
    "OF_CTRANSLATE2",
    "OF_EXPORTED",
    "OF_RUN",
    "OWN_FOLDERS",
    "RESULTS",
    "STABLEHLO",
    "TEST",
    "TOKENIZER",
    "WEIGHTS",
]

TOKENIZER = "tokenizer.model"  # in both kinds of folder
TEST = {side: f"test.{side}" for side in ("source", "reference", "hypothesis")}
EXPORTED = "model"
RESULTS = (*TEST.values(), EXPORTED)  # what a run ends with
OF_RUN = {*OF_ANY_RUN, TOKENIZER, *RESULTS}

WEIGHTS, CARD, STABLEHLO = "model.safetensors", "README.md", "stablehlo"  # of an exported model
OF_EXPORTED = {CARD, CONFIG, MANIFEST, STABLEHLO, TOKENIZER, WEIGHTS}
OF_CTRANSLATE2 = {CONFIG, "model.bin", "shared_vocabulary.json", TOKENIZER}  # in its format

OWN_FOLDERS = (MODELS, CHECKPOINTS, EXPORTED, STABLEHLO, TENSORBOARD)  # in a folder of either kind
