"""German: inflection, then word order with the verb in second, first or last place.

Between the finite verb and the final ones the order is fixed: pronouns, dative, time, company,
place, accusative. "Nicht" follows an accusative and precedes company, place and predicate.
"""

from dataclasses import replace
from functools import cache

from flaxattn.translation.text.builtin import lexicon as lex
from flaxattn.translation.text.builtin.meaning import (
    Clause,
    Gap,
    Nominal,
    NounPhrase,
    Sentence,
    join,
)

# The columns of both tables are masculine, feminine, neuter and plural.
_ENDINGS: dict[lex.Case, tuple[str, ...]] = {
    "nominative": ("er", "e", "es", "e"),
    "accusative": ("en", "e", "es", "e"),
    "dative": ("em", "er", "em", "en"),
}
_ARTICLES: dict[lex.Case, tuple[str, ...]] = {
    "nominative": ("der", "die", "das", "die"),
    "accusative": ("den", "die", "das", "die"),
    "dative": ("dem", "der", "dem", "den"),
}
_CONTRACTIONS = {"in dem": "im", "in das": "ins", "an dem": "am", "zu dem": "zum"}
_BE = ("bin", "ist", "sind")
_WAS = ("war", "war", "waren")
_HAVE = ("habe", "hat", "haben")


def sentence(meaning: Sentence) -> str:
    """The German sentence with this meaning, capitalised and punctuated."""
    if meaning.question or meaning.linked_first:
        text = _verb_first(meaning.main)
    else:
        text = _verb_second(meaning.main, meaning.topical_time)
    if meaning.linked and meaning.conjunction:
        linked = f"{meaning.conjunction.german} {_verb_last(meaning.linked)}"
        text = f"{linked}, {text}" if meaning.linked_first else f"{text}, {linked}"
    return text[0].upper() + text[1:] + ("?" if meaning.question else ".")


def _verb_second(clause: Clause, topical_time: bool) -> str:
    """The order of statements, with the subject or the time in front of the verb."""
    if topical_time and clause.time:
        return f"{clause.time.german} {_verb_first(replace(clause, time=None))}"
    finite, final = _verb_forms(clause)
    relative = _relative(clause.object)
    return join(_subject(clause), finite, *_middle_field(clause), final) + relative


def _verb_first(clause: Clause) -> str:
    """The order of questions, and after a time or a clause that comes first."""
    finite, final = _verb_forms(clause)
    return join(finite, _subject(clause), *_middle_field(clause), final)


def _verb_last(clause: Clause) -> str:
    """The order of subordinate and relative clauses; a separable particle rejoins its verb."""
    finite, final = _verb_forms(clause)
    if final and final == clause.verb.particle:
        finite, final = final + finite, ""
    return join(_front(clause), _subject(clause), *_middle_field(clause), final, finite)


def _subject(clause: Clause) -> str:
    relative = _relative(clause.subject)
    return _nominal(clause.subject, "nominative") + (f"{relative}," if relative else "")


def _relative(phrase: Nominal | None) -> str:
    """The relative clause, which stays beside a subject and follows the verbs of an object."""
    if isinstance(phrase, NounPhrase) and phrase.relative:
        return f", {_verb_last(phrase.relative)}"
    return ""


def _front(clause: Clause) -> str:
    """The relative pronoun of an object, in the case of its role."""
    if isinstance(clause.object, Gap):
        return _nominal(clause.object, "accusative")
    return _nominal(clause.recipient, "dative") if isinstance(clause.recipient, Gap) else ""


def _middle_field(clause: Clause) -> list[str]:
    direct = clause.object
    nicht = "nicht" if clause.negated and not clause.denies_object else ""
    accusative = ""
    if isinstance(direct, NounPhrase):
        denied = replace(direct, determiner=lex.KEIN) if clause.denies_object else direct
        accusative = join(_nominal(denied, "accusative"), nicht)
    return [
        _nominal(direct, "accusative") if isinstance(direct, lex.Pronoun) else "",
        "" if isinstance(clause.recipient, Gap) else _nominal(clause.recipient, "dative"),
        clause.time.german if clause.time else "",
        "" if accusative else nicht,
        _nominal(clause.company, "dative"),
        _nominal(clause.place, "dative"),
        accusative,
        clause.predicate.german if clause.predicate else "",
    ]


def _nominal(phrase: Nominal | None, case: lex.Case) -> str:
    """A nominal in `case`, or in that of its preposition, without its relative clause."""
    if phrase is None:
        return ""
    if isinstance(phrase, lex.Pronoun):
        return str(getattr(phrase, case))
    noun, number = phrase.noun, phrase.number
    if isinstance(phrase, Gap):
        denen = (number, case) == ("plural", "dative")
        return "denen" if denen else _ARTICLES[case][_column(noun, number)]
    preposition = phrase.preposition.german if phrase.preposition else ""
    case = phrase.preposition.case if phrase.preposition else case
    start = join(preposition, _determiner(phrase.determiner, noun, number, case))
    adjective = _adjective(phrase.adjective, phrase.determiner, noun, number, case)
    return join(_CONTRACTIONS.get(start, start), adjective, _noun(noun, number, case))


def _column(noun: lex.Noun, number: lex.Number) -> int:
    return 3 if number == "plural" else ("der", "die", "das").index(noun.article)


@cache
def _determiner(word: lex.Word, noun: lex.Noun, number: lex.Number, case: lex.Case) -> str:
    """The determiner's form, "" where an indefinite noun goes without one."""
    if word is lex.THE:
        return _ARTICLES[case][_column(noun, number)]
    if word is lex.A and (number == "plural" or not noun.countable):
        return ""
    ending = _ENDINGS[case][_column(noun, number)]
    masculine = noun.article == "der" and case == "nominative"
    neuter = noun.article == "das" and case != "dative"
    return word.german + ("" if number == "singular" and (masculine or neuter) else ending)


@cache
def _adjective(
    word: lex.Adjective | None, before: lex.Word, noun: lex.Noun, number: lex.Number, case: lex.Case
) -> str:
    """The attributive form: strong if no determiner `before` it shows the case, else weak."""
    if word is None:
        return ""
    stem = word.german.removesuffix("e")
    if _determiner(before, noun, number, case) in ("", before.german):
        return stem + _ENDINGS[case][_column(noun, number)]
    direct = case == "nominative" or (case == "accusative" and noun.article != "der")
    return stem + ("e" if direct and number == "singular" else "en")


@cache
def _noun(word: lex.Noun, number: lex.Number, case: lex.Case) -> str:
    """The noun itself: -n in the dative plural, -(e)n outside the nominative if weak."""
    if number == "plural":
        takes_n = case == "dative" and not word.german_plural.endswith(("n", "s"))
        return word.german_plural + "n" * takes_n
    return word.german_plural if word.weak and case != "nominative" else word.german


def _verb_forms(clause: Clause) -> tuple[str, str]:
    """The finite verb, and the particle, participle or infinitive at the end of the clause."""
    verb, modal, past = clause.verb, clause.modal, clause.tense == "past"
    if modal:
        forms, final = (modal.singular, modal.singular, modal.german), verb.infinitive
    elif verb is lex.BE:
        forms, final = (_WAS if past else _BE), ""
    elif past:
        forms = _BE if verb.sein else _HAVE
        final = verb.particle + verb.participle
    else:
        # "Ich weiß" is like "er weiß".
        first = verb.german.removesuffix("n") if verb.third.endswith("t") else verb.third
        forms, final = (first, verb.third, verb.german), verb.particle
    person, number = clause.subject.person, clause.subject.number
    return forms[2 if number == "plural" else person // 2], final
