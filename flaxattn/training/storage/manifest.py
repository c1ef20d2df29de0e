"""What can be trusted: folders with a manifest of their files' SHA-256, JSON that holds its own."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from flaxattn.training.storage.files import check_regular, sync_tree, write_whole
from flaxattn.training.storage.json_data import read_object, same_fields
from flaxattn.training.storage.layout import MANIFEST

__all__ = [
    "DamagedError",
    "read_manifest",
    "read_sealed",
    "seal",
    "sha256",
    "verify",
    "write_sealed",
]

FORMAT, FORMAT_VERSION = "flaxattn manifest", 1
FIELDS = ["format", "format_version", "about", "files", "sha256"]


class DamagedError(ValueError):
    """A folder is not as it was written."""


def seal(folder: Path, about: dict[str, Any], leave_out: Iterable[str] = ()) -> None:
    """Writes the manifest of all files in `folder`, after which none may change.

    All is on disk then, save that the folder's own name may not be.

    Args:
      about: JSON-able facts to keep with it.
      leave_out: files that may change.
    """
    names = {
        path.relative_to(folder).as_posix(): path
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    files = {
        name: {"bytes": path.stat().st_size, "sha256": sha256(path)}
        for name, path in names.items()
        if name not in {MANIFEST, *leave_out}
    }
    sync_tree(folder)
    content = {"format": FORMAT, "format_version": FORMAT_VERSION, "about": about, "files": files}
    write_sealed(folder / MANIFEST, content)


def write_sealed(path: Path, content: dict[str, Any]) -> None:
    """Writes a JSON object that holds its own SHA-256."""
    sealed = content | {"sha256": _digest(content)}
    write_whole(path, json.dumps(sealed, indent=2))


def read_sealed(path: Path) -> dict[str, Any]:
    """What `write_sealed` was given; or, from a file of an older version, what stands there.

    Raises:
      DamagedError if it was written otherwise, FileNotFoundError.
    """
    try:
        content = read_object(path)
    except ValueError as error:
        raise DamagedError(str(error)) from error
    if content.pop("sha256", None) not in (None, _digest(content)):
        raise DamagedError(f"{path}: damaged; its SHA-256 is not what it says itself.")
    return content


def read_manifest(folder: Path) -> dict[str, Any]:
    """What the manifest says, without a look at the files: `about` and `files`.

    Raises:
      DamagedError if there is no manifest, or not one that `seal` has written.
    """
    path = folder / MANIFEST
    try:
        content = read_object(path)
        same_fields(content, FIELDS, str(path))
    except OSError as error:
        raise DamagedError(f"{path}: {error.strerror or error}") from error
    except ValueError as error:
        raise DamagedError(str(error)) from error
    if content.pop("sha256") != _digest(content):
        raise DamagedError(f"{path}: damaged; its SHA-256 is not what it says itself")
    if (content["format"], content["format_version"]) != (FORMAT, FORMAT_VERSION):
        raise DamagedError(
            f"{path}: {content['format']!r} of version {content['format_version']!r}; this version "
            f"of flaxattn reads {FORMAT!r} of version {FORMAT_VERSION}"
        )
    if not _well_formed(content):
        raise DamagedError(f"{path}: files: expected bytes and sha256 of each")
    return content


def verify(folder: Path, contents: Iterable[str] | None = None) -> dict[str, Any]:
    """Checks the size of every file, then the content, and gives what was said about the folder.

    Files that the manifest does not name are not looked at.

    Args:
      contents: the files to read. None: all.

    Raises:
      DamagedError that names the first file that is missing, longer, shorter or different, or is
      to be read and not named.
    """
    content = read_manifest(folder)
    files = content["files"]
    for name, expected in files.items():
        _check_size(folder, name, expected["bytes"])
    for name in files if contents is None else contents:
        if name not in files:
            raise DamagedError(f"{folder / MANIFEST}: does not name {name}")
        _check_content(folder / name, files[name]["sha256"])
    return content["about"]


def _check_content(path: Path, expected: str) -> None:
    try:
        digest = sha256(path)
    except OSError as error:
        raise DamagedError(f"{path}: {error.strerror or error}") from error
    if digest != expected:
        raise DamagedError(f"{path}: damaged; its SHA-256 is not that of what was written")


def _check_size(folder: Path, name: str, expected: int) -> None:
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise DamagedError(f"{path}: lies outside its folder")
    try:
        size = check_regular(path)
    except OSError as error:
        raise DamagedError(f"{path}: {error.strerror or error}") from error
    except ValueError as error:
        raise DamagedError(str(error)) from error
    if size != expected:
        raise DamagedError(f"{path}: damaged; it has {size} bytes, and {expected} were written")


def sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hex digits."""
    check_regular(path)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _well_formed(content: dict[str, Any]) -> bool:
    """Whether `about` is an object, and every file has its entry."""
    about, files = content["about"], content["files"]
    return (
        isinstance(about, dict)
        and isinstance(files, dict)
        and all(isinstance(x, dict) and x.keys() == {"bytes", "sha256"} for x in files.values())
    )


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
