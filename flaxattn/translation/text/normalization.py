"""Unicode normalisation: what looks the same is spelt the same, as the tokenizer remembers.

In translations a no-break space is one; in sources it would only be a token seldom seen.
"""

import re
import unicodedata
from typing import Literal

from flaxattn.translation.config import Normalization

__all__ = ["normalize_source", "normalize_target"]

OTHER_SPACE = re.compile(r"[^\S ]")


def normalize_source(text: str, normalization: Normalization) -> str:
    """A source as a model reads it.

    >>> normalize_source("e\\u0301\\u00a0ﬁ", "nfc"), normalize_source("e\\u0301\\u00a0ﬁ", "nfkc")
    ('é ﬁ', 'é fi')
    """
    if normalization == "none":
        return text
    form: Literal["NFC", "NFKC"] = "NFKC" if normalization == "nfkc" else "NFC"
    return OTHER_SPACE.sub(" ", unicodedata.normalize(form, text))


def normalize_target(text: str, normalization: Normalization) -> str:
    """A target as a model learns to write it: in form NFC, all its characters kept."""
    return text if normalization == "none" else unicodedata.normalize("NFC", text)
