"""What the folder of a run says of its translations: its settings, and the row of results."""

import math
from pathlib import Path
from typing import Any

from flaxattn.training.record import read_config, run_name
from flaxattn.training.storage.layout import RESULT
from flaxattn.training.storage.manifest import DamagedError, read_sealed, sha256
from flaxattn.translation.config import RunConfig
from flaxattn.translation.layout import TEST
from flaxattn.translation.rules import RULES

__all__ = ["read_result", "read_run"]


def read_run(folder: Path) -> RunConfig:
    """The configuration of a run.

    Raises:
      ValueError if it, the tokenizer or what the run started from is damaged or of another run;
      FileNotFoundError if there is none.
    """
    config: RunConfig = read_config(folder, RULES)
    return config


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


def _check_result(path: Path, result: dict[str, Any]) -> None:
    """Raises ValueError unless what is read of it has its form."""
    files, scores = result.get("files", {}), result.get("scores", {})
    fits = isinstance(files, dict) and files.keys() <= {*TEST.values()}
    fits &= isinstance(result.get("steps", 0), int) and isinstance(scores, dict)
    if not (fits and all(map(_is_score, scores.values()))):
        raise ValueError(f"{path}: is no result of a run. Delete it to do without.")


def _is_score(score: object) -> bool:
    if not isinstance(score, dict):
        return False
    value, signature = score.get("value", math.nan), score.get("signature")
    return type(value) in (int, float) and math.isfinite(value) and isinstance(signature, str)
