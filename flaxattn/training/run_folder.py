"""A run's folder: whose it is, what it was begun with, and whether a run may go on in it."""

import contextlib
import fcntl
import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO

from flaxattn.training.continuing import check_schedule, kept_run
from flaxattn.training.home import Home
from flaxattn.training.storage.files import free_bytes, make_folder, telling_of_room
from flaxattn.training.storage.layout import CONFIG, DATA, LOCK, OF_RUN, START, TOKENIZER
from flaxattn.training.storage.manifest import sha256, write_sealed
from flaxattn.training.storage.weights import write_weights
from flaxattn.translation.config import RunConfig, config_hash, data_path, portable, to_json
from flaxattn.translation.preparation import Prepared
from flaxattn.translation.text.corpus import Corpus
from flaxattn.translation.trained.record import has_begun, read_data, read_run

__all__ = ["check_folder", "check_space", "data_digests", "opened"]

CHANGE_NO_MODEL = {"keep_checkpoints", "log_every", "patience", "samples"}
SCHEDULE = {"steps", "cooldown_steps", "ended_at", "cooled_for"}  # checked by the steps made
# What the digests of the sentence pairs tell of, and what is looked at in the end alone.
OF_PAIRS = {"train", "valid", "test", "columns", "held_out", "builtin_pairs"}
OF_PAIRS |= {"invalid_lines", "normalization"}
OF_SCORES = {"bleu_tokenizer"}


def check_folder(config: RunConfig) -> None:
    """Looks, before any long work, whether the run can be begun or taken further in its folder.

    Raises:
      ValueError if the folder holds a run with other settings or a damaged one, another process
      works there, or the run would write over its data; OSError if nothing can be written to it.
    """
    folder = Path(config.output)
    _check_writable(folder)
    _check_data_apart(folder, config)
    if (folder / LOCK).exists():
        with telling_of_room(folder), _held(folder):
            pass
    _check_kept(folder, config)


def _check_kept(folder: Path, config: RunConfig) -> None:
    """Raises ValueError if the folder holds a run with other settings, or a damaged one."""
    kept = kept_run(folder)
    if kept is None:
        return
    differing = _differences(to_json(kept.config), to_json(config))
    if differing:
        raise ValueError(
            f"{folder} holds a run with other settings ({', '.join(differing)}). Name another "
            f"folder with --output; with --init-from {folder} its training starts from this model."
        )
    check_schedule(kept, config.training, folder)


@contextlib.contextmanager
def opened(
    config: RunConfig, prepared: Prepared, *, accept_changed_data: bool = False
) -> Iterator[Home]:
    """The run's folder, made if need be, for this process alone while the block runs.

    It then holds the configuration, the tokenizer, the parameters that --init-from began with, and
    `data.json` with the name of the run and the SHA-256 of the sentence pairs and of the two.

    Args:
      accept_changed_data: take the run further even if its data is not what it began with.

    Raises:
      ValueError if the data has changed, SaveError if the block or this finds no room to write;
      else as `check_folder`.
    """
    folder = Path(config.output)
    _check_writable(folder)
    make_folder(folder)
    with telling_of_room(folder), _held(folder) as lock:
        digests = data_digests(prepared.corpus)
        if has_begun(folder):
            _check_kept(folder, config)  # again: another process may have begun a run meanwhile
            data = _taken_further(folder, config, prepared, digests, accept_changed_data)
        else:
            data = _begun(folder, config, prepared, digests)
        write_sealed(folder / DATA, data)
        name = {"run": data["run"]} if "start" in data else {}
        write_sealed(folder / CONFIG, to_json(config) | name)  # last: now it has begun
        with Home(folder, data["run"], lock) as home:
            yield home


def _begun(
    folder: Path, config: RunConfig, prepared: Prepared, digests: dict[str, str]
) -> dict[str, Any]:
    """Writes what the run begins with, and gives what `data.json` is to hold."""
    prepared.tokenizer.save(folder / TOKENIZER)
    if config.training.init_from:
        write_weights(folder / START, prepared.params)
    about = {
        "sentence_pairs": digests,
        "tokenizer": sha256(folder / TOKENIZER),
        "start": sha256(folder / START) if config.training.init_from else None,
    }
    name = json.dumps([config_hash(config), about], sort_keys=True)
    return {"run": hashlib.sha256(name.encode()).hexdigest()[:12]} | about


def _taken_further(
    folder: Path,
    config: RunConfig,
    prepared: Prepared,
    digests: dict[str, str],
    accept_changed_data: bool,
) -> dict[str, Any]:
    """Checks that the run goes on from what it began with, and gives what `data.json` holds."""
    data = read_data(folder)
    if data and not accept_changed_data:
        _check_data(folder, config, data, digests)
    if (folder / TOKENIZER).read_bytes() != prepared.tokenizer.model:
        raise ValueError(f"{folder}: another process has begun a run there. Try again.")
    data = data or {"run": None, "tokenizer": sha256(folder / TOKENIZER)}
    return data | {"sentence_pairs": digests}


def check_space(config: RunConfig, state_bytes: int, model_bytes: int) -> None:
    """Raises OSError if the checkpoints and models to be kept will not fit on the disk.

    Args:
      state_bytes, model_bytes: of one checkpoint, and of one model.
    """
    folder, training = Path(config.output), config.training
    needed = state_bytes * (training.keep_checkpoints + 1) + model_bytes * (training.average + 2)
    held = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
    free = free_bytes(folder) + held
    if free < needed:
        raise OSError(
            f"--output: {folder} needs room for {needed:,} bytes of checkpoints and models; "
            f"{free:,} are free there. Name a folder elsewhere, or keep fewer: "
            "--keep-checkpoints, --average."
        )


def data_digests(corpus: Corpus) -> dict[str, str]:
    """The SHA-256 of each split's sentence pairs, in their order."""
    digests = {}
    for split, pairs in corpus._asdict().items():
        digest = hashlib.sha256()
        for pair in pairs:
            digest.update(json.dumps(pair).encode() + b"\n")
        digests[split] = digest.hexdigest()
    return digests


def _check_data(
    folder: Path, config: RunConfig, data: dict[str, Any], digests: dict[str, str]
) -> None:
    """Raises ValueError if the pairs that training and validation read are others; test may be."""
    kept = data.get("sentence_pairs")
    kept = kept if isinstance(kept, dict) else {}
    changed = [split for split in ("train", "valid") if kept.get(split) != digests[split]]
    if changed:
        before, now = (to_json(c)["data"] for c in (read_run(folder), config))
        names = _differing(before, now, OF_PAIRS)
        other = f" ({', '.join(names)} changed)" if names else ""
        raise ValueError(
            f"{folder} holds a run that began with other {' and '.join(changed)} data{other}. Name "
            "another folder with --output, or go on with the new data: --accept-changed-data."
        )


def _check_data_apart(folder: Path, config: RunConfig) -> None:
    """Raises ValueError if a file of the data is one that the run writes."""
    written = [folder / name for name in OF_RUN if (folder / name).is_file()]
    for split in ("train", "valid", "test"):
        for path in (data_path(config.data, name) for name in getattr(config.data, split)):
            if path.exists() and any(path.samefile(other) for other in written):
                raise ValueError(
                    f"--{split}: {path} is a file that the run in {folder} writes. Copy it "
                    "elsewhere, or name another folder with --output."
                )


def _check_writable(folder: Path) -> None:
    """Raises OSError unless the folder, or the one it will be made in, can be written to."""
    place = folder
    while not place.exists():
        place = place.parent
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        raise OSError(f"--output: {place} is no folder that can be written to.")


@contextlib.contextmanager
def _held(folder: Path) -> Iterator[TextIO]:
    """Keeps other processes out of the folder while the block runs, or is kept out by one."""
    # A link in its place would lead elsewhere what is written here.
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    with open(os.open(folder / LOCK, flags, 0o666), "r+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            process = lock.read().strip() or "another process"
            raise ValueError(
                f"{folder}: {process} is at work there. Wait until it has ended, or name another "
                "folder with --output."
            ) from None
        lock.truncate(0)
        lock.write(f"process {os.getpid()}")
        lock.flush()
        yield lock


def _differences(kept: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """The settings that differ and matter to the steps already made."""
    if (ratio := wanted["decoding"]["max_ratio"]) is None:  # chosen by the run itself
        ratio = kept["decoding"]["max_ratio"]
    limits = {"max_ratio": kept["decoding"]["max_ratio"]}, {"max_ratio": ratio}
    kept, wanted = (
        d["data"] | d["model"] | d["training"] | limit
        for d, limit in zip(map(portable, (kept, wanted)), limits, strict=True)
    )
    free = CHANGE_NO_MODEL | SCHEDULE | OF_PAIRS
    free |= OF_SCORES if kept["metric"] != "bleu" else set()
    free |= {"max_ratio"} if kept["metric"] == "nll" else set()
    return _differing(kept, wanted, (kept.keys() | wanted.keys()) - free)


def _differing(kept: dict[str, Any], wanted: dict[str, Any], names: Iterable[str]) -> list[str]:
    return sorted(name for name in names if kept.get(name) != wanted.get(name))
