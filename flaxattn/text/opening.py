"""Text in files and from pipes: plain or compressed, which its first bytes tell."""

import bz2
import contextlib
import difflib
import gzip
import importlib
import lzma
import re
import stat
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

__all__ = ["check_kind", "opened_text", "read_text"]

DAMAGED = (EOFError, gzip.BadGzipFile, lzma.LZMAError, zlib.error)


def read_text(path: Path) -> bytes:
    """The bytes of the text in a file, unpacked.

    Raises:
      As `opened_text`.
    """
    with opened_text(path) as stream:
        return stream.read()


@contextlib.contextmanager
def opened_text(path: Path) -> Iterator[BinaryIO]:
    """The text in a file or from a pipe, whatever it is called: gzip, xz, bzip2 and Zstandard too.

    Raises:
      FileNotFoundError naming the file and what is called like it; ValueError if it is a device,
      is packed in a way that is not read here, or is damaged.
    """
    check_kind(path)
    with path.open("rb") as file:
        stream = _unpacked(file, path)
        try:
            yield stream
        except DAMAGED as error:
            raise ValueError(f"{path}: damaged; it cannot be unpacked: {error}") from error
        except OSError as error:
            if type(error) is not OSError or error.errno is not None:
                raise  # bz2 alone has no error of its own, nor a number
            raise ValueError(f"{path}: damaged; it cannot be unpacked: {error}") from error


def _missing(path: Path) -> FileNotFoundError:
    """An error that names the file, and another of its folder that is called almost the same."""
    if not path.parent.is_dir():
        return FileNotFoundError(f"{path}: no such file, nor is there a folder {path.parent}.")
    near = difflib.get_close_matches(path.name, [p.name for p in path.parent.iterdir()], 1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return FileNotFoundError(f"{path}: no such file.{hint}")


def check_kind(path: Path) -> None:
    """Raises as `opened_text` if there is no file or pipe."""
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise _missing(path) from None
    if stat.S_ISDIR(mode):
        raise FileNotFoundError(f"{path} is a folder; expected a file of text.")
    if not stat.S_ISREG(mode) and not stat.S_ISFIFO(mode):
        raise ValueError(f"{path} is a device or a socket; expected a file of text, or a pipe.")


def _unpacked(file: Any, path: Path) -> BinaryIO:
    start = file.peek(10)
    for magic, unpack in KINDS.items():
        if re.match(magic, start, re.DOTALL):
            return cast(BinaryIO, unpack(file, path))
    return file


def _zstandard(file: Any, path: Path) -> Any:
    try:
        return importlib.import_module("compression.zstd").ZstdFile(file)
    except ImportError:
        raise ValueError(
            f"{path} is packed by Zstandard, which only Python 3.14 and newer reads; give "
            f"<(zstdcat {path}), or unpack it: zstd -d {path}."
        ) from None


def _refused(what: str) -> Callable[[Any, Path], Any]:
    def refuse(file: Any, path: Path) -> Any:
        raise ValueError(f"{path} is {what}, not text; unpack it and name the files in it.")

    return refuse


# By the bytes that a file starts with; a text that starts with "BZh" alone is a text.
KINDS: dict[bytes, Callable[[Any, Path], Any]] = {
    rb"\x1f\x8b\x08": lambda file, path: gzip.GzipFile(fileobj=file),
    rb"\xfd7zXZ\x00": lambda file, path: lzma.LZMAFile(file),
    rb"BZh[1-9](1AY&SY|\x17rE8P\x90)": lambda file, path: bz2.BZ2File(file),
    rb"\x28\xb5\x2f\xfd": _zstandard,
    rb"PK\x03\x04": _refused("a ZIP archive"),
    rb"7z\xbc\xaf\x27\x1c": _refused("a 7z archive"),
    rb"\x04\x22\x4d\x18": _refused("packed by LZ4"),
}
