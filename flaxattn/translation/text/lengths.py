"""How long translations may be: so many tokens for each token of the source, and a few more."""

import math
from collections.abc import Mapping

import numpy as np

from flaxattn.translation.config import MAX_RATIO

__all__ = ["EXTRA", "LONGER", "choose_ratio", "max_target_length", "share_longer"]

EXTRA = 8  # tokens that the translation of the shortest source may have, too
LONGER = 0.001  # share of pairs that are not waited for: some are no translations of each other


def max_target_length(source: int, max_ratio: float | None) -> int:
    """The most tokens that the translation of a source of so many tokens may have.

    Args:
      max_ratio: as in `DecodingConfig`; None is the least that is ever chosen.
    """
    return int(source * (MAX_RATIO if max_ratio is None else max_ratio)) + EXTRA


def choose_ratio(lengths: Mapping[tuple[int, int], int]) -> float:
    """The least of 1.5, 2, 2.5, ... at which at most a thousandth of the targets are longer.

    Args:
      lengths: how often a source and its target have so many tokens.

    >>> choose_ratio({(4, 20): 1, (10, 9): 1})
    3.0
    """
    pairs, counts = _arrays(lengths)
    needed = (pairs[:, 1] - EXTRA) / pairs[:, 0]
    order = np.argsort(needed)
    last = counts.sum() - 1 - int(LONGER * counts.sum())  # of the pairs, by what they need
    ratio = needed[order][np.searchsorted(np.cumsum(counts[order]), last, side="right")]
    return max(MAX_RATIO, math.ceil(2 * ratio) / 2)


def share_longer(lengths: Mapping[tuple[int, int], int], max_ratio: float) -> float:
    """The share of the targets that are longer than a translation of their sources may be."""
    pairs, counts = _arrays(lengths)
    most = (pairs[:, 0] * max_ratio).astype(int) + EXTRA
    return float(counts[pairs[:, 1] > most].sum() / counts.sum())


def _arrays(lengths: Mapping[tuple[int, int], int]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([*lengths]), np.array([*lengths.values()])
