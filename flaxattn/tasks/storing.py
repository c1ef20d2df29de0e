"""A trained model of a task as a folder that stands on its own, and back, also from its run."""

import contextlib
import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.sharding import SingleDeviceSharding

from flaxattn.models import TransformerConfig
from flaxattn.tasks.card import card_of
from flaxattn.tasks.modules import Architecture, Module, init_of, module_of
from flaxattn.tasks.rules import EXPORTED, LABELS, RULES, TOKENIZER
from flaxattn.text.tokenizer import Tokenizer
from flaxattn.training.adapted import kept_model
from flaxattn.training.parameters.initial import axes_of, shapes_of
from flaxattn.training.record import is_outdated, read_config, run_name
from flaxattn.training.storage.files import write_whole
from flaxattn.training.storage.folders import check_only, replacing_folder
from flaxattn.training.storage.json_data import from_older, read_object, same_fields
from flaxattn.training.storage.layout import CONFIG, MANIFEST, MODELS
from flaxattn.training.storage.manifest import DamagedError, read_sealed, seal, verify
from flaxattn.training.storage.weights import (
    check_weights,
    read_header,
    read_weights,
    write_weights,
)
from flaxattn.training.trees import Params

__all__ = ["Loaded", "architecture", "export", "labels_of", "load", "task_of", "to_labels"]

FORMAT, FORMAT_VERSION = "flaxattn task", 1
WEIGHTS, CARD = "model.safetensors", "README.md"
PARTS = {CARD, CONFIG, LABELS, MANIFEST, TOKENIZER, WEIGHTS}


class Loaded(NamedTuple):
    """All that using a model needs."""

    task: str
    architecture: Architecture
    params: Params
    tokenizer: Tokenizer
    sequence_length: int
    """Tokens of a row in training."""
    labels: tuple[str, ...] = ()

    @property
    def module(self) -> Module:
        """The model."""
        return module_of(self.task, self.architecture, len(self.labels))


def export(
    folder: Path, loaded: Loaded, *, result: Mapping[str, Any], name: str | None = None
) -> None:
    """Writes `model.safetensors`, `config.json`, `tokenizer.model`, `README.md`, perhaps labels.

    `load(folder)` gives the same model back, bit by bit. The folder appears once it is whole; an
    exported model that is there already is replaced then.

    Args:
      result: what came of the run, of which the card tells.
      name: of the run, for the manifest.

    Raises:
      ValueError if the folder holds anything else.
    """
    check_only(folder, PARTS)
    about = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "task": loaded.task,
        "architecture": dataclasses.asdict(loaded.architecture),
        "sequence_length": loaded.sequence_length,
    }
    with replacing_folder(folder) as new:
        write_weights(new / WEIGHTS, loaded.params)
        loaded.tokenizer.save(new / TOKENIZER)
        write_whole(new / CONFIG, json.dumps(about, indent=2) + "\n")
        if loaded.labels:
            write_whole(new / LABELS, to_labels(loaded.labels))
        write_whole(new / CARD, card_of(about, loaded.params, loaded.labels, result))
        seal(new, {"run": name} if name else {}, leave_out=[CARD])


def load(folder: Path) -> Loaded:
    """The model in an exported folder; or that of a run: what it exported, else what it kept.

    Raises:
      ValueError or FileNotFoundError if there is none, it is damaged, or of translation.
    """
    if (folder / MANIFEST).exists():
        return _load_exported(folder)
    if (folder / EXPORTED).exists() and not is_outdated(folder):
        return _load_exported(folder / EXPORTED, run_name(folder))
    return _load_run(folder)


def task_of(folder: Path) -> str | None:
    """Of which of these tasks the run in a folder is; None for whatever else is there."""
    with contextlib.suppress(ValueError, OSError):
        return _task_of_run(folder)
    return None


def architecture(folder: Path) -> Architecture:
    """The architecture of the model that `load` would give, as its configuration has it.

    Raises:
      ValueError or OSError if there is none, or it is damaged.
    """
    exported = folder if (folder / MANIFEST).exists() else folder / EXPORTED
    if exported.exists():
        return _described(exported)[1]
    task = _task_of_run(folder)
    found: Architecture = read_config(folder, RULES[task]).model
    return found


def to_labels(labels: tuple[str, ...]) -> bytes:
    """As the file of labels has them."""
    return json.dumps(labels, ensure_ascii=False).encode()


def labels_of(path: Path) -> tuple[str, ...]:
    """The labels that a file has; none if there is none.

    Raises:
      ValueError if it holds anything else.
    """
    if not path.exists():
        return ()
    labels = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise ValueError(f"{path}: expected a list of labels.")
    return tuple(labels)


def _load_exported(folder: Path, run: str | None = None) -> Loaded:
    about = verify(folder)
    if run and about.get("run", run) != run:
        raise DamagedError(f"{folder}: is of another run.")
    task, architecture, length = _described(folder)
    labels = labels_of(folder / LABELS)
    shapes = shapes_of(init_of(module_of(task, architecture, len(labels))))
    check_weights(folder / WEIGHTS, read_header(folder / WEIGHTS), shapes)
    params = read_weights(folder / WEIGHTS, shapes)
    tokenizer = Tokenizer.load(folder / TOKENIZER)
    return Loaded(task, architecture, params, tokenizer, length, labels)


def _described(folder: Path) -> tuple[str, TransformerConfig, int]:
    """Task, architecture and length of rows of an exported model."""
    path = folder / CONFIG
    kept = read_object(path)
    if kept.get("format") != FORMAT or kept.get("format_version") != FORMAT_VERSION:
        raise ValueError(
            f'{path}: expected "format": "{FORMAT}" in version {FORMAT_VERSION}; this is no model '
            "of a task, or of a newer version of flaxattn."
        )
    names = ["format", "format_version", "task", "architecture", "sequence_length"]
    same_fields(kept, names, str(path))
    architecture = from_older(TransformerConfig, kept["architecture"], f"{path}, architecture")
    return _known_task(kept["task"], path), architecture, kept["sequence_length"]


def _load_run(folder: Path) -> Loaded:
    """The model of a run: the mean of those that it kept."""
    for name in (CONFIG, MODELS):
        if not (folder / name).exists():
            raise FileNotFoundError(
                f"{folder}: no {name} in this folder; expected the folder of a model, or of a run "
                "that has been validated at least once."
            )
    task = _task_of_run(folder)
    config = read_config(folder, RULES[task])
    tokenizer, labels = Tokenizer.load(folder / TOKENIZER), labels_of(folder / LABELS)
    architecture = dataclasses.replace(config.model, vocab_size=tokenizer.vocab_size)
    init = init_of(module_of(task, architecture, len(labels)))
    device = SingleDeviceSharding(jax.local_devices()[0])
    places = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), shapes_of(init)
    )
    params = kept_model(folder, config.training, places, axes_of(init), run_name(folder))
    length = config.training.sequence_length
    return Loaded(task, architecture, params, tokenizer, length, labels)


def _task_of_run(folder: Path) -> str:
    return _known_task(read_sealed(folder / CONFIG).get("task"), folder / CONFIG)


def _known_task(task: object, path: Path) -> str:
    if task not in RULES:
        what = "a model of translation" if task is None else f"of the task {task!r}"
        raise ValueError(f"{path}: this is {what}; expected one of {', '.join(RULES)}.")
    return str(task)
