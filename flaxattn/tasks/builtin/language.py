"""Documents from a grammar that gives every text in one way, so that its probability is known.

What makes it hard to guess the next word from the last few: verbs agree in number and kind with a
subject that relative clauses, prepositional phrases and asides may part from them; asides stand
in brackets of two kinds, which close in order; pronouns and names go back to the first subject of
a document, or from an aside to the subject around it; reflexives agree with their clause's subject.

No text has two derivations: a noun has one modifier at most, so that what follows it belongs to
it; no preposition follows a verb but "is" and "are"; only whole clauses and their subjects have
asides; names are those of a document's first subject.
"""

from typing import NamedTuple

from flaxattn.tasks.builtin import words as lex
from flaxattn.tasks.builtin.draws import CountingDice, Split, check_request

__all__ = ["texts"]

Words = list[str]

SENTENCES = (1, 2, 3, 4)
BRACKETS = (("(", ")"), ("[", "]"))
DETERMINERS = {False: ("the", "a", "this"), True: ("the", "some", "these")}
REFLEXIVES = {"he": "himself", "she": "herself", "it": "itself", "they": "themselves"}

NAMED, REFERRING, REPEATED, ENCLOSED = 0.5, 0.6, 0.4, 0.4  # subjects
PLURAL, ADJECTIVE, PREPOSITION, OF_SUBJECT = 0.4, 0.3, 0.5, 0.5  # noun phrases
COPULA, QUALITY, ALONE, REFLEXIVE = 0.2, 0.6, 0.4, 0.2  # verb phrases
MODIFIED = (0.4, 0.3, 0.15, 0.0)  # by depth
ASIDE = (0.2, 0.15, 0.15, 0.0)  # by depth


class Subject(NamedTuple):
    """What agrees with it: a pronoun, a verb's number, the kind of verb."""

    words: Words
    noun: lex.Noun
    plural: bool = False

    @property
    def pronoun(self) -> str:
        """The one that stands for it."""
        return "they" if self.plural else self.noun.pronoun

    def again(self, word: str) -> "Subject":
        """The same by another word."""
        return self._replace(words=[word])


def texts(split: Split, count: int, *, seed: int = 0) -> list[tuple[str, float]]:
    """`count` documents, each with the natural logarithm of its probability.

    They are drawn alike and apart from one another in every split, by other throws: so the mean of
    the negative logarithms tends to the entropy, and short texts may come twice.
    """
    check_request(split, count)
    dice = CountingDice(f"{__name__} {split} {seed}")
    return [_text(dice) for _ in range(count)]


def _text(dice: CountingDice) -> tuple[str, float]:
    dice.log_prob = 0.0
    first = _name(dice) if dice.chance(NAMED) else _phrase(dice, 0)
    sentences = [_clause(dice, first, 0)]
    for _ in range(dice.pick(SENTENCES) - 1):
        sentences.append(_clause(dice, _later_subject(dice, first), 0))
    return " ".join(map(_written, sentences)), dice.log_prob


def _written(words: Words) -> str:
    text = " ".join(words)
    for bracket in ("(", "["):
        text = text.replace(f"{bracket} ", bracket)
    for bracket in (")", "]"):
        text = text.replace(f" {bracket}", bracket)
    return f"{text[0].upper()}{text[1:]}."


def _name(dice: CountingDice) -> Subject:
    noun = dice.pick(lex.NAMES)
    return Subject([noun.singular], noun)


def _later_subject(dice: CountingDice, first: Subject) -> Subject:
    """The first subject again, by its name or a pronoun, or a new one."""
    if not dice.chance(REFERRING):
        return _phrase(dice, 0)
    named = first.noun in lex.NAMES
    return first.again(first.noun.singular if named and dice.chance(REPEATED) else first.pronoun)


def _clause(dice: CountingDice, subject: Subject, depth: int) -> Words:
    """A subject and what it does, perhaps with asides between and behind."""
    between = _aside(dice, subject, depth)
    predicate = _predicate(dice, subject, 0)
    return [*subject.words, *between, *predicate, *_aside(dice, subject, depth)]


def _aside(dice: CountingDice, subject: Subject, depth: int) -> Words:
    """Nothing, or a clause in brackets."""
    if not dice.chance(ASIDE[depth]):
        return []
    opening, closing = dice.pick(BRACKETS)
    inner = subject.again(subject.pronoun) if dice.chance(ENCLOSED) else _phrase(dice, 1)
    return [opening, *_clause(dice, inner, depth + 1), closing]


def _phrase(dice: CountingDice, depth: int) -> Subject:
    """A noun with its determiner, and perhaps an adjective and a modifier."""
    noun, plural = dice.pick(lex.NOUNS), dice.chance(PLURAL)
    determiner = dice.pick(DETERMINERS[plural])
    adjective = [dice.pick(lex.ADJECTIVES)] if dice.chance(ADJECTIVE) else []
    head = Subject([determiner, *adjective, noun.plural if plural else noun.singular], noun, plural)
    if not dice.chance(MODIFIED[depth]):
        return head
    if dice.chance(PREPOSITION):
        modifier = [dice.pick(lex.PREPOSITIONS), *_phrase(dice, depth + 1).words]
    elif dice.chance(OF_SUBJECT):
        modifier = ["that", *_predicate(dice, head, depth + 1)]
    else:
        doing = _phrase(dice, depth + 1)
        modifier = ["that", *doing.words, _verb(dice, doing, lex.TRANSITIVE)]
    return head._replace(words=head.words + modifier)


def _predicate(dice: CountingDice, subject: Subject, depth: int) -> Words:
    """What a subject does or is."""
    deeper = min(depth + 1, len(MODIFIED) - 1)
    if dice.chance(COPULA):
        copula = "are" if subject.plural else "is"
        if dice.chance(QUALITY):
            return [copula, dice.pick(lex.ADJECTIVES)]
        return [copula, dice.pick(lex.PREPOSITIONS), *_phrase(dice, deeper).words]
    if dice.chance(ALONE):
        return [_verb(dice, subject, lex.INTRANSITIVE)]
    verb = _verb(dice, subject, lex.TRANSITIVE)
    if dice.chance(REFLEXIVE):
        return [verb, REFLEXIVES[subject.pronoun]]
    return [verb, *_phrase(dice, deeper).words]


def _verb(dice: CountingDice, subject: Subject, verbs: dict[str, tuple[str, ...]]) -> str:
    verb = dice.pick(verbs[subject.noun.kind])
    if subject.plural:
        return verb
    return f"{verb}es" if verb.endswith("ch") else f"{verb}s"
