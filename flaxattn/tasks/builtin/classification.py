"""Texts that say how something was, beside what they say of something else.

What counts is the main clause: does it praise its thing, blame it, or neither? Around it, before
it, within it or behind it, a subordinate clause says something else of another thing or of a
person, which is never the same. So the words of a text say little, and what decides is which stand
in the main clause, far from its subject perhaps, and whether they are denied.

Combinations are of a thing and the word that says how it is.
"""

from flaxattn.tasks.builtin.draws import Drawn, Split, examples
from flaxattn.translation.text.builtin.grammar import Dice

__all__ = ["texts"]

PRAISED, BLAMED, UNSAID = LABELS = ("praised", "blamed", "unsaid")
OPPOSITE = {PRAISED: BLAMED, BLAMED: PRAISED, UNSAID: UNSAID}
DENIED = 0.25

THINGS = (
    "soup", "bread", "wine", "tea", "cake", "salad", "room", "bed", "view", "music", "film", "book",
    "song", "garden", "hotel", "train", "tour", "museum", "lamp", "chair", "map", "play", "bath",
    "lake",
)  # fmt: skip
PEOPLE = ("waiter", "cook", "guide", "porter", "critic", "guest", "teacher", "tourist")
ADJECTIVES = {
    PRAISED: ("good", "excellent", "lovely", "splendid", "wonderful", "pleasant", "perfect"),
    BLAMED: ("bad", "awful", "terrible", "dreadful", "horrible", "dull", "nasty"),
    UNSAID: ("new", "small", "local", "plain", "nearby", "famous", "Swiss"),
}
TIMES = ("that day", "at first", "in the end", "by then", "for once", "in truth", "as ever")
DEEDS = ("chose", "showed us", "spoke of")
FORMS = (
    "the {thing} {said}, although {aside}",
    "the {thing} {said}; of course {aside}",
    "although {aside}, the {thing} {said}",
    "since {aside}, it seems that the {thing} {said}",
    "the {thing}, of which {person} says that {aside}, {said}",
    "the {thing} that {person} {deed} when {aside} {said}",
)


def texts(split: Split, count: int, *, seed: int = 0) -> list[tuple[str, str]]:
    """`count` distinct texts, a label before each."""
    return examples(split, count, seed, _text)


def _text(dice: Dice) -> Drawn:
    """A main clause with its label, and an aside with another."""
    label = dice.pick(LABELS)
    aside, beside = _aside(dice, dice.pick([other for other in LABELS if other != label]))
    thing = dice.pick([x for x in THINGS if x != beside[0]])
    said, word = _said(dice, label)
    person, deed = f"the {dice.pick(PEOPLE)}", dice.pick(DEEDS)
    text = dice.pick(FORMS).format(thing=thing, said=said, aside=aside, person=person, deed=deed)
    return Drawn((label, f"{text[0].upper()}{text[1:]}."), [(thing, word)], [(thing, word), beside])


def _aside(dice: Dice, label: str) -> tuple[str, tuple[str, str]]:
    """What is said beside, and its combination."""
    about = dice.pick(THINGS if dice.chance(0.6) else PEOPLE)
    said, word = _said(dice, label)
    return f"the {about} {said}", (about, word)


def _said(dice: Dice, label: str) -> tuple[str, str]:
    """How something was, and the adjective in it: of the opposite, where it is denied."""
    denied = dice.chance(DENIED)
    word, time = dice.pick(ADJECTIVES[OPPOSITE[label] if denied else label]), dice.pick(TIMES)
    return f"was {dice.pick(('not ', 'never ')) if denied else ''}{word} {time}", word
