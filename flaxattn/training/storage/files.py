"""Files that are written whole or not at all, to stay, and what is said where they cannot be."""

import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

__all__ = [
    "PARTIAL",
    "SaveError",
    "beside",
    "check_regular",
    "free_bytes",
    "make_folder",
    "read_regular",
    "replacing",
    "sync",
    "sync_tree",
    "telling_of_room",
    "write_whole",
]

PARTIAL = ".partial"  # ends the name of what is being written or deleted
NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
UNSYNCED = (errno.EINVAL, errno.ENOTSUP, errno.EACCES, errno.EROFS)  # of folders that cannot be
STREAMS = ("/dev/stdin", "/dev/stdout", "/dev/stderr", "/dev/fd/", "/proc/")
MOST_LINKS = 40  # from link to link, as in Linux


class SaveError(OSError):
    """Something could not be written; what had been kept before still is."""


def free_bytes(path: Path) -> int:
    """The bytes that are free where a file or folder is, or will be made."""
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


@contextlib.contextmanager
def telling_of_room(path: Path, hint: str = "") -> Iterator[None]:
    """Raises SaveError, which names the place and its free bytes, where the block finds no room.

    Args:
      path: of the file or folder that is written.
      hint: what else to say.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        raise SaveError(
            f"{error.filename or path}: could not be written: {error.strerror}; "
            f"{free_bytes(path):,} bytes are free there. {hint}".strip()
        ) from error


# ---- Reading ---------------------------------------------------------------------------------


def check_regular(path: Path) -> int:
    """The size of a file in bytes.

    Raises:
      ValueError if it is a folder, a pipe or a device, of which one would wait for ever;
      FileNotFoundError.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        kind = "folder" if stat.S_ISDIR(status.st_mode) else "pipe or device"
        raise ValueError(f"{path}: is a {kind}; expected a file.")
    return status.st_size


def read_regular(path: Path, most: int | None = None) -> bytes:
    """The content of a file of at most so many bytes.

    Raises:
      ValueError if it is larger, or as `check_regular`.
    """
    size = check_regular(path)
    if most is not None and size > most:
        raise ValueError(f"{path}: has {size:,} bytes; expected at most {most:,}.")
    return path.read_bytes()


# ---- Writing ---------------------------------------------------------------------------------


def write_whole(path: Path, content: bytes | str) -> None:
    """Writes a file (text as UTF-8) so that, whatever happens, it is the old one or the new one."""
    with replacing(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


@contextlib.contextmanager
def replacing(path: Path, kept: Callable[[Path], None] | None = None) -> Iterator[BinaryIO]:
    """A file to write, which takes the place of that at `path` once the block has ended well.

    Until then it lies beside it (`beside`). A link stays one, and its target keeps its mode. Pipes
    and devices are written straight.

    Args:
      kept: if the block fails, what it has written stays beside, and this is told of it.

    Raises:
      SaveError if there is no room; another OSError before the block if it cannot be written.
    """
    place = _end_of_links(path)
    if place is None:
        handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        with telling_of_room(path), open(handle, "wb") as stream:
            yield stream
        return
    partial = beside(place)
    with telling_of_room(path), _created(partial, place) as file:
        try:
            yield file
            file.flush()
            os.fsync(file.fileno())
            partial.replace(place)
        except BaseException:
            _leave(file, partial, kept)
            raise
        sync(place.parent)


def beside(path: Path, ending: str = PARTIAL) -> Path:
    """The name beside a path under which it is made, also where that is as long as names can be."""
    most = os.pathconf(path.parent, "PC_NAME_MAX") - len(ending)
    name = os.fsencode(path.name)
    if len(name) <= most:
        return path.with_name(f"{path.name}{ending}")
    start = name[: most - 9].decode(errors="ignore")
    return path.with_name(f"{start}~{hashlib.sha256(name).hexdigest()[:8]}{ending}")


def _end_of_links(path: Path) -> Path | None:
    """The file that a path leads to, which need not exist; None if it is a pipe or a device."""
    for _ in range(MOST_LINKS):
        if os.path.abspath(path).startswith(STREAMS):
            return None
        if not path.is_symlink():
            break
        path = path.parent / path.readlink()
    else:
        raise OSError(f"{path}: too many links, one after another.")
    if path.is_dir():
        raise IsADirectoryError(f"{path}: is a folder; expected a file to write.")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path}: there is no folder {path.parent} to write it in.")
    return path if path.is_file() or not path.exists() else None


@contextlib.contextmanager
def _created(partial: Path, place: Path) -> Iterator[BinaryIO]:
    """A new file, held by this process alone, with the mode of the one it will replace."""
    if place.exists() and not os.access(place, os.W_OK):
        raise PermissionError(f"{place}: may not be written.")
    _check_left(partial)
    partial.unlink(missing_ok=True)
    new = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    with open(os.open(partial, new, 0o666), "wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if place.exists():
            os.fchmod(file.fileno(), stat.S_IMODE(place.stat().st_mode))
        yield file


def _check_left(partial: Path) -> None:
    """Raises OSError if another process is still writing what was found here."""
    if partial.is_symlink() or not partial.is_file():
        return
    with partial.open("rb") as left:
        try:
            fcntl.flock(left, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OSError(f"{partial}: another process is writing it.") from None


def _leave(file: BinaryIO, partial: Path, kept: Callable[[Path], None] | None) -> None:
    """Deletes what was written beside, unless it is to be kept."""
    with contextlib.suppress(OSError):
        file.close()
    if kept and partial.exists() and partial.stat().st_size:
        kept(partial)
    else:
        partial.unlink(missing_ok=True)


# ---- Staying, whatever happens to the power --------------------------------------------------


def make_folder(folder: Path) -> None:
    """Makes a folder and those it lies in, as far as they are not there yet."""
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        sync(folder.parent)


def sync_tree(folder: Path) -> None:
    """Waits until all files and folders below a folder, and it, are on disk."""
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            _sync(path)
    for path in sorted((p for p in folder.rglob("*") if p.is_dir()), reverse=True):
        sync(path)
    sync(folder)


def sync(folder: Path) -> None:
    """Waits until the names in a folder are on disk, on file systems that can tell."""
    try:
        _sync(folder)
    except OSError as error:
        if error.errno not in UNSYNCED:
            raise


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
