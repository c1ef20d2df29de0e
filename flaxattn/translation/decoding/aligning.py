"""Which words of a text and its translation belong together, read off the cross-attention.

When the first token of a word is written, the decoder attends to what the word translates. But
words that are attended to a lot, as nouns are by their articles, draw links that are not theirs. So
attention counts as much as it is of what its word gives, and of what the other word gets, and
links are sought from both sides. In which layers this is to be seen differs from model to model;
each counts by how decided it is.
"""

from collections.abc import Sequence

import numpy as np

from flaxattn.text.lines import on_one_line
from flaxattn.text.tokenizer import Tokenizer
from flaxattn.translation.decoding.forced import Forced, PairScorer

__all__ = ["Links", "align", "links_of", "pharaoh"]

Links = list[tuple[int, int]]
"""The numbers, from 0 on, of a source word and of a target word that belong together, sorted."""

LEAST, POWER = 0.25, 8  # chosen on the validation split of the built-in corpus
SPACES = ("\u2581", *(f"<0x{byte:02X}>" for byte in b"\t\n\v\f\r "))  # tokens of white space alone


def align(
    scorer: PairScorer, sources: Sequence[str], targets: Sequence[str], *, first: int = 0
) -> list[Links | None]:
    """The word alignment of each pair, words parted by white space; None where a side is blank.

    Arguments and errors as of `PairScorer.score`.
    """
    pairs = scorer.encode(sources, targets, first=first)
    found = iter(scorer.force([pair for pair in pairs if pair], attention=True))
    return [
        links_of(scorer.tokenizer, source, pair[0], next(found)) if pair else None
        for source, pair in zip(sources, pairs, strict=True)
    ]


def links_of(tokenizer: Tokenizer, source: str, source_ids: np.ndarray, target: Forced) -> Links:
    """The links of a pair that was looked at with its attention.

    Args:
      source: the text that `source_ids` [S] are of.
    """
    if target.attention is None:
        raise ValueError("target: was looked at without its attention; ask `force` for it.")
    owners = _owners(tokenizer, source)
    read = _words(tokenizer.pieces(source_ids.tolist()[:-1]))
    read = [owners[min(word, len(owners) - 1)] for word in read]
    written = _words(tokenizer.pieces(target.tokens[:-1]))
    count = max(written, default=-1) + 1
    firsts = [written.index(word) for word in range(count)]
    shares = np.zeros((len(target.attention), count, max(read, default=-1) + 1))
    rows = target.attention[:, firsts]
    for token, word in enumerate(read):
        shares[:, :, word] += rows[:, :, token]
    return _links(shares)


def pharaoh(links: Links) -> str:
    """The links as text.

    >>> pharaoh([(0, 0), (1, 2)])
    '0-0 1-2'
    """
    return " ".join(f"{source}-{target}" for source, target in links)


def _links(shares: np.ndarray) -> Links:
    """The best links of the words of either side: attention [L, T, S] between words.

    >>> _links(np.array([[[0.3, 0.6], [0.0, 0.9]]]))
    [(0, 0), (1, 1)]
    """
    if not shares.size:
        return []
    shares = shares + np.finfo(np.float32).tiny  # what nothing attends to
    given, got = (shares / shares.sum(axis, keepdims=True) for axis in (2, 1))
    of_layers = np.sqrt(given * got)
    decided = of_layers.max(axis=1).mean(axis=1) + of_layers.max(axis=2).mean(axis=1)
    weights = np.average(of_layers, axis=0, weights=decided**POWER)
    best = {(int(source), target) for target, source in enumerate(weights.argmax(1))}
    best |= {(source, int(target)) for source, target in enumerate(weights.argmax(0))}
    return sorted(link for link in best if weights[link[1], link[0]] >= LEAST)


def _words(pieces: Sequence[str]) -> list[int]:
    """The word that each token belongs to; a space belongs to the word after it.

    >>> _words(["▁The", "▁d", "og", ".", "▁", "O"])
    [0, 1, 1, 1, 2, 2]
    """
    words, word, begins = [], -1, True
    for piece in pieces:
        begins |= piece.startswith(SPACES)
        if piece not in SPACES:
            word, begins = word + begins, False
        words.append(word + begins)
    return [min(each, word) for each in words]


def _owners(tokenizer: Tokenizer, source: str) -> list[int]:
    """For each word that the model reads the one it is of: other spaces part words for it, too."""
    words = on_one_line(source).split(" ")
    read = (tokenizer.normalize_source(word).split(" ") for word in words)
    return [i for i, parts in enumerate(read) for part in parts if part]
