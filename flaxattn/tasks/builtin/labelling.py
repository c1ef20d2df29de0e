"""Sentences with persons, places and organisations that bear the same names.

Any name may be any of the three: "Jordan Hill" laughs, is flooded, or raises its prices. What
decides is a phrase, which may stand before the name or after it, behind an aside about others or
in another clause. Names follow each other without a word between; a name begins with one word of a
list and goes on with words of another. The words that names go on with, in lower case, are nouns.

Combinations are of a name's first word and the phrase that decides its kind.
"""

from flaxattn.tasks.builtin.draws import Drawn, Split, examples
from flaxattn.translation.text.builtin.grammar import Dice

__all__ = ["sentences"]

Template = tuple[list[str], str]
"""Words, of which some are yet to be filled, and the phrase that decides."""
Tagged = tuple[str, str, tuple[str, str] | None]
"""A word, its tag and, where a name begins, its combination."""

KINDS = ("PER", "LOC", "ORG")

NAMES = tuple("""
    Jordan Florence Chelsea Georgia Austin Lincoln Sydney Madison Carolina Brooklyn Houston Dallas
    Wellington Hamilton Washington Kent Chester Victoria Charlotte Savannah Phoenix Orlando
""".split())  # fmt: skip
LANDS = ("hill", "park", "bridge", "stone", "field", "wood", "marsh", "brook")

HEADS = {
    "PER": ("dentist", "widow", "singer", "sailor", "nephew", "mayor"),
    "LOC": ("village", "island", "city", "valley", "province", "town"),
    "ORG": ("bank", "newspaper", "airline", "brewery", "bakery", "laundry"),
}
PREDICATES = {
    "PER": (
        "laughed", "fell asleep", "lost a tooth", "has two daughters", "caught a cold",
        "plays the cello", "was born in spring", "is a good cook",
    ),
    "LOC": (
        "has narrow streets", "lies by the sea", "was flooded", "is full of tourists",
        "has a mild climate", "has no airport", "lost its old walls", "was built by monks",
    ),
    "ORG": (
        "went bankrupt", "raised its prices", "hired forty clerks", "has new shareholders",
        "lost the lawsuit", "pays a dividend", "was sold to investors", "is a good employer",
    ),
}  # fmt: skip
SEQUELS = {
    "PER": (
        "her knee still hurts", "he was late again", "his wife is a nurse", "she cannot swim",
    ),
    "LOC": (
        "the beaches there are clean", "it often snows there", "the harbour there is deep",
        "the rents there are high",
    ),
    "ORG": (
        "its shares have doubled", "its clerks are on strike", "it makes umbrellas",
        "its chairman resigned",
    ),
}  # fmt: skip
NEUTRAL = ("is well known", "was in the papers", "surprised everybody", "was mentioned twice")

SAYING = ("says", "denies", "told us", "claims")
JOINING = (";", "and", "but")

# Names stand where the kinds do; the words around them, save the aside, decide.
OBJECTS = tuple(
    line.split()
    for line in """
    she married PER
    they arrested PER
    we asked PER for advice
    they buried PER in the morning
    she flew over LOC
    we spent a week in LOC
    they built a road through LOC
    he left LOC by train
    she bought shares in ORG
    they sued ORG for damages
    he was the founder of ORG
    she resigned from ORG
    """.strip().splitlines()
)
PAIRS = tuple(
    line.split()
    for line in """
    PER ASIDE married PER
    PER ASIDE moved to LOC
    PER ASIDE works for ORG
    LOC ASIDE is the birthplace of PER
    LOC ASIDE lies north of LOC
    LOC ASIDE is where the workers of ORG live
    ORG ASIDE fired PER
    ORG ASIDE opened a branch in LOC
    ORG ASIDE merged with ORG
    in LOC PER broke an arm
    in LOC ORG owns a factory
    near LOC PER saw a bear
    like PER PER sings well
    like LOC LOC has a cathedral
    like ORG ORG evades taxes
    for ORG PER wrote the accounts
    without PER ORG had no lawyer
    """.strip().splitlines()
)


def sentences(
    split: Split, count: int, *, seed: int = 0
) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
    """`count` distinct sentences: words, and a tag for each, in BIO."""
    return examples(split, count, seed, _sentence)


def _sentence(dice: Dice) -> Drawn:
    """One clause or two."""
    tagged = _clause(dice)
    if dice.chance(0.3):
        tagged += [(dice.pick(JOINING), "O", None), *_clause(dice)]
    first, *words = (word for word, _, _ in tagged)
    combinations = {combination for _, _, combination in tagged if combination}
    example = (first[0].upper() + first[1:], *words, "."), (*(tag for _, tag, _ in tagged), "O")
    return Drawn(example, combinations)


def _clause(dice: Dice) -> list[Tagged]:
    """The words of a clause about one name or two."""
    template, cue = dice.pick(_TEMPLATES)(dice)
    return [tagged for word in template for tagged in _filled(dice, word, cue)]


def _filled(dice: Dice, word: str, cue: str) -> list[Tagged]:
    """What stands for a word of a template."""
    if word in KINDS:
        name = _name(dice)
        inside = [(part, f"I-{word}", None) for part in name[1:]]
        return [(name[0], f"B-{word}", (name[0], cue)), *inside]
    if word != "ASIDE":
        return [(word, "O", None)]
    aside = f", as {_somebody(dice)} {dice.pick(SAYING)} ," if dice.chance(0.6) else ""
    return [(part, "O", None) for part in aside.split()]


def _name(dice: Dice) -> list[str]:
    """One word to three."""
    name = [dice.pick(NAMES)]
    for _ in range(dice.pick((0, 0, 0, 1, 1, 2))):
        name.append(dice.pick([land for land in LANDS if land.capitalize() not in name]))
        name[-1] = name[-1].capitalize()
    return name


def _somebody(dice: Dice) -> str:
    """One of any kind who has no name."""
    kind = dice.pick(KINDS)
    head = f"the {dice.pick(HEADS[kind])}"
    if dice.chance(0.5):
        return f"{head} that {dice.pick(PREDICATES[kind])}"
    return f"{head} {dice.pick(('near', 'behind', 'on'))} the {dice.pick(LANDS)}"


def _subject(dice: Dice) -> Template:
    """Jordan laughed."""
    kind = dice.pick(KINDS)
    predicate = dice.pick(PREDICATES[kind])
    return [kind, "ASIDE", *predicate.split()], predicate


def _apposition(dice: Dice) -> Template:
    """The dentist that the bank near the hill mentioned , Jordan , is well known."""
    kind = dice.pick(KINDS)
    head = dice.pick(HEADS[kind])
    relative = f"that {_somebody(dice)} mentioned" if dice.chance(0.6) else ""
    words = f"the {head} {relative} , {kind} , {dice.pick(NEUTRAL)}"
    return words.split(), f"the {head}"


def _sequel(dice: Dice) -> Template:
    """Jordan was in the papers , and it often snows there."""
    kind = dice.pick(KINDS)
    sequel = dice.pick(SEQUELS[kind])
    return f"{kind} ASIDE {dice.pick(NEUTRAL)} ; {sequel}".split(), sequel


def _object(dice: Dice) -> Template:
    return _whole(dice.pick(OBJECTS))


def _pair(dice: Dice) -> Template:
    return _whole(dice.pick(PAIRS))


def _whole(template: list[str]) -> Template:
    return template, " ".join(word for word in template if word != "ASIDE")


_ALONE = (_subject,) * 3 + (_apposition,) * 2 + (_sequel,) * 2 + (_object,)
_TEMPLATES = (*_ALONE, _pair, _pair)
