"""A trained model, read back from the folder it was exported to or from that of its run."""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.sharding import SingleDeviceSharding

from flaxattn.models import EncoderDecoder, EncoderDecoderConfig
from flaxattn.translation.config import DecodingConfig, from_json
from flaxattn.translation.parameters.initial import init_params
from flaxattn.translation.parameters.weights import read_weights
from flaxattn.translation.storage.json_data import from_older, read_object, same_fields
from flaxattn.translation.storage.manifest import sha256
from flaxattn.translation.text.tokenizer import Tokenizer

__all__ = [
    "CONFIG",
    "EXPORTED",
    "FORMAT",
    "FORMAT_VERSION",
    "MODELS",
    "SEALED",
    "SPECIAL_IDS",
    "TOKENIZER",
    "WEIGHTS",
    "Loaded",
    "architecture",
    "is_exported",
    "load",
    "load_exported",
    "load_run",
]

CONFIG, TOKENIZER = "config.json", "tokenizer.model"  # in both kinds of folder
MODELS, EXPORTED = "models", "model"  # in a run's folder
WEIGHTS = "model.safetensors"  # in an exported folder
SEALED = (WEIGHTS, TOKENIZER)  # whose SHA-256 the configuration of an exported model holds
FORMAT, FORMAT_VERSION = "flaxattn", 1
SPECIAL_IDS = {name: getattr(Tokenizer, name) for name in ("pad_id", "bos_id", "eos_id", "unk_id")}


class Loaded(NamedTuple):
    """All that translating needs: `Translator(*loaded)`."""

    model: EncoderDecoder
    params: Any
    tokenizer: Tokenizer
    decoding: DecodingConfig = DecodingConfig()


def load(folder: Path) -> Loaded:
    """The model in an exported folder; or that of a run: what it exported, else what it kept.

    Raises:
      ValueError or FileNotFoundError if there is none, or it is damaged.
    """
    if is_exported(folder):
        return load_exported(folder)
    return load_exported(folder / EXPORTED) if (folder / EXPORTED).exists() else load_run(folder)


def architecture(folder: Path) -> EncoderDecoderConfig:
    """The architecture of the model that `load` would give, as its configuration has it.

    Raises:
      ValueError or OSError if there is none, or it is damaged.
    """
    exported = folder if is_exported(folder) else folder / EXPORTED
    if exported.exists():
        path = exported / CONFIG
        kept = read_object(path).get("architecture")
        return from_older(EncoderDecoderConfig, kept, f"{path}, architecture")
    return from_json(read_object(folder / CONFIG), str(folder / CONFIG)).model


def is_exported(folder: Path) -> bool:
    """Whether `folder` holds an exported model, not a run."""
    path = folder / CONFIG
    return path.is_file() and "format_version" in read_object(path)


def load_exported(folder: Path) -> Loaded:
    """The model in an exported folder, bit by bit as it was written. Nothing in it is run.

    Raises:
      FileNotFoundError if a file is missing, ValueError if one is damaged, does not fit the
      others, or is of a newer format: each names the file and what was expected.
    """
    _check_files(folder, (CONFIG, TOKENIZER, WEIGHTS), "an exported model")
    path, config = folder / CONFIG, read_object(folder / CONFIG)
    _check_format(path, config)
    architecture = from_older(EncoderDecoderConfig, config["architecture"], f"{path}, architecture")
    decoding = from_older(DecodingConfig, config["decoding"], f"{path}, decoding")
    tokenizer = _read_tokenizer(folder / TOKENIZER)
    if tokenizer.vocab_size != architecture.vocab_size:
        raise ValueError(
            f"{folder / TOKENIZER} has {tokenizer.vocab_size} tokens; {path} says "
            f"{architecture.vocab_size}."
        )
    model = EncoderDecoder(architecture, pad_id=tokenizer.pad_id)
    try:
        shapes = _shapes(model)
    except ValueError as error:
        raise ValueError(f"{path}, architecture: {error}") from error
    params = read_weights(folder / WEIGHTS, shapes)
    for name in SEALED:
        if sha256(folder / name) != config["sha256"].get(name):
            raise ValueError(f"{folder / name}: damaged; its SHA-256 is not that in {path}.")
    return Loaded(model, params, tokenizer, decoding)


def load_run(folder: Path) -> Loaded:
    """The model of a run: the mean of those that it kept.

    Raises:
      ValueError or FileNotFoundError if there is no such run, or it has kept no model yet.
    """
    from flaxattn.translation.storage.checkpoints import Models  # so late that others need no orbax

    _check_files(folder, (CONFIG, TOKENIZER, MODELS), "a run that has been validated at least once")
    config = from_json(read_object(folder / CONFIG), str(folder / CONFIG))
    tokenizer = _read_tokenizer(folder / TOKENIZER)
    architecture = dataclasses.replace(config.model, vocab_size=tokenizer.vocab_size)
    model = EncoderDecoder(architecture, pad_id=tokenizer.pad_id)
    with Models(folder / MODELS) as models:
        return Loaded(
            model, models.average(_on_one_device(_shapes(model))), tokenizer, config.decoding
        )


def _check_files(folder: Path, names: tuple[str, ...], what: str) -> None:
    for name in names:
        if not (folder / name).exists():
            raise FileNotFoundError(
                f"{folder}: no {name} in this folder; expected the folder of {what}."
            )


def _check_format(path: Path, config: dict[str, Any]) -> None:
    """Raises ValueError unless the file is of a format that is known here."""
    version = config.get("format_version")
    if config.get("format") != FORMAT or type(version) is not int:
        raise ValueError(
            f'{path}: expected "format": "{FORMAT}" and a "format_version"; this is no exported '
            "model."
        )
    if version != FORMAT_VERSION:
        raise ValueError(
            f"{path}: format version {version}; this version of flaxattn reads {FORMAT_VERSION}. "
            "Install the version that wrote it, or a newer one."
        )
    names = ["format", "format_version", "architecture", "special_ids", "decoding", "sha256"]
    same_fields(config, names, str(path))
    same_fields(config["sha256"], list(SEALED), f"{path}, sha256")
    if config["special_ids"] != SPECIAL_IDS:
        raise ValueError(
            f"{path}: special_ids are {config['special_ids']}; expected {SPECIAL_IDS}."
        )


def _read_tokenizer(path: Path) -> Tokenizer:
    try:
        return Tokenizer.load(path)
    except RuntimeError as error:
        raise ValueError(f"{path}: no SentencePiece model: {error}") from error


def _shapes(model: EncoderDecoder) -> Any:
    """The parameters' shapes and dtypes."""
    return jax.eval_shape(lambda: init_params(model, 0))


def _on_one_device(shapes: Any) -> Any:
    """The same, to be read to the first device."""
    device = SingleDeviceSharding(jax.local_devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), shapes)
