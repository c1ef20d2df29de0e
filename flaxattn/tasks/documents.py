"""Plain documents as examples: read from files, and cut where they are longer than a row."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from flaxattn.tasks.config import LanguageData, TextRun
from flaxattn.tasks.reading import documents
from flaxattn.text.pairs import Pair
from flaxattn.text.tokenizer import Tokenizer
from flaxattn.text.tokens import Tokens
from flaxattn.training.screen import Tell

__all__ = ["HINT", "cut", "pieces_of", "read_documents"]

HINT = ", or part documents otherwise: --documents lines"

ONE = np.ones(1, np.int32)  # what a row needs of a side that says nothing


def read_documents(path: Path, config: TextRun, tell: Tell) -> Iterator[Pair]:
    """The documents of a file, as the configuration parts them, each beside nothing."""
    assert isinstance(config.data, LanguageData)
    skip = config.data.invalid_lines == "skip"
    return documents(path, tell, config.data.documents, skip_invalid=skip)


def cut(pairs: list[Pair], tokenizer: Tokenizer, labels: object, length: int) -> Tokens:
    """The ids of documents, those that are longer than a row in as many pieces as need be."""
    pieces = pieces_of(pairs, tokenizer, length)
    return Tokens.of(pieces, [ONE] * len(pieces))


def pieces_of(pairs: list[Pair], tokenizer: Tokenizer, length: int) -> list[np.ndarray]:
    """The same as arrays."""
    return [
        ids[start : start + length]
        for ids in tokenizer.encode([text for text, _ in pairs])
        for start in range(0, len(ids), length)
    ]
