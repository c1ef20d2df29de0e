"""Files that are written whole or not at all, and what is said where they cannot be."""

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

__all__ = ["SaveError", "free_bytes", "telling_of_room", "write_whole"]


class SaveError(OSError):
    """Something could not be written; what had been kept before still is."""


def free_bytes(path: Path) -> int:
    """The bytes that are free where a file or folder is, or will be made."""
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


@contextlib.contextmanager
def telling_of_room(folder: Path) -> Iterator[None]:
    """Raises SaveError, which names the place and its free bytes, where the block finds no room."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise SaveError(
            f"{error.filename or folder}: could not be written: {error.strerror}; "
            f"{free_bytes(folder):,} bytes are free there. "
            "The same command goes on once there is room."
        ) from error


def write_whole(path: Path, content: bytes | str) -> None:
    """Writes a file (text as UTF-8) so that, whatever happens, it is the old one or the new one."""
    partial = path.with_name(f"{path.name}.partial")
    with partial.open("wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
