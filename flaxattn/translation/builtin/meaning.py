"""What a sentence means: the language-neutral trees that both grammars put into words."""

from dataclasses import dataclass
from typing import Union

from flaxattn.translation.builtin.lexicon import (
    NO,
    THE,
    WHICH,
    A,
    Adjective,
    Adverb,
    Conjunction,
    Determiner,
    Interrogative,
    Modal,
    Name,
    Noun,
    Number,
    Preposition,
    Pronoun,
    Tense,
    Verb,
)


@dataclass(frozen=True)
class NounPhrase:
    """A noun with its determiner and modifiers.

    With `A`, a plural or mass noun goes without an article. A `relative` is a clause with a
    `Gap` where this noun would stand, and belongs to a subject or an object; a `possessor` goes
    with the determiner `THE`.
    """

    noun: Noun
    determiner: Determiner = THE
    number: Number = "singular"
    adjective: Adjective | None = None
    possessor: Union["NounPhrase", Name, None] = None
    relative: Union["Clause", None] = None

    @property
    def definite(self) -> bool:
        """Whether the phrase names something already known."""
        return self.determiner.definite or self.possessor is not None


@dataclass(frozen=True)
class Gap:
    """The place of a relative clause's head noun, filled by the relative pronoun."""

    noun: Noun
    number: Number = "singular"


@dataclass(frozen=True)
class It:
    """The pronoun "it"; German needs the gender of the noun it stands for."""

    noun: Noun


Nominal = NounPhrase | Name | Pronoun | It | Gap | Interrogative


@dataclass(frozen=True)
class Adjunct:
    """A prepositional phrase: of place, direction or company."""

    preposition: Preposition
    nominal: Nominal


@dataclass(frozen=True)
class Clause:
    """A verb with its arguments and adverbials, in no language's order."""

    subject: Nominal
    verb: Verb
    object: Nominal | None = None
    recipient: Nominal | None = None
    predicate: Adjective | None = None
    tense: Tense = "present"
    modal: Modal | None = None
    negated: bool = False
    time: Adverb | None = None
    manner: Adverb | None = None
    company: Adjunct | None = None
    place: Adjunct | None = None


@dataclass(frozen=True)
class Sentence:
    """A main clause, perhaps with a second clause, and how it is uttered.

    `topical_time` puts the time adverb first. A question with no interrogative, neither in the
    clause nor as `question_word`, is a yes-no question. `linked_first` puts the second clause
    in front of the main one.
    """

    main: Clause
    question: bool = False
    question_word: Adverb | None = None
    topical_time: bool = False
    conjunction: Conjunction | None = None
    linked: Clause | None = None
    linked_first: bool = False


def is_interrogative(nominal: Nominal | None) -> bool:
    """Whether the phrase asks: who, what, which book."""
    if isinstance(nominal, NounPhrase):
        return nominal.determiner is WHICH
    return isinstance(nominal, Interrogative)


def fronted(clause: Clause) -> Nominal | None:
    """The argument that moves to the front of its clause: a gap or an interrogative."""
    for nominal in (clause.subject, clause.recipient, clause.object):
        if isinstance(nominal, Gap) or is_interrogative(nominal):
            return nominal
    return None


def agreement(nominal: Nominal) -> tuple[int, Number]:
    """The person and number a verb takes with this subject."""
    if isinstance(nominal, Pronoun):
        return nominal.person, nominal.number
    if isinstance(nominal, NounPhrase | Gap):
        return 3, nominal.number
    return 3, "singular"


def is_indefinite(nominal: Nominal | None) -> bool:
    """Whether the phrase has "a" or no article, which German negates as "kein"."""
    return isinstance(nominal, NounPhrase) and nominal.determiner is A and nominal.possessor is None


def denies_all(nominal: Nominal) -> bool:
    """Whether the phrase itself is negative: no child."""
    return isinstance(nominal, NounPhrase) and nominal.determiner is NO
