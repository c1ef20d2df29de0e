"""Accuracy, and precision, recall and F1 of each class, as scikit-learn counts them."""

import collections
from collections.abc import Sequence
from typing import NamedTuple

from flaxattn.tasks.metrics.scores import Scores

__all__ = ["ClassScores", "class_scores"]


class ClassScores(NamedTuple):
    """Scores of each class, in the order of their labels, and the mean of these scores."""

    accuracy: float
    classes: dict[str, Scores]
    macro: Scores


def class_scores(true: Sequence[str], predicted: Sequence[str]) -> ClassScores:
    """Scores of predicted labels; the classes are those that occur on either side.

    Raises:
      ValueError if there are no labels, or not as many on both sides.
    """
    if len(true) != len(predicted) or not true:
        raise ValueError(
            f"expected as many labels on both sides and at least one, got {len(true)} true and "
            f"{len(predicted)} predicted."
        )
    pairs = zip(true, predicted, strict=True)
    correct = collections.Counter(wanted for wanted, given in pairs if wanted == given)
    wanted, given = collections.Counter(true), collections.Counter(predicted)
    labels = sorted(wanted.keys() | given.keys())
    classes = {label: Scores.of(correct[label], given[label], wanted[label]) for label in labels}
    precision, recall, f1 = (
        sum(column) / len(labels)
        for column in zip(*(scores[:3] for scores in classes.values()), strict=True)
    )
    macro = Scores(precision, recall, f1, len(true))
    return ClassScores(correct.total() / len(true), classes, macro)
