"""Folders that can be trusted: each holds a manifest of its files' SHA-256, written last."""

import hashlib
import json
from pathlib import Path
from typing import Any

from flaxattn.translation.storage.files import write_whole
from flaxattn.translation.storage.json_data import read_object, same_fields

__all__ = ["DamagedError", "read_manifest", "seal", "sha256", "verify"]

MANIFEST = "manifest.json"
FORMAT, FORMAT_VERSION = "flaxattn manifest", 1
FIELDS = ["format", "format_version", "about", "files", "sha256"]


class DamagedError(ValueError):
    """A folder is not as it was written."""


def seal(folder: Path, about: dict[str, Any]) -> None:
    """Writes the manifest of all files in `folder`, after which none may change.

    Args:
      about: JSON-able facts to keep with it.
    """
    files = {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    content = {"format": FORMAT, "format_version": FORMAT_VERSION, "about": about, "files": files}
    sealed = content | {"sha256": _digest(content)}
    write_whole(folder / MANIFEST, json.dumps(sealed, indent=1))


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
        raise DamagedError(f"{path}: its SHA-256 is not what it says itself")
    if (content["format"], content["format_version"]) != (FORMAT, FORMAT_VERSION):
        raise DamagedError(
            f"{path}: {content['format']!r} of version {content['format_version']!r}; this version "
            f"of flaxattn reads {FORMAT!r} of version {FORMAT_VERSION}"
        )
    if not _well_formed(content):
        raise DamagedError(f"{path}: files: expected bytes and sha256 of each")
    return content


def verify(folder: Path) -> dict[str, Any]:
    """Checks every file, and gives what was said about the folder.

    Files that the manifest does not name are not looked at.

    Raises:
      DamagedError that names the first file that is missing, longer, shorter or different.
    """
    content = read_manifest(folder)
    root = folder.resolve()
    for name, expected in content["files"].items():
        path = folder / name
        if not path.resolve().is_relative_to(root):
            raise DamagedError(f"{path}: lies outside its folder")
        try:
            size, digest = path.stat().st_size, sha256(path)
        except OSError as error:
            raise DamagedError(f"{path}: {error.strerror or error}") from error
        if size != expected["bytes"]:
            raise DamagedError(f"{path}: {size} bytes; {expected['bytes']} were written")
        if digest != expected["sha256"]:
            raise DamagedError(f"{path}: its SHA-256 is not that of what was written")
    return content["about"]


def sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hex digits."""
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
