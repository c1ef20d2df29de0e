"""How long translations may be: so many tokens for each token of the source, and a few more."""

import math

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


def choose_ratio(lengths: np.ndarray) -> float:
    """The least of 1.5, 2, 2.5, ... at which at most a thousandth of the targets are longer.

    Args:
      lengths: int [n, 2], tokens of each source and target.

    >>> choose_ratio(np.array([[4, 20], [10, 9]]))
    3.0
    """
    needed = np.sort((lengths[:, 1] - EXTRA) / lengths[:, 0])
    ratio = needed[len(needed) - 1 - int(LONGER * len(needed))]
    return max(MAX_RATIO, math.ceil(2 * ratio) / 2)


def share_longer(lengths: np.ndarray, max_ratio: float) -> float:
    """The share of the targets that are longer than a translation of their sources may be."""
    most = (lengths[:, 0] * max_ratio).astype(int) + EXTRA
    return float((lengths[:, 1] > most).mean())
