"""The corpus: sentence pairs in three splits that differ in their combinations of words.

Every sentence combines content words: a subject noun with its verb (the copula aside), a verb
with a noun it governs (object, recipient or goal), an adjective with its noun, attributive or
predicative. The SHA-256 digest of a combination, written "object-lesen-Buch" in German dictionary
forms, sends 4% of all combinations to "valid" and another 4% to "test". A training sentence holds
no combination of either; a sentence of "valid" holds at least one of "valid" and none of "test",
and the other way round. So every single word is trained on, while what is tested is putting known
words together anew.
"""

from collections.abc import Iterator
from functools import cache
from hashlib import sha256
from itertools import islice
from typing import NamedTuple

from flaxattn.translation.text.builtin import english, german
from flaxattn.translation.text.builtin.grammar import Dice, draw_sentence
from flaxattn.translation.text.builtin.lexicon import BE
from flaxattn.translation.text.builtin.meaning import Clause, Gap, NounPhrase, Sentence

SPLITS = ("train", "valid", "test")
LONGEST = 16  # words, in either language
LARGEST_COUNT = 1_000_000
TRIES_PER_PAIR = 1_000


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
    clauses = (meaning.main, meaning.linked) if meaning.linked else (meaning.main,)
    found = {combination_split(*each) for clause in clauses for each in _combinations(clause)}
    held_out = found - {"train"}
    if len(held_out) > 1:
        return None
    return held_out.pop() if held_out else "train"


@cache
def combination_split(kind: str, first: str, second: str) -> str:
    """The split in which a combination of two words occurs: 4% each are held out."""
    digest = sha256(f"{kind}-{first}-{second}".encode()).digest()
    share = int.from_bytes(digest[:4], "big") % 25
    return {0: "valid", 1: "test"}.get(share, "train")


def _combinations(clause: Clause) -> Iterator[tuple[str, str, str]]:
    verb, subject, predicate = clause.verb, clause.subject, clause.predicate
    governed = (clause.object, clause.recipient, clause.place if verb.goals else None)
    if isinstance(subject, NounPhrase | Gap):
        if predicate:
            yield "adjective", predicate.german, subject.noun.german
        if verb is not BE:
            yield "subject", subject.noun.german, verb.infinitive
    for phrase in governed:
        if isinstance(phrase, NounPhrase | Gap):
            yield "object", verb.infinitive, phrase.noun.german
    for phrase in (subject, *governed[:2], clause.place, clause.company):
        if isinstance(phrase, NounPhrase):
            if phrase.adjective:
                yield "adjective", phrase.adjective.german, phrase.noun.german
            if phrase.relative:
                yield from _combinations(phrase.relative)
