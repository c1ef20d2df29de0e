"""A trained model as a folder that stands on its own: weights, configuration, tokenizer, card."""

import contextlib
import dataclasses
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from flaxattn.training.storage.files import beside, make_folder, sync, write_whole
from flaxattn.training.storage.layout import CONFIG
from flaxattn.training.storage.manifest import seal
from flaxattn.training.storage.weights import write_weights
from flaxattn.translation.layout import CARD, OF_EXPORTED, STABLEHLO, TOKENIZER, WEIGHTS
from flaxattn.translation.trained.card import model_card
from flaxattn.translation.trained.loading import FORMAT, FORMAT_VERSION, SPECIAL_IDS, Loaded
from flaxattn.translation.trained.stablehlo import programs, room

__all__ = ["check_target", "export"]


def export(
    folder: Path,
    loaded: Loaded,
    *,
    run: Mapping[str, Any] | None = None,
    result: Mapping[str, Any] | None = None,
    name: str | None = None,
) -> None:
    """Writes `model.safetensors`, `config.json`, `tokenizer.model`, `README.md` and `stablehlo/`.

    `manifest.json` holds the SHA-256 of all but the card, which may be edited.
    `loading.load(folder)` gives the same model back, bit by bit. The folder appears once it is
    whole; an exported model that is there already is replaced then.

    Args:
      folder: a new one, an empty one, or one that holds an exported model and nothing else.
      loaded: the model.
      run: the configuration of the run that trained it, as its `config.json` has it.
      result: what came of the run, as its `result.json` has it. The card tells of both.
      name: of the run, for the manifest.

    Raises:
      ValueError if the folder holds anything else.
    """
    check_target(folder)
    with _replacing(folder) as new:
        write_weights(new / WEIGHTS, loaded.params)
        loaded.tokenizer.save(new / TOKENIZER)
        write_whole(new / CONFIG, json.dumps(_config(loaded), indent=2) + "\n")
        (new / STABLEHLO).mkdir()
        compiled = programs(loaded.model, loaded.tokenizer.bos_id, room(loaded.decoding))
        for part, program in compiled._asdict().items():
            write_whole(new / STABLEHLO / f"{part}.bin", program)
        write_whole(new / CARD, model_card(loaded, run or {}, result or {}))
        seal(new, {"run": name} if name else {}, leave_out=[CARD])


def check_target(folder: Path) -> None:
    """Raises ValueError if `folder` holds anything but an exported model, which may be replaced."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ValueError(f"{folder} is a file; expected the folder to export to.")
    others = sorted(path.name for path in folder.iterdir() if path.name not in OF_EXPORTED)
    if others:
        raise ValueError(
            f"{folder} holds {', '.join(others[:3])}, which is no part of an exported model; name "
            "a new folder, or one that holds an exported model alone."
        )


def _config(loaded: Loaded) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "architecture": dataclasses.asdict(loaded.model.config),
        "special_ids": SPECIAL_IDS,
        "decoding": dataclasses.asdict(loaded.decoding),
    }


@contextlib.contextmanager
def _replacing(folder: Path) -> Iterator[Path]:
    """A folder to write in, which takes the place of `folder`, for good, once all went well."""
    folder = folder.resolve()
    make_folder(folder.parent)
    hidden = beside(folder.with_name(f".{folder.name}"))
    new, old = hidden / "new", hidden / "old"
    _recover(folder, hidden, old)
    try:
        hidden.mkdir()
        sync(folder.parent)
        new.mkdir()
        yield new
        if folder.exists():
            shutil.copymode(folder, new)
            folder.rename(old)
        try:
            new.rename(folder)
        except OSError:
            if old.exists():
                old.rename(folder)
            raise
        sync(folder.parent)
    finally:
        shutil.rmtree(hidden, ignore_errors=True)


def _recover(folder: Path, hidden: Path, old: Path) -> None:
    """Clears away what a process that was killed has left, and gives back what it had replaced."""
    if hidden.is_symlink():
        hidden.unlink()
    elif hidden.exists():
        if old.exists() and not folder.exists():
            old.rename(folder)
            sync(folder.parent)
        shutil.rmtree(hidden)
