"""English: inflection, fixed word order, do-support."""

from flaxattn.translation.text.builtin import lexicon as lex
from flaxattn.translation.text.builtin.meaning import Clause, Gap, Nominal, Sentence, join


def sentence(meaning: Sentence) -> str:
    """The English sentence with this meaning, capitalised and punctuated."""
    text = _clause(meaning.main, meaning.question, meaning.topical_time)
    if meaning.linked and meaning.conjunction:
        linked = f"{meaning.conjunction.english} {_clause(meaning.linked)}"
        text = f"{linked}, {text}" if meaning.linked_first else f"{text} {linked}"
    return text[0].upper() + text[1:] + ("?" if meaning.question else ".")


def _clause(clause: Clause, inverted: bool = False, topical_time: bool = False) -> str:
    """A question if `inverted`; "whom" and "that" come first, whatever their role."""
    finite, rest = _verbs(clause, inverted)
    time = clause.time.english if clause.time else ""
    front = time if topical_time else _front(clause)
    subject = _nominal(clause.subject, subject=True)
    start = (finite, subject) if inverted else (subject, finite)
    return join(front, *start, rest, *_tail(clause), "" if topical_time else time)


def _verbs(clause: Clause, inverted: bool) -> tuple[str, str]:
    """The finite verb, with "not" if negated, and the verbs that follow it."""
    verb, modal, past = clause.verb, clause.modal, clause.tense == "past"
    third = (clause.subject.person, clause.subject.number) == (3, "singular")
    base, rest = verb.english, ""
    if verb is lex.BE:
        me = clause.subject is lex.I
        present = "is" if third else "am" if me else "are"
        finite = ("was" if third or me else "were") if past else present
    elif modal and modal is not lex.WANT:
        finite, rest = modal.english, base
    else:
        if modal:
            base, rest = modal.english, f"to {base}"
        if not (clause.negated or inverted):
            return (verb.past if past else _present(base, third)), rest
        finite, rest = "did" if past else _present("do", third), join(base, rest)
    if clause.negated:
        finite = "cannot" if finite == "can" else f"{finite} not"
    return finite, rest


def _present(base: str, third: bool) -> str:
    first, *particle = base.split()
    ending = ("es" if first.endswith("o") else "s") if third else ""
    return join(first + ending, *particle)


def _tail(clause: Clause) -> list[str]:
    """What follows the verbs: predicate, objects, company and place."""
    roles = (clause.recipient, clause.object, clause.company, clause.place)
    nominals = [_nominal(role) for role in roles if role and not isinstance(role, Gap)]
    return [clause.predicate.english if clause.predicate else "", *nominals]


def _front(clause: Clause) -> str:
    """The relative pronoun of an object: whom, that."""
    for gap in (clause.object, clause.recipient):
        if isinstance(gap, Gap):
            return "whom" if gap.noun.kind in lex.PERSONS else "that"
    return ""


def _nominal(nominal: Nominal, subject: bool = False) -> str:
    if isinstance(nominal, lex.Pronoun):
        return nominal.english if subject else nominal.english_object
    if isinstance(nominal, Gap):
        return "who" if nominal.noun.kind in lex.PERSONS else "that"
    plural = nominal.number == "plural"
    noun = nominal.noun.english_plural if plural else nominal.noun.english
    words = join(nominal.adjective.english if nominal.adjective else "", noun)
    determiner = nominal.determiner.english
    if nominal.determiner is lex.A:
        article = "an" if words[0] in "aeiou" else "a"
        determiner = "" if plural or not nominal.noun.countable else article
    preposition = nominal.preposition.english if nominal.preposition else ""
    relative = _clause(nominal.relative) if nominal.relative else ""
    return join(preposition, determiner, words, relative)
