"""What the folder of a run says of it: its settings, its name, and the SHA-256 of what it read."""

from pathlib import Path
from typing import Any

from flaxattn.translation.config import RunConfig, from_json
from flaxattn.translation.storage.layout import CONFIG, DATA, RESULT, START, TOKENIZER
from flaxattn.translation.storage.manifest import DamagedError, read_sealed, sha256

__all__ = ["has_begun", "read_data", "read_result", "read_run", "run_name"]

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
    if "run" in result and result["run"] != run_name(folder):
        raise DamagedError(f"{folder / RESULT}: is of another run.")
    for name, digest in result.get("files", {}).items():
        if (folder / name).exists() and sha256(folder / name) != digest:
            raise DamagedError(
                f"{folder / name}: damaged or changed; its SHA-256 is not that in "
                f"{folder / RESULT}. To score it as it is, name the two files."
            )
    return result
