"""The corpus: sentence pairs in three splits that differ in their combinations of words.

Every sentence combines content words: a subject noun with its verb, a verb with the noun it
governs (object, recipient or goal), an adjective with its noun, attributive or predicative.
The SHA-256 digest of "kind:word:word" (German dictionary forms) sends 5% of all combinations to
"valid" and another 5% to "test". A training sentence holds no combination of either; a sentence
of "valid" holds at least one of "valid" and none of "test", and the other way round. So every
single word is trained on, while what is tested is putting known words together anew.
"""

from collections.abc import Iterator
from functools import cache
from hashlib import sha256
from itertools import islice
from typing import NamedTuple

from flaxattn.translation.builtin import english, german
from flaxattn.translation.builtin.meaning import Clause, Gap, It, NounPhrase, Sentence
from flaxattn.translation.builtin.phrases import Dice
from flaxattn.translation.builtin.sentences import draw_sentence

SPLITS = ("train", "valid", "test")
LONGEST = 18  # words, in either language
LARGEST_COUNT = 1_000_000
TRIES_PER_PAIR = 1_000

Combination = tuple[str, str, str]


class Example(NamedTuple):
    """A sentence in both languages and what it means."""

    english: str
    german: str
    meaning: Sentence


def pairs(split: str, count: int, *, seed: int = 0) -> list[tuple[str, str]]:
    """`count` distinct (English, German) sentence pairs of split "train", "valid" or "test"."""
    return [example[:2] for example in examples(split, count, seed=seed)]


def examples(split: str, count: int, *, seed: int = 0) -> list[Example]:
    """The same pairs, each with its meaning."""
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, not {split!r}")
    if not 0 <= count <= LARGEST_COUNT:
        raise ValueError(f"count must be between 0 and {LARGEST_COUNT}, not {count}")
    drawn = _draw_distinct(Dice(f"{split} {seed}"), split, tries=TRIES_PER_PAIR * count)
    found = list(islice(drawn, count))
    if len(found) < count:
        raise ValueError(f"count is too large: found only {len(found)} of {count} pairs")
    return found


def _draw_distinct(dice: Dice, split: str, tries: int) -> Iterator[Example]:
    """Sentences of the split until `tries` are used up; none longer than `LONGEST`."""
    seen = set()
    for _ in range(tries):
        meaning = draw_sentence(dice)
        if split_of(meaning) != split:
            continue
        example = Example(english.sentence(meaning), german.sentence(meaning), meaning)
        if example.english not in seen and _is_short(example):
            seen.add(example.english)
            yield example


def _is_short(example: Example) -> bool:
    return max(example.english.count(" "), example.german.count(" ")) < LONGEST


def split_of(meaning: Sentence) -> str | None:
    """The split a sentence belongs to; None if it mixes combinations of "valid" and "test"."""
    held_out = {combination_split(*found) for found in combinations(meaning)} - {"train"}
    if len(held_out) > 1:
        return None
    return held_out.pop() if held_out else "train"


@cache
def combination_split(kind: str, first: str, second: str) -> str:
    """The split in which a combination of two words occurs: 5% each are held out."""
    digest = sha256(f"{kind}:{first}:{second}".encode()).digest()
    share = int.from_bytes(digest[:4], "big") % 20
    return {0: "valid", 1: "test"}.get(share, "train")


def combinations(meaning: Sentence) -> Iterator[Combination]:
    """The combinations of content words in a sentence, by their German dictionary forms."""
    yield from _in_clause(meaning.main)
    if meaning.linked:
        yield from _in_clause(meaning.linked)


def _in_clause(clause: Clause) -> Iterator[Combination]:
    verb = clause.verb.infinitive
    subject, place = clause.subject, clause.place and clause.place.nominal
    governed = (clause.object, clause.recipient, place if clause.verb.goals else None)
    if isinstance(subject, NounPhrase | Gap | It):
        yield "subject", subject.noun.german, verb
        if clause.predicate:
            yield "adjective", clause.predicate.german, subject.noun.german
    for phrase in governed:
        if isinstance(phrase, NounPhrase | Gap | It):
            yield "object", verb, phrase.noun.german
    for phrase in (subject, *governed, place, clause.company and clause.company.nominal):
        if isinstance(phrase, NounPhrase):
            yield from _in_noun_phrase(phrase)


def _in_noun_phrase(phrase: NounPhrase) -> Iterator[Combination]:
    if phrase.adjective:
        yield "adjective", phrase.adjective.german, phrase.noun.german
    if isinstance(phrase.possessor, NounPhrase):
        yield from _in_noun_phrase(phrase.possessor)
    if phrase.relative:
        yield from _in_clause(phrase.relative)
