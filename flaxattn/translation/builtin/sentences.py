"""Random sentences: plain, with a relative or a second clause, and questions."""

from dataclasses import replace
from functools import cache

from flaxattn.translation.builtin.clauses import (
    BARE,
    BRIEF,
    TIMELESS,
    Tenses,
    draw_clause,
    draw_time,
)
from flaxattn.translation.builtin.lexicon import (
    ALTHOUGH,
    AND,
    BECAUSE,
    BEFORE,
    BUT,
    CREATURES,
    IF,
    THAT,
    WHAT,
    WHEN,
    WHERE,
    WHETHER,
    WHICH,
    WHITHER,
    WHO,
    WHY,
    Tense,
    Verb,
)
from flaxattn.translation.builtin.meaning import Clause, Gap, It, Nominal, NounPhrase, Sentence
from flaxattn.translation.builtin.phrases import (
    Dice,
    draw_noun_phrase,
    draw_number,
    draw_subject,
    nouns_of,
    weighted,
)
from flaxattn.translation.builtin.verbs import (
    ASK,
    BE,
    DATIVE,
    DITRANSITIVE,
    INTRANSITIVE,
    KNOW,
    LOCATED,
    MOTION,
    PLACEMENT,
    PREPOSITIONAL,
    REPORTING,
    TRANSITIVE,
)

_VERBS = (
    (BE,) * 14 + INTRANSITIVE + 2 * LOCATED + 2 * MOTION + 2 * PLACEMENT + TRANSITIVE
    + 2 * DATIVE + 2 * PREPOSITIONAL + 2 * DITRANSITIVE
)  # fmt: skip
_TELLING = (*TRANSITIVE, *DATIVE, *PREPOSITIONAL, *DITRANSITIVE, *PLACEMENT)
_PAST_OR_PRESENT: tuple[Tense, ...] = ("past", "present")
_NOT_THINGS = (*CREATURES, "room", "building", "outdoors", "town", "spot", "city")


def draw_sentence(dice: Dice) -> Sentence:
    """A sentence of any shape; the shapes come in fixed proportions."""
    return dice.pick(_SHAPES)(dice)


def _statement(dice: Dice) -> Sentence:
    main = draw_clause(dice, dice.pick(_VERBS))
    return Sentence(main, topical_time=_may_front_time(main) and dice.chance(0.45))


def _may_front_time(clause: Clause) -> bool:
    return clause.time is not None and not clause.time.frequent


def _with_subject_relative(dice: Dice) -> Sentence:
    """The man who is tired sleeps."""
    verb = dice.pick(_VERBS)
    head = draw_noun_phrase(dice, dice.pick(nouns_of(verb.subjects)), "any", 0.15)
    subject = _with_relative(dice, head, verb)
    negated = None if head.definite else False
    return Sentence(draw_clause(dice, verb, BRIEF, subject=subject, negated=negated))


def _with_object_relative(dice: Dice) -> Sentence:
    """The man reads the book that his son has bought."""
    verb = dice.pick(_HOSTS)
    negated = dice.chance(0.1)
    noun = dice.pick(nouns_of(verb.objects))
    head = draw_noun_phrase(dice, noun, "deniable" if negated else "any", 0.15)
    phrase = _with_relative(dice, head, verb)
    main = draw_clause(dice, verb, BARE, object=phrase, negated=negated)
    time = draw_time(dice, main, None) if dice.chance(0.4) else None
    if time is None or time.frequent:
        return Sentence(main)
    return Sentence(replace(main, time=time), topical_time=True)


def _with_relative(dice: Dice, head: NounPhrase, host: Verb) -> NounPhrase:
    """The phrase with a relative clause instead of a possessor, its verb not the `host`."""
    gap, kind = Gap(head.noun, head.number), head.noun.kind
    acting = _others(_verbs_with_subject(kind), host)
    if acting and dice.chance(0.5):
        verb = dice.pick(acting)
        clause = draw_clause(dice, verb, TIMELESS, subject=gap, tenses=_PAST_OR_PRESENT)
    elif kind == "person" and dice.chance(0.2):
        verb = dice.pick(_others(DITRANSITIVE, host))
        clause = draw_clause(dice, verb, BARE, recipient=gap)
    else:
        verb = dice.pick(_others(_verbs_with_object(kind), host))
        clause = draw_clause(dice, verb, BARE, object=gap)
    adjective = None if clause.verb is BE else head.adjective
    return replace(head, possessor=None, adjective=adjective, relative=clause)


@cache
def _others(verbs: tuple[Verb, ...], than: Verb) -> tuple[Verb, ...]:
    return tuple(verb for verb in verbs if verb is not than)


@cache
def _verbs_with_subject(kind: str) -> tuple[Verb, ...]:
    return tuple(verb for verb in _VERBS if kind in verb.subjects)


@cache
def _verbs_with_object(kind: str) -> tuple[Verb, ...]:
    return tuple(verb for verb in _GOVERNING if kind in verb.objects)


def _with_adverbial_clause(dice: Dice) -> Sentence:
    """The child cries because it cannot sleep; if it rains, we stay."""
    conjunction, main_tenses, linked_tenses = dice.pick(_ADVERBIAL)
    negated, style = (False, TIMELESS) if conjunction is BEFORE else (None, BRIEF)
    linked = draw_clause(dice, dice.pick(_VERBS), style, tenses=linked_tenses, negated=negated)
    verb = dice.pick(_others(_VERBS, linked.verb))
    main = draw_clause(dice, verb, TIMELESS, tenses=main_tenses, negated=negated)
    return Sentence(main, conjunction=conjunction, linked=linked, linked_first=dice.chance(0.4))


def _with_complement(dice: Dice) -> Sentence:
    """The doctor knows that...; the woman asks whether..."""
    tense: Tense = dice.pick(_PAST_OR_PRESENT)
    whether = dice.chance(0.35)
    verb = dice.pick((ASK, KNOW)) if whether else dice.pick(REPORTING)
    negated = verb is KNOW if whether else verb.english != "hope" and dice.chance(0.2)
    subject = draw_subject(dice, verb.subjects, (), "known" if negated else "subject", 0.15)
    linked = draw_clause(dice, dice.pick(_VERBS), BRIEF, tenses=_SUBORDINATE_TENSES[tense])
    return Sentence(
        Clause(subject, verb, tense=tense, negated=negated),
        conjunction=WHETHER if whether else THAT,
        linked=linked,
    )


def _coordinated(dice: Dice) -> Sentence:
    """The man reads the book and the woman sleeps."""
    tenses: Tenses = dice.pick((_PRESENT, _PAST))
    main = draw_clause(dice, dice.pick(_VERBS), TIMELESS, tenses=tenses, negated=False)
    conjunction = dice.pick((AND, BUT))
    linked = draw_clause(
        dice, dice.pick(_others(_VERBS, main.verb)), TIMELESS, tenses=tenses,
        negated=None if conjunction is BUT else False,
    )  # fmt: skip
    return Sentence(main, conjunction=conjunction, linked=linked)


def _with_anaphor(dice: Dice) -> Sentence:
    """The woman buys the lamp because she needs it: "it" is always the first clause's object."""
    verb = dice.pick(_HANDLING)
    noun = dice.pick([noun for noun in nouns_of(verb.objects) if noun.kind not in _NOT_THINGS])
    tenses: Tenses = dice.pick((_PRESENT, _PAST))
    thing = draw_noun_phrase(dice, noun, "deniable", 0.15, number="singular")
    main = draw_clause(dice, verb, BARE, object=thing, tenses=tenses, negated=False)
    if dice.chance(0.5):
        linked = draw_clause(dice, BE, BARE, subject=It(noun), tenses=tenses)
    else:
        other = dice.pick(_others(_verbs_handling(noun.kind), verb))
        linked = draw_clause(dice, other, BARE, object=It(noun), tenses=tenses)
    return Sentence(main, conjunction=dice.pick((BECAUSE, ALTHOUGH, BUT)), linked=linked)


@cache
def _verbs_handling(kind: str) -> tuple[Verb, ...]:
    return tuple(verb for verb in _HANDLING if kind in verb.objects)


def _yes_no_question(dice: Dice) -> Sentence:
    verb = dice.pick(_VERBS)
    subject = _known_subject(dice, verb)
    return Sentence(draw_clause(dice, verb, subject=subject), question=True)


def _known_subject(dice: Dice, verb: Verb) -> Nominal:
    return draw_subject(dice, verb.subjects, (), "known", 0.0 if verb is BE else 0.2)


def _subject_question(dice: Dice) -> Sentence:
    """Who reads the book?"""
    verb = dice.pick(_verbs_with_subject("person"))
    subject = _which(dice, verb.subjects) if dice.chance(0.4) else WHO
    return Sentence(draw_clause(dice, verb, BRIEF, subject=subject), question=True)


def _object_question(dice: Dice) -> Sentence:
    """What does the man read? Whom does he help? Which book does he need?"""
    verb = dice.pick(_GOVERNING)
    subject = _known_subject(dice, verb)
    if verb.recipient and dice.chance(0.6):
        clause = draw_clause(dice, verb, BARE, subject=subject, recipient=WHO, negated=False)
        return Sentence(clause, question=True)
    pronoun = WHO if "person" in verb.objects else WHAT
    asked = _which(dice, verb.objects) if dice.chance(0.4) else pronoun
    return Sentence(draw_clause(dice, verb, BRIEF, subject=subject, object=asked), question=True)


def _which(dice: Dice, kinds: tuple[str, ...]) -> NounPhrase:
    noun = dice.pick(nouns_of(kinds))
    return NounPhrase(noun, WHICH, draw_number(dice, noun))


def _adverbial_question(dice: Dice) -> Sentence:
    """Where, when or why something happens."""
    word = dice.pick((WHERE, WHEN, WHY))
    if word is WHERE:
        return _place_question(dice)
    verb = dice.pick(_EVENTS if word is WHEN else _VERBS)
    negated = False if word is WHEN else None
    style = BARE if word is WHEN else BRIEF
    clause = draw_clause(dice, verb, style, subject=_known_subject(dice, verb), negated=negated)
    return Sentence(clause, question=True, question_word=word)


def _place_question(dice: Dice) -> Sentence:
    """Where asks for a place or for a goal, which German tells apart: wo, wohin."""
    verb = dice.pick(_PLACED)
    subject = _known_subject(dice, verb)
    if verb is BE:
        clause = Clause(subject, BE, tense=dice.pick(_PAST_OR_PRESENT))
    else:
        clause = draw_clause(dice, verb, BARE, subject=subject, negated=False)
    word = WHITHER if verb.goals else WHERE
    return Sentence(replace(clause, place=None), question=True, question_word=word)


_GOVERNING = tuple(verb for verb in _VERBS if verb.objects)
_HOSTS = tuple(verb for verb in _GOVERNING if not (verb.german_preposition or verb.goals))
_HANDLING = tuple(
    verb for verb in _GOVERNING
    if verb.case == "accusative" and not verb.german_preposition
    and not set(verb.objects) <= set(_NOT_THINGS)
)  # fmt: skip
_EVENTS = tuple(verb for verb in _VERBS if not verb.stative and verb is not BE)
_PLACED = tuple(verb for verb in _VERBS if verb.places or verb.goals or verb is BE)

_PRESENT: Tenses = ("present",)
_PAST: Tenses = ("past",)
_ADVERBIAL = weighted(
    ((BECAUSE, _PRESENT, _PRESENT), 2),
    ((BECAUSE, _PAST, _PAST), 1),
    ((ALTHOUGH, _PRESENT, _PRESENT), 1),
    ((ALTHOUGH, _PAST, _PAST), 1),
    ((IF, ("present", "future"), _PRESENT), 4),
    ((BEFORE, _PRESENT, _PRESENT), 1),
    ((BEFORE, _PAST, _PAST), 1),
)
_SUBORDINATE_TENSES: dict[str, Tenses] = {
    "present": ("present", "present", "past", "future"),
    "past": ("past",),
}

_SHAPES = weighted(
    (_statement, 39),
    (_with_subject_relative, 8),
    (_with_object_relative, 8),
    (_with_adverbial_clause, 12),
    (_with_complement, 8),
    (_coordinated, 4),
    (_with_anaphor, 5),
    (_yes_no_question, 8),
    (_subject_question, 2),
    (_object_question, 4),
    (_adverbial_question, 3),
)
