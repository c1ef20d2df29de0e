r"""Lines of text files: broken at "\n" alone, so that no character within shifts an alignment."""

import difflib
from pathlib import Path

__all__ = ["BYTE_ORDER_MARK", "decode_line", "missing_file", "read_lines", "split_lines"]

BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def read_lines(path: Path) -> list[str]:
    """The lines of a file of text.

    Raises:
      FileNotFoundError naming the file and what is called like it; ValueError as `decode_line`.
    """
    return [decode_line(line, f"{path}, line {i}") for i, line in enumerate(split_lines(path), 1)]


def split_lines(path: Path) -> list[bytes]:
    r"""The lines of a file, without "\n" and "\r\n" at their ends and a byte-order mark.

    Raises:
      FileNotFoundError naming the file and what is called like it.
    """
    if not path.is_file():
        raise missing_file(path)
    lines = path.read_bytes().removeprefix(BYTE_ORDER_MARK).split(b"\n")
    if lines[-1] == b"":
        lines.pop()
    return [line.removesuffix(b"\r") for line in lines]


def decode_line(line: bytes, where: str) -> str:
    """The text of a line in UTF-8.

    Args:
      where: the file and the line's number, for errors.

    Raises:
      ValueError if it is not valid UTF-8, or has a NUL, as text in UTF-16 has.
    """
    if (at := line.find(b"\0")) >= 0:
        raise ValueError(
            f"{where}: NUL at byte {at} of the line; if this is text in UTF-16, convert it to "
            "UTF-8, for example with iconv."
        )
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{where}: invalid UTF-8 at byte {error.start} of the line; "
            "convert the text to UTF-8, for example with iconv."
        ) from error


def missing_file(path: Path) -> FileNotFoundError:
    """An error that names the file, and another of its folder that is called almost the same."""
    if not path.parent.is_dir():
        return FileNotFoundError(f"{path}: no such file, nor is there a folder {path.parent}.")
    near = difflib.get_close_matches(path.name, [p.name for p in path.parent.iterdir()], 1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return FileNotFoundError(f"{path}: no such file.{hint}")
