"""Entities in sequences of BIO tags: found if kind, start and end are right, as conlleval counts.

Any sequence of tags has entities: an "I-" begins one where none of its kind is open. That is what
seqeval does by default.
"""

import collections
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from flaxattn.tasks.metrics.scores import Scores

__all__ = ["EntityScores", "entities_of", "entity_scores"]

Entity = tuple[str, int, int]


class EntityScores(NamedTuple):
    """Scores of each kind of entity, in their alphabetical order, and of all entities together."""

    kinds: dict[str, Scores]
    micro: Scores


def entities_of(tags: Sequence[str]) -> list[Entity]:
    """The entities of a sentence: kind, first word, and the word after the last.

    >>> entities_of(["B-LOC", "I-LOC", "B-LOC", "O", "I-PER"])
    [('LOC', 0, 2), ('LOC', 2, 3), ('PER', 4, 5)]
    """
    found: list[Entity] = []
    open_kind = None
    for at, tag in enumerate(tags):
        begun, _, kind = tag.partition("-")
        if begun == "O":
            open_kind = None
        elif begun == "I" and kind == open_kind:
            found[-1] = (kind, found[-1][1], at + 1)
        else:
            found.append((kind, at, at + 1))
            open_kind = kind
    return found


def entity_scores(
    true: Iterable[Sequence[str]], predicted: Iterable[Sequence[str]]
) -> EntityScores:
    """Scores over the sentences of a corpus, each a sequence of tags.

    Raises:
      ValueError if the two differ in the number of sentences, or of the tags of one.
    """
    counts = {name: collections.Counter[str]() for name in ("correct", "predicted", "true")}
    for number, (wanted, given) in enumerate(zip(true, predicted, strict=True), 1):
        if len(wanted) != len(given):
            raise ValueError(
                f"sentence {number}: expected {len(wanted)} predicted tags, got {len(given)}."
            )
        sets = {"true": {*entities_of(wanted)}, "predicted": {*entities_of(given)}}
        sets["correct"] = sets["true"] & sets["predicted"]
        for name, entities in sets.items():
            counts[name].update(kind for kind, _, _ in entities)
    kinds = sorted(counts["true"].keys() | counts["predicted"].keys())
    of_kinds = {kind: Scores.of(*(count[kind] for count in counts.values())) for kind in kinds}
    return EntityScores(of_kinds, Scores.of(*(count.total() for count in counts.values())))
