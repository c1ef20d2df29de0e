"""English inflection and syntax: fixed word order, do-support, particles."""

from flaxattn.translation.builtin.lexicon import BUT, GLADLY, A, Name, Number, Pronoun
from flaxattn.translation.builtin.meaning import (
    Adjunct,
    Clause,
    Gap,
    It,
    Nominal,
    NounPhrase,
    Sentence,
    agreement,
    fronted,
)
from flaxattn.translation.builtin.verbs import BE

_IRREGULAR_THIRD = {"have": "has", "do": "does"}
_SIBILANTS = ("s", "x", "ch", "sh", "o")


def sentence(meaning: Sentence) -> str:
    """The English sentence with this meaning, capitalised and punctuated."""
    text = _main_clause(meaning)
    if meaning.linked and meaning.conjunction:
        linked = f"{meaning.conjunction.english} {_statement(meaning.linked)}"
        comma = "," if meaning.conjunction is BUT else ""
        text = f"{linked}, {text}" if meaning.linked_first else f"{text}{comma} {linked}"
    return text[0].upper() + text[1:] + ("?" if meaning.question else ".")


def _main_clause(meaning: Sentence) -> str:
    if meaning.question_word:
        return f"{meaning.question_word.english} {_inverted(meaning.main)}"
    front = fronted(meaning.main)
    if meaning.question and front is None:
        return _inverted(meaning.main)
    if front is not None and front is not meaning.main.subject:
        return f"{_front(meaning.main)} {_inverted(meaning.main)}"
    return _statement(meaning.main, topical_time=meaning.topical_time)


def _statement(clause: Clause, topical_time: bool = False) -> str:
    auxiliary, verbs = verb_group(clause, inverted=False)
    if clause.negated:
        auxiliary = "cannot" if auxiliary == "can" else f"{auxiliary} not"
    time = clause.time.english if clause.time and topical_time else ""
    subject = nominal(clause.subject, subject=True)
    return _join(time, subject, auxiliary, _medial(clause), verbs, *_tail(clause, topical_time))


def _inverted(clause: Clause) -> str:
    """The order of questions: auxiliary before subject."""
    auxiliary, verbs = verb_group(clause, inverted=True)
    negation = "not" if clause.negated else ""
    subject = nominal(clause.subject, subject=True)
    return _join(auxiliary, subject, negation, _medial(clause), verbs, *_tail(clause))


def _relative(clause: Clause) -> str:
    if fronted(clause) is clause.subject:
        return _statement(clause)
    return f"{_front(clause)} {_statement(clause)}"


def verb_group(clause: Clause, inverted: bool) -> tuple[str, str]:
    """The auxiliary, "" if none is called for, and the other verbs."""
    base, past, rest = _verb_chain(clause)
    person, number = agreement(clause.subject)
    auxiliary = _auxiliary(clause)
    if auxiliary:
        return auxiliary, _join(base, rest)
    if clause.negated or inverted:
        finite_do = "did" if clause.tense == "past" else present("do", person, number)
        return finite_do, _join(base, rest)
    finite = past if clause.tense == "past" else present(base, person, number)
    return "", _join(finite, rest)


def _verb_chain(clause: Clause) -> tuple[str, str, str]:
    """The first verb's base and past, then the others: have/had "to read"."""
    verb, modal = clause.verb, clause.modal
    if clause.manner is GLADLY:
        return "like", "liked", f"to {verb.english}"
    if modal and not modal.auxiliary:
        return modal.english, modal.english_past, f"to {verb.english}"
    if verb is BE and not modal and clause.tense != "future":
        return "", "", ""
    return verb.english, verb.english_past, ""


def _auxiliary(clause: Clause) -> str:
    """The auxiliary of this tense and modal, before any do-support."""
    if clause.tense == "future":
        return "will"
    if clause.modal:
        word = clause.modal.english_past if clause.tense == "past" else clause.modal.english
        return word if clause.modal.auxiliary else ""
    if clause.verb is BE:
        return _form_of_be(clause)
    return ""


def _form_of_be(clause: Clause) -> str:
    person, number = agreement(clause.subject)
    plain = number == "plural" or person == 2
    if clause.tense == "past":
        return "were" if plain else "was"
    return "are" if plain else ("am" if person == 1 else "is")


def present(base: str, person: int, number: Number) -> str:
    """The present tense form for this subject."""
    if person != 3 or number == "plural":
        return base
    if base in _IRREGULAR_THIRD:
        return _IRREGULAR_THIRD[base]
    if base.endswith(_SIBILANTS):
        return base + "es"
    if base.endswith("y") and base[-2] not in "aeiou":
        return base[:-1] + "ies"
    return base + "s"


def _medial(clause: Clause) -> str:
    return clause.time.english if clause.time and clause.time.frequent else ""


def _tail(clause: Clause, topical_time: bool = False) -> list[str]:
    """What follows the verbs: predicate, objects, manner, place, company and time.

    Manner comes before an object with a preposition: "speaks loudly with him".
    """
    predicate = clause.predicate.english if clause.predicate else ""
    manner = clause.manner.english if clause.manner and clause.manner is not GLADLY else ""
    objects = _objects(clause)
    arguments = [manner, *objects] if clause.verb.english_preposition else [*objects, manner]
    adjuncts = [_adjunct(adjunct) for adjunct in (clause.place, clause.company) if adjunct]
    final_time = clause.time and not clause.time.frequent and not topical_time
    time = clause.time.english if clause.time and final_time else ""
    return [predicate, *arguments, *adjuncts, time]


def _objects(clause: Clause) -> list[str]:
    """The objects and the verb's particle, which pronouns precede: call them up."""
    front = fronted(clause)
    direct = clause.object if clause.object is not front else None
    recipient = clause.recipient if clause.recipient is not front else None
    particle = clause.verb.english_particle
    text = _join(clause.verb.english_preposition, nominal(direct)) if direct else ""
    if isinstance(direct, Pronoun | It):
        return [text, particle, f"to {nominal(recipient)}" if recipient else ""]
    return [particle, nominal(recipient) if recipient else "", text]


def _front(clause: Clause) -> str:
    """The relative or interrogative phrase with its preposition: to whom, which book."""
    front = fronted(clause)
    assert front is not None
    preposition = "to" if front is clause.recipient else clause.verb.english_preposition
    if isinstance(front, Gap):
        return _join(preposition, _relative_pronoun(front, bool(preposition)))
    return _join(preposition, nominal(front))


def _relative_pronoun(gap: Gap, after_preposition: bool) -> str:
    if gap.noun.kind == "person":
        return "whom"
    return "which" if after_preposition else "that"


def _adjunct(adjunct: Adjunct) -> str:
    return f"{adjunct.preposition.english} {nominal(adjunct.nominal)}"


def nominal(phrase: Nominal, *, subject: bool = False) -> str:
    """Any nominal, as a subject or in any other role."""
    if isinstance(phrase, NounPhrase):
        return _noun_phrase(phrase)
    if isinstance(phrase, Name):
        return phrase.english
    if isinstance(phrase, It):
        return "it"
    if isinstance(phrase, Gap):
        return "who" if phrase.noun.kind == "person" else "that"
    return phrase.english if subject else phrase.english_object


def _noun_phrase(phrase: NounPhrase) -> str:
    plural = phrase.number == "plural"
    noun = phrase.noun.english_plural if plural else phrase.noun.english
    words = _join(phrase.adjective.english if phrase.adjective else "", noun)
    relative = _relative(phrase.relative) if phrase.relative else ""
    return _join(_determiner(phrase, words), words, relative)


def _determiner(phrase: NounPhrase, following: str) -> str:
    """The determiner or possessor, with "an" before a vowel."""
    if phrase.possessor:
        return f"{nominal(phrase.possessor)}'s"
    if phrase.number == "plural":
        return phrase.determiner.english_plural
    if phrase.determiner is A:
        article = "an" if following[0] in "aeiou" else "a"
        return "" if phrase.noun.mass else article
    return phrase.determiner.english


def _join(*parts: str) -> str:
    return " ".join([part for part in parts if part])
