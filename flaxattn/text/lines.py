r"""Lines of text files: broken at "\n" alone, so that no character within shifts an alignment."""

import re
from collections.abc import Sequence
from pathlib import Path

from flaxattn.text.opening import read_text

__all__ = ["BYTE_ORDER_MARK", "decode_line", "on_one_line", "read_lines", "to_show"]

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
SPACE = re.compile(r"[ \t\n\r\v\f\x1c-\x1e\x85\u2028\u2029]+")  # ASCII's, and what breaks lines
SHOWN = 20, 80  # characters of a text to show


def read_lines(path: Path) -> list[str]:
    """The lines of a file of text.

    Raises:
      FileNotFoundError naming the file and what is called like it; ValueError if it is no text.
    """
    return [decode_line(line, f"{path}, line {i}") for i, line in enumerate(_split_lines(path), 1)]


def _split_lines(path: Path) -> list[bytes]:
    r"""The lines of a file, without "\n" and "\r\n" at their ends and a byte-order mark."""
    lines = read_text(path).removeprefix(BYTE_ORDER_MARK).split(b"\n")
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


def on_one_line(text: str) -> str:
    """A text with each run of ASCII white space and line breaks as one space, and none around it.

    Other spaces are characters of the text: U+00A0 before a French colon, U+3000 in Japanese.

    >>> on_one_line(" a\\u2028 b\\tc\\u00a0d\\n")
    'a b c\\xa0d'
    """
    return SPACE.sub(" ", text).strip(" ")


def to_show(texts: Sequence[str]) -> str:
    """Of texts, not all blank, the first that is neither short nor long, or else the shortest.

    >>> to_show(["No.", "The old man sees a dog."])
    'The old man sees a dog.'
    """
    least, most = SHOWN
    filled = [text for text in texts if text.strip()]
    return next((text for text in filled if least <= len(text) <= most), min(filled, key=len))
