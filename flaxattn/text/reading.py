"""The texts of a file's lines, a piece at a time, so that a file need not fit memory."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from flaxattn.text.lines import BYTE_ORDER_MARK, decode_line
from flaxattn.text.opening import opened_text

__all__ = ["Texts", "texts_of", "together"]

PIECE = 1 << 18  # bytes

Texts = list[str | None]
"""Lines; None stands for one that is no text, and is to be left out."""


def texts_of(path: Path, *, skip_invalid: bool) -> Iterator[Texts]:
    """The lines of a file, as `read_lines` breaks them, in pieces.

    Raises:
      FileNotFoundError or ValueError as `opened_text` and `decode_line`, naming file and line.
    """
    number = 1
    with opened_text(path) as stream:
        for piece in _pieces(stream):
            texts = _decoded(piece)
            if texts is None:
                texts = _decoded_apart(piece, path, number, skip_invalid)
            number += len(texts)
            yield texts


def together(sides: Sequence[Iterator[Texts]]) -> Iterator[list[Texts]]:
    """As many lines of the one as of the other at a time; in the end what one has more."""
    left: list[Texts] = [[], []]
    while True:
        for texts, more in zip(left, sides, strict=True):
            if not texts:
                texts += next(more, [])
        count = min(map(len, left)) or max(map(len, left))
        if not count:
            return
        yield [texts[:count] for texts in left]
        for texts in left:
            del texts[:count]


def _pieces(stream: BinaryIO) -> Iterator[bytes]:
    """What a stream gives, in pieces of whole lines, without a byte-order mark at its start."""
    begun = stream.read(len(BYTE_ORDER_MARK)).removeprefix(BYTE_ORDER_MARK)
    parts = [begun] if begun else []  # of a line whose end has not come yet
    while data := stream.read(PIECE):
        end = data.rfind(b"\n") + 1
        if end:
            yield b"".join([*parts, data[:end]])
            parts = []
        if data[end:]:
            parts.append(data[end:])
    if parts:
        yield b"".join(parts)


def _decoded(piece: bytes) -> Texts | None:
    """The lines of a piece; None if they are not all text."""
    if b"\0" in piece:
        return None
    with contextlib.suppress(UnicodeDecodeError):
        lines = piece.decode().removesuffix("\n").split("\n")
        return [line.removesuffix("\r") for line in lines] if b"\r" in piece else [*lines]
    return None


def _decoded_apart(piece: bytes, path: Path, first: int, skip_invalid: bool) -> Texts:
    texts: Texts = []
    for number, line in enumerate(piece.removesuffix(b"\n").split(b"\n"), first):
        try:
            texts.append(decode_line(line.removesuffix(b"\r"), f"{path}, line {number}"))
        except ValueError as error:
            if not skip_invalid:
                raise ValueError(f"{error} --invalid-lines skip leaves such pairs out.") from error
            texts.append(None)
    return texts
