"""A sample of sentence pairs, from which a tokenizer is learned: memory holds no more."""

from collections.abc import Iterator

import numpy as np

from flaxattn.text.pairs import Pair, StoredPairs

__all__ = ["sample"]

MOST = 100_000  # pairs
SEED = 2345  # fixed: a run's seed must not change what a tokenizer is learned from


def sample(pairs: StoredPairs) -> Iterator[Pair]:
    """All pairs, or so many from all over: one from each of as many equal stretches."""
    if len(pairs) <= MOST:
        return iter(pairs)
    places = np.arange(MOST) + np.random.default_rng(SEED).random(MOST)
    return pairs.chosen(map(int, places * (len(pairs) / MOST)))
