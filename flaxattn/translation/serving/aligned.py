"""Which words of a text and of its translation belong together, for the page to light up."""

from collections.abc import Sequence

import numpy as np

from flaxattn.translation.decoding.explaining import MOST_TOKENS, explain_translations
from flaxattn.translation.decoding.translator import Translation
from flaxattn.translation.trained.loading import Loaded

__all__ = ["Links", "align"]

Links = list[tuple[int, int]]
"""The numbers, from 0 on, of a source word and of a target word that belong together, sorted."""

SPACE = "\u2581"  # begins the token that begins a word


def align(loaded: Loaded, sources: Sequence[str], targets: Sequence[str]) -> list[Links | None]:
    """The word alignment of each pair, words parted by white space; None where there is none."""
    return [_links(loaded, *pair) for pair in zip(sources, targets, strict=True)]


def _links(loaded: Loaded, source: str, target: str) -> Links | None:
    model, params, tokenizer, config = loaded
    ids, source_ids = tokenizer.encode([target, tokenizer.normalize_source(source)])
    lengths = len(ids), len(source_ids)
    if not 1 < min(lengths) <= max(lengths) <= MOST_TOKENS:
        return None
    found = [[Translation(target, 0.0, 0.0, tuple(ids.tolist()))]]
    sentences = explain_translations(model, params, tokenizer, [source], found, config)
    if not sentences:
        return None
    cross = [x for x in sentences[0].attentions if x.kind == "Cross-attention"]
    seen = cross[max(len(cross) - 2, 0)]  # the last layer but one links words best
    read, written = _words(seen.kv_tokens[:-1]), _words((seen.q_writes or seen.q_tokens)[:-1])
    shares = np.zeros((max(written, default=-1) + 1, max(read, default=-1) + 1))
    weights = seen.weights.mean(0)[: len(written), : len(read)]
    np.add.at(shares, np.ix_(np.array(written), np.array(read)), weights)
    return sorted((int(row.argmax()), word) for word, row in enumerate(shares)) if read else []


def _words(pieces: Sequence[str]) -> list[int]:
    """The word that each token belongs to.

    >>> _words(["▁The", "▁d", "og", "."])
    [0, 1, 1, 1]
    """
    begins = [piece.startswith(SPACE) or not i for i, piece in enumerate(pieces)]
    return [int(word) - 1 for word in np.cumsum(begins)]
