"""German inflection: articles, adjectives, nouns and verbs, one word at a time."""

import re
from functools import cache
from typing import NamedTuple

from flaxattn.translation.builtin.lexicon import (
    A,
    Adjective,
    Case,
    Determiner,
    Modal,
    Noun,
    Number,
    Verb,
)

# The columns of both tables are masculine, feminine, neuter and plural.
_COLUMNS = ("masculine", "feminine", "neuter")
_ENDINGS: dict[Case, tuple[str, ...]] = {
    "nominative": ("er", "e", "es", "e"),
    "accusative": ("en", "e", "es", "e"),
    "dative": ("em", "er", "em", "en"),
    "genitive": ("es", "er", "es", "er"),
}
_ARTICLES: dict[Case, tuple[str, ...]] = {
    "nominative": ("der", "die", "das", "die"),
    "accusative": ("den", "die", "das", "die"),
    "dative": ("dem", "der", "dem", "den"),
    "genitive": ("des", "der", "des", "der"),
}


class Finite(NamedTuple):
    """The finite forms of one verb: ich, du, er, and the plural of wir and sie."""

    first: str
    second: str
    third: str
    plural: str

    def form(self, person: int, number: Number) -> str:
        """The form for this person and number."""
        return self.plural if number == "plural" else self[person - 1]


WERDEN = Finite("werde", "wirst", "wird", "werden")
_SEIN = Finite("bin", "bist", "ist", "sind")
_HABEN = Finite("habe", "hast", "hat", "haben")


def _column(noun: Noun, number: Number) -> int:
    return 3 if number == "plural" else _COLUMNS.index(noun.gender)


def article(noun: Noun, number: Number, case: Case) -> str:
    """The definite article: der, die, das."""
    return _ARTICLES[case][_column(noun, number)]


def relative_pronoun(noun: Noun, number: Number, case: Case) -> str:
    """The relative pronoun: the article, but for "denen"."""
    if (number, case) == ("plural", "dative"):
        return "denen"
    return article(noun, number, case)


@cache
def determiner(word: Determiner, noun: Noun, number: Number, case: Case) -> str:
    """The determiner's form, "" where an indefinite noun goes without one."""
    stem = word.german_plural if number == "plural" else word.german
    if word is A and noun.mass:
        return ""
    if word.pattern == "definite article":
        return article(noun, number, case)
    if word.pattern == "fixed" or not stem or _lacks_ending(word, noun, number, case):
        return stem
    return stem + _ENDINGS[case][_column(noun, number)]


def _lacks_ending(word: Determiner, noun: Noun, number: Number, case: Case) -> bool:
    """Whether this is the endingless "ein" of ein Mann, ein Kind."""
    if word.pattern != "ein" or number == "plural" or noun.gender == "feminine":
        return False
    return case == "nominative" or (case == "accusative" and noun.gender == "neuter")


@cache
def adjective(
    word: Adjective, before: Determiner | None, noun: Noun, number: Number, case: Case
) -> str:
    """The attributive form: strong if no determiner `before` it shows the case, else weak."""
    if before is None or not _shows_case(before, noun, number, case):
        return word.stem + _ENDINGS[case][_column(noun, number)]
    direct = case == "nominative" or (case == "accusative" and noun.gender != "masculine")
    return word.stem + ("e" if direct and number == "singular" else "en")


def _shows_case(word: Determiner, noun: Noun, number: Number, case: Case) -> bool:
    """Whether the determiner is more than its bare stem."""
    return determiner(word, noun, number, case) not in ("", word.german, word.german_plural)


@cache
def noun_form(noun: Noun, number: Number, case: Case) -> str:
    """The noun itself: -n in the dative plural, -(e)s in the genitive, -(e)n if weak."""
    if number == "plural":
        takes_n = case == "dative" and not noun.german_plural.endswith(("n", "s"))
        return noun.german_plural + "n" * takes_n
    if case == "nominative" or noun.gender == "feminine":
        return noun.german
    if noun.weak:
        return noun.german_plural
    return noun.german + (_genitive_ending(noun.german) if case == "genitive" else "")


def _genitive_ending(word: str) -> str:
    """-es for one syllable (Mannes), -s for more (Vaters)."""
    return "es" if len(re.findall("[aeiouyäöü]+", word.lower())) == 1 else "s"


@cache
def present(verb: Verb) -> Finite:
    """The present tense, without the separable particle."""
    if verb.german == "sein":
        return _SEIN
    if verb.german == "haben":
        return _HABEN
    if not verb.third.endswith("t"):  # mögen, wissen: like the modals
        return _singular_without_t(verb.third, verb.german)
    first = verb.german.removesuffix("n") if verb.german.endswith("en") else verb.german[:-1] + "e"
    return Finite(first, _second_person(verb.third.removesuffix("t")), verb.third, verb.german)


def modal(word: Modal, past: bool) -> Finite:
    """The forms of a modal verb in the present or the preterite."""
    if past:
        return preterite(word.past)
    return _singular_without_t(word.singular, word.plural)


@cache
def preterite(third: str) -> Finite:
    """The preterite from its first and third person singular: war, hatte, konnte."""
    plural = third + ("n" if third.endswith("e") else "en")
    return Finite(third, third + "st", third, plural)


def perfect_auxiliary(verb: Verb) -> Finite:
    """The present of "sein" or "haben", whichever forms this verb's perfect."""
    return _SEIN if verb.perfect_with_sein else _HABEN


@cache
def _singular_without_t(singular: str, plural: str) -> Finite:
    return Finite(singular, _second_person(singular), singular, plural)


def _second_person(stem: str) -> str:
    return stem + ("t" if stem.endswith(("s", "ß", "z", "x")) else "st")
