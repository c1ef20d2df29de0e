"""The built-in corpus: its German is right, its splits hold combinations of words apart."""

import hashlib
import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from typing import NamedTuple

import pytest

from flaxattn.translation.builtin import corpus, english, german, german_words, pairs
from flaxattn.translation.builtin import lexicon as lex
from flaxattn.translation.builtin.adjectives import ADJECTIVES, adjective
from flaxattn.translation.builtin.corpus import Example, examples
from flaxattn.translation.builtin.meaning import (
    Adjunct,
    Clause,
    Gap,
    It,
    Nominal,
    NounPhrase,
    Sentence,
)
from flaxattn.translation.builtin.nouns import NOUNS, noun
from flaxattn.translation.builtin.phrases import Dice
from flaxattn.translation.builtin.sentences import draw_sentence
from flaxattn.translation.builtin.verbs import BE, KNOW, VERBS, verb

MY, YOUR, HIS, HER, OUR, THEIR = lex.POSSESSIVES
ANNA, PETER = lex.PEOPLE_NAMES[:2]
VIENNA = lex.CITIES[1]


def np(
    english_noun: str,
    determiner: lex.Determiner = lex.THE,
    quality: str = "",
    number: lex.Number = "singular",
    owner: NounPhrase | lex.Name | None = None,
    relative: Clause | None = None,
) -> NounPhrase:
    word = adjective(quality) if quality else None
    return NounPhrase(noun(english_noun), determiner, number, word, owner, relative)


def nps(english_noun: str, determiner: lex.Determiner = lex.THE, quality: str = "") -> NounPhrase:
    return np(english_noun, determiner, quality, "plural")


def gap(english_noun: str, number: lex.Number = "singular") -> Gap:
    return Gap(noun(english_noun), number)


def says(
    subject: Nominal,
    infinitive: str,
    object: Nominal | None = None,
    *,
    to: Nominal | None = None,
    tense: lex.Tense = "present",
    modal: lex.Modal | None = None,
    negated: bool = False,
    time: lex.Adverb | None = None,
    manner: lex.Adverb | None = None,
    company: Adjunct | None = None,
    place: Adjunct | None = None,
) -> Clause:
    """A clause, with its verb named by the German infinitive."""
    return Clause(
        subject, verb(infinitive), object, to, None, tense, modal, negated, time, manner, company,
        place,
    )  # fmt: skip


def is_(subject: Nominal, quality: str, tense: lex.Tense = "present") -> Clause:
    return Clause(subject, BE, predicate=adjective(quality), tense=tense)


def asks(clause: Clause, word: lex.Adverb | None = None) -> Sentence:
    return Sentence(clause, question=True, question_word=word)


def at(english_noun: str, determiner: lex.Determiner = lex.THE, quality: str = "") -> Adjunct:
    location = noun(english_noun).location
    assert location is not None
    return Adjunct(location, np(english_noun, determiner, quality))


CHECKSUM = ""

MAN, WOMAN, BOOK = np("man"), np("woman"), np("book")
SLEEPS = says(np("child"), "schlafen")

TRANSLATIONS: list[tuple[Clause | Sentence, str, str]] = [
    # Verb second, with the subject or a time in front.
    (
        says(np("man", quality="old"), "lesen", BOOK, time=lex.TODAY),
        "The old man reads the book today.",
        "Der alte Mann liest das Buch heute.",
    ),
    (
        Sentence(
            says(np("man", quality="old"), "lesen", BOOK, time=lex.TODAY), topical_time=True
        ),
        "Today the old man reads the book.",
        "Heute liest der alte Mann das Buch.",
    ),
    (
        says(lex.I, "trinken", np("coffee", lex.A), time=lex.OFTEN),
        "I often drink coffee.",
        "Ich trinke oft Kaffee.",
    ),
    # Adjective endings: weak, mixed and strong.
    (
        says(MAN, "sehen", np("dog", lex.A, "small")),
        "The man sees a small dog.",
        "Der Mann sieht einen kleinen Hund.",
    ),
    (
        says(np("dog", lex.A, "small"), "sehen", np("horse", lex.A, "old")),
        "A small dog sees an old horse.",
        "Ein kleiner Hund sieht ein altes Pferd.",
    ),
    (
        says(lex.YOU, "trinken", np("water", lex.A, "cold")),
        "You drink cold water.",
        "Du trinkst kaltes Wasser.",
    ),
    (
        says(lex.WE, "kaufen", nps("lamp", lex.TWO, "expensive")),
        "We buy two expensive lamps.",
        "Wir kaufen zwei teure Lampen.",
    ),
    (
        says(nps("girl", OUR, "tired"), "helfen", np("woman", lex.THIS, "young")),
        "Our tired girls help this young woman.",
        "Unsere müden Mädchen helfen dieser jungen Frau.",
    ),
    (
        says(np("guest", lex.EVERY), "lesen", np("book", owner=ANNA, quality="new")),
        "Every guest reads Anna's new book.",
        "Jeder Gast liest Annas neues Buch.",
    ),
    (
        says(nps("guest", lex.EVERY, "hungry"), "kochen", np("rice", lex.A)),
        "All hungry guests cook rice.",
        "Alle hungrigen Gäste kochen Reis.",
    ),
    # Dative plurals, the n-declension, the genitive.
    (
        says(np("doctor"), "helfen", nps("child", quality="sick")),
        "The doctor helps the sick children.",
        "Der Arzt hilft den kranken Kindern.",
    ),
    (
        says(np("teacher"), "fragen", np("student", quality="young")),
        "The teacher asks the young student.",
        "Der Lehrer fragt den jungen Studenten.",
    ),
    (
        says(lex.SHE, "danken", np("neighbor", HER)),
        "She thanks her neighbor.",
        "Sie dankt ihrem Nachbarn.",
    ),
    (
        says(lex.THEY, "suchen", np("key", owner=np("teacher", MY, "old"))),
        "They look for my old teacher's key.",
        "Sie suchen den Schlüssel meines alten Lehrers.",
    ),
    # Two objects: nouns dative first, pronouns first, accusative pronoun before dative.
    (
        says(MAN, "geben", BOOK, to=np("child")),
        "The man gives the child the book.",
        "Der Mann gibt dem Kind das Buch.",
    ),
    (
        says(lex.HE, "zeigen", lex.THEY, to=np("boy")),
        "He shows them to the boy.",
        "Er zeigt sie dem Jungen.",
    ),
    (
        says(WOMAN, "schicken", lex.THEY, to=lex.WE, tense="past"),
        "The woman sent them to us.",
        "Die Frau hat sie uns geschickt.",
    ),
    (
        says(lex.WE, "leihen", np("car", OUR), to=lex.HE),
        "We lend him our car.",
        "Wir leihen ihm unser Auto.",
    ),
    (
        says(WOMAN, "zeigen", np("picture"), to=np("guest"), time=lex.TODAY, negated=True),
        "The woman does not show the guest the picture today.",
        "Die Frau zeigt dem Gast heute das Bild nicht.",
    ),
    # Separable verbs.
    (
        says(np("aunt", MY), "anrufen", np("doctor")),
        "My aunt calls the doctor.",
        "Meine Tante ruft den Arzt an.",
    ),
    (
        says(lex.YOU, "anrufen", lex.I, modal=lex.SHOULD, time=lex.TOMORROW),
        "You should call me tomorrow.",
        "Du solltest mich morgen anrufen.",
    ),
    (
        says(lex.I, "abholen", lex.THEY, tense="past"),
        "I picked them up.",
        "Ich habe sie abgeholt.",
    ),
    (
        says(np("farmer"), "aufstehen", tense="past", time=lex.YESTERDAY),
        "The farmer got up yesterday.",
        "Der Bauer ist gestern aufgestanden.",
    ),
    (
        says(lex.YOU, "zuhören", np("queen")),
        "You listen to the queen.",
        "Du hörst der Königin zu.",
    ),
    # Modals, the future, the perfect with "haben" and "sein", the preterite.
    (
        says(WOMAN, "reparieren", np("bicycle"), modal=lex.MUST),
        "The woman has to repair the bicycle.",
        "Die Frau muss das Fahrrad reparieren.",
    ),
    (
        says(lex.THEY, "schlafen", modal=lex.WANT, tense="past", place=at("garden")),
        "They wanted to sleep in the garden.",
        "Sie wollten im Garten schlafen.",
    ),
    (
        says(lex.I, "lesen", nps("letter", MY), tense="future", time=lex.TOMORROW),
        "I will read my letters tomorrow.",
        "Ich werde meine Briefe morgen lesen.",
    ),
    (
        says(np("daughter", THEIR), "fliegen", tense="past", place=Adjunct(lex.TO_CITY, VIENNA)),
        "Their daughter flew to Vienna.",
        "Ihre Tochter ist nach Wien geflogen.",
    ),
    (is_(np("soup"), "cold", "past"), "The soup was cold.", "Die Suppe war kalt."),
    (
        says(lex.YOU, "haben", np("dog", lex.A), tense="past"),
        "You had a dog.",
        "Du hattest einen Hund.",
    ),
    # Prepositions: where takes the dative, whither the accusative.
    (
        says(np("cat"), "sitzen", place=at("table", quality="small")),
        "The cat sits on the small table.",
        "Die Katze sitzt auf dem kleinen Tisch.",
    ),
    (
        says(np("cook"), "stellen", np("cup"), place=Adjunct(lex.ONTO, np("table"))),
        "The cook puts the cup on the table.",
        "Der Koch stellt die Tasse auf den Tisch.",
    ),
    (
        says(lex.WE, "gehen", place=Adjunct(lex.INTO, np("house"))),
        "We go into the house.",
        "Wir gehen ins Haus.",
    ),
    (
        says(
            np("boy"), "fahren", place=Adjunct(lex.TO, np("station")),
            company=Adjunct(lex.WITHOUT, np("brother", HIS)), time=lex.TODAY,
        ),
        "The boy drives to the station without his brother today.",
        "Der Junge fährt heute ohne seinen Bruder zum Bahnhof.",
    ),
    (
        says(
            nps("child"), "spielen", place=at("park"), company=Adjunct(lex.WITH, np("aunt", OUR)),
            manner=lex.QUIETLY, time=lex.TODAY,
        ),
        "The children play quietly in the park with our aunt today.",
        "Die Kinder spielen heute leise im Park mit unserer Tante.",
    ),
    (
        says(lex.HE, "lesen", np("letter", lex.A), place=at("library"), tense="past"),
        "He read a letter in the library.",
        "Er hat in der Bibliothek einen Brief gelesen.",
    ),
    (
        says(np("guest"), "warten", np("bus"), place=at("station")),
        "The guest waits for the bus at the station.",
        "Der Gast wartet am Bahnhof auf den Bus.",
    ),
    # Gern, where English has a verb.
    (
        says(np("uncle", MY), "essen", np("cheese", lex.A), manner=lex.GLADLY),
        "My uncle likes to eat cheese.",
        "Mein Onkel isst gern Käse.",
    ),
    (
        says(np("bear"), "fressen", nps("apple", lex.A), manner=lex.GLADLY, negated=True),
        "The bear does not like to eat apples.",
        "Der Bär frisst nicht gern Äpfel.",
    ),
    # Negation: nicht and kein.
    (
        says(MAN, "lesen", BOOK, negated=True),
        "The man does not read the book.",
        "Der Mann liest das Buch nicht.",
    ),
    (
        says(MAN, "lesen", np("book", lex.A, "long"), negated=True, tense="past"),
        "The man did not read a long book.",
        "Der Mann hat kein langes Buch gelesen.",
    ),
    (
        says(ANNA, "kaufen", nps("flower", lex.A, "red"), negated=True),
        "Anna does not buy red flowers.",
        "Anna kauft keine roten Blumen.",
    ),
    (
        says(np("child", lex.NO), "schlafen", place=at("kitchen", quality="cold")),
        "No child sleeps in the cold kitchen.",
        "Kein Kind schläft in der kalten Küche.",
    ),
    (
        says(lex.I, "gehen", negated=True, time=lex.TODAY, place=Adjunct(lex.TO, np("doctor"))),
        "I do not go to the doctor today.",
        "Ich gehe heute nicht zum Arzt.",
    ),
    (
        says(lex.SHE, "kommen", place=Adjunct(lex.INTO, np("room", MY)), modal=lex.CAN,
             negated=True),
        "She cannot come into my room.",
        "Sie kann nicht in mein Zimmer kommen.",
    ),
    (
        says(lex.HE, "zumachen", np("door"), modal=lex.MUST, negated=True),
        "He does not have to close the door.",
        "Er muss die Tür nicht zumachen.",
    ),
    (
        Clause(np("car", YOUR), BE, predicate=adjective("clean"), negated=True),
        "Your car is not clean.",
        "Dein Auto ist nicht sauber.",
    ),
    # Subordinate clauses end in their verbs.
    (
        Sentence(
            says(np("aunt"), "anrufen", np("doctor")),
            conjunction=lex.BECAUSE,
            linked=is_(np("child", HER), "sick"),
        ),
        "The aunt calls the doctor because her child is sick.",
        "Die Tante ruft den Arzt an, weil ihr Kind krank ist.",
    ),
    (
        Sentence(
            is_(lex.HE, "happy"),
            conjunction=lex.IF,
            linked=says(PETER, "anrufen", lex.HE),
            linked_first=True,
        ),
        "If Peter calls him, he is happy.",
        "Wenn Peter ihn anruft, ist er glücklich.",
    ),
    (
        Sentence(
            Clause(ANNA, KNOW),
            conjunction=lex.THAT,
            linked=says(nps("guest"), "ankommen", tense="past", place=at("lake")),
        ),
        "Anna knows that the guests arrived at the lake.",
        "Anna weiß, dass die Gäste am See angekommen sind.",
    ),
    (
        Sentence(
            Clause(lex.I, KNOW, negated=True),
            conjunction=lex.WHETHER,
            linked=says(lex.SHE, "helfen", lex.WE, modal=lex.WANT),
        ),
        "I do not know whether she wants to help us.",
        "Ich weiß nicht, ob sie uns helfen will.",
    ),
    (
        Sentence(
            is_(np("letter"), "short"), conjunction=lex.BUT, linked=is_(np("novel"), "long")
        ),
        "The letter is short, but the novel is long.",
        "Der Brief ist kurz, aber der Roman ist lang.",
    ),
    (
        Sentence(says(MAN, "lesen", BOOK), conjunction=lex.AND, linked=SLEEPS),
        "The man reads the book and the child sleeps.",
        "Der Mann liest das Buch und das Kind schläft.",
    ),
    # "It" takes the gender of its noun.
    (
        Sentence(
            says(WOMAN, "kaufen", np("lamp")), conjunction=lex.BECAUSE,
            linked=says(lex.SHE, "brauchen", It(noun("lamp"))),
        ),
        "The woman buys the lamp because she needs it.",
        "Die Frau kauft die Lampe, weil sie sie braucht.",
    ),
    (
        Sentence(
            says(WOMAN, "kaufen", np("table")), conjunction=lex.ALTHOUGH,
            linked=says(MAN, "mögen", It(noun("table")), negated=True),
        ),
        "The woman buys the table although the man does not like it.",
        "Die Frau kauft den Tisch, obwohl der Mann ihn nicht mag.",
    ),
    # Relative clauses, in the four cases of their pronoun, with and without a preposition.
    (
        says(np("man", relative=says(gap("man"), "lesen", BOOK)), "schlafen"),
        "The man who reads the book sleeps.",
        "Der Mann, der das Buch liest, schläft.",
    ),
    (
        says(lex.I, "anrufen", np("man", relative=says(np("dog"), "folgen", gap("man"))),
             tense="past"),
        "I called the man whom the dog follows.",
        "Ich habe den Mann angerufen, dem der Hund folgt.",
    ),
    (
        says(ANNA, "kaufen", np("coat", lex.A, relative=says(PETER, "finden", gap("coat"),
                                                             tense="past"))),
        "Anna buys a coat that Peter found.",
        "Anna kauft einen Mantel, den Peter gefunden hat.",
    ),
    (
        says(
            NounPhrase(
                noun("child"), number="plural",
                relative=says(lex.WE, "geben", nps("pear", lex.A), to=gap("child", "plural")),
            ),
            "lachen",
        ),
        "The children to whom we give pears laugh.",
        "Die Kinder, denen wir Birnen geben, lachen.",
    ),
    (
        is_(np("train", relative=says(lex.I, "warten", gap("train"))), "old"),
        "The train for which I wait is old.",
        "Der Zug, auf den ich warte, ist alt.",
    ),
    # Questions.
    (
        asks(says(lex.YOU, "sehen", np("duck"))),
        "Do you see the duck?",
        "Siehst du die Ente?",
    ),
    (
        asks(says(np("boy"), "aufmachen", np("window"), tense="past")),
        "Did the boy open the window?",
        "Hat der Junge das Fenster aufgemacht?",
    ),
    (asks(is_(np("kitchen"), "warm")), "Is the kitchen warm?", "Ist die Küche warm?"),
    (asks(says(lex.WHO, "schlafen", place=at("school"))), "Who sleeps in the school?",
     "Wer schläft in der Schule?"),
    (asks(says(MAN, "lesen", lex.WHAT)), "What does the man read?", "Was liest der Mann?"),
    (asks(says(MAN, "helfen", lex.WHO)), "Whom does the man help?", "Wem hilft der Mann?"),
    (
        asks(says(lex.HE, "denken", lex.WHO, tense="past")),
        "Of whom did he think?",
        "An wen hat er gedacht?",
    ),
    (
        asks(says(MAN, "lesen", np("novel", lex.WHICH))),
        "Which novel does the man read?",
        "Welchen Roman liest der Mann?",
    ),
    (asks(says(lex.SHE, "wohnen"), lex.WHERE), "Where does she live?", "Wo wohnt sie?"),
    (asks(says(lex.YOU, "gehen"), lex.WHITHER), "Where do you go?", "Wohin gehst du?"),
    (
        asks(says(MAN, "lesen", BOOK, negated=True), lex.WHY),
        "Why does the man not read the book?",
        "Warum liest der Mann das Buch nicht?",
    ),
]  # fmt: skip


@pytest.mark.parametrize(
    ("meaning", "source", "target"), TRANSLATIONS, ids=[row[1] for row in TRANSLATIONS]
)
def test_translations(meaning: Clause | Sentence, source: str, target: str) -> None:
    sentence = Sentence(meaning) if isinstance(meaning, Clause) else meaning
    assert (english.sentence(sentence), german.sentence(sentence)) == (source, target)


@pytest.mark.parametrize(
    ("infinitive", "forms"),
    [
        ("lesen", "lese liest liest lesen"),
        ("arbeiten", "arbeite arbeitest arbeitet arbeiten"),
        ("tanzen", "tanze tanzt tanzt tanzen"),
        ("essen", "esse isst isst essen"),
        ("waschen", "wasche wäschst wäscht waschen"),
        ("finden", "finde findest findet finden"),
        ("einladen", "lade lädst lädt laden"),
        ("mögen", "mag magst mag mögen"),
        ("wissen", "weiß weißt weiß wissen"),
        ("haben", "habe hast hat haben"),
        ("sein", "bin bist ist sind"),
    ],
)
def test_present_tense(infinitive: str, forms: str) -> None:
    assert list(german_words.present(verb(infinitive))) == forms.split()


def test_modal_verbs() -> None:
    assert list(german_words.modal(lex.MUST, past=False)) == "muss musst muss müssen".split()
    assert list(german_words.modal(lex.CAN, past=True)) == "konnte konntest konnte konnten".split()


@pytest.mark.parametrize(
    ("phrase", "forms"),
    [
        (np("dog", quality="old"), "der alte Hund|den alten Hund|dem alten Hund|des alten Hundes"),
        (np("boy", lex.THIS), "dieser Junge|diesen Jungen|diesem Jungen|dieses Jungen"),
        (np("child", lex.A, "small"),
         "ein kleines Kind|ein kleines Kind|einem kleinen Kind|eines kleinen Kindes"),
        (np("woman", MY, "tired"),
         "meine müde Frau|meine müde Frau|meiner müden Frau|meiner müden Frau"),
        (np("father", OUR), "unser Vater|unseren Vater|unserem Vater|unseres Vaters"),
        (nps("apple", lex.A, "cold"), "kalte Äpfel|kalte Äpfel|kalten Äpfeln|kalter Äpfel"),
        (nps("house", lex.NO, "dark"),
         "keine dunklen Häuser|keine dunklen Häuser|keinen dunklen Häusern|keiner dunklen Häuser"),
        (nps("car", lex.THREE, "red"),
         "drei rote Autos|drei rote Autos|drei roten Autos|drei roter Autos"),
    ],
)  # fmt: skip
def test_declension(phrase: NounPhrase, forms: str) -> None:
    cases: tuple[lex.Case, ...] = ("nominative", "accusative", "dative", "genitive")
    assert [german.nominal(phrase, case) for case in cases] == forms.split("|")


class Dissected(NamedTuple):
    """An example with all the nodes and words of its meaning."""

    example: Example
    parts: list[object]
    clauses: list[Clause]
    phrases: list[NounPhrase]


NODES = (Sentence, Clause, NounPhrase, Adjunct, Gap, It)


def walk(value: object) -> Iterator[object]:
    yield value
    if isinstance(value, NODES):
        for field in vars(value).values():
            if field is not None:
                yield from walk(field)


def dissect(example: Example) -> Dissected:
    found = list(walk(example.meaning))
    return Dissected(
        example,
        found,
        [part for part in found if isinstance(part, Clause)],
        [part for part in found if isinstance(part, NounPhrase)],
    )


@cache
def sample(split: str) -> list[Example]:
    return examples(split, 30_000 if split == "train" else 1_000)


@cache
def dissected(split: str) -> list[Dissected]:
    return [dissect(example) for example in sample(split)[:6_000]]


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


def test_sentences_are_distinct_short_and_well_formed() -> None:
    found = sample("train") + sample("valid") + sample("test")
    assert len({example.english for example in found}) == len(found)
    for example in found[-8_000:]:
        for text in example[:2]:
            assert re.fullmatch(r"[A-ZÄÖÜ][\wäöüß']*(,? [\wÄÖÜäöüß']+)*[.?]", text), text
            assert 2 <= len(text.split()) <= corpus.LONGEST


def held_out_by(found: Dissected) -> set[str]:
    """The splits named by the digests of a sentence's combinations, worked out anew."""
    splits: set[str] = set()
    for clause in found.clauses:
        name = clause.verb.particle + clause.verb.german
        subject = getattr(clause.subject, "noun", None)
        goal = clause.place.nominal if clause.place and clause.verb.goals else None
        governed = [getattr(role, "noun", None) for role in (clause.object, clause.recipient, goal)]
        splits.update(digest_split(f"object:{name}:{word.german}") for word in governed if word)
        if subject:
            splits.add(digest_split(f"subject:{subject.german}:{name}"))
        if subject and clause.predicate:
            splits.add(digest_split(f"adjective:{clause.predicate.german}:{subject.german}"))
    for phrase in found.phrases:
        if phrase.adjective:
            splits.add(digest_split(f"adjective:{phrase.adjective.german}:{phrase.noun.german}"))
    return splits - {"train"}


@cache
def digest_split(key: str) -> str:
    twentieth = int(hashlib.sha256(key.encode()).hexdigest()[:8], 16) % 20
    return ("valid", "test", *["train"] * 18)[twentieth]


def test_splits_hold_out_combinations() -> None:
    for split in corpus.SPLITS:
        expected = {split} - {"train"}
        assert all(held_out_by(found) == expected for found in dissected(split))


def test_every_word_is_trained_on() -> None:
    tables = [value for name, value in vars(lex).items() if isinstance(value, tuple)]
    kinds = (lex.Pronoun, lex.Name, lex.Determiner, lex.Adverb, lex.Modal, lex.Conjunction,
             lex.Preposition, lex.Interrogative)  # fmt: skip
    closed = [word for word in [*vars(lex).values(), *itertools.chain(*tables)]
              if isinstance(word, kinds)]  # fmt: skip
    seen = Counter(id(part) for example in sample("train") for part in walk(example.meaning))
    rare = [word for word in (*NOUNS, *VERBS, *ADJECTIVES, *closed) if seen[id(word)] < 20]
    assert rare == []


Check = Callable[[Dissected], object]


def clause(test: Callable[[Clause], object]) -> Check:
    return lambda found: any(map(test, found.clauses))


def phrase(test: Callable[[NounPhrase], object]) -> Check:
    return lambda found: any(map(test, found.phrases))


def links(*conjunctions: lex.Conjunction) -> Check:
    return lambda found: found.example.meaning.conjunction in conjunctions


def relatives(*roles: str) -> Check:
    return clause(lambda it: any(isinstance(getattr(it, role), Gap) for role in roles))


def text(pattern: str, language: int) -> Check:
    return lambda found: re.search(pattern, found.example[:2][language])


ENGLISH, GERMAN = 0, 1
PHENOMENA: dict[str, Check] = {
    "plural": phrase(lambda it: it.number == "plural"),
    "weak noun": phrase(lambda it: it.noun.weak),
    "genitive": phrase(lambda it: it.possessor),
    "possessive": phrase(lambda it: it.determiner in lex.POSSESSIVES),
    "adjective": phrase(lambda it: it.adjective),
    "strong adjective": phrase(
        lambda it: it.adjective and it.determiner in (lex.A, lex.TWO, lex.THREE)
    ),
    "predicative adjective": clause(lambda it: it.predicate),
    "fronted time": lambda found: found.example.meaning.topical_time,
    "fronted clause": lambda found: found.example.meaning.linked_first,
    "because, although": links(lex.BECAUSE, lex.ALTHOUGH),
    "if": links(lex.IF),
    "that": links(lex.THAT),
    "whether": links(lex.WHETHER),
    "and, but": links(lex.AND, lex.BUT),
    "separable verb": clause(lambda it: it.verb.particle),
    "separated verb": clause(
        lambda it: it.verb.particle and it.tense == "present" and not it.modal
    ),
    "modal": clause(lambda it: it.modal),
    "future": clause(lambda it: it.tense == "future"),
    "perfect with haben": clause(
        lambda it: it.tense == "past" and not it.verb.preterite and not it.verb.perfect_with_sein
    ),
    "perfect with sein": clause(
        lambda it: it.tense == "past" and not it.verb.preterite and it.verb.perfect_with_sein
    ),
    "relative pronoun as subject": relatives("subject"),
    "relative pronoun as object": relatives("object", "recipient"),
    "nicht": text(r"\bnicht\b", GERMAN),
    "kein": text(r"\b[Kk]ein", GERMAN),
    "do-support": text(r"\b(do|does|did) not\b", ENGLISH),
    "gern": clause(lambda it: it.manner is lex.GLADLY),
    "it": lambda found: any(isinstance(part, It) for part in found.parts),
    "pronoun as object": clause(lambda it: isinstance(it.object, lex.Pronoun)),
    "dative object": clause(lambda it: it.verb.case == "dative"),
    "two objects": clause(lambda it: it.recipient),
    "object with preposition": clause(lambda it: it.verb.german_preposition),
    "place": clause(lambda it: it.place and not it.verb.goals),
    "goal": clause(lambda it: it.place and it.verb.goals),
    "yes-no question": text(r"^(?!Who|What|Which|Whe|Why|To|Of|At|For|With).*\?", ENGLISH),
    "wh-question": text(r"^(Who|What|Which|Whe|Why|To|Of|At|For|With).*\?", ENGLISH),
}


@pytest.mark.parametrize("phenomenon", PHENOMENA)
def test_every_phenomenon_is_frequent(phenomenon: str) -> None:
    found = dissected("train")
    share = sum(1 for each in found if PHENOMENA[phenomenon](each)) / len(found)
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
