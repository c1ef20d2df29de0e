"""SentencePiece's model files, changed: more tokens, and special tokens where ours are.

A file is a message of protocol buffers (`sentencepiece_model.proto`): pieces, in the order of their
ids, and how they were learned. Pieces that are written behind a message are more of its pieces.
"""

import struct
from collections.abc import Iterator, Sequence
from typing import NamedTuple

__all__ = ["is_bpe", "symbols_of", "with_special_first", "with_symbols"]

PIECE, TRAINER = 1, 2  # fields of a model
UNKNOWN, CONTROL, USER_DEFINED = 2, 3, 4  # types of a piece; 1, if none is said, is an ordinary one
SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")  # by id
MODEL_TYPE, BPE = 3, 2  # a field of a trainer, and what it says there of BPE
OWN_NAMES = (48, 46, 47, 45)  # fields of a trainer in which these may be called otherwise
SIZES = {1: 8, 5: 4}  # bytes of the wire types that have a fixed number of them


class _Field(NamedTuple):
    number: int
    content: bytes  # of what has a length
    whole: bytes


def is_bpe(model: bytes) -> bool:
    """Whether it makes tokens by merges."""
    told = [
        x.whole[-1] for t in _trainers(model) for x in _fields(t.content) if x.number == MODEL_TYPE
    ]
    return told[-1:] == [BPE]


def symbols_of(model: bytes) -> list[str]:
    """Its tokens which texts have wherever they stand in them."""
    pieces = (_parsed(field) for field in _fields(model) if field.number == PIECE)
    return [text for text, kind, _ in pieces if kind == USER_DEFINED]


def _trainers(model: bytes) -> list["_Field"]:
    return [field for field in _fields(model) if field.number == TRAINER]


def with_symbols(model: bytes, symbols: Sequence[str]) -> bytes:
    """The model with these as its last tokens, which texts have wherever they stand in them."""
    return model + b"".join(_piece(symbol, USER_DEFINED) for symbol in symbols)


def with_special_first(model: bytes) -> bytes:
    """The model whose first tokens are those that pad, begin, end and are unknown.

    What it lacks of them is added; all other pieces stay in their order.

    Raises:
      ValueError if these bytes are no model.
    """
    try:
        fields = list(_fields(model))
        pieces = [_parsed(field) for field in fields if field.number == PIECE]
        names = _names(_trainers(model))
    except (IndexError, struct.error, UnicodeDecodeError) as error:
        raise ValueError("its bytes are none.") from error
    if not any(kind == UNKNOWN for _, kind, _ in pieces):
        raise ValueError("it has no unknown token.")
    first = [_special(name, pieces) for name in names]
    rest = [whole for _, _, whole in pieces if whole not in first]
    others = [field.whole for field in fields if field.number != PIECE]
    return b"".join([*first, *rest, *others])


def _special(name: str, pieces: Sequence[tuple[str, int, bytes]]) -> bytes:
    """The piece of that name, which is no text; made if there is none."""
    for piece, kind, whole in pieces:
        if piece == name and kind in (UNKNOWN, CONTROL):
            return whole
        if piece == name:
            raise ValueError(
                f"{name} is a token of text in it; expected it to be none, or not there."
            )
    return _piece(name, CONTROL)


def _names(trainers: Sequence[_Field]) -> list[str]:
    """What the special tokens are called, by the order of their ids here."""
    told = {
        x.number: x.content.decode()
        for t in trainers
        for x in _fields(t.content)
        if x.number in OWN_NAMES
    }
    return [told.get(field, name) for field, name in zip(OWN_NAMES, SPECIAL, strict=True)]


def _parsed(field: _Field) -> tuple[str, int, bytes]:
    """The text of a piece, its type, and all of it."""
    name, kind = "", 1
    for part in _fields(field.content):
        if part.number == 1:
            name = part.content.decode()
        if part.number == 3:
            kind = part.whole[-1]
    return name, kind, field.whole


def _fields(message: bytes) -> Iterator[_Field]:
    at = 0
    while at < len(message):
        start = at
        tag, at = _varint(message, at)
        number, wire = tag >> 3, tag & 7
        content = b""
        if wire == 0:
            _, at = _varint(message, at)
        elif wire == 2:
            size, at = _varint(message, at)
            content, at = message[at : at + size], at + size
        elif wire in SIZES:
            at += SIZES[wire]
        else:
            raise IndexError(wire)
        if at > len(message):
            raise IndexError(at)
        yield _Field(number, content, message[start:at])


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """The number that begins there, and where it ends."""
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at


def _piece(text: str, kind: int) -> bytes:
    name = text.encode()
    content = (
        b"\x0a" + _length(name) + name + b"\x15" + struct.pack("<f", 0.0) + bytes([0x18, kind])
    )
    return b"\x0a" + _length(content) + content


def _length(content: bytes) -> bytes:
    size, found = len(content), b""
    while size > 127:
        found, size = found + bytes([size & 127 | 128]), size >> 7
    return found + bytes([size])
