"""What a sentence means: the language-neutral trees that both grammars put into words."""

from dataclasses import dataclass
from typing import ClassVar, Union

from flaxattn.translation.text.builtin import lexicon as lex


@dataclass(frozen=True)
class NounPhrase:
    """A noun with its determiner and modifiers; with `A`, plural and mass nouns have no article.

    A `relative` is a clause with a `Gap` where this noun would stand; it belongs to a subject or
    an object of a main clause. Adverbials have a `preposition`.
    """

    noun: lex.Noun
    determiner: lex.Word = lex.THE
    number: lex.Number = "singular"
    adjective: lex.Adjective | None = None
    relative: Union["Clause", None] = None
    preposition: lex.Word | None = None
    person: ClassVar[int] = 3


@dataclass(frozen=True)
class Gap:
    """The place of a relative clause's head noun, filled by the relative pronoun."""

    noun: lex.Noun
    number: lex.Number = "singular"
    person: ClassVar[int] = 3


Nominal = NounPhrase | lex.Pronoun | Gap


@dataclass(frozen=True)
class Clause:
    """A verb with its arguments and adverbials, in no language's order."""

    subject: Nominal
    verb: lex.Verb
    object: Nominal | None = None
    recipient: Nominal | None = None
    predicate: lex.Adjective | None = None
    tense: lex.Tense = "present"
    modal: lex.Word | None = None
    negated: bool = False
    time: lex.Word | None = None
    company: NounPhrase | None = None
    place: NounPhrase | None = None

    @property
    def denies_object(self) -> bool:
        """Whether German negates this clause by a "kein" of its object."""
        phrase = self.object
        return self.negated and isinstance(phrase, NounPhrase) and phrase.determiner is lex.A


@dataclass(frozen=True)
class Sentence:
    """A main clause, perhaps with a subordinate one; either that or the time may come first."""

    main: Clause
    question: bool = False
    topical_time: bool = False
    conjunction: lex.Word | None = None
    linked: Clause | None = None
    linked_first: bool = False


def join(*parts: str) -> str:
    """The parts that are not empty, with spaces between them."""
    return " ".join([part for part in parts if part])
