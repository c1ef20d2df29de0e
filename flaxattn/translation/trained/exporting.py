"""A trained model as a folder that stands on its own: weights, configuration, tokenizer, card."""

import contextlib
import dataclasses
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from flaxattn.translation.parameters.weights import write_weights
from flaxattn.translation.storage.manifest import sha256
from flaxattn.translation.trained.card import model_card
from flaxattn.translation.trained.loading import (
    CONFIG,
    FORMAT,
    FORMAT_VERSION,
    SEALED,
    SPECIAL_IDS,
    TOKENIZER,
    WEIGHTS,
    Loaded,
)
from flaxattn.translation.trained.stablehlo import programs, room

__all__ = ["CARD", "STABLEHLO", "check_target", "export"]

CARD, STABLEHLO = "README.md", "stablehlo"
NAMES = {CARD, CONFIG, STABLEHLO, TOKENIZER, WEIGHTS}


def export(
    folder: Path,
    loaded: Loaded,
    *,
    run: Mapping[str, Any] | None = None,
    result: Mapping[str, Any] | None = None,
) -> None:
    """Writes `model.safetensors`, `config.json`, `tokenizer.model`, `README.md` and `stablehlo/`.

    `loading.load(folder)` gives the same model back, bit by bit. The folder appears once it is
    whole; an exported model that is there already is replaced then.

    Args:
      folder: a new one, an empty one, or one that holds an exported model and nothing else.
      loaded: the model.
      run: the configuration of the run that trained it, as its `config.json` has it.
      result: what came of the run, as its `result.json` has it. The card tells of both.

    Raises:
      ValueError if the folder holds anything else.
    """
    check_target(folder)
    with _replacing(folder) as new:
        write_weights(new / WEIGHTS, loaded.params)
        loaded.tokenizer.save(new / TOKENIZER)
        (new / CONFIG).write_text(json.dumps(_config(loaded, new), indent=2) + "\n", "utf-8")
        (new / STABLEHLO).mkdir()
        compiled = programs(loaded.model, loaded.tokenizer.bos_id, room(loaded.decoding))
        for name, program in compiled._asdict().items():
            (new / STABLEHLO / f"{name}.bin").write_bytes(program)
        (new / CARD).write_text(model_card(loaded, run or {}, result or {}), "utf-8")


def check_target(folder: Path) -> None:
    """Raises ValueError if `folder` holds anything but an exported model, which may be replaced."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ValueError(f"{folder} is a file; expected the folder to export to.")
    others = sorted(path.name for path in folder.iterdir() if path.name not in NAMES)
    if others:
        raise ValueError(
            f"{folder} holds {', '.join(others[:3])}, which is no part of an exported model; name "
            "a new folder, or one that holds an exported model alone."
        )


def _config(loaded: Loaded, folder: Path) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "architecture": dataclasses.asdict(loaded.model.config),
        "special_ids": SPECIAL_IDS,
        "decoding": dataclasses.asdict(loaded.decoding),
        "sha256": {name: sha256(folder / name) for name in SEALED},
    }


@contextlib.contextmanager
def _replacing(folder: Path) -> Iterator[Path]:
    """A folder to write in, which takes the place of `folder` once all went well."""
    folder = folder.resolve()
    beside = folder.with_name(f".{folder.name}.partial")
    new, old = beside / "new", beside / "old"
    shutil.rmtree(beside, ignore_errors=True)  # left by a process that was killed
    try:
        new.mkdir(parents=True)
        yield new
        if folder.exists():
            folder.rename(old)
        try:
            new.rename(folder)
        except OSError:
            if old.exists():
                old.rename(folder)
            raise
    finally:
        shutil.rmtree(beside, ignore_errors=True)
