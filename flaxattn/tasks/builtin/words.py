"""The words of the language task's grammar."""

from typing import NamedTuple

__all__ = ["ADJECTIVES", "INTRANSITIVE", "NAMES", "NOUNS", "PREPOSITIONS", "TRANSITIVE", "Noun"]


class Noun(NamedTuple):
    """A noun or name; `pronoun` stands for one, and `kind` says which verbs go with it."""

    singular: str
    plural: str
    pronoun: str
    kind: str


# Two lines of persons, of whom one says "he" and "she", then the things.
_HE = """
    king kings man men boy boys monk monks prince princes nephew nephews brother brothers
    grandfather grandfathers"""
_SHE = """
    queen queens woman women girl girls nun nuns princess princesses niece nieces sister sisters
    grandmother grandmothers"""
_IT = """
    box boxes lamp lamps key keys door doors wheel wheels bell bells boat boats bottle bottles
    chair chairs table tables basket baskets mirror mirrors clock clocks candle candles"""


def _nouns(words: str, pronoun: str, kind: str) -> tuple[Noun, ...]:
    forms = words.split()
    pairs = zip(forms[::2], forms[1::2], strict=True)
    return tuple(Noun(singular, plural, pronoun, kind) for singular, plural in pairs)


NOUNS = _nouns(_HE, "he", "person") + _nouns(_SHE, "she", "person") + _nouns(_IT, "it", "thing")
NAMES = tuple(
    Noun(name, "", pronoun, "person")
    for pronoun, names in (
        ("he", "Peter Paul David Martin Leo Victor"),
        ("she", "Mary Rosa Helen Clara Judith Nora"),
    )
    for name in names.split()
)
# By the kind of subject; "s" is added in the singular.
INTRANSITIVE = {
    "person": ("sleep", "sing", "laugh", "wait", "dream", "smile", "pray", "sneeze"),
    "thing": ("rust", "creak", "shine", "break", "rattle", "glow"),
}
TRANSITIVE = {
    "person": ("see", "like", "need", "forget", "remember", "draw", "praise", "follow", "admire"),
    "thing": ("hide", "cover", "touch", "block", "scratch"),
}
ADJECTIVES = (
    "red", "green", "small", "big", "pretty", "dirty", "new", "fine", "strange", "heavy", "light",
    "round", "cold", "warm",
)  # fmt: skip
PREPOSITIONS = ("near", "behind", "beside", "under", "before", "with")
