"""The three splits of a corpus: what is missing is held out, and digests tell them apart."""

import hashlib
from json.encoder import encode_basestring_ascii
from typing import NamedTuple

from flaxattn.text.holding_out import hold_out
from flaxattn.text.pairs import Pair, StoredPairs
from flaxattn.training.screen import Tell

__all__ = ["Corpus", "completed", "digests_of"]


class Corpus(NamedTuple):
    """The three splits, each of (source, target)."""

    train: StoredPairs
    """A part for each weight."""
    valid: list[Pair]
    test: list[Pair]


def completed(corpus: Corpus, held_out: int, tell: Tell) -> Corpus:
    """The corpus with so many pairs held out of the training text for each split that is empty."""
    train, valid, test = corpus
    missing = (not valid) + (not test)
    if missing:
        train, new = hold_out(train, missing, held_out, tell)
        valid = valid or new.pop()
        test = test or new.pop()
    return Corpus(train, valid, test)


def digests_of(corpus: Corpus, order: str) -> dict[str, str]:
    """The SHA-256 of each split's pairs, in their order.

    Args:
      order: how the training pairs are shuffled, where that has not always been so.
    """
    digests = {}
    for split, pairs in corpus._asdict().items():
        digest = hashlib.sha256()
        for pair in pairs:
            digest.update(_line(pair))
        if split == "train":
            digest.update(order.encode())
        digests[split] = digest.hexdigest()
    return digests


def _line(pair: Pair) -> bytes:
    """What `json.dumps` makes of a pair, at a third of the cost."""
    source, target = map(encode_basestring_ascii, pair)
    return f"[{source}, {target}]\n".encode()
