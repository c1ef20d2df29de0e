"""A trained model as a folder that stands on its own: weights, configuration, tokenizer, card."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flaxattn.training.storage.files import write_whole
from flaxattn.training.storage.folders import check_only, replacing_folder
from flaxattn.training.storage.layout import CONFIG
from flaxattn.training.storage.manifest import seal
from flaxattn.training.storage.weights import write_weights
from flaxattn.translation.layout import CARD, OF_EXPORTED, STABLEHLO, TOKENIZER, WEIGHTS
from flaxattn.translation.trained.card import model_card
from flaxattn.translation.trained.loading import FORMAT, FORMAT_VERSION, SPECIAL_IDS, Loaded
from flaxattn.translation.trained.stablehlo import programs, room

__all__ = ["export"]


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
    check_only(folder, OF_EXPORTED)
    with replacing_folder(folder) as new:
        write_weights(new / WEIGHTS, loaded.params)
        loaded.tokenizer.save(new / TOKENIZER)
        write_whole(new / CONFIG, json.dumps(_config(loaded), indent=2) + "\n")
        (new / STABLEHLO).mkdir()
        compiled = programs(loaded.model, loaded.tokenizer.bos_id, room(loaded.decoding))
        for part, program in compiled._asdict().items():
            write_whole(new / STABLEHLO / f"{part}.bin", program)
        write_whole(new / CARD, model_card(loaded, run or {}, result or {}))
        seal(new, {"run": name} if name else {}, leave_out=[CARD])


def _config(loaded: Loaded) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "architecture": dataclasses.asdict(loaded.model.config),
        "special_ids": SPECIAL_IDS,
        "decoding": dataclasses.asdict(loaded.decoding),
    }
