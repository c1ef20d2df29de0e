"""What the folder of a run says of it: its settings, its name, and the SHA-256 of what it read."""

import contextlib
import math
from pathlib import Path
from typing import Any

from flaxattn.training.storage.layout import (
    CHECKPOINTS,
    CONFIG,
    DATA,
    RESULT,
    START,
    TEST,
    TOKENIZER,
)
from flaxattn.training.storage.manifest import (
    DamagedError,
    read_manifest,
    read_sealed,
    sha256,
)
from flaxattn.translation.config import RunConfig, from_json

__all__ = [
    "has_begun",
    "is_outdated",
    "read_data",
    "read_result",
    "read_run",
    "run_name",
    "steps_made",
]

DIGESTS = {"tokenizer": TOKENIZER, "start": START}  # in `data.json`: of which files


def has_begun(folder: Path) -> bool:
    """Whether a run has begun in a folder: its configuration is written last."""
    return (folder / CONFIG).exists()


def read_run(folder: Path) -> RunConfig:
    """The configuration of a run.

    Raises:
      ValueError if it, the tokenizer or what the run started from is damaged or of another run;
      FileNotFoundError if there is none.
    """
    config = folder / CONFIG
    kept, data = read_sealed(config), read_data(folder)
    if kept.pop("run", None) != (data.get("run") if "start" in data else None):
        raise DamagedError(f"{config} and {folder / DATA} are not of the same run.")
    for field, name in DIGESTS.items():
        path, digest = folder / name, data.get(field)
        if digest and (not path.exists() or sha256(path) != digest):
            damage = f"damaged; its SHA-256 is not that in {folder / DATA}"
            problem = damage if path.exists() else "is missing"
            raise DamagedError(f"{path}: {problem}. Restore the file, or name another folder.")
    return from_json(kept, str(config))


def read_data(folder: Path) -> dict[str, Any]:
    """What `data.json` holds; nothing, if the run has not begun.

    `start` stands in it since the configuration holds the run's name.

    Raises:
      ValueError if it is damaged.
    """
    return read_sealed(folder / DATA) if (folder / DATA).exists() else {}


def run_name(folder: Path) -> str | None:
    """What the run in a folder has been called since it began; None if it has not begun."""
    return read_data(folder).get("run")


def read_result(folder: Path) -> dict[str, Any]:
    """The row of results of a run; nothing, if there is none.

    Raises:
      ValueError if it, or the translated test split, is damaged, changed or of another run.
    """
    result = read_sealed(folder / RESULT) if (folder / RESULT).exists() else {}
    _check_result(folder / RESULT, result)
    if "run" in result and result["run"] != run_name(folder):
        raise DamagedError(f"{folder / RESULT}: is of another run.")
    for name, digest in result.get("files", {}).items():
        if (folder / name).exists() and sha256(folder / name) != digest:
            raise DamagedError(
                f"{folder / name}: damaged or changed; its SHA-256 is not that in "
                f"{folder / RESULT}. To score it as it is, name the two files."
            )
    return result


def steps_made(folder: Path) -> int:
    """The last step of which the run has a checkpoint, whole or not."""
    made, checkpoints = [0], folder / CHECKPOINTS
    for path in checkpoints.iterdir() if checkpoints.is_dir() else ():
        with contextlib.suppress(DamagedError):
            about = read_manifest(path)["about"]
            if path.name == str(about.get("step")) and about.get("run") == run_name(folder):
                made.append(int(path.name))
    return max(made)


def is_outdated(folder: Path) -> bool:
    """Whether a run has made more steps than its result, and the model that it exported, are of."""
    try:
        steps = read_sealed(folder / RESULT).get("steps")
    except (ValueError, OSError):  # told of by who reads it for itself
        return False
    return isinstance(steps, int) and steps < steps_made(folder)


def _check_result(path: Path, result: dict[str, Any]) -> None:
    """Raises ValueError unless what is read of it has its form."""
    files, scores = result.get("files", {}), result.get("scores", {})
    fits = isinstance(files, dict) and files.keys() <= {*TEST.values()}
    fits &= isinstance(result.get("steps", 0), int) and isinstance(scores, dict)
    if not (fits and all(map(_is_score, scores.values()))):
        raise ValueError(f"{path}: is no result of a run. Delete it to do without.")


def _is_score(score: Any) -> bool:
    if not isinstance(score, dict):
        return False
    value, signature = score.get("value", math.nan), score.get("signature")
    return type(value) in (int, float) and math.isfinite(value) and isinstance(signature, str)
