"""Precision, recall and F1 from counts."""

from typing import NamedTuple

__all__ = ["Scores"]


class Scores(NamedTuple):
    """Between 0 and 1; 0 where there is nothing to divide by."""

    precision: float
    recall: float
    f1: float
    support: int
    """How many there are in truth."""

    @classmethod
    def of(cls, correct: int, predicted: int, true: int) -> "Scores":
        """Those of so many that were predicted, so many in truth, and so many that are both."""
        return cls(
            precision=_share(correct, predicted),
            recall=_share(correct, true),
            f1=_share(2 * correct, predicted + true),
            support=true,
        )


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0
