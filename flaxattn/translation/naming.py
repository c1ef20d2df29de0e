"""Corpora by the names of their files, as options have them: which are together, and weights."""

import math
import re
from collections.abc import Sequence
from pathlib import Path

from flaxattn.ranges import FieldError
from flaxattn.text.supply import ROUND

__all__ = ["corpora", "is_weight", "others"]

TSV = re.compile(r"\.tsv(\.\w+)?$")  # packed or not
TOGETHER = ([True], [False, False])  # which files are a corpus: whether they are TSV

Corpora = list[tuple[float, list[tuple[str, ...]]]]


def corpora(names: Sequence[str]) -> Corpora:
    """The training text that is named: parts with their weights, each of one corpus or several.

    Raises:
      FieldError if a number is no weight, or files are not two and two.

    >>> corpora(["a.en", "a.de", "b.tsv"])
    [(1.0, [('a.en', 'a.de'), ('b.tsv',)])]
    >>> corpora(["3", "a.en", "a.de", "1", "b.tsv"])
    [(3.0, [('a.en', 'a.de')]), (1.0, [('b.tsv',)])]
    """
    weights = [at for at, name in enumerate(names) if is_weight(name)]
    if not weights:
        return [(1.0, _grouped(names))] if names else []
    if weights[0] != 0:
        raise FieldError(
            "train", f"gives no weight to {names[0]}; expected one for each corpus, or none."
        )
    ends = [*weights[1:], len(names)]
    found = [
        (_weight(names[start]), _grouped(names[start + 1 : end]))
        for start, end in zip(weights, ends, strict=True)
    ]
    least = sum(weight for weight, _ in found) / ROUND
    if (smallest := min(found)[0]) < least:
        raise FieldError(
            "train",
            f"has the weight {smallest:g}; expected at least {least:g} beside the others: a row "
            f"of {ROUND}.",
        )
    return found


def others(names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """More validation text by the name of its first file: two aligned files, or one TSV file.

    Raises:
      FieldError if files are not two and two, or of two corpora the first files have one name.

    >>> others(["new/a.en", "new/a.de", "b.tsv"])
    {'a.en': ('new/a.en', 'new/a.de'), 'b.tsv': ('b.tsv',)}
    """
    groups = _grouped(names, "more_valid") if names else []
    found = {Path(group[0]).name: group for group in groups}
    if len(found) < len(groups):
        raise FieldError(
            "more_valid", f"has {' '.join(names)}; expected first files of different names."
        )
    return found


def is_weight(name: str) -> bool:
    """Whether what stands among the training files is a weight, not a file."""
    return re.fullmatch(r"\d+(\.\d*)?", name) is not None


def _weight(word: str) -> float:
    if not 0 < (weight := float(word)) < math.inf:
        raise FieldError("train", f"has the weight {word}; expected one above 0.")
    return weight


def _grouped(names: Sequence[str], field: str = "train") -> list[tuple[str, ...]]:
    """TSV files, each alone, and aligned files, two and two; a file that is alone is TSV."""
    if len(names) == 1:
        return [(names[0],)]
    groups, rest = list[tuple[str, ...]](), list(names)
    while rest:
        count = 1 if TSV.search(rest[0]) else 2
        groups.append(tuple(rest[:count]))
        del rest[:count]
    if not groups or any([bool(TSV.search(x)) for x in g] not in TOGETHER for g in groups):
        raise FieldError(
            field,
            f"has {' '.join(names) or 'no file'}; expected for each corpus two aligned files, or "
            "one TSV file whose name ends in .tsv.",
        )
    return groups
