"""Unicode normalisation: what looks the same is spelt the same, as the tokenizer remembers.

In translations a no-break space is one; in sources it would only be a token seldom seen.
"""

import re
import unicodedata
from collections.abc import Sequence
from typing import Literal, get_args

__all__ = [
    "NORMALIZATIONS",
    "Normalization",
    "normalize_source",
    "normalize_sources",
    "normalize_targets",
    "normalized",
]

Normalization = Literal["none", "nfc", "nfkc"]
NORMALIZATIONS: tuple[Normalization, ...] = get_args(Normalization)

OTHER_SPACE = re.compile(r"[^\S ]")
OTHER_SPACE_IN_LINES = re.compile(r"[^\S \n]")


def normalize_source(text: str, normalization: Normalization) -> str:
    """A source as a model reads it.

    >>> normalize_source("e\\u0301\\u00a0ﬁ", "nfc"), normalize_source("e\\u0301\\u00a0ﬁ", "nfkc")
    ('é ﬁ', 'é fi')
    """
    return _as_source(text, normalization, OTHER_SPACE)


def normalized(text: str, normalization: Normalization) -> str:
    """A text in that form, its white space as it is."""
    if normalization == "none":
        return text
    form: Literal["NFC", "NFKC"] = "NFKC" if normalization == "nfkc" else "NFC"
    return unicodedata.normalize(form, text)


def normalize_sources(lines: Sequence[str], normalization: Normalization) -> list[str]:
    r"""Each of many sources without "\n", across which nothing is composed: fast, as one text."""
    return _as_source("\n".join(lines), normalization, OTHER_SPACE_IN_LINES).split("\n")


def normalize_targets(lines: Sequence[str], normalization: Normalization) -> list[str]:
    r"""Each of many targets without "\n": a model learns to write all their characters."""
    if normalization == "none":
        return [*lines]
    return unicodedata.normalize("NFC", "\n".join(lines)).split("\n")


def _as_source(text: str, normalization: Normalization, space: re.Pattern[str]) -> str:
    return text if normalization == "none" else space.sub(" ", normalized(text, normalization))
