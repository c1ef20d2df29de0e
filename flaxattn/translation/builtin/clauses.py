"""Random clauses: a verb, what it governs, its tense or modal, and adverbials that fit."""

from dataclasses import dataclass, replace
from functools import cache

from flaxattn.translation.builtin.adjectives import ADJECTIVES
from flaxattn.translation.builtin.lexicon import (
    CAN,
    CREATURES,
    GLADLY,
    HABITS,
    MODALS,
    MUST,
    NEVER,
    PLACES,
    SHOULD,
    THINGS,
    TIMES,
    WANT,
    WITHOUT,
    Adjective,
    Adverb,
    Kinds,
    Modal,
    Tense,
    Verb,
)
from flaxattn.translation.builtin.meaning import (
    Adjunct,
    Clause,
    Gap,
    It,
    Nominal,
    NounPhrase,
    agreement,
    denies_all,
    is_indefinite,
)
from flaxattn.translation.builtin.phrases import (
    Dice,
    Reference,
    draw_goal,
    draw_location,
    draw_object,
    draw_subject,
    weighted,
)
from flaxattn.translation.builtin.verbs import BE

Tenses = tuple[Tense, ...]

_TENSES: Tenses = weighted(("present", 5), ("past", 4), ("future", 1))
_PAST_MODALS = tuple(modal for modal in MODALS if modal.past)
_MODALS_OF_BEING = (CAN, MUST, WANT, SHOULD)
_PORTABLE: Kinds = (*THINGS, "text")


@dataclass(frozen=True)
class Style:
    """How elaborate a clause may be: its adverbials at most, and how often adjectives come."""

    adverbials: int
    adjective: float
    timed: bool = True


FULL = Style(adverbials=2, adjective=0.3)
BRIEF = Style(adverbials=1, adjective=0.15)
TIMELESS = Style(adverbials=1, adjective=0.15, timed=False)
BARE = Style(adverbials=0, adjective=0.2, timed=False)


def draw_clause(
    dice: Dice,
    verb: Verb,
    style: Style = FULL,
    *,
    subject: Nominal | None = None,
    object: Nominal | None = None,
    recipient: Nominal | None = None,
    tenses: Tenses = _TENSES,
    negated: bool | None = None,
) -> Clause:
    """A clause with this verb; roles that are not given are drawn to suit it."""
    negated = dice.chance(0.14) if negated is None else negated
    if subject is None:
        adjective = 0.0 if verb is BE else style.adjective
        reference: Reference = "known" if negated else "subject"
        taken = [role for role in (object, recipient) if role]
        subject = draw_subject(dice, verb.subjects, taken, reference, adjective)
    if verb is BE:
        return _draw_copula(dice, subject, style, tenses, negated)
    tense, modal = _draw_mood(dice, verb, subject, tenses)
    if verb.objects and object is None:
        taken = [subject, recipient] if recipient else [subject]
        object = draw_object(dice, verb.objects, taken, _reference(verb, negated), style.adjective)
    if verb.recipient and object and not recipient:
        recipient = draw_object(dice, ("person",), (subject, object), "known", 0.1)
    clause = Clause(
        subject, verb, object, recipient, tense=tense, modal=modal, negated=negated,
        place=_required_place(dice, verb, style),
    )  # fmt: skip
    return _with_adverbials(dice, clause, style)


def _reference(verb: Verb, negated: bool) -> Reference:
    """What an object may refer to: under negation a preposition keeps "kein" out."""
    if not negated:
        return "any"
    return "known" if verb.german_preposition else "deniable"


def _required_place(dice: Dice, verb: Verb, style: Style) -> Adjunct | None:
    if verb.goals:
        return draw_goal(dice, verb, style.adjective)
    return draw_location(dice, verb.places, style.adjective) if verb.located else None


def _draw_mood(
    dice: Dice, verb: Verb, subject: Nominal, tenses: Tenses
) -> tuple[Tense, Modal | None]:
    """A tense and perhaps a modal that fit the verb, never leaving "they read" ambiguous."""
    tense = dice.pick(tenses)
    if verb.stative or not _is_alive(subject):
        return ("present" if tense == "future" else tense), None
    modals = {"present": MODALS, "past": _PAST_MODALS, "future": ()}[tense]
    same_past = verb.english == verb.english_past and agreement(subject) != (3, "singular")
    if (tense == "past" and same_past) or (modals and dice.chance(0.24)):
        return tense, dice.pick(modals)
    return tense, None


def _kind(nominal: Nominal) -> str:
    return nominal.noun.kind if isinstance(nominal, NounPhrase | Gap | It) else "person"


def _is_alive(nominal: Nominal) -> bool:
    return _kind(nominal) in CREATURES


def _draw_copula(
    dice: Dice, subject: Nominal, style: Style, tenses: Tenses, negated: bool
) -> Clause:
    """Something is somehow or somewhere: "The house is old", "The key is on the table"."""
    tense = dice.pick(tenses)
    place = _whereabouts(dice, subject)
    if place:
        clause = Clause(subject, BE, tense=tense, negated=negated, place=place)
        return _with_adverbials(dice, clause, style)
    predicate = dice.pick(_predicates(_kind(subject)))
    if tense == "future" and not predicate.temporary:
        tense = "present"
    willing = _is_alive(subject) and tense == "present"
    modal = dice.pick(_MODALS_OF_BEING) if willing and dice.chance(0.15) else None
    clause = Clause(subject, BE, None, None, predicate, tense, modal, negated)
    return _with_adverbials(dice, clause, style) if predicate.temporary else clause


@cache
def _predicates(kind: str) -> tuple[Adjective, ...]:
    return tuple(word for word in ADJECTIVES if kind in word.kinds)


def _whereabouts(dice: Dice, subject: Nominal) -> Adjunct | None:
    """Perhaps where the subject is: creatures in places, things on furniture."""
    kind = _kind(subject)
    if kind in CREATURES and dice.chance(0.25):
        return draw_location(dice, (*PLACES, "city") if kind == "person" else PLACES, 0.1)
    if kind in _PORTABLE and dice.chance(0.4):
        return draw_location(dice, ("furniture", "room"), 0.1)
    return None


def _with_adverbials(dice: Dice, clause: Clause, style: Style) -> Clause:
    """Up to as many adverbials as the style allows."""
    room = style.adverbials
    manner = _draw_manner(dice, clause) if room and dice.chance(0.3) else None
    room -= manner is not None
    time = draw_time(dice, clause, manner) if room and style.timed and dice.chance(0.5) else None
    room -= time is not None
    place = clause.place
    if room and clause.verb.places and not place and dice.chance(0.35):
        place = draw_location(dice, clause.verb.places, style.adjective)
        room -= 1
    company = _draw_company(dice, clause) if room and dice.chance(0.3) else None
    if not (manner or time or company or place):
        return clause
    return replace(clause, manner=manner, time=time, place=place, company=company)


def _draw_manner(dice: Dice, clause: Clause) -> Adverb | None:
    """A manner the verb allows, if it leaves the place of the negation clear."""
    if not clause.verb.manners:
        return None
    manner = dice.pick(clause.verb.manners)
    if manner is GLADLY:
        return None if clause.modal or clause.tense == "future" else manner
    return None if clause.negated and is_indefinite(clause.object) else manner


def draw_time(dice: Dice, clause: Clause, manner: Adverb | None) -> Adverb | None:
    """A time that fits the tense; a habit only where it says how often, not whether."""
    if clause.verb.stative:
        return None
    plain = not (clause.modal or clause.negated or manner is GLADLY)
    time = dice.pick(_times(clause.tense, clause.modal is not None, plain))
    return None if time is NEVER and denies_all(clause.subject) else time


@cache
def _times(tense: Tense, modal: bool, with_habits: bool) -> tuple[Adverb, ...]:
    """The adverbs of time for a tense; a modal in the present looks ahead as well."""
    tenses = (tense, "future") if modal and tense == "present" else (tense,)
    times = [time for time in TIMES if not set(tenses).isdisjoint(time.tenses)]
    habits = [time for time in HABITS if with_habits and tense in time.tenses]
    return (*times, *habits)


def _draw_company(dice: Dice, clause: Clause) -> Adjunct | None:
    """With, without or for whom; "not without" would be a riddle."""
    if not clause.verb.companions:
        return None
    preposition = dice.pick(clause.verb.companions)
    if clause.negated and preposition is WITHOUT:
        return None
    taken = [role for role in (clause.subject, clause.object) if role]
    return Adjunct(preposition, draw_object(dice, ("person",), taken, "known", 0.1))
