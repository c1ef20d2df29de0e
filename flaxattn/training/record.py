"""What the folder of a run says of it: its settings, its name, and how far it has come."""

import contextlib
from pathlib import Path
from typing import Any

from flaxattn.training.config import RunConfig, from_json
from flaxattn.training.storage.layout import CHECKPOINTS, CONFIG, DATA, RESULT, START
from flaxattn.training.storage.manifest import DamagedError, read_manifest, read_sealed, sha256
from flaxattn.training.task import RunRules

__all__ = [
    "check_names",
    "has_begun",
    "is_outdated",
    "name_in_data",
    "read_config",
    "read_data",
    "run_name",
    "steps_made",
]


def has_begun(folder: Path) -> bool:
    """Whether a run has begun in a folder: its configuration is written last."""
    return (folder / CONFIG).exists()


def read_config(folder: Path, rules: RunRules) -> Any:
    """The configuration of a run, of the kind that `rules` name.

    Raises:
      ValueError if it, or a file that the run began with, is damaged or of another run;
      FileNotFoundError if there is none.
    """
    config = folder / CONFIG
    kept, data = read_sealed(config), read_data(folder)
    if kept.pop("run", None) != (data.get("run") if "start" in data else None):
        raise DamagedError(f"{config} and {folder / DATA} are not of the same run.")
    for name in (*rules.files, START):
        path, digest = folder / name, data.get(name_in_data(name))
        if digest and (not path.exists() or sha256(path) != digest):
            damage = f"damaged; its SHA-256 is not that in {folder / DATA}"
            problem = damage if path.exists() else "is missing"
            raise DamagedError(f"{path}: {problem}. Restore the file, or name another folder.")
    kind: type[RunConfig] = rules.config
    return from_json(kind, kept, str(config))


def name_in_data(file: str) -> str:
    """What the SHA-256 of a file that a run begins with is called in `data.json`."""
    return Path(file).stem


def check_names(rules: RunRules) -> None:
    """Raises ValueError if two things would have one name in `data.json`."""
    names = ["run", rules.data, *map(name_in_data, (*rules.files, START))]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(
            f"{', '.join(sorted(twice))} would stand twice in {DATA}; expected files whose names, "
            f"without what follows the dot, differ from each other and from run, "
            f"{rules.data} and {name_in_data(START)}."
        )


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
    except (ValueError, OSError):  # whoever reads the result itself tells of it
        return False
    return isinstance(steps, int) and steps < steps_made(folder)
