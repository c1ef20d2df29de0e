"""A run's folder: whose it is, what it was begun with, and whether a run may go on in it."""

import contextlib
import fcntl
import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO

from flaxattn.training.config import RunConfig, config_hash, flat, portable, to_json
from flaxattn.training.continuing import check_schedule, kept_run
from flaxattn.training.home import Home
from flaxattn.training.parameters.freezing import labels
from flaxattn.training.record import has_begun, name_in_data, read_config, read_data
from flaxattn.training.storage.files import free_bytes, make_folder, telling_of_room, write_whole
from flaxattn.training.storage.layout import CONFIG, DATA, LOCK, OF_ANY_RUN, START
from flaxattn.training.storage.manifest import sha256, write_sealed
from flaxattn.training.storage.weights import write_weights
from flaxattn.training.task import RunRules, Task

__all__ = ["check_folder", "check_space", "opened"]

CHANGE_NO_MODEL = {"keep_checkpoints", "log_every", "patience"}
SCHEDULE = {"steps", "cooldown_steps", "ended_at", "cooled_for"}  # checked by the steps made
ROOM_HINT = "The same command goes on once there is room."
MAY_BE_ANOTHER = {"test"}  # split of the data, which training and validation do not read


def check_folder(config: RunConfig, rules: RunRules) -> None:
    """Looks, before any long work, whether the run can be begun or taken further in its folder.

    Raises:
      ValueError if the folder holds a run with other settings or a damaged one, another process
      works there, or the run would write over its data; OSError if nothing can be written to it.
    """
    folder = Path(config.output)
    _check_writable(folder)
    _check_inputs_apart(folder, config, rules)
    if (folder / LOCK).exists():
        with telling_of_room(folder, ROOM_HINT), _held(folder):
            pass
    _check_kept(folder, config, rules)


def _check_kept(folder: Path, config: RunConfig, rules: RunRules) -> None:
    """Raises ValueError if the folder holds a run with other settings, or a damaged one."""
    kept = kept_run(folder, rules)
    if kept is None:
        return
    differing = _differences(kept.config, config, rules)
    if differing:
        raise ValueError(
            f"{folder} holds a run with other settings ({', '.join(differing)}). Name another "
            f"folder with --output; with --init-from {folder} its training starts from this model."
        )
    check_schedule(kept, config.training, folder)


@contextlib.contextmanager
def opened(task: Task, rules: RunRules, *, accept_changed_data: bool = False) -> Iterator[Home]:
    """The run's folder, made if need be, for this process alone while the block runs.

    It then holds the configuration, the task's own files, the parameters that --init-from began
    with, and `data.json` with the name of the run and the SHA-256 of the data and of those files.

    Args:
      accept_changed_data: take the run further even if its data is not what it began with.

    Raises:
      ValueError if the data has changed, SaveError if the block or this finds no room to write;
      else as `check_folder`.
    """
    folder, training = Path(task.config.output), task.config.training
    labels(task.params, training.freeze)
    _check_writable(folder)
    make_folder(folder)
    with telling_of_room(folder, ROOM_HINT), _held(folder) as lock:
        digests = dict(task.digests())
        if has_begun(folder):
            _check_kept(folder, task.config, rules)  # again: another may have begun meanwhile
            data = _taken_further(folder, task, rules, digests, accept_changed_data)
        else:
            data = _begun(folder, task, rules, digests)
        write_sealed(folder / DATA, data)
        name = {"run": data["run"]} if "start" in data else {}
        write_sealed(folder / CONFIG, to_json(task.config) | name)  # last: now it has begun
        with Home(folder, data["run"], lock, rules.files) as home:
            yield home


def _begun(folder: Path, task: Task, rules: RunRules, digests: dict[str, str]) -> dict[str, Any]:
    """Writes what the run begins with, and gives what `data.json` is to hold."""
    for name, content in task.files().items():
        write_whole(folder / name, content)
    about: dict[str, Any] = {rules.data: digests}
    about |= {name_in_data(name): sha256(folder / name) for name in rules.files}
    about[name_in_data(START)] = None
    if task.config.training.init_from:
        write_weights(folder / START, task.params)
        about[name_in_data(START)] = sha256(folder / START)
    name = json.dumps([config_hash(task.config, rules.places), about], sort_keys=True)
    return {"run": hashlib.sha256(name.encode()).hexdigest()[:12]} | about


def _taken_further(
    folder: Path, task: Task, rules: RunRules, digests: dict[str, str], accept_changed_data: bool
) -> dict[str, Any]:
    """Checks that the run goes on from what it began with, and gives what `data.json` holds."""
    data = read_data(folder)
    if data and not accept_changed_data:
        _check_data(folder, task, rules, data.get(rules.data), digests)
    for name, content in task.files().items():
        if (folder / name).read_bytes() != content:
            raise ValueError(f"{folder}: another process has begun a run there. Try again.")
    of_files = {name_in_data(name): sha256(folder / name) for name in rules.files}
    data = data or {"run": None} | of_files
    return data | {rules.data: digests}


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


def _check_data(
    folder: Path, task: Task, rules: RunRules, kept: object, digests: dict[str, str]
) -> None:
    """Raises ValueError if what training and validation read is not what the run began with."""
    kept = kept if isinstance(kept, dict) else {}
    changed = [x for x in digests if x not in MAY_BE_ANOTHER and kept.get(x) != digests[x]]
    if changed:
        before, now = (flat(to_json(c)) for c in (read_config(folder, rules), task.config))
        names = _differing(before, now, rules.of_data)
        other = f" ({', '.join(names)} changed)" if names else ""
        raise ValueError(
            f"{folder} holds a run that began with other {' and '.join(changed)} data{other}. Name "
            "another folder with --output, or go on with the new data: --accept-changed-data."
        )


def _check_inputs_apart(folder: Path, config: RunConfig, rules: RunRules) -> None:
    """Raises ValueError if a file that is read is one that the run writes."""
    names = {*OF_ANY_RUN, *rules.files, *rules.results}
    written = [folder / name for name in names if (folder / name).is_file()]
    for option, paths in rules.inputs(config).items():
        for path in paths:
            if path.exists() and any(path.samefile(other) for other in written):
                raise ValueError(
                    f"{option}: {path} is a file that the run in {folder} writes. Copy it "
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


def _differences(kept: RunConfig, wanted: RunConfig, rules: RunRules) -> list[str]:
    """The settings that differ and matter to the steps already made."""
    before, now = (flat(portable(to_json(config), rules.places)) for config in (kept, wanted))
    free = CHANGE_NO_MODEL | SCHEDULE | rules.of_data | rules.free(kept)
    return _differing(before, now, (before.keys() | now.keys()) - free)


def _differing(kept: dict[str, Any], wanted: dict[str, Any], names: Iterable[str]) -> list[str]:
    return sorted(name for name in names if kept.get(name) != wanted.get(name))
