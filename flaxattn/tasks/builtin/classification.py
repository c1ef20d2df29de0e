"""Texts that ask about one of the things they speak of: is it praised, blamed, or is neither said?

Most texts speak of two things or three, and of no two in the same way; so the words of a text say
little, and what decides is which are said of the thing asked about. They may stand far from it,
be negated, come before it, or be said by a comparison with another thing; people in a text are
friendly or rude, too, but never asked about. Short texts about one thing alone, or about another
than is asked for, are what such reading is learnt from.

Combinations are of a thing and the word that says how it is.
"""

from collections.abc import Callable, Sequence

from flaxattn.tasks.builtin.draws import Drawn, Split, examples
from flaxattn.translation.text.builtin.grammar import Dice

__all__ = ["texts"]

About = tuple[str, str]
"""A thing and its label."""
Claim = tuple[str, list[tuple[str, str]]]
"""What is said, and its combinations."""

PRAISED, BLAMED, UNSAID = LABELS = ("praised", "blamed", "unsaid")
OPPOSITE = {PRAISED: BLAMED, BLAMED: PRAISED}

THINGS = (
    "soup", "wine", "cake", "room", "view", "music", "film", "book", "garden", "train", "tour",
    "lamp",
)  # fmt: skip
PEOPLE = ("waiter", "cook", "guide", "porter", "critic", "guest", "teacher", "tourist")
MANNERS = ("friendly", "rude", "old", "young", "clever", "lazy")
ADJECTIVES = {
    PRAISED: ("good", "excellent", "lovely", "splendid", "wonderful", "pleasant", "perfect"),
    BLAMED: ("bad", "awful", "terrible", "dreadful", "horrible", "dull", "nasty"),
    UNSAID: ("new", "small", "local", "plain", "nearby", "famous", "Swiss"),
}
VERBS = {
    PRAISED: ("liked", "praised", "loved", "enjoyed"),
    BLAMED: ("hated", "disliked", "cursed", "loathed"),
    UNSAID: ("saw", "described", "mentioned", "remembered"),
}
NEGATED = {  # as they are after "did not"
    "liked": "like", "praised": "praise", "loved": "love", "enjoyed": "enjoy", "hated": "hate",
    "disliked": "dislike", "cursed": "curse", "loathed": "loathe", "saw": "see",
    "described": "describe", "mentioned": "mention", "remembered": "remember",
}  # fmt: skip
QUESTIONS = (
    "as for the {0}: {1}.",
    "about the {0}: {1}.",
    "{1}. and the {0}?",
    "{1}. what of the {0}?",
)
JOINING = (", but ", ", and ", "; ", ", while ")


def texts(split: Split, count: int, *, seed: int = 0) -> list[tuple[str, str]]:
    """`count` distinct texts, a label before each."""
    return examples(split, count, seed, _text)


def _text(dice: Dice) -> Drawn:
    """One thing to three, each with a label of its own; another may be asked about than the one."""
    labels = _shuffled(dice, LABELS)[: dice.pick((1, 1, 2, 2, 3))]
    *others, other = _shuffled(dice, THINGS)
    about = dict(zip(others, labels, strict=False))
    claims = _claims(dice, [*about.items()])
    elsewhere = labels in ([PRAISED], [BLAMED]) and dice.chance(0.4)
    asked = other if elsewhere else dice.pick([*about])
    said = dice.pick(JOINING).join(text for text, _ in claims)
    combinations = [pair for _, pairs in claims for pair in pairs]
    decisive = [pair for pair in combinations if elsewhere or pair[0] == asked]
    whole = _capitalised(dice.pick(QUESTIONS).format(asked, said))
    return Drawn((about.get(asked, UNSAID), whole), decisive, combinations)


def _capitalised(text: str) -> str:
    return ". ".join(part[0].upper() + part[1:] for part in text.split(". "))


def _shuffled(dice: Dice, items: Sequence[str]) -> list[str]:
    left = [*items]
    return [left.pop(left.index(dice.pick(left))) for _ in items]


def _claims(dice: Dice, about: list[About]) -> list[Claim]:
    """What is said, of two things together perhaps and of each of the others."""
    if len(about) > 1 and dice.chance(0.3):
        together = dice.pick((_in_order, _in_order, _by_the_way, _unlike))(dice, *about[:2])
        rest = [dice.pick(_CLAIMS)(dice, each) for each in about[2:]]
        return [*rest, together] if dice.chance(0.5) else [together, *rest]
    return [dice.pick(_CLAIMS)(dice, each) for each in about]


def _somebody(dice: Dice) -> str:
    manner = f"{dice.pick(MANNERS)} " if dice.chance(0.6) else ""
    return f"the {manner}{dice.pick(PEOPLE)}"


def _quality(dice: Dice, label: str) -> tuple[str, str]:
    """What a thing was, and the adjective in it: the opposite's, where it is denied."""
    if not dice.chance(0.4):
        adjective = dice.pick(ADJECTIVES[label])
        return f"was {adjective}", adjective
    adjective = dice.pick(ADJECTIVES[OPPOSITE.get(label, label)])
    return f"was {dice.pick(('not', 'never', 'anything but'))} {adjective}", adjective


def _reaction(dice: Dice, label: str) -> tuple[str, str]:
    """What somebody did, and the verb in it as it is where it is not denied."""
    if not dice.chance(0.4):
        verb = dice.pick(VERBS[label])
        return f"{_somebody(dice)} {verb}", verb
    verb = dice.pick(VERBS[OPPOSITE.get(label, label)])
    return f"{_somebody(dice)} did not {NEGATED[verb]}", verb


def _was(dice: Dice, about: About) -> Claim:
    """The soup that the friendly waiter brought was not cold."""
    thing, label = about
    quality, word = _quality(dice, label)
    deeds = ("chose", "showed us", "spoke of")
    relative = f" that {_somebody(dice)} {dice.pick(deeds)}" if dice.chance(0.4) else ""
    return f"the {thing}{relative} {quality}", [(thing, word)]


def _called(dice: Dice, about: About) -> Claim:
    """Nobody called the soup cold."""
    thing, label = about
    denied = dice.chance(0.5)
    adjective = dice.pick(ADJECTIVES[OPPOSITE.get(label, label) if denied else label])
    who = "nobody" if denied else dice.pick(("everybody", _somebody(dice)))
    return f"{who} called the {thing} {adjective}", [(thing, adjective)]


def _met(dice: Dice, about: About) -> Claim:
    """The rude guest liked the soup; what the rude guest liked was the soup."""
    thing, label = about
    reaction, word = _reaction(dice, label)
    form = dice.pick(
        ("{1} the {0}", "{1} the {0}", "what {1} was the {0}", "it was the {0} that {1}")
    )
    return form.format(thing, reaction), [(thing, word)]


def _in_order(dice: Dice, first: About, second: About) -> Claim:
    """Of the soup and the bread, the former was cold, the latter good; or the other way round."""
    qualities = {"former": _quality(dice, first[1]), "latter": _quality(dice, second[1])}
    said = [f"the {which} {qualities[which][0]}" for which in _shuffled(dice, [*qualities])]
    text = f"of the {first[0]} and the {second[0]}, {' and '.join(said)}"
    return text, [(first[0], qualities["former"][1]), (second[0], qualities["latter"][1])]


def _by_the_way(dice: Dice, first: About, second: About) -> Claim:
    """The soup, which came with the bread, was cold; nothing is said of the bread."""
    (thing, label), (other, _) = (first, second) if second[1] == UNSAID else (second, first)
    if UNSAID not in (first[1], second[1]):
        return _in_order(dice, first, second)
    quality, word = _quality(dice, label)
    beside = dice.pick(("with", "after", "before"))
    return f"the {thing}, which we had {beside} the {other}, {quality}", [
        (thing, word),
        (other, beside),
    ]


def _unlike(dice: Dice, first: About, second: About) -> Claim:
    """Unlike the bread, the soup was cold."""
    if UNSAID in (first[1], second[1]):
        return _by_the_way(dice, first, second)
    quality, word = _quality(dice, first[1])
    form = dice.pick(("unlike the {1}, the {0} {2}", "the {0}, unlike the {1}, {2}"))
    return form.format(first[0], second[0], quality), [(first[0], word), (second[0], word)]


_CLAIMS: tuple[Callable[[Dice, About], Claim], ...] = (_was, _was, _called, _met, _met)
