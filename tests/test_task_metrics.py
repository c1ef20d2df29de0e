"""Scores of entities and classes: by hand, and equal to seqeval's and scikit-learn's."""

import random

import pytest

from flaxattn.tasks.metrics import class_scores, entity_scores
from flaxattn.tasks.metrics.entities import entities_of

KINDS = ["LOC", "ORG", "PER"]
TAGS = ["O", *(f"{mark}-{kind}" for mark in "BI" for kind in KINDS)]


@pytest.mark.parametrize(
    "tags, entities",
    [
        ("", []),
        ("O O", []),
        ("B-PER I-PER O B-LOC", [("PER", 0, 2), ("LOC", 3, 4)]),
        ("B-PER B-PER I-PER", [("PER", 0, 1), ("PER", 1, 3)]),
        ("I-PER I-PER O I-LOC", [("PER", 0, 2), ("LOC", 3, 4)]),  # none was begun
        ("B-PER I-LOC I-LOC", [("PER", 0, 1), ("LOC", 1, 3)]),  # another kind goes on
        ("I-LOC O I-LOC", [("LOC", 0, 1), ("LOC", 2, 3)]),
        ("B-GPE-CITY I-GPE-CITY I-GPE", [("GPE-CITY", 0, 2), ("GPE", 2, 3)]),
    ],
)
def test_entities(tags, entities):
    assert entities_of(tags.split()) == entities


def test_entity_scores_by_hand():
    true = ["B-PER I-PER O B-LOC", "B-ORG O"]
    predicted = ["B-PER I-PER O B-PER", "B-ORG I-ORG"]
    scores = entity_scores([tags.split() for tags in true], [tags.split() for tags in predicted])
    assert scores.micro == (1 / 3, 1 / 3, 1 / 3, 3)
    assert scores.kinds == {
        "LOC": (0, 0, 0, 1),
        "ORG": (0, 0, 0, 1),
        "PER": (1 / 2, 1, 2 / 3, 1),
    }
    assert list(scores.kinds) == KINDS


def test_no_entities_score_0():
    assert entity_scores([["O"]], [["O"]]) == ({}, (0, 0, 0, 0))


def test_sentences_of_other_lengths_are_named():
    with pytest.raises(ValueError, match=r"sentence 2: expected 1 predicted tags, got 2"):
        entity_scores([["O"], ["O"]], [["O"], ["O", "O"]])
    with pytest.raises(ValueError):
        entity_scores([["O"]], [])


def test_class_scores_by_hand():
    scores = class_scores(["a", "a", "b", "c"], ["a", "b", "b", "d"])
    assert scores.accuracy == 1 / 2
    assert scores.classes == {
        "a": (1, 1 / 2, 2 / 3, 2),
        "b": (1 / 2, 1, 2 / 3, 1),
        "c": (0, 0, 0, 1),
        "d": (0, 0, 0, 0),
    }
    assert scores.macro == (pytest.approx(3 / 8), 3 / 8, pytest.approx(1 / 3), 4)


@pytest.mark.parametrize("true, predicted", [([], []), (["a"], []), (["a"], ["a", "b"])])
def test_as_many_labels_are_needed_on_both_sides(true, predicted):
    message = rf"got {len(true)} true and {len(predicted)} predicted"
    with pytest.raises(ValueError, match=message):
        class_scores(true, predicted)


def drawn(seed, kinds):
    """Sentences of any tags at all, and predictions of which about half of the tags are right."""
    dice = random.Random(seed)
    tags = ["O", *(f"{mark}-{kind}" for mark in "BI" for kind in kinds)]
    true = [dice.choices(tags, k=dice.randint(1, 9)) for _ in range(dice.randint(1, 12))]
    guess = [[dice.choice([tag, dice.choice(tags)]) for tag in sentence] for sentence in true]
    return true, guess


@pytest.mark.filterwarnings("ignore")  # seqeval's, where it divides by 0
@pytest.mark.parametrize("seed", range(40))
def test_entity_scores_are_seqevals(seed):
    seqeval = pytest.importorskip("seqeval.metrics")
    true, guess = drawn(seed, KINDS[: 1 + seed % 3])
    scores = entity_scores(true, guess)
    if not scores.kinds:
        return
    told = seqeval.classification_report(true, guess, output_dict=True)
    by_kind = {kind: tuple(told[kind].values()) for kind in scores.kinds}
    assert scores.kinds == {kind: pytest.approx(values) for kind, values in by_kind.items()}
    assert scores.micro == pytest.approx(tuple(told["micro avg"].values()))


@pytest.mark.parametrize("seed", range(40))
def test_class_scores_are_scikit_learns(seed):
    sklearn = pytest.importorskip("sklearn.metrics")
    dice = random.Random(seed)
    labels = ["b", "a", "B", "ü", "none"][: 1 + seed % 5]
    true, guess = (dice.choices(labels, k=1 + seed) for _ in range(2))
    scores = class_scores(true, guess)
    told = sklearn.classification_report(true, guess, output_dict=True, zero_division=0.0)
    by_class = {label: tuple(told[label].values()) for label in scores.classes}
    assert scores.classes == {label: pytest.approx(values) for label, values in by_class.items()}
    assert scores.macro == pytest.approx(tuple(told["macro avg"].values()))
    assert scores.accuracy == pytest.approx(sklearn.accuracy_score(true, guess))
