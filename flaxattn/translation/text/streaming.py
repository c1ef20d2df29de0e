"""Lines that arrive in their own time: those that are there are taken together, none is waited for.

A person who types a line gets its translation at once; a file is read in large pieces.
"""

import queue
import threading
from collections.abc import Iterator
from typing import BinaryIO

from flaxattn.translation.text.lines import BYTE_ORDER_MARK, decode_line

__all__ = ["chunks"]

PIECE = 1024  # lines taken together, at most; a multiple of any sensible batch
AHEAD = 4 * PIECE  # lines read before they are asked for


def chunks(stream: BinaryIO, name: str) -> Iterator[list[str]]:
    r"""The lines of a stream of UTF-8, broken at "\n" alone, in the pieces in which they come.

    Args:
      name: of the stream, for errors.

    Raises:
      ValueError naming the line of invalid UTF-8, after the lines before it were given.
    """
    lines: queue.Queue[bytes | BaseException | None] = queue.Queue(AHEAD)
    threading.Thread(target=_read, args=(stream, lines), daemon=True).start()
    number, ended = 0, False
    while not ended:
        texts, line = [], lines.get()
        while isinstance(line, bytes):
            number += 1
            try:
                texts.append(_text(line, f"{name}, line {number}", number == 1))
            except ValueError as error:
                line = error
                break
            if len(texts) == PIECE or lines.empty():
                break
            line = lines.get()
        if texts:
            yield texts
        if isinstance(line, BaseException):
            raise line
        ended = line is None


def _read(stream: BinaryIO, lines: queue.Queue[bytes | BaseException | None]) -> None:
    """Every line, then None, or what went wrong."""
    try:
        for line in iter(stream.readline, b""):
            lines.put(line)
        lines.put(None)
    except BaseException as error:
        lines.put(error)


def _text(line: bytes, where: str, first: bool) -> str:
    line = line.removesuffix(b"\n").removesuffix(b"\r")
    return decode_line(line.removeprefix(BYTE_ORDER_MARK) if first else line, where)
