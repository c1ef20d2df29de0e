"""Built-in texts of the tasks: probabilities are true, context alone decides, splits are apart."""

import collections
import functools
import hashlib
import itertools
import math
import re

import pytest

from flaxattn.tasks.builtin import classification, draws, labelling, language
from flaxattn.tasks.builtin import words as lex
from flaxattn.tasks.metrics import entity_scores

COUNTS = {"train": 2_000, "valid": 400, "test": 400}
SPLITS = tuple(COUNTS)
CORPORA = {
    "language": language.texts,
    "labelling": labelling.sentences,
    "classification": classification.texts,
}
CHECKSUMS = {
    "language": "cdfdbe4dc4450157dac639abddaefa26039f23de32e011de890aa1b2fb1d3d3e",
    "labelling": "b74a4c9dac57892e6814b4c655bdbdbb2e1d2955a553176ff35df76bc411fd26",
    "classification": "447dd4ba59e4f3d866e6a16220496bc24562890d6a54ac93c02a641dc4b3a8ed",
}


@functools.cache
def drawn(name, split, count):
    return CORPORA[name](split, count)


@pytest.mark.parametrize("name", CORPORA)
def test_texts_are_the_same_everywhere(name):
    texts = [
        text if name != "language" else text[0]
        for split in SPLITS
        for text in CORPORA[name](split, 50, seed=3)
    ]
    assert hashlib.sha256(repr(texts).encode()).hexdigest() == CHECKSUMS[name]
    assert CORPORA[name]("valid", 20, seed=3) == CORPORA[name]("valid", 50, seed=3)[:20]
    assert CORPORA[name]("valid", 20, seed=4) != CORPORA[name]("valid", 20, seed=3)


@pytest.mark.parametrize("name", CORPORA)
def test_what_cannot_be_drawn(name):
    with pytest.raises(ValueError, match="one of train, valid, test, not 'dev'"):
        CORPORA[name]("dev", 1)
    with pytest.raises(ValueError, match="count must be between 0 and 1000000, not -1"):
        CORPORA[name]("train", -1)
    assert CORPORA[name]("train", 0) == []


@pytest.mark.parametrize("name", ["labelling", "classification"])
def test_no_text_is_in_two_splits_or_comes_twice(name):
    texts = [text for split in SPLITS for text in drawn(name, split, COUNTS[split])]
    assert len(set(texts)) == len(texts)


def split_of(first, second):
    """Where a combination belongs: 6% to "valid" and 6% to "test"."""
    share = int(hashlib.sha256(f"{first}-{second}".encode()).hexdigest()[:8], 16) % 100
    return "valid" if share < 6 else "test" if share < 12 else "train"


@pytest.mark.parametrize("split", SPLITS)
def test_combinations_of_splits_are_apart(split):
    def draw(dice):
        decisive, others = ({(dice.pick("abcdef"), dice.pick("uvwxyz"))} for _ in range(2))
        return draws.Drawn((*decisive, *others), decisive, others)

    for decisive, other in draws.examples(split, 30, 0, draw):
        assert split_of(*decisive) == split
        assert split_of(*other) in (split, "train")


def test_more_texts_than_there_are():
    with pytest.raises(ValueError, match="found only 1 of 2 texts"):
        draws.examples("train", 2, 0, lambda _: draws.Drawn(("a",), [("one", "text")]))


# Language: all derivations of a text are found by trying every rule at every word.


def words_of(text):
    """Words and signs; the first of a sentence in lower case, unless it is a name."""
    names = {noun.singular for noun in lex.NAMES}
    words = re.findall(r"\w+|\S", text)
    return [word if word in names else word.lower() for word in words]


def forms(verb):
    return {f"{verb}s", f"{verb}es"}


class Derivations:
    """The (end, probability) of every way in which a part of the grammar gives words from `at` on.

    Of noun phrases, the noun and whether it is plural come with them.
    """

    def __init__(self, words):
        self.words = [*words, "", ""]
        self.phrases = functools.cache(lambda at, depth: [*self._phrases(at, depth)])

    def _heads(self, at):
        for plural, determiners in language.DETERMINERS.items():
            if self.words[at] not in determiners:
                continue
            p = (language.PLURAL if plural else 1 - language.PLURAL) / len(determiners)
            p /= len(lex.NOUNS)
            for given in {False, self.words[at + 1] in lex.ADJECTIVES}:
                p_given = language.ADJECTIVE / len(lex.ADJECTIVES)
                for noun in lex.NOUNS:
                    if self.words[at + 1 + given] == noun[plural]:
                        q = p * (p_given if given else 1 - language.ADJECTIVE)
                        yield at + 2 + given, q, noun, plural

    def _phrases(self, at, depth):
        modified = language.MODIFIED[depth]
        for end, p, noun, plural in self._heads(at):
            yield end, p * (1 - modified), noun, plural
            if modified and self.words[end] in lex.PREPOSITIONS:
                q = p * modified * language.PREPOSITION / len(lex.PREPOSITIONS)
                for last, r, *_ in self.phrases(end + 1, depth + 1):
                    yield last, q * r, noun, plural
            if modified and self.words[end] == "that":
                q = p * modified * (1 - language.PREPOSITION)
                for last, r in self.predicates(end + 1, noun, plural, depth + 1):
                    yield last, q * language.OF_SUBJECT * r, noun, plural
                for last, r, *doing in self.phrases(end + 1, depth + 1):
                    r *= self.verb(last, lex.TRANSITIVE, *doing)
                    if r:
                        yield last + 1, q * (1 - language.OF_SUBJECT) * r, noun, plural

    def verb(self, at, verbs, noun, plural):
        fitting = [v for v in verbs[noun.kind] if self.words[at] in ({v} if plural else forms(v))]
        return len(fitting) / len(verbs[noun.kind])

    def predicates(self, at, noun, plural, depth):
        deeper = min(depth + 1, 3)
        if self.words[at] == ("are" if plural else "is"):
            if self.words[at + 1] in lex.ADJECTIVES:
                yield at + 2, language.COPULA * language.QUALITY / len(lex.ADJECTIVES)
            if self.words[at + 1] in lex.PREPOSITIONS:
                p = language.COPULA * (1 - language.QUALITY) / len(lex.PREPOSITIONS)
                for end, q, *_ in self.phrases(at + 2, deeper):
                    yield end, p * q
        p = (1 - language.COPULA) * language.ALONE
        if q := self.verb(at, lex.INTRANSITIVE, noun, plural):
            yield at + 1, p * q
        p = (1 - language.COPULA) * (1 - language.ALONE)
        if q := self.verb(at, lex.TRANSITIVE, noun, plural):
            own = {"he": "himself", "she": "herself", "it": "itself"}[noun.pronoun]
            if self.words[at + 1] == ("themselves" if plural else own):
                yield at + 2, p * q * language.REFLEXIVE
            for end, r, *_ in self.phrases(at + 1, deeper):
                yield end, p * q * (1 - language.REFLEXIVE) * r

    def asides(self, at, noun, plural, depth):
        share = language.ASIDE[depth]
        yield at, 1 - share
        closing = {"(": ")", "[": "]"}.get(self.words[at])
        if share and closing:
            subjects = [(end, (1 - language.ENCLOSED) * p, *who)
                        for end, p, *who in self.phrases(at + 1, 1)]  # fmt: skip
            if self.words[at + 1] == ("they" if plural else noun.pronoun):
                subjects.append((at + 2, language.ENCLOSED, noun, plural))
            for subject in subjects:
                for end, p in self.clauses(*subject, depth + 1):
                    if self.words[end] == closing:
                        yield end + 1, share / 2 * p

    def clauses(self, at, p, noun, plural, depth):
        for middle, q in self.asides(at, noun, plural, depth):
            for end, r in self.predicates(middle, noun, plural, 0):
                for last, s in self.asides(end, noun, plural, depth):
                    yield last, p * q * r * s

    def later_subjects(self, at, first, plural):
        for end, p, *who in self.phrases(at, 0):
            yield end, (1 - language.REFERRING) * p, *who
        named = first in lex.NAMES
        if self.words[at] == ("they" if plural else first.pronoun):
            share = 1 - language.REPEATED if named else 1
            yield at + 1, language.REFERRING * share, first, plural
        if named and self.words[at] == first.singular:
            yield at + 1, language.REFERRING * language.REPEATED, first, plural

    def documents(self):
        """The probability of every derivation of all words."""
        firsts = [(end, (1 - language.NAMED) * p, *who) for end, p, *who in self.phrases(0, 0)]
        firsts += [
            (1, language.NAMED / len(lex.NAMES), name, False)
            for name in lex.NAMES
            if self.words[0] == name.singular
        ]
        for end, p, first, plural in firsts:
            for middle, q in self.clauses(end, p, first, plural, 0):
                yield from self._rest(middle, q, first, plural, 1)

    def _rest(self, at, p, first, plural, count):
        if self.words[at] != "." or count > 4:
            return
        if at + 1 == len(self.words) - 2:
            yield p / 4
        for end, q, *who in self.later_subjects(at + 1, first, plural):
            for last, r in self.clauses(end, q, *who, 0):
                yield from self._rest(last, p * r, first, plural, count + 1)


def test_every_text_has_one_derivation_of_the_probability_that_is_told():
    for text, log_prob in drawn("language", "test", 1_000):
        (probability,) = Derivations(words_of(text)).documents()
        assert math.isclose(math.log(probability), log_prob, rel_tol=1e-9), text


@pytest.mark.parametrize(
    "text, count",
    [
        ("Mary sleeps.", 1),
        ("Mary sleep.", 0),
        ("The king near the boxes sleeps.", 1),
        ("The king near the boxes rust.", 0),
        ("The boxes that the king sees (they are red) rust. They shine.", 1),
        ("The boxes that the king sees (they are red] rust.", 0),
        ("The boxes that the king sees (they are red [it shines) ].", 0),
        ("The queen sees herself. He sings.", 0),
        ("Mary sings. Helen sings.", 0),
    ],
)
def test_what_the_grammar_gives(text, count):
    assert len([*Derivations(words_of(text)).documents()]) == count


def test_a_probability_by_hand_and_by_counting():
    # A name, no aside twice, neither "is" nor an object, one of eight verbs, one sentence of four.
    share = 0.5 * 0.8**2 * (1 - 0.2) * 0.4 / 4
    texts = drawn("language", "train", 4_000)
    short = [p for text, p in texts if re.fullmatch(r"(?!The|A|This)\w+ \w+s\.", text)]
    assert set(map(lambda p: round(p, 9), short)) == {round(math.log(share / 12 / 8), 9)}
    assert abs(len(short) - share * 4_000) < 4 * math.sqrt(share * 4_000)


def test_documents_are_written_as_english_is():
    for text, _ in drawn("language", "test", 1_000):
        assert text[-1] == "." and not re.search(
            r"  |[(\[] | [)\].]|\w[(\[]|[)\]]\w|\. [a-z]", text
        )


def test_the_vocabulary_is_small_and_the_entropy_is_known():
    texts = drawn("language", "train", 4_000)
    words = [word for text, _ in texts for word in words_of(text)]
    assert 150 <= len(set(words)) <= 250
    assert -sum(p for _, p in texts) / len(words) == pytest.approx(2.45, abs=0.03)


# Labelling.


def test_tags_are_bio_and_what_is_not_a_name_is_outside():
    for words, tags in drawn("labelling", "train", 2_000):
        assert len(words) == len(tags) and not any(" " in word for word in words)
        for before, tag, word in zip(("O", *tags), tags, words, strict=False):
            assert not tag.startswith("I-") or before[2:] == tag[2:]
            assert (tag[0] == "B") == (word in labelling.NAMES)
            assert tag == "O" or word[0].isupper()


def test_names_follow_each_other_and_their_words_occur_in_lower_case():
    sentences = drawn("labelling", "train", 2_000)
    after = collections.Counter(pair for _, tags in sentences for pair in itertools.pairwise(tags))
    assert after["I-LOC", "B-LOC"] > 5 and after["I-LOC", "B-ORG"] > 5
    lower = {word for words, tags in sentences for word in words if word in labelling.LANDS}
    assert lower == {*labelling.LANDS}


def test_the_context_decides_what_names_are():
    """Sentences that differ in the first words of names alone have the same tags."""
    seen, again = {}, 0
    for words, tags in drawn("labelling", "train", 4_000):
        masked = tuple("*" if word in labelling.NAMES else word for word in words)
        again += masked in seen
        assert seen.setdefault(masked, tags) == tags
    assert again > 200


def test_names_themselves_tell_little():
    seen = collections.defaultdict(collections.Counter)
    for words, tags in drawn("labelling", "train", 4_000):
        for word, tag in zip(words, tags, strict=True):
            seen[word][tag] += 1
    for name in labelling.NAMES:
        assert min(seen[name][f"B-{kind}"] for kind in labelling.KINDS) > 40
    test = drawn("labelling", "test", 400)
    guess = [[max(seen[word], key=seen[word].get) for word in words] for words, _ in test]
    assert entity_scores([tags for _, tags in test], guess).micro.f1 < 0.35


def test_names_and_predicates_of_splits_are_apart():
    predicates = {*(p for of_kind in labelling.PREDICATES.values() for p in of_kind)}

    def pairs(split):
        for words, _ in drawn("labelling", split, COUNTS[split]):
            rest = [word for word in words[1:-1] if word.lower() not in labelling.LANDS]
            if words[0] in labelling.NAMES and " ".join(rest) in predicates:
                yield words[0], " ".join(rest)

    found = [set(pairs(split)) for split in SPLITS]
    assert len(found[0]) > 100 and min(map(len, found)) > 10
    assert len(set.union(*found)) == sum(map(len, found))


# Classification: the label by rule.

OPINIONS = {word: label for label, words in classification.ADJECTIVES.items() for word in words}
FLIPPED = {"praised": "blamed", "blamed": "praised", "unsaid": "unsaid"}
SAID = r"was (?:(not|never) )?(\w+) [\w ]+"
ASIDE = r"was (?:not |never )?\w+ [\w ]+"
CLAUSES = [  # with the main one called so
    rf"the (\w+) {SAID}(?:, although|; of course) the \w+ {ASIDE}",
    rf"although the \w+ {ASIDE}, the (\w+) {SAID}",
    rf"since the \w+ {ASIDE}, it seems that the (\w+) {SAID}",
    rf"the (\w+), of which the \w+ says that the \w+ {ASIDE}, {SAID}",
    rf"the (\w+) that the \w+ [\w ]+ when the \w+ was .* {SAID}",
]


def by_rule(text):
    """What the main clause is of, the word that decides, and the label."""
    text = text.rstrip(".").lower().replace("swiss", "Swiss")
    (found,) = [m for m in (re.fullmatch(clause, text) for clause in CLAUSES) if m]
    thing, denied, word = found.groups()
    return thing, word, FLIPPED[OPINIONS[word]] if denied else OPINIONS[word]


def test_labels_follow_by_rule():
    labels = collections.Counter()
    for split in SPLITS:
        for label, text in drawn("classification", split, COUNTS[split]):
            assert by_rule(text)[2] == label, text
            labels[label] += 1
    assert min(labels.values()) > 400


def test_things_and_opinions_of_splits_are_apart():
    found = [
        {by_rule(text)[:2] for _, text in drawn("classification", split, COUNTS[split])}
        for split in SPLITS
    ]
    assert len(set.union(*found)) == sum(map(len, found)) and len(found[0]) > 300


@pytest.mark.filterwarnings("ignore:scipy.optimize:DeprecationWarning")  # of scikit-learn 1.7
def test_a_bag_of_words_fails():
    text = pytest.importorskip("sklearn.feature_extraction.text")
    linear = pytest.importorskip("sklearn.linear_model")
    (labels, texts), (wanted, unseen) = (
        zip(*drawn("classification", split, COUNTS[split]), strict=True)
        for split in ("train", "test")
    )
    for longest in (1, 2):
        bag = text.CountVectorizer(ngram_range=(1, longest))
        model = linear.LogisticRegression(max_iter=1_000).fit(bag.fit_transform(texts), labels)
        assert model.score(bag.transform(unseen), wanted) < 0.65
