"""German syntax: phrases in case, the verb in second, first or last place."""

from dataclasses import replace
from enum import IntEnum, auto
from typing import NamedTuple

from flaxattn.translation.builtin import german_words as words
from flaxattn.translation.builtin.lexicon import (
    GLADLY,
    IT,
    NO,
    Case,
    Determiner,
    Interrogative,
    Name,
    Preposition,
    Pronoun,
    Verb,
)
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
    is_indefinite,
)

_CONTRACTIONS = {
    ("in", "dem"): "im",
    ("in", "das"): "ins",
    ("an", "dem"): "am",
    ("von", "dem"): "vom",
    ("zu", "dem"): "zum",
    ("zu", "der"): "zur",
}


class _Slot(IntEnum):
    """The order of the middle field, between the finite verb and the final ones."""

    ACCUSATIVE_PRONOUN = auto()
    DATIVE_PRONOUN = auto()
    DEFINITE_DATIVE = auto()
    DEFINITE_ACCUSATIVE = auto()
    TIME = auto()
    DEFINITE_SECOND_OBJECT = auto()
    NICHT = auto()
    MANNER = auto()
    PLACE = auto()
    INDEFINITE_DATIVE = auto()
    INDEFINITE_ACCUSATIVE = auto()
    COMPANY = auto()
    PREPOSITIONAL_OBJECT = auto()
    REQUIRED_PLACE = auto()
    PREDICATE = auto()


class VerbForms(NamedTuple):
    """A clause's verbs: `finite` then `tail` in a main clause, `last` in a subordinate one."""

    finite: str
    tail: str
    last: str


def sentence(meaning: Sentence) -> str:
    """The German sentence with this meaning, capitalised and punctuated."""
    main = _main_clause(meaning)
    text = _with_linked(meaning, main) if meaning.linked else main
    tidy = text.replace(" ,", ",").replace(",,", ",").rstrip(",")
    return tidy[0].upper() + tidy[1:] + ("?" if meaning.question else ".")


def _with_linked(meaning: Sentence, main: str) -> str:
    assert meaning.linked is not None and meaning.conjunction is not None
    order = _verb_last if meaning.conjunction.verb_final else _verb_second
    linked = f"{meaning.conjunction.german} {order(meaning.linked)}"
    if meaning.linked_first:
        return f"{linked}, {main}"
    return f"{main}, {linked}" if meaning.conjunction.comma else f"{main} {linked}"


def _main_clause(meaning: Sentence) -> str:
    clause = meaning.main
    if meaning.question_word:
        return f"{meaning.question_word.german} {_verb_first(clause)}"
    asks_yes_or_no = meaning.question and fronted(clause) is None
    if asks_yes_or_no or meaning.linked_first:
        return _verb_first(clause)
    return _verb_second(clause, topical_time=meaning.topical_time)


def _verb_second(clause: Clause, topical_time: bool = False) -> str:
    """The time, the phrase asked for or the subject comes first, the finite verb second."""
    verbs, subject = verb_forms(clause), _subject(clause)
    first = clause.time.german if clause.time and topical_time else _front(clause)
    start = (first, verbs.finite, subject) if first else (subject, verbs.finite)
    return _join(*start, *_middle_field(clause, topical_time), verbs.tail, _extraposed(clause))


def _verb_first(clause: Clause) -> str:
    """The order after a question word or a preposed clause, and of yes-no questions."""
    verbs, subject = verb_forms(clause), _subject(clause)
    return _join(verbs.finite, subject, *_middle_field(clause), verbs.tail, _extraposed(clause))


def _verb_last(clause: Clause) -> str:
    """The order of subordinate and relative clauses."""
    verbs, subject = verb_forms(clause), _subject(clause)
    return _join(_front(clause), subject, *_middle_field(clause), verbs.last)


def _subject(clause: Clause) -> str:
    """The subject with its relative clause, which stays beside it."""
    return _join(nominal(clause.subject, "nominative"), _relative(clause.subject))


def _extraposed(clause: Clause) -> str:
    """The object's relative clause, which follows the final verbs."""
    return _relative(clause.object)


def _relative(phrase: Nominal | None) -> str:
    if isinstance(phrase, NounPhrase) and phrase.relative:
        return f", {_verb_last(phrase.relative)},"
    return ""


def verb_forms(clause: Clause) -> VerbForms:
    """The finite verb in its place and the particle, participle or infinitive at the end."""
    verb = clause.verb
    person, number = agreement(clause.subject)
    if clause.modal or clause.tense == "future":
        past = clause.tense == "past"
        forms = words.modal(clause.modal, past) if clause.modal else words.WERDEN
        tail = verb.infinitive
    elif clause.tense == "past" and not verb.preterite:
        forms, tail = words.perfect_auxiliary(verb), verb.particle + verb.participle
    else:
        forms = words.preterite(verb.preterite) if clause.tense == "past" else words.present(verb)
        finite = forms.form(person, number)
        return VerbForms(finite, verb.particle, verb.particle + finite)
    finite = forms.form(person, number)
    return VerbForms(finite, tail, f"{tail} {finite}")


def _middle_field(clause: Clause, topical_time: bool = False) -> list[str]:
    slots: list[tuple[_Slot, str]] = _objects(clause)
    if clause.time and not topical_time:
        slots.append((_Slot.TIME, clause.time.german))
    if clause.negated and not _negates_object(clause):
        slots.append((_Slot.NICHT, "nicht"))
    if clause.manner:
        slots.append((_Slot.MANNER, clause.manner.german))
    if clause.company:
        slots.append((_Slot.COMPANY, _adjunct(clause.company)))
    if clause.place:
        required = clause.verb.goals or clause.verb.located
        slot = _Slot.REQUIRED_PLACE if required else _Slot.PLACE
        slots.append((slot, _adjunct(clause.place)))
    if clause.predicate:
        slots.append((_Slot.PREDICATE, clause.predicate.german))
    slots.sort()
    return [text for _, text in slots]


def _objects(clause: Clause) -> list[tuple[_Slot, str]]:
    """The objects that stay in the middle field, each with its place in it."""
    front, verb = fronted(clause), clause.verb
    slots = []
    if clause.recipient and clause.recipient is not front:
        slots.append((_rank(clause.recipient, "dative"), nominal(clause.recipient, "dative")))
    phrase = _denied_object(clause)
    if phrase and phrase is not front:
        text = _prepositional(verb.german_preposition, phrase, verb.case)
        slots.append((_object_slot(verb, phrase), text))
    return slots


def _object_slot(verb: Verb, phrase: Nominal) -> _Slot:
    if verb.german_preposition:
        return _Slot.PREPOSITIONAL_OBJECT
    slot = _rank(phrase, verb.case)
    second = verb.recipient and slot is _Slot.DEFINITE_ACCUSATIVE
    return _Slot.DEFINITE_SECOND_OBJECT if second else slot


def _denied_object(clause: Clause) -> Nominal | None:
    """The object, with "kein" for its article where that is how the clause is negated."""
    if _negates_object(clause) and isinstance(clause.object, NounPhrase):
        return replace(clause.object, determiner=NO)
    return clause.object


def _rank(phrase: Nominal, case: Case) -> _Slot:
    """Pronouns precede known nouns, and these new ones; dative nouns precede accusative."""
    dative = case == "dative"
    if isinstance(phrase, Pronoun | It):
        return _Slot.DATIVE_PRONOUN if dative else _Slot.ACCUSATIVE_PRONOUN
    if isinstance(phrase, Name) or (isinstance(phrase, NounPhrase) and phrase.definite):
        return _Slot.DEFINITE_DATIVE if dative else _Slot.DEFINITE_ACCUSATIVE
    return _Slot.INDEFINITE_DATIVE if dative else _Slot.INDEFINITE_ACCUSATIVE


def _negates_object(clause: Clause) -> bool:
    """Whether the negation is a "kein" of the object rather than a "nicht"."""
    return clause.negated and is_indefinite(clause.object) and clause.manner is not GLADLY


def _front(clause: Clause) -> str:
    """The relative or interrogative phrase, in the case of its role."""
    front = fronted(clause)
    if front is None or front is clause.subject:
        return ""
    if front is clause.recipient:
        return nominal(front, "dative")
    return _prepositional(clause.verb.german_preposition, front, clause.verb.case)


def _adjunct(adjunct: Adjunct) -> str:
    preposition: Preposition = adjunct.preposition
    return _prepositional(preposition.german, adjunct.nominal, preposition.case)


def _prepositional(preposition: str, phrase: Nominal, case: Case) -> str:
    """A phrase after a preposition, if any, contracted with a bare article: im, zum."""
    text = nominal(phrase, case)
    first, _, rest = text.partition(" ")
    contraction = _CONTRACTIONS.get((preposition, first))
    if contraction and isinstance(phrase, NounPhrase):
        return f"{contraction} {rest}"
    return _join(preposition, text)


def nominal(phrase: Nominal, case: Case) -> str:
    """Any nominal in `case`, without its relative clause."""
    if isinstance(phrase, NounPhrase):
        return _noun_phrase(phrase, case)
    if isinstance(phrase, Name):
        return phrase.german
    if isinstance(phrase, Gap):
        return words.relative_pronoun(phrase.noun, phrase.number, case)
    return _pronoun(IT[phrase.noun.gender] if isinstance(phrase, It) else phrase, case)


def _pronoun(word: Pronoun | Interrogative, case: Case) -> str:
    if case == "nominative":
        return word.nominative
    return word.dative if case == "dative" else word.accusative


def _noun_phrase(phrase: NounPhrase, case: Case) -> str:
    """Anna's book comes as "Annas Buch", my brother's book as "das Buch meines Bruders"."""
    noun, number, owner = phrase.noun, phrase.number, phrase.possessor
    determiner: Determiner | None = phrase.determiner
    start, end = words.determiner(phrase.determiner, noun, number, case), ""
    if isinstance(owner, Name):
        determiner, start = None, f"{owner.german}s"
    elif owner:
        end = nominal(owner, "genitive")
    quality = phrase.adjective
    adjective = words.adjective(quality, determiner, noun, number, case) if quality else ""
    return _join(start, adjective, words.noun_form(noun, number, case), end)


def _join(*parts: str) -> str:
    return " ".join([part for part in parts if part])
