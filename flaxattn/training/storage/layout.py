"""The names of what any run's folder holds; what a task adds has names of its own."""

__all__ = [
    "ADAPTER",
    "CHECKPOINTS",
    "CONFIG",
    "DATA",
    "LOCK",
    "LOG",
    "MANIFEST",
    "MODELS",
    "OF_ANY_RUN",
    "REPORT",
    "RESULT",
    "SPEED",
    "START",
    "TENSORBOARD",
    "TREE",
]

CONFIG, DATA, LOCK = "config.json", "data.json", "lock"
START = "start.safetensors"  # the parameters that --init-from began with
ADAPTER = "adapter.safetensors"  # with --lora: what was trained, apart
CHECKPOINTS, MODELS = "checkpoints", "models"  # a folder for each step
MANIFEST, TREE = "manifest.json", "state"  # in each of those folders; orbax writes the latter
LOG, SPEED, TENSORBOARD = "log.jsonl", "speed.jsonl", "tensorboard"
RESULT, REPORT = "result.json", "report.html"

OF_ANY_RUN = {CONFIG, DATA, LOCK, START, CHECKPOINTS, MODELS, LOG, SPEED, TENSORBOARD, RESULT}
OF_ANY_RUN |= {ADAPTER, REPORT}
