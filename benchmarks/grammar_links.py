"""The word alignments of the built-in corpus, known from how its grammar puts a meaning into words.

Both languages are linearised once more, word by word, with what each word stands for. Two words
are a sure link where both stand for the same part of the meaning, and a possible one where one of
them only helps to express it: "does", "to", the auxiliary of a perfect.
"""

import re
from typing import NamedTuple

from flaxattn.translation.text.builtin import english, german
from flaxattn.translation.text.builtin import lexicon as lex
from flaxattn.translation.text.builtin.corpus import Example
from flaxattn.translation.text.builtin.meaning import Gap, NounPhrase

Links = set[tuple[int, int]]


class Word(NamedTuple):
    """A word and the parts of a meaning that it stands for, or helps to express."""

    text: str
    sure: set
    possible: set = frozenset()


class Gold(NamedTuple):
    """A pair and its links."""

    source: str
    target: str
    sure: Links
    possible: Links
    """The sure ones among them."""


def gold(example: Example) -> Gold:
    """The links (English word, German word) of a pair, words parted by spaces."""
    sides = _english_sentence(example.meaning), _german_sentence(example.meaning)
    for words, text in zip(sides, example[:2], strict=True):
        assert " ".join(word.text for word in words).lower() == _bare(text)
    sure, possible = set(), set()
    for i, one in enumerate(sides[0]):
        for j, other in enumerate(sides[1]):
            sure |= {(i, j)} if one.sure & other.sure else set()
            alike = (one.sure | one.possible) & (other.sure | other.possible)
            possible |= {(i, j)} if alike else set()
    return Gold(example.english, example.german, sure, possible)


def error_rate(found: list[Links], golds: list[Gold]) -> float:
    """The alignment error rate (Och and Ney 2003): 0: all sure links and no wrong."""
    right = sum(len(a & g.sure) + len(a & g.possible) for a, g in zip(found, golds, strict=True))
    return 1 - right / sum(len(a) + len(g.sure) for a, g in zip(found, golds, strict=True))


def _bare(text):
    return re.sub("[,.?]", "", text).lower()


def _words(text, *sure, possible=()):
    return [Word(part, set(sure), set(possible)) for part in text.split()]


# ---- Both ------------------------------------------------------------------------------------


def _time(word, text, at):
    if word is None:
        return []
    *first, last = text.split()
    first = [Word(part, {f"{at}.when"}) for part in first]
    return [*first, Word(last, {f"{at}.time"})]


def _roots(verb, at):
    """What stands for a verb: its stem and its particle, which English has seldom."""
    return {f"{at}.stem"} | ({f"{at}.particle"} if verb.particle else set())


def _linked(meaning, main, linked, conjunction):
    if not meaning.linked:
        return main
    linked = [*_words(conjunction, "conjunction"), *linked]
    return linked + main if meaning.linked_first else main + linked


# ---- English ---------------------------------------------------------------------------------


def _english_sentence(meaning):
    main = _english_clause(meaning.main, "main", meaning.question, meaning.topical_time)
    if not meaning.linked:
        return main
    linked = _english_clause(meaning.linked, "linked")
    return _linked(meaning, main, linked, meaning.conjunction.english)


def _english_clause(clause, at, inverted=False, topical=False):
    finite, rest = _english_verbs(clause, at, inverted)
    time = _time(clause.time, clause.time.english if clause.time else "", at)
    subject = _english_nominal(clause.subject, f"{at}.subject", True)
    front = time if topical else _words(english._front(clause), f"{at}.relative")
    start = finite + subject if inverted else subject + finite
    tail = _words(clause.predicate.english if clause.predicate else "", f"{at}.predicate")
    for role in ("recipient", "object", "company", "place"):
        phrase = getattr(clause, role)
        if phrase and not isinstance(phrase, Gap):
            tail += _english_nominal(phrase, f"{at}.{role}")
    return front + start + rest + tail + ([] if topical else time)


def _english_verbs(clause, at, inverted):
    finite, rest = (text.split() for text in english._verbs(clause, inverted))
    negation = [Word("not", {f"{at}.not"})] if finite[-1] == "not" else []
    finite = finite[: len(finite) - len(negation)]
    verb, modal = _english_verb(clause.verb, at), f"{at}.modal"
    if clause.verb is lex.BE:
        return [Word(finite[0], {f"{at}.stem"}), *negation], []
    if clause.modal and clause.modal is not lex.WANT:
        means = {modal, f"{at}.not"} if finite[0] == "cannot" else {modal}
        return [Word(finite[0], means), *negation], verb(rest)
    helped = {modal, f"{at}.stem"} if clause.modal else {f"{at}.stem"}
    if finite[0] in ("do", "does", "did"):
        finite = [Word(finite[0], {f"{at}.auxiliary"}, helped), *negation]
    elif clause.modal:
        finite = [Word(finite[0], {modal})]
    else:
        finite = verb(finite)
    if clause.modal:
        wants = [Word(text, {modal}) for text in rest[: rest.index("to")]]
        to = Word("to", set(), {modal, *_roots(clause.verb, at)})
        return finite, [*wants, to, *verb(rest[rest.index("to") + 1 :])]
    return finite, verb(rest)


def _english_verb(verb, at):
    """Of a verb's words: "up" is the particle of "get up"; "look for" is one verb."""

    def words(texts):
        roots = _roots(verb, at)
        if len(texts) == 2 and verb.particle:
            parts = ({f"{at}.stem"}, {f"{at}.particle"})
            return [Word(text, part, roots) for text, part in zip(texts, parts, strict=True)]
        return [Word(text, roots) for text in texts]

    return words


def _english_nominal(phrase, at, subject=False):
    if isinstance(phrase, lex.Pronoun):
        return _words(phrase.english if subject else phrase.english_object, at)
    clause = at.rpartition(".")[0]
    if isinstance(phrase, Gap):
        return _words(english._nominal(phrase), f"{clause}.relative")
    bare = NounPhrase(phrase.noun, phrase.determiner, phrase.number, phrase.adjective)
    texts, parts = english._nominal(bare).split(), ["adjective"] * bool(phrase.adjective) + ["noun"]
    parts = ["determiner"] * (len(texts) - len(parts)) + parts
    words = [Word(text, {f"{at}.{part}"}) for text, part in zip(texts, parts, strict=True)]
    if phrase.preposition:
        words = _words(phrase.preposition.english, f"{at}.preposition") + words
    return words + (_english_clause(phrase.relative, f"{at}.clause") if phrase.relative else [])


# ---- German ----------------------------------------------------------------------------------


def _german_sentence(meaning):
    first = meaning.question or meaning.linked_first
    main = (_verb_first if first else _verb_second)(meaning.main, "main", meaning.topical_time)
    if not meaning.linked:
        return main
    linked = _verb_last(meaning.linked, "linked")
    return _linked(meaning, main, linked, meaning.conjunction.german)


def _verb_second(clause, at, topical):
    finite, final = _german_verbs(clause, at)
    if topical and clause.time:
        time = _time(clause.time, clause.time.german, at)
        return time + _verb_first(clause, at, topical)
    after = _relative(clause.object, f"{at}.object")
    return _subject(clause, at) + finite + _middle(clause, at) + final + after


def _verb_first(clause, at, topical):
    finite, final = _german_verbs(clause, at)
    return finite + _subject(clause, at) + _middle(clause, at, not topical) + final


def _verb_last(clause, at):
    finite, final = _german_verbs(clause, at)
    if final and final[0].text == clause.verb.particle:
        finite = [Word(final[0].text + finite[0].text, final[0].sure | finite[0].sure)]
        final = []
    front = []
    for role, case in (("object", "accusative"), ("recipient", "dative")):
        if isinstance(getattr(clause, role), Gap):
            front = _german_nominal(getattr(clause, role), f"{at}.{role}", case)
    return front + _subject(clause, at) + _middle(clause, at) + final + finite


def _german_verbs(clause, at):
    finite, final = german._verb_forms(clause)
    roots, stem, particle = _roots(clause.verb, at), f"{at}.stem", f"{at}.particle"
    if clause.modal:
        return [Word(finite, {f"{at}.modal"})], [Word(final, roots)]
    if clause.verb is lex.BE or not final:
        return [Word(finite, {stem})], []
    if clause.tense == "past":
        return [Word(finite, {f"{at}.auxiliary"}, roots)], [Word(final, roots)]
    return [Word(finite, {stem}, {particle})], [Word(final, {particle}, {stem})]


def _subject(clause, at):
    subject = _german_nominal(clause.subject, f"{at}.subject", "nominative")
    return subject + _relative(clause.subject, f"{at}.subject")


def _relative(phrase, at):
    relative = getattr(phrase, "relative", None)
    return _verb_last(relative, f"{at}.clause") if relative else []


def _middle(clause, at, timed=True):
    direct, nicht = clause.object, []
    if clause.negated and not clause.denies_object:
        nicht = _words("nicht", f"{at}.not")
    role = lambda name, case: _german_nominal(getattr(clause, name), f"{at}.{name}", case)  # noqa: E731
    pronoun = role("object", "accusative") if isinstance(direct, lex.Pronoun) else []
    recipient = [] if isinstance(clause.recipient, Gap) else role("recipient", "dative")
    accusative = []
    if isinstance(direct, NounPhrase):
        denied = f"{at}.not" if clause.denies_object else ""
        accusative = _german_nominal(direct, f"{at}.object", "accusative", denied) + nicht
    return [
        *pronoun,
        *recipient,
        *(_time(clause.time, clause.time.german, at) if clause.time and timed else []),
        *([] if accusative else nicht),
        *role("company", "dative"),
        *role("place", "dative"),
        *accusative,
        *_words(clause.predicate.german if clause.predicate else "", f"{at}.predicate"),
    ]


def _german_nominal(phrase, at, case, denied=""):
    if phrase is None:
        return []
    if isinstance(phrase, lex.Pronoun):
        return _words(german._nominal(phrase, case), at)
    if isinstance(phrase, Gap):
        return _words(german._nominal(phrase, case), f"{at.rpartition('.')[0]}.relative")
    determiner = lex.KEIN if denied else phrase.determiner
    bare = NounPhrase(phrase.noun, determiner, phrase.number, phrase.adjective)
    case = phrase.preposition.case if phrase.preposition else case
    texts, parts = german._nominal(bare, case).split(), [{f"{at}.noun"}]
    parts = [{f"{at}.adjective"}] * bool(phrase.adjective) + parts
    means = {f"{at}.determiner"} | ({denied} if denied else set())
    parts = [means] * (len(texts) - len(parts)) + parts
    words = [Word(text, part) for text, part in zip(texts, parts, strict=True)]
    if not phrase.preposition:
        return words
    start = _words(phrase.preposition.german, f"{at}.preposition")
    joined = f"{start[0].text} {words[0].text}"
    if joined in german._CONTRACTIONS:
        return [Word(german._CONTRACTIONS[joined], start[0].sure | words[0].sure), *words[1:]]
    return start + words
