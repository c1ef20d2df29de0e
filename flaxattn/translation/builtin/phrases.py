"""Random phrases: subjects, objects and places that suit a verb."""

import random
from collections.abc import Sequence
from functools import cache
from typing import Literal, TypeVar

from flaxattn.translation.builtin.adjectives import adjectives_for
from flaxattn.translation.builtin.lexicon import (
    CITIES,
    EVERY,
    IN,
    INTO,
    NO,
    ONTO,
    PEOPLE_NAMES,
    POSSESSIVES,
    PRONOUNS,
    THE,
    THEY,
    THIS,
    THREE,
    TO,
    TO_CITY,
    TWO,
    A,
    Adjective,
    Determiner,
    Kinds,
    Name,
    Noun,
    Number,
    Pronoun,
    Verb,
)
from flaxattn.translation.builtin.meaning import Adjunct, Gap, It, Nominal, NounPhrase
from flaxattn.translation.builtin.nouns import NOUNS

Choice = TypeVar("Choice")

# What a phrase may refer to: anything; anything, or nothing at all ("no child"); only something
# known; or only what negation turns into "nicht" or "kein" without ambiguity.
Reference = Literal["any", "subject", "known", "deniable"]


class Dice:
    """Random choices, all made from random() because Python keeps its stream stable."""

    def __init__(self, seed: str) -> None:
        """Seed with a string, which every Python version reads alike."""
        self._random = random.Random(seed).random

    def chance(self, probability: float) -> bool:
        """True with this probability."""
        return self._random() < probability

    def pick(self, options: Sequence[Choice]) -> Choice:
        """One of `options`, each equally likely."""
        return options[int(self._random() * len(options))]


def weighted(*weights: tuple[Choice, int]) -> tuple[Choice, ...]:
    """The options, each repeated as often as its weight, to be picked from."""
    return tuple(option for option, weight in weights for _ in range(weight))


_OWNED = tuple((word, 1) for word in POSSESSIVES)
_DETERMINERS: dict[tuple[Reference, Number], tuple[Determiner, ...]] = {
    ("known", "singular"): weighted((THE, 14), (THIS, 3), *_OWNED),
    ("known", "plural"): weighted((THE, 14), (THIS, 4), *_OWNED),
    ("deniable", "singular"): weighted((THE, 7), (A, 10), (THIS, 2), *_OWNED),
    ("deniable", "plural"): weighted((THE, 7), (A, 10), (THIS, 2), *_OWNED),
    ("any", "singular"): weighted((THE, 12), (A, 8), (THIS, 2), (EVERY, 1), *_OWNED),
    ("any", "plural"): weighted(
        (THE, 8), (A, 8), (THIS, 2), (EVERY, 2), (TWO, 2), (THREE, 2), *_OWNED
    ),
    ("subject", "singular"): weighted((THE, 14), (A, 7), (THIS, 2), (EVERY, 2), (NO, 2), *_OWNED),
    ("subject", "plural"): weighted(
        (THE, 9), (A, 5), (THIS, 2), (EVERY, 2), (NO, 2), (TWO, 2), (THREE, 2), *_OWNED
    ),
}
_COUNTING = (EVERY, TWO, THREE, THIS, NO)
_POSSESSORS = weighted((THE, 6), *_OWNED)


@cache
def nouns_of(kinds: Kinds) -> tuple[Noun, ...]:
    """All nouns whose kind is among `kinds`, in dictionary order."""
    return tuple(noun for noun in NOUNS if noun.kind in kinds)


@cache
def _determiners(noun: Noun, number: Number, reference: Reference) -> tuple[Determiner, ...]:
    """The determiners to pick from: nobody owns a river, counts milk or has "a mother"."""
    words = _DETERMINERS[reference, number]
    if noun.kin:
        return tuple(word for word in words if word is THE or word in POSSESSIVES)
    return tuple(
        word
        for word in words
        if not (noun.public and word in POSSESSIVES) and not (noun.mass and word in _COUNTING)
    )


_adjectives_for = cache(adjectives_for)


def draw_adjective(dice: Dice, noun: Noun, probability: float) -> Adjective | None:
    """Perhaps an adjective that suits the noun."""
    return dice.pick(_adjectives_for(noun)) if dice.chance(probability) else None


def draw_number(dice: Dice, noun: Noun) -> Number:
    """Mostly singular; always so for nouns without a plural."""
    return "plural" if noun.english_plural != "-" and dice.chance(0.28) else "singular"


def draw_noun_phrase(
    dice: Dice, noun: Noun, reference: Reference, adjective: float, number: Number | None = None
) -> NounPhrase:
    """A phrase about `noun`, with an adjective in a share of `adjective`."""
    number = number or draw_number(dice, noun)
    quality = draw_adjective(dice, noun, adjective)
    if not noun.public and dice.chance(0.05):
        return NounPhrase(noun, THE, number, quality, possessor=_draw_possessor(dice, noun))
    return NounPhrase(noun, dice.pick(_determiners(noun, number, reference)), number, quality)


def _draw_possessor(dice: Dice, owned: Noun) -> NounPhrase | Name:
    if dice.chance(0.3):
        return dice.pick(PEOPLE_NAMES)
    noun = dice.pick([noun for noun in nouns_of(("person",)) if noun is not owned])
    return NounPhrase(noun, dice.pick(_POSSESSORS), adjective=draw_adjective(dice, noun, 0.2))


def draw_subject(
    dice: Dice, kinds: Kinds, taken: Sequence[Nominal], reference: Reference, adjective: float
) -> Nominal:
    """A subject among `kinds`; people are often pronouns or names."""
    if "person" in kinds:
        if dice.chance(0.3):
            return dice.pick(PRONOUNS)
        if dice.chance(0.12):
            return dice.pick(PEOPLE_NAMES)
    return draw_noun_phrase(dice, _fresh_noun(dice, kinds, taken), reference, adjective)


def draw_object(
    dice: Dice, kinds: Kinds, taken: Sequence[Nominal], reference: Reference, adjective: float
) -> Nominal:
    """An object among `kinds`, never a person or noun `taken` by another role."""
    if "person" in kinds and dice.chance(0.25):
        return _draw_person(dice, taken)
    if "person" not in kinds and dice.chance(0.05) and THEY not in taken:
        return THEY
    if "city" in kinds and dice.chance(0.2):
        return dice.pick(CITIES)
    return draw_noun_phrase(dice, _fresh_noun(dice, kinds, taken), reference, adjective)


def _fresh_noun(dice: Dice, kinds: Kinds, taken: Sequence[Nominal]) -> Noun:
    nouns = [phrase.noun for phrase in taken if isinstance(phrase, NounPhrase | Gap | It)]
    return dice.pick([noun for noun in nouns_of(kinds) if noun not in nouns])


def _draw_person(dice: Dice, taken: Sequence[Nominal]) -> Nominal:
    """A pronoun or name; "I" and "we" never share a clause, nor do two of "you" or "they"."""
    if dice.chance(0.3):
        return dice.pick([name for name in PEOPLE_NAMES if name not in taken])
    persons = [word.person for word in taken if isinstance(word, Pronoun) and word.person != 3]
    words = [word for word in PRONOUNS if word.person not in persons]
    return dice.pick([word for word in words if not (word is THEY and THEY in taken)])


def _draw_place_phrase(dice: Dice, noun: Noun, adjective: float) -> NounPhrase:
    known = noun.public or (not noun.kin and dice.chance(0.75))
    word = THE if known else dice.pick(_determiners(noun, "singular", "known"))
    return NounPhrase(noun, word, adjective=draw_adjective(dice, noun, adjective))


def draw_location(dice: Dice, kinds: Kinds, adjective: float) -> Adjunct:
    """Where something happens: in the garden, at the station, in Vienna."""
    if "city" in kinds and dice.chance(0.35):
        return Adjunct(IN, dice.pick(CITIES))
    noun = dice.pick(nouns_of(kinds))
    assert noun.location is not None
    return Adjunct(noun.location, _draw_place_phrase(dice, noun, adjective))


def draw_goal(dice: Dice, verb: Verb, adjective: float) -> Adjunct:
    """Where the verb leads: into the house, to the station, to Vienna, on the table."""
    kinds = verb.goals
    if "city" in kinds and (len(kinds) == 1 or dice.chance(0.35)):
        return Adjunct(TO_CITY, dice.pick(CITIES))
    noun = dice.pick(nouns_of(kinds))
    phrase = _draw_place_phrase(dice, noun, adjective)
    if noun.kind == "furniture":
        return Adjunct(ONTO, phrase)
    leads_to = noun.kind in ("spot", "person") or (noun.kind == "building" and dice.chance(0.5))
    return Adjunct(TO if leads_to else INTO, phrase)
