"""Random sentences: the shapes of a sentence, its clauses and phrases that suit one another."""

import random
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import TypeVar

from flaxattn.translation.text.builtin import lexicon as lex
from flaxattn.translation.text.builtin.lexicon import (
    BE,
    Adjective,
    Kinds,
    Noun,
    Number,
    Tense,
    Verb,
)
from flaxattn.translation.text.builtin.meaning import Clause, Gap, Nominal, NounPhrase, Sentence

Choice = TypeVar("Choice")
Tenses = tuple[Tense, ...]

_ANY: tuple[lex.Word, ...] = (lex.THE,) * 4 + (lex.A,) * 4 + lex.POSSESSIVES
_KNOWN: tuple[lex.Word, ...] = (lex.THE,) * 5 + lex.POSSESSIVES
_VERBS = (BE,) * 3 + lex.ACTIONS
_TENSES: Tenses = ("present", "present", "past")
_PRESENT: Tenses = ("present",)
_PAST: Tenses = ("past",)


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


@cache
def _nouns(kinds: Kinds) -> tuple[Noun, ...]:
    return tuple(noun for noun in lex.NOUNS if noun.kind in kinds)


@cache
def _adjectives(kind: str) -> tuple[Adjective, ...]:
    return tuple(adjective for adjective in lex.ADJECTIVES if kind in adjective.kinds)


@cache
def _verbs(role: str, kind: str, but: Verb) -> tuple[Verb, ...]:
    """The verbs other than `but` that take a noun of this kind in this role."""
    return tuple(verb for verb in lex.ACTIONS if verb is not but and kind in getattr(verb, role))


def draw_sentence(dice: Dice) -> Sentence:
    """A sentence of any shape; the shapes come in fixed proportions."""
    return dice.pick(_SHAPES)(dice)


def _statement(dice: Dice) -> Sentence:
    main = _draw_clause(dice, dice.pick(_VERBS), time=0.65)
    return Sentence(main, topical_time=main.time is not None and dice.chance(0.6))


def _with_relative(dice: Dice) -> Sentence:
    """The man who sleeps ...; I see the man whom she helps."""
    verb = dice.pick(_VERBS)
    if verb.objects and dice.chance(0.5):
        head = _with_clause(dice, _draw_phrase(dice, verb.objects, _ANY), verb)
        return Sentence(_draw_clause(dice, verb, object=head, time=0, place=0))
    head = _with_clause(dice, _draw_phrase(dice, verb.subjects, _KNOWN), verb)
    return Sentence(_draw_clause(dice, verb, subject=head, time=0.2))


def _with_clause(dice: Dice, head: NounPhrase, host: Verb) -> NounPhrase:
    """The phrase with a relative clause, whose verb is not its `host`."""
    gap, kind = Gap(head.noun, head.number), head.noun.kind
    acting, seen = _verbs("subjects", kind, host), _verbs("objects", kind, host)
    helped = tuple(verb for verb in _verbs("recipients", kind, host) if not verb.objects)
    if acting and dice.chance(0.55):
        clause = _draw_clause(dice, dice.pick((*acting, BE)), subject=gap, time=0)
    elif (verb := dice.pick((*seen, *helped))) in helped:
        clause = _draw_clause(dice, verb, recipient=gap, time=0, place=0)
    else:
        clause = _draw_clause(dice, verb, object=gap, time=0, place=0)
    return replace(head, adjective=None if clause.predicate else head.adjective, relative=clause)


def _with_adverbial_clause(dice: Dice) -> Sentence:
    """I sleep because I am tired. If the man comes, we eat."""
    conjunction = dice.pick((lex.BECAUSE, lex.IF))
    tenses = _PRESENT if conjunction is lex.IF else dice.pick((_PRESENT, _PAST))
    main = _draw_clause(dice, dice.pick(_VERBS), time=0, tenses=tenses)
    linked = _draw_clause(dice, dice.pick(_VERBS), time=0.3, tenses=tenses)
    first = conjunction is lex.IF and dice.chance(0.5)
    return Sentence(main, conjunction=conjunction, linked=linked, linked_first=first)


def _with_complement(dice: Dice) -> Sentence:
    """The doctor knows that the child sleeps."""
    verb = dice.pick(lex.REPORTING)
    tense = dice.pick(_TENSES)
    main = Clause(_draw_subject(dice, verb, _KNOWN), verb, tense=tense)
    tenses = _PAST if tense == "past" else _TENSES
    linked = _draw_clause(dice, dice.pick(_VERBS), time=0.3, tenses=tenses)
    return Sentence(main, conjunction=lex.THAT, linked=linked)


def _question(dice: Dice) -> Sentence:
    main = _draw_clause(dice, dice.pick(_VERBS), time=0.4, negated=False)
    return Sentence(main, question=True)


def _draw_clause(
    dice: Dice,
    verb: Verb,
    *,
    subject: Nominal | None = None,
    object: Nominal | None = None,
    recipient: Nominal | None = None,
    time: float,
    place: float = 0.4,
    tenses: Tenses = _TENSES,
    negated: bool | None = None,
) -> Clause:
    """A clause with this verb; what is not given is drawn, time and place with a probability."""
    negated = dice.chance(0.16) if negated is None else negated
    subject = subject or _draw_subject(dice, verb, _KNOWN if negated or verb is BE else _ANY)
    if verb is BE:
        return _draw_copula(dice, subject, dice.pick(tenses), negated, time)
    if verb.recipients and not recipient:
        recipient = _draw_object(dice, verb.recipients, (subject, object), _KNOWN)
    if verb.objects and not object:
        object = _draw_object(dice, verb.objects, (subject, recipient), _ANY)
    clause = Clause(subject, verb, object, recipient, negated=negated)
    return _with_adverbials(dice, _in_tense(dice, clause, tenses), time, place)


def _in_tense(dice: Dice, clause: Clause, tenses: Tenses) -> Clause:
    """The clause in one of the tenses, or with a modal; "they read" is always the present."""
    if dice.pick(tenses) == "past" and clause.verb.english != clause.verb.past:
        return replace(clause, tense="past")
    if clause.verb.stative or not dice.chance(0.3):
        return clause
    modals = [it for it in lex.MODALS if not (clause.negated and it is lex.MUST)]
    return replace(clause, modal=dice.pick(modals))


def _with_adverbials(dice: Dice, clause: Clause, time: float, place: float) -> Clause:
    """The clause with a time, company and place, where they suit it."""
    verb, noun = clause.verb, getattr(clause.subject, "noun", None)
    company = where = None
    if verb.goals or (verb.located and not (clause.negated and clause.object)):
        where = _draw_place(dice, verb.goals) if verb.goals or dice.chance(place) else None
    if verb.social and dice.chance(0.25):
        friends = _draw_phrase(dice, lex.PERSONS, _KNOWN if clause.negated else _ANY, noun)
        company = replace(friends, preposition=lex.WITH)
    when = _draw_time(dice, clause.tense, time)
    return replace(clause, time=when, company=company, place=where)


def _draw_copula(dice: Dice, subject: Nominal, tense: Tense, negated: bool, time: float) -> Clause:
    """Somebody is tired; the book was good; the dog is in the garden."""
    kind = "person" if isinstance(subject, lex.Pronoun) else subject.noun.kind
    if isinstance(subject, NounPhrase):
        subject = replace(subject, adjective=None)
    predicate = place = None
    if kind in lex.CREATURES and dice.chance(0.3):
        place = _draw_place(dice, goal=False)
    else:
        predicate = dice.pick(_adjectives(kind))
    lasting = predicate and "temporary" not in predicate.kinds
    when = _draw_time(dice, tense, 0 if lasting else time)
    return Clause(subject, BE, None, None, predicate, tense, None, negated, when, None, place)


def _draw_subject(dice: Dice, verb: Verb, determiners: tuple[lex.Word, ...]) -> Nominal:
    """A pronoun or a noun phrase."""
    if "person" in verb.subjects and dice.chance(0.35):
        return dice.pick(lex.SUBJECT_PRONOUNS)
    return _draw_phrase(dice, verb.subjects, determiners)


def _draw_object(
    dice: Dice, kinds: Kinds, others: tuple[Nominal | None, ...], determiners: tuple[lex.Word, ...]
) -> Nominal:
    """A pronoun or a noun phrase that means nobody of the clause's other roles."""
    if "person" in kinds and dice.chance(0.25):
        words = [it for it in lex.OBJECT_PRONOUNS if it not in others]
        ourselves = any(isinstance(it, lex.Pronoun) and it.person == 1 for it in others)
        return dice.pick([it for it in words if not (ourselves and it.person == 1)])
    nouns = [getattr(it, "noun", None) for it in others]
    return _draw_phrase(dice, kinds, determiners, *nouns)


def _draw_phrase(
    dice: Dice, kinds: Kinds, determiners: tuple[lex.Word, ...], *taken: Noun | None
) -> NounPhrase:
    """A noun of these kinds that is not `taken`, with a determiner and perhaps an adjective."""
    noun = dice.pick([noun for noun in _nouns(kinds) if noun not in taken])
    number: Number = "plural" if noun.countable and dice.chance(0.3) else "singular"
    determiner = dice.pick(determiners)
    if noun.unowned and determiner in lex.POSSESSIVES:
        determiner = lex.THE
    return NounPhrase(noun, determiner, number, _draw_adjective(dice, noun, 0.3))


def _draw_adjective(dice: Dice, noun: Noun, probability: float) -> Adjective | None:
    return dice.pick(_adjectives(noun.kind)) if dice.chance(probability) else None


def _draw_time(dice: Dice, tense: Tense, probability: float) -> lex.Word | None:
    times = [time for time in lex.TIMES if tense in time.tenses]
    return dice.pick(times) if dice.chance(probability) else None


def _draw_place(dice: Dice, goal: bool) -> NounPhrase:
    """Where or whither: in the garden, into the garden, at the station, to the station."""
    noun = dice.pick(_nouns(lex.PLACES))
    whither, where = (lex.TO, lex.AT) if noun.kind == "spot" else (lex.INTO, lex.IN)
    preposition = whither if goal else where
    return NounPhrase(noun, adjective=_draw_adjective(dice, noun, 0.2), preposition=preposition)


_PLAIN = (_statement,) * 45 + (_question,) * 11
_JOINED = (_with_relative,) * 19 + (_with_adverbial_clause,) * 14 + (_with_complement,) * 8
_SHAPES = _PLAIN + _JOINED
