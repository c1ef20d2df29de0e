"""The names of all files that are kept: in a run's folder, and in that of an exported model."""

__all__ = [
    "CARD",
    "CHECKPOINTS",
    "CONFIG",
    "DATA",
    "EXPORTED",
    "LOCK",
    "LOG",
    "MANIFEST",
    "MODELS",
    "OF_EXPORTED",
    "OF_RUN",
    "RESULT",
    "SPEED",
    "STABLEHLO",
    "START",
    "TENSORBOARD",
    "TEST",
    "TOKENIZER",
    "WEIGHTS",
]

CONFIG, TOKENIZER = "config.json", "tokenizer.model"  # in both kinds of folder
MANIFEST = "manifest.json"  # in an exported model, and in each step of the next two

CHECKPOINTS, MODELS = "checkpoints", "models"  # of a run: a folder for each step
DATA, LOCK = "data.json", "lock"
START = "start.safetensors"  # the parameters that --init-from began with
LOG, SPEED, TENSORBOARD = "log.jsonl", "speed.jsonl", "tensorboard"
RESULT, EXPORTED = "result.json", "model"
TEST = {side: f"test.{side}" for side in ("source", "reference", "hypothesis")}

WEIGHTS, CARD, STABLEHLO = "model.safetensors", "README.md", "stablehlo"  # of an exported model

OF_EXPORTED = {CARD, CONFIG, MANIFEST, STABLEHLO, TOKENIZER, WEIGHTS}
OF_RUN = {
    *(CONFIG, TOKENIZER, CHECKPOINTS, MODELS, DATA, LOCK, START, LOG, SPEED, TENSORBOARD),
    *(RESULT, EXPORTED, *TEST.values()),
}
