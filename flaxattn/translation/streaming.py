"""Lines that arrive in their own time: those that are there are taken together, none is waited for.

A person who types a line gets its translation at once; a file is read in large pieces.
"""

import queue
import threading
from collections.abc import Iterator
from typing import BinaryIO

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
    lines: queue.Queue[bytes | None] = queue.Queue(AHEAD)

    def read() -> None:
        for line in iter(stream.readline, b""):
            lines.put(line)
        lines.put(None)

    threading.Thread(target=read, daemon=True).start()
    number, ended = 0, False
    while not ended:
        taken = [lines.get()]
        while taken[-1] is not None and len(taken) < PIECE and not lines.empty():
            taken.append(lines.get())
        ended = taken[-1] is None
        texts: list[str] = []
        for line in taken[: -1 if ended else None]:
            number += 1
            try:
                texts.append(_text(line, number == 1))
            except UnicodeDecodeError as error:
                yield texts
                raise ValueError(
                    f"{name}, line {number}: invalid UTF-8 at byte {error.start} of the line; "
                    "convert the text to UTF-8, for example with iconv."
                ) from error
        if texts:
            yield texts


def _text(line: bytes | None, first: bool) -> str:
    line = (line or b"").removesuffix(b"\n").removesuffix(b"\r")
    return (line.removeprefix(b"\xef\xbb\xbf") if first else line).decode("utf-8")
