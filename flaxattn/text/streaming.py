"""Lines that arrive in their own time: those that are there are taken together, none is waited for.

A person who types a line gets its translation at once; a file is read in large pieces.
"""

import io
import select
from collections.abc import Iterator
from typing import BinaryIO

from flaxattn.text.lines import BYTE_ORDER_MARK, decode_line

__all__ = ["chunks"]

PIECE = 1024  # lines taken together, at most; a multiple of any sensible batch
READ = 1 << 16  # bytes asked for at once: no fewer than a stream holds back, so that none are left


def chunks(stream: BinaryIO, name: str) -> Iterator[list[str]]:
    r"""The lines of a stream of UTF-8, broken at "\n" alone, in the pieces in which they come.

    Args:
      name: of the stream, for errors.

    Raises:
      ValueError naming the line of invalid UTF-8, after the lines before it were given.
    """
    number = 0
    for lines in _pieces(stream):
        texts: list[str] = []
        for line in lines:
            number += 1
            try:
                texts.append(_text(line, f"{name}, line {number}", number == 1))
            except ValueError:
                if texts:
                    yield texts
                raise
        yield texts


def _pieces(stream: BinaryIO) -> Iterator[list[bytes]]:
    r"""Up to PIECE lines at a time, without "\n"; fewer where the next would have to be waited for.

    Reading waits in the thread that asks, so that control-C and errors end it at once.
    """
    lines: list[bytes] = []
    begun: list[bytes] = []  # parts of a line whose end has not come yet
    while data := _read(stream):
        first, *rest = data.split(b"\n")
        begun.append(first)
        if rest:
            lines += [b"".join(begun), *rest[:-1]]
            begun = rest[-1:]
        while len(lines) >= PIECE or (lines and not _has_more(stream)):
            yield lines[:PIECE]
            del lines[:PIECE]
    if last := b"".join(begun):
        lines.append(last)
    if lines:
        yield lines


def _read(stream: BinaryIO) -> bytes:
    """What is there, or, where nothing is, what comes next; nothing at the end."""
    return stream.read1(READ) if isinstance(stream, io.BufferedIOBase) else stream.read(READ)


def _has_more(stream: BinaryIO) -> bool:
    """Whether reading on waits for nobody, so far as one can know: unpacking reads on."""
    if not isinstance(stream, io.BufferedReader):
        return True
    return bool(select.select([stream], [], [], 0)[0])


def _text(line: bytes, where: str, first: bool) -> str:
    line = line.removesuffix(b"\r")
    return decode_line(line.removeprefix(BYTE_ORDER_MARK) if first else line, where)
