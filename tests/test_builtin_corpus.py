"""The built-in corpus: its German is right, its splits hold combinations of words apart."""

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache

import pytest

from flaxattn.translation.text.builtin import corpus, english, german, pairs
from flaxattn.translation.text.builtin import lexicon as lex
from flaxattn.translation.text.builtin.corpus import Example, examples
from flaxattn.translation.text.builtin.grammar import Dice, draw_sentence
from flaxattn.translation.text.builtin.meaning import Clause, Gap, Nominal, NounPhrase, Sentence

CHECKSUM = "25437f968497fb455dfe93bb248e55376144a60d23149174b5d1bd009c446f79"

NOUN = {noun.english: noun for noun in lex.NOUNS}
ADJECTIVE = {adjective.english: adjective for adjective in lex.ADJECTIVES}
VERB = {verb.english: verb for verb in lex.VERBS}


def np(
    noun: str,
    determiner: lex.Word = lex.THE,
    quality: str = "",
    number: lex.Number = "singular",
    relative: Clause | None = None,
) -> NounPhrase:
    adjective = ADJECTIVE[quality] if quality else None
    return NounPhrase(NOUN[noun], determiner, number, adjective, relative)


def nps(noun: str, determiner: lex.Word = lex.THE, quality: str = "") -> NounPhrase:
    return np(noun, determiner, quality, "plural")


def at(preposition: lex.Word, noun: str, determiner: lex.Word = lex.THE, quality: str = "",
       number: lex.Number = "singular") -> NounPhrase:  # fmt: skip
    return NounPhrase(
        NOUN[noun], determiner, number, ADJECTIVE.get(quality), preposition=preposition
    )


def gap(noun: str, number: lex.Number = "singular") -> Gap:
    return Gap(NOUN[noun], number)


def says(
    subject: Nominal,
    verb: str,
    object: Nominal | None = None,
    *,
    to: Nominal | None = None,
    tense: lex.Tense = "present",
    modal: lex.Word | None = None,
    negated: bool = False,
    time: lex.Word | None = None,
    company: NounPhrase | None = None,
    place: NounPhrase | None = None,
) -> Clause:
    """A clause, with its verb named by the English infinitive."""
    return Clause(
        subject, VERB[verb], object, to, None, tense, modal, negated, time, company, place
    )


def is_(subject: Nominal, quality: str, tense: lex.Tense = "present", **more: bool) -> Clause:
    return Clause(subject, lex.BE, predicate=ADJECTIVE[quality], tense=tense, **more)


MAN, WOMAN, CHILD, BOOK = np("man"), np("woman"), np("child"), np("book")
THE, A, MY, HIS, HER = lex.THE, lex.A, lex.MY, lex.HIS, lex.HER

TRANSLATIONS: list[tuple[Clause | Sentence, str, str]] = [
    # Verb second, with the subject or the time in front.
    (
        says(np("man", quality="old"), "read", BOOK, time=lex.TODAY),
        "The old man reads the book today.",
        "Der alte Mann liest heute das Buch.",
    ),
    (
        Sentence(says(np("man", quality="old"), "read", BOOK, time=lex.TODAY), topical_time=True),
        "Today the old man reads the book.",
        "Heute liest der alte Mann das Buch.",
    ),
    # Articles and adjectives: weak, mixed, strong.
    (
        says(np("dog", A, "small"), "see", np("horse", A, "old")),
        "A small dog sees an old horse.",
        "Ein kleiner Hund sieht ein altes Pferd.",
    ),
    (
        says(lex.I, "eat", np("apple", A, "cold")),
        "I eat a cold apple.",
        "Ich esse einen kalten Apfel.",
    ),
    (
        says(lex.WE, "drink", np("water", A, "cold")),
        "We drink cold water.",
        "Wir trinken kaltes Wasser.",
    ),
    (
        says(lex.THEY, "buy", nps("lamp", A, "red")),
        "They buy red lamps.",
        "Sie kaufen rote Lampen.",
    ),
    (
        says(nps("girl", MY, "tired"), "need", np("bag", HER, "new")),
        "My tired girls need her new bag.",
        "Meine müden Mädchen brauchen ihre neue Tasche.",
    ),
    # The n-declension, dative objects, dative plurals, two objects.
    (
        says(np("boy"), "call", np("student", quality="young")),
        "The boy calls the young student.",
        "Der Junge ruft den jungen Studenten an.",
    ),
    (says(MAN, "help", to=np("boy")), "The man helps the boy.", "Der Mann hilft dem Jungen."),
    (
        says(np("doctor"), "thank", to=nps("child", quality="good"), time=lex.NOW),
        "The doctor thanks the good children now.",
        "Der Arzt dankt den guten Kindern jetzt.",
    ),
    (
        says(MAN, "give", BOOK, to=CHILD, tense="past", time=lex.YESTERDAY),
        "The man gave the child the book yesterday.",
        "Der Mann hat dem Kind gestern das Buch gegeben.",
    ),
    (
        says(np("sister", HIS), "show", np("key", A), to=lex.I),
        "His sister shows me a key.",
        "Seine Schwester zeigt mir einen Schlüssel.",
    ),
    (
        says(WOMAN, "visit", lex.THEY, tense="past", time=lex.EVENING),
        "The woman visited them in the evening.",
        "Die Frau hat sie am Abend besucht.",
    ),
    # Separable verbs, modals, the perfect with "haben" and "sein".
    (
        says(WOMAN, "open", np("window"), time=lex.MORNING),
        "The woman opens the window in the morning.",
        "Die Frau macht am Morgen das Fenster auf.",
    ),
    (
        says(np("friend", MY), "get up", modal=lex.MUST, time=lex.NOW),
        "My friend must get up now.",
        "Mein Freund muss jetzt aufstehen.",
    ),
    (
        says(lex.HE, "look for", np("car"), modal=lex.WANT),
        "He wants to look for the car.",
        "Er will das Auto suchen.",
    ),
    (says(lex.I, "shop", tense="past"), "I shopped.", "Ich habe eingekauft."),
    (says(lex.SHE, "get up", tense="past"), "She got up.", "Sie ist aufgestanden."),
    # Places take the dative, goals the accusative; contractions.
    (
        says(CHILD, "sleep", place=at(lex.IN, "garden")),
        "The child sleeps in the garden.",
        "Das Kind schläft im Garten.",
    ),
    (
        says(lex.WE, "go", place=at(lex.INTO, "kitchen", quality="cold"), tense="past"),
        "We went into the cold kitchen.",
        "Wir sind in die kalte Küche gegangen.",
    ),
    (
        says(lex.I, "come", place=at(lex.INTO, "house")),
        "I come into the house.",
        "Ich komme ins Haus.",
    ),
    (
        says(np("dog"), "come", place=at(lex.TO, "station", quality="old")),
        "The dog comes to the old station.",
        "Der Hund kommt zum alten Bahnhof.",
    ),
    (
        says(lex.THEY, "work", company=at(lex.WITH, "friend", A, number="plural"),
             place=at(lex.AT, "station"), time=lex.TODAY),
        "They work with friends at the station today.",
        "Sie arbeiten heute mit Freunden am Bahnhof.",
    ),
    # Negation: nicht, kein, do-support.
    (
        says(MAN, "close", np("door"), negated=True),
        "The man does not close the door.",
        "Der Mann macht die Tür nicht zu.",
    ),
    (
        says(WOMAN, "buy", np("suitcase", A, "big"), negated=True, tense="past"),
        "The woman did not buy a big suitcase.",
        "Die Frau hat keinen großen Koffer gekauft.",
    ),
    (
        says(lex.I, "need", nps("egg", A), negated=True),
        "I do not need eggs.",
        "Ich brauche keine Eier.",
    ),
    (
        says(lex.SHE, "dance", company=at(lex.WITH, "boy", HER), modal=lex.CAN, negated=True,
             time=lex.TODAY),
        "She cannot dance with her boy today.",
        "Sie kann heute nicht mit ihrem Jungen tanzen.",
    ),
    (
        says(lex.THEY, "call", lex.HE, modal=lex.WANT, negated=True),
        "They do not want to call him.",
        "Sie wollen ihn nicht anrufen.",
    ),
    # The copula.
    (is_(lex.I, "tired"), "I am tired.", "Ich bin müde."),
    (is_(nps("apple"), "good", "past"), "The apples were good.", "Die Äpfel waren gut."),
    (is_(MAN, "friendly", negated=True), "The man is not friendly.",
     "Der Mann ist nicht freundlich."),
    # Subordinate clauses end in their verbs.
    (
        Sentence(says(lex.HE, "sleep"), conjunction=lex.BECAUSE, linked=is_(lex.HE, "tired")),
        "He sleeps because he is tired.",
        "Er schläft, weil er müde ist.",
    ),
    (
        Sentence(
            says(MAN, "thank", to=lex.WE, tense="past"),
            conjunction=lex.BECAUSE,
            linked=says(lex.WE, "help", to=CHILD, tense="past"),
        ),
        "The man thanked us because we helped the child.",
        "Der Mann hat uns gedankt, weil wir dem Kind geholfen haben.",
    ),
    (
        Sentence(
            says(lex.I, "open", np("door")),
            conjunction=lex.IF,
            linked=says(np("doctor"), "call", lex.I),
            linked_first=True,
        ),
        "If the doctor calls me, I open the door.",
        "Wenn der Arzt mich anruft, mache ich die Tür auf.",
    ),
    (
        Sentence(
            says(nps("student"), "know"),
            conjunction=lex.THAT,
            linked=says(lex.SHE, "drink", np("milk", A), modal=lex.WANT),
        ),
        "The students know that she wants to drink milk.",
        "Die Studenten wissen, dass sie Milch trinken will.",
    ),
    (
        Sentence(says(lex.I, "know"), conjunction=lex.THAT, linked=says(CHILD, "sing")),
        "I know that the child sings.",
        "Ich weiß, dass das Kind singt.",
    ),
    # Relative clauses, in the cases of their pronoun.
    (
        says(np("man", relative=says(gap("man"), "read", BOOK)), "sleep"),
        "The man who reads the book sleeps.",
        "Der Mann, der das Buch liest, schläft.",
    ),
    (
        says(lex.I, "call", np("man", relative=says(np("dog"), "see", gap("man"))), tense="past"),
        "I called the man whom the dog sees.",
        "Ich habe den Mann angerufen, den der Hund sieht.",
    ),
    (
        says(lex.WE, "buy", np("bag", A, relative=says(lex.HE, "open", gap("bag")))),
        "We buy a bag that he opens.",
        "Wir kaufen eine Tasche, die er aufmacht.",
    ),
    (
        says(
            NounPhrase(NOUN["child"], number="plural",
                       relative=says(lex.WE, "help", to=gap("child", "plural"))),
            "sing",
        ),
        "The children whom we help sing.",
        "Die Kinder, denen wir helfen, singen.",
    ),
    # Questions.
    (
        Sentence(says(np("boy"), "open", np("window"), tense="past"), question=True),
        "Did the boy open the window?",
        "Hat der Junge das Fenster aufgemacht?",
    ),
    (
        Sentence(says(lex.SHE, "shop", modal=lex.CAN, time=lex.TODAY), question=True),
        "Can she shop today?",
        "Kann sie heute einkaufen?",
    ),
    (Sentence(is_(np("milk"), "cold"), question=True), "Is the milk cold?", "Ist die Milch kalt?"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("meaning", "source", "target"), TRANSLATIONS, ids=[row[1] for row in TRANSLATIONS]
)
def test_translations(meaning: Clause | Sentence, source: str, target: str) -> None:
    sentence = Sentence(meaning) if isinstance(meaning, Clause) else meaning
    assert (english.sentence(sentence), german.sentence(sentence)) == (source, target)


@pytest.mark.parametrize(
    ("phrase", "forms"),
    [
        (np("dog", quality="old"), "der alte Hund|den alten Hund|dem alten Hund"),
        (np("boy", HIS), "sein Junge|seinen Jungen|seinem Jungen"),
        (np("child", A, "small"), "ein kleines Kind|ein kleines Kind|einem kleinen Kind"),
        (np("woman", A, "tired"), "eine müde Frau|eine müde Frau|einer müden Frau"),
        (np("coffee", A, "good"), "guter Kaffee|guten Kaffee|gutem Kaffee"),
        (nps("friend", A, "old"), "alte Freunde|alte Freunde|alten Freunden"),
        (nps("car", MY, "red"), "meine roten Autos|meine roten Autos|meinen roten Autos"),
        (nps("egg", lex.KEIN, "cold"), "keine kalten Eier|keine kalten Eier|keinen kalten Eiern"),
    ],
)
def test_declension(phrase: NounPhrase, forms: str) -> None:
    cases: tuple[lex.Case, ...] = ("nominative", "accusative", "dative")
    assert [german._nominal(phrase, case) for case in cases] == forms.split("|")


def walk(value: object) -> Iterator[object]:
    """The nodes and words of a meaning."""
    yield value
    if isinstance(value, Sentence | Clause | NounPhrase | Gap):
        for field in vars(value).values():
            if field is not None:
                yield from walk(field)


@cache
def sample(split: str) -> list[Example]:
    return examples(split, 20_000 if split == "train" else 1_000)


@cache
def clauses(example: Example) -> list[Clause]:
    return [part for part in walk(example.meaning) if isinstance(part, Clause)]


def test_translation_is_a_function() -> None:
    dice = Dice("function")
    translations: dict[str, str] = {}
    for _ in range(20_000):
        meaning = draw_sentence(dice)
        target = german.sentence(meaning)
        assert translations.setdefault(english.sentence(meaning), target) == target


def test_the_same_pairs_everywhere() -> None:
    text = "\n".join("\t".join(pair) for pair in pairs("train", 200))
    assert hashlib.sha256(text.encode()).hexdigest() == CHECKSUM


def test_a_longer_corpus_begins_with_the_shorter() -> None:
    assert pairs("valid", 60, seed=3)[:20] == pairs("valid", 20, seed=3)
    assert pairs("valid", 20, seed=3) != pairs("valid", 20, seed=4)
    assert pairs("test", 0) == []


@pytest.mark.thorough
def test_sentences_are_distinct_short_and_well_formed() -> None:
    found = sample("train") + sample("valid") + sample("test")
    assert len({example.english for example in found}) == len(found)
    for example in found:
        for text in example[:2]:
            assert re.fullmatch(r"[A-ZÄÖÜ][\wäöüß]*(,? [\wÄÖÜäöüß]+)*[.?]", text), text
            assert 2 <= len(text.split()) <= corpus.LONGEST


def held_out_by(example: Example) -> set[str]:
    """The splits named by the digests of a sentence's combinations, worked out anew."""
    splits: set[str] = set()
    for clause in clauses(example):
        name = clause.verb.particle + clause.verb.german
        subject = getattr(clause.subject, "noun", None)
        goal = clause.place if clause.verb.goals else None
        governed = [getattr(it, "noun", None) for it in (clause.object, clause.recipient, goal)]
        splits.update(digest_split(f"object-{name}-{word.german}") for word in governed if word)
        if subject and clause.verb is not lex.BE:
            splits.add(digest_split(f"subject-{subject.german}-{name}"))
        if subject and clause.predicate:
            splits.add(digest_split(f"adjective-{clause.predicate.german}-{subject.german}"))
    for phrase in walk(example.meaning):
        if isinstance(phrase, NounPhrase) and phrase.adjective:
            splits.add(digest_split(f"adjective-{phrase.adjective.german}-{phrase.noun.german}"))
    return splits - {"train"}


@cache
def digest_split(key: str) -> str:
    share = int(hashlib.sha256(key.encode()).hexdigest()[:8], 16) % 25
    return ("valid", "test", *["train"] * 23)[share]


def test_splits_hold_out_combinations() -> None:
    for split in corpus.SPLITS:
        expected = {split} - {"train"}
        assert all(held_out_by(example) == expected for example in sample(split)[:6_000])


def test_every_word_is_trained_on() -> None:
    seen = Counter(id(part) for example in sample("train") for part in walk(example.meaning))
    closed = [it for it in vars(lex).values() if isinstance(it, lex.Word | lex.Pronoun)]
    words = (*lex.NOUNS, *lex.VERBS, *lex.ADJECTIVES, *closed)
    assert [word for word in words if seen[id(word)] < 50 and word is not lex.KEIN] == []
    text = Counter(word for example in sample("train") for word in example.english.split())
    plurals = [noun.english_plural for noun in lex.NOUNS if noun.countable]
    assert [plural for plural in plurals if text[plural] < 20] == []


Check = Callable[[Example], object]


def clause(test: Callable[[Clause], object]) -> Check:
    return lambda example: any(map(test, clauses(example)))


def phrase(test: Callable[[NounPhrase], object]) -> Check:
    return lambda example: any(
        isinstance(part, NounPhrase) and test(part) for part in walk(example.meaning)
    )


def links(conjunction: lex.Word) -> Check:
    return lambda example: example.meaning.conjunction is conjunction


def text(pattern: str, language: int) -> Check:
    return lambda example: re.search(pattern, example[language])


ENGLISH, GERMAN = 0, 1
PHENOMENA: dict[str, Check] = {
    "plural": phrase(lambda it: it.number == "plural"),
    "weak noun": phrase(lambda it: it.noun.weak),
    "possessive": phrase(lambda it: it.determiner in lex.POSSESSIVES),
    "adjective": phrase(lambda it: it.adjective),
    "strong adjective": phrase(lambda it: it.adjective and it.determiner is A),
    "predicative adjective": clause(lambda it: it.predicate),
    "fronted time": lambda example: example.meaning.topical_time,
    "fronted clause": lambda example: example.meaning.linked_first,
    "because": links(lex.BECAUSE),
    "if": links(lex.IF),
    "that": links(lex.THAT),
    "separable verb": clause(lambda it: it.verb.particle),
    "modal": clause(lambda it: it.modal),
    "perfect with haben": clause(
        lambda it: it.tense == "past" and it.verb is not lex.BE and not it.verb.sein
    ),
    "perfect with sein": clause(lambda it: it.tense == "past" and it.verb.sein),
    "relative pronoun as subject": clause(lambda it: isinstance(it.subject, Gap)),
    "relative pronoun as object": clause(
        lambda it: isinstance(it.object, Gap) or isinstance(it.recipient, Gap)
    ),
    "nicht": text(r"\bnicht\b", GERMAN),
    "kein": text(r"\b[Kk]ein", GERMAN),
    "do-support": text(r"\b(do|does|did) not\b", ENGLISH),
    "pronoun as object": clause(lambda it: isinstance(it.object, lex.Pronoun)),
    "dative object": clause(lambda it: it.recipient and not it.object),
    "two objects": clause(lambda it: it.recipient and it.object),
    "company": clause(lambda it: it.company),
    "place": clause(lambda it: it.place and not it.verb.goals),
    "goal": clause(lambda it: it.place and it.verb.goals),
    "question": text(r"\?$", ENGLISH),
}


@pytest.mark.parametrize("phenomenon", PHENOMENA)
def test_every_phenomenon_is_frequent(phenomenon: str) -> None:
    found = sample("train")[:4_000]
    share = sum(1 for example in found if PHENOMENA[phenomenon](example)) / len(found)
    assert share >= 0.02, f"{share:.1%}"


def test_errors_name_the_argument() -> None:
    with pytest.raises(ValueError, match="split must be one of train, valid, test, not 'dev'"):
        pairs("dev", 1)
    with pytest.raises(ValueError, match="count must be between 0 and 1000000, not -1"):
        pairs("train", -1)
    with pytest.raises(ValueError, match="count must be between"):
        pairs("train", 10**9)


def test_drawing_gives_up_after_bounded_tries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "TRIES_PER_PAIR", 1)
    with pytest.raises(ValueError, match="count is too large: found only"):
        pairs("valid", 50)
