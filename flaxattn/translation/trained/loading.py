"""A trained model, read back from the folder it was exported to or from that of its run."""

import dataclasses
import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.sharding import SingleDeviceSharding

from flaxattn.models import EncoderDecoder, EncoderDecoderConfig
from flaxattn.text.tokenizer import Tokenizer
from flaxattn.training.adapted import kept_model
from flaxattn.training.programs import ANEW, Programs
from flaxattn.training.record import is_outdated, run_name
from flaxattn.training.storage.json_data import from_older, read_object, same_fields
from flaxattn.training.storage.layout import CONFIG, MANIFEST, MODELS
from flaxattn.training.storage.manifest import DamagedError, sha256, verify
from flaxattn.training.storage.weights import (
    check_weights,
    named,
    nested,
    read_header,
    read_weights,
)
from flaxattn.training.trees import Params
from flaxattn.translation.config import DecodingConfig
from flaxattn.translation.initial import axes_of, init_params
from flaxattn.translation.layout import EXPORTED, TOKENIZER, WEIGHTS
from flaxattn.translation.trained.record import read_run

__all__ = [
    "FORMAT",
    "FORMAT_VERSION",
    "SPECIAL_IDS",
    "Loaded",
    "architecture",
    "is_exported",
    "load",
    "load_exported",
    "load_run",
]

SEALED = (WEIGHTS, TOKENIZER)  # whose SHA-256 the configuration holds in version 1 of the format
FORMAT, FORMAT_VERSION = "flaxattn", 2
SPECIAL_IDS = {name: getattr(Tokenizer, name) for name in ("pad_id", "bos_id", "eos_id", "unk_id")}


class Loaded(NamedTuple):
    """All that translating needs: `Translator(*loaded)`."""

    model: EncoderDecoder
    params: Params
    tokenizer: Tokenizer
    decoding: DecodingConfig = DecodingConfig()


def load(folder: Path, programs: Programs = ANEW) -> Loaded:
    """The model in an exported folder; or that of a run: what it exported, else what it kept.

    What a run exported before it was continued is not its model any more.

    Args:
      programs: those that are kept from one process to the next.

    Raises:
      ValueError or FileNotFoundError if there is none, or it is damaged.
    """
    if is_exported(folder):
        return load_exported(folder, programs=programs)
    if (folder / EXPORTED).exists() and not is_outdated(folder):
        return load_exported(folder / EXPORTED, run_name(folder), programs)
    return load_run(folder)


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
    return read_run(folder).model


def is_exported(folder: Path) -> bool:
    """Whether `folder` holds an exported model, not a run."""
    path = folder / CONFIG
    return (folder / MANIFEST).exists() or (path.exists() and "format_version" in read_object(path))


def load_exported(folder: Path, run: str | None = None, programs: Programs = ANEW) -> Loaded:
    """The model in an exported folder, bit by bit as it was written. Nothing in it is run.

    Every file is checked against the manifest, save the card, and in folders of version 1, which
    had none, configuration and programs. Sizes and headers are looked at before contents.

    Args:
      run: the name of the run it must be of, unless it does not say.
      programs: as in `load`.

    Raises:
      FileNotFoundError if a file is missing, ValueError if one is damaged, does not fit the
      others, or is of a newer format: each names the file and what was expected.
    """
    _check_files(folder, (CONFIG, TOKENIZER, WEIGHTS), "an exported model")
    if (folder / MANIFEST).exists():
        about = verify(folder, (CONFIG, TOKENIZER))
        if run and about.get("run", run) != run:
            raise DamagedError(f"{folder}: is of another run.")
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
    shapes = _fitting_shapes(folder, model, programs)
    _check_contents(folder, config)
    return Loaded(model, read_weights(folder / WEIGHTS, shapes), tokenizer, decoding)


def _fitting_shapes(folder: Path, model: EncoderDecoder, programs: Programs) -> Params:
    """The parameters' shapes and dtypes, which the header of the weights was found to have."""
    header = read_header(folder / WEIGHTS)
    for side in ("encoder", "decoder"):  # what has a thousand layers takes minutes to trace
        layers = {name.split(".")[1] for name in header if name.startswith(f"{side}.layer_")}
        wanted = 1 if model.config.share_layers else getattr(model.config, f"{side}_layers")
        if len(layers) != wanted:
            raise ValueError(
                f"{folder / WEIGHTS}: other arrays than the architecture has: the {side} has "
                f"{len(layers)} layers, expected {wanted}."
            )
    shapes = _kept_shapes(model, programs)
    check_weights(folder / WEIGHTS, header, shapes)
    return shapes


def _check_contents(folder: Path, config: dict[str, Any]) -> None:
    """Raises ValueError if a file is not what was written."""
    if config["format_version"] > 1:
        verify(folder)
        return
    for name in SEALED:
        if sha256(folder / name) != config["sha256"].get(name):
            raise ValueError(
                f"{folder / name}: damaged; its SHA-256 is not that in {folder / CONFIG}."
            )


def load_run(folder: Path) -> Loaded:
    """The model of a run: the mean of those that it kept.

    Raises:
      ValueError or FileNotFoundError if there is no such run, it has kept no model yet, or it is
      damaged.
    """
    _check_files(folder, (CONFIG, TOKENIZER, MODELS), "a run that has been validated at least once")
    config = read_run(folder)
    tokenizer = _read_tokenizer(folder / TOKENIZER)
    architecture = dataclasses.replace(config.model, vocab_size=tokenizer.vocab_size)
    model = EncoderDecoder(architecture, pad_id=tokenizer.pad_id)
    shapes = _on_one_device(_shapes(model))
    params = kept_model(folder, config.training, shapes, axes_of(model), run_name(folder))
    return Loaded(model, params, tokenizer, config.decoding)


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
    if not 1 <= version <= FORMAT_VERSION:
        raise ValueError(
            f"{path}: format version {version}; this version of flaxattn reads 1 to "
            f"{FORMAT_VERSION}. Install the version that wrote it, or a newer one."
        )
    names = ["format", "format_version", "architecture", "special_ids", "decoding"]
    same_fields(config, names + ["sha256"] * (version == 1), str(path))
    if version == 1:
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


def _shapes(model: EncoderDecoder) -> Params:
    """The parameters' shapes and dtypes."""
    return jax.eval_shape(lambda: init_params(model, 0))


def _kept_shapes(model: EncoderDecoder, programs: Programs) -> Params:
    """The same, traced by the process that first asked alone."""

    def traced() -> bytes:
        found = named(_shapes(model))
        return json.dumps({name: (x.shape, str(x.dtype)) for name, x in found.items()}).encode()

    kept = json.loads(programs.data("shapes", repr(model), traced))
    shapes: Any = {name: jax.ShapeDtypeStruct(*of_one) for name, of_one in kept.items()}
    return nested(shapes)


def _on_one_device(shapes: Params) -> Params:
    """The same, to be read to the first device."""
    device = SingleDeviceSharding(jax.local_devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), shapes)
