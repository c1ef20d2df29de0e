"""The words of both languages, and the kinds of noun that verbs and adjectives go with."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Number = Literal["singular", "plural"]
Case = Literal["nominative", "accusative", "dative"]
Tense = Literal["present", "past"]
Kinds = tuple[str, ...]

PERSONS: Kinds = ("person", "child")
CREATURES: Kinds = (*PERSONS, "animal")
THINGS: Kinds = ("text", "object", "container")
VISIBLE: Kinds = (*CREATURES, *THINGS)
GOODS: Kinds = (*THINGS, "food", "drink")
CLOSABLE: Kinds = ("opening", "container")
PLACES: Kinds = ("place", "spot")


# Words are compared by identity: one object is one word, and hashing it costs nothing.
@dataclass(frozen=True, eq=False)
class Noun:
    """A noun; `kind` is its semantic class, by which verbs and adjectives select it.

    `weak` ones add -(e)n outside the nominative; `unowned` ones take no possessive.
    """

    english: str
    english_plural: str
    article: str
    german: str
    german_plural: str
    kind: str
    weak: bool = False
    unowned: bool = False

    @property
    def countable(self) -> bool:
        """Whether the noun has a plural and takes the article "a"."""
        return self.german_plural != "-"


@dataclass(frozen=True, eq=False)
class Adjective:
    """An adjective and the kinds of noun it suits; "temporary" among them: it comes and goes."""

    english: str
    german: str
    kinds: Kinds


@dataclass(frozen=True, eq=False)
class Verb:
    """A verb's principal parts in both languages, and the kinds of noun in its roles.

    `objects` are accusative, `recipients` dative; the separable `particle` is German. Verbs with
    `goals` lead somewhere, `located` ones say where, `social` ones with whom something happens,
    and `stative` ones take no modal.
    """

    english: str
    past: str
    german: str
    third: str
    participle: str
    subjects: Kinds = PERSONS
    objects: Kinds = ()
    recipients: Kinds = ()
    particle: str = ""
    sein: bool = False
    goals: bool = False
    located: bool = False
    social: bool = False
    stative: bool = False

    @property
    def infinitive(self) -> str:
        """The German dictionary form: anrufen."""
        return self.particle + self.german


@dataclass(frozen=True, eq=False)
class Pronoun:
    """A personal pronoun in the cases each language tells apart."""

    person: int
    number: Number
    english: str
    english_object: str
    nominative: str
    accusative: str
    dative: str


@dataclass(frozen=True, eq=False)
class Word:
    """A word of a closed class; of determiners, `german` is the stem.

    Prepositions govern a `case`, adverbials of time go with `tenses`, modals have a `singular`.
    """

    english: str
    german: str
    case: Case = "dative"
    tenses: tuple[Tense, ...] = ("present", "past")
    singular: str = ""


# Each line: kind, then English with its plural, German with its article and plural; "-" for no
# plural. What is "weak" or "unowned" is explained at `Noun`.
_NOUNS = """
    person man men der Mann Männer unowned
    person woman women die Frau Frauen unowned
    person teacher teachers der Lehrer Lehrer
    person student students der Student Studenten weak
    person doctor doctors der Arzt Ärzte
    person friend friends der Freund Freunde
    person sister sisters die Schwester Schwestern
    child child children das Kind Kinder
    child boy boys der Junge Jungen weak
    child girl girls das Mädchen Mädchen
    animal dog dogs der Hund Hunde
    animal cat cats die Katze Katzen
    animal horse horses das Pferd Pferde
    text book books das Buch Bücher
    text letter letters der Brief Briefe
    text newspaper newspapers die Zeitung Zeitungen
    object lamp lamps die Lampe Lampen
    object key keys der Schlüssel Schlüssel
    object car cars das Auto Autos
    container bag bags die Tasche Taschen
    container suitcase suitcases der Koffer Koffer
    opening door doors die Tür Türen
    opening window windows das Fenster Fenster
    food apple apples der Apfel Äpfel
    food egg eggs das Ei Eier
    food cake cakes der Kuchen Kuchen
    drink coffee - der Kaffee -
    drink milk - die Milch -
    drink water - das Wasser -
    place garden - der Garten -
    place park - der Park -
    place house - das Haus -
    place kitchen - die Küche -
    place school - die Schule -
    spot station - der Bahnhof -
"""
# Each line: English, German, the kinds of noun.
_ADJECTIVES = """
    old alt person animal text object container opening place spot
    young jung person animal
    big groß animal object container opening place
    small klein child animal object container opening place spot
    new neu text object container opening
    good gut person child text food drink
    red rot object container opening
    cold kalt drink food place spot temporary
    tired müde person child animal temporary
    friendly freundlich person child animal
"""


def _read_nouns() -> Iterator[Noun]:
    for line in _NOUNS.strip().splitlines():
        kind, english, plural, article, german, german_plural, *marks = line.split()
        words = (english, plural, article, german, german_plural)
        yield Noun(*words, kind, weak="weak" in marks, unowned="unowned" in marks)


NOUNS = tuple(_read_nouns())
_ROWS = (line.split() for line in _ADJECTIVES.strip().splitlines())
ADJECTIVES = tuple(Adjective(english, german, tuple(kinds)) for english, german, *kinds in _ROWS)

BE = Verb("be", "was", "sein", "ist", "gewesen", (*CREATURES, *GOODS))
REPORTING = (
    Verb("know", "knew", "wissen", "weiß", "gewusst"),
    Verb("say", "said", "sagen", "sagt", "gesagt"),
)
ACTIONS = (
    Verb("sleep", "slept", "schlafen", "schläft", "geschlafen", CREATURES, located=True),
    Verb("work", "worked", "arbeiten", "arbeitet", "gearbeitet", located=True, social=True),
    Verb("sing", "sang", "singen", "singt", "gesungen", located=True, social=True),
    Verb("dance", "danced", "tanzen", "tanzt", "getanzt", located=True, social=True),
    Verb("shop", "shopped", "kaufen", "kauft", "gekauft", particle="ein", social=True),
    Verb("get up", "got up", "stehen", "steht", "gestanden", particle="auf", sein=True),
    Verb("go", "went", "gehen", "geht", "gegangen", sein=True, goals=True, social=True),
    Verb("come", "came", "kommen", "kommt", "gekommen", CREATURES, sein=True, goals=True,
         social=True),
    Verb("see", "saw", "sehen", "sieht", "gesehen", CREATURES, VISIBLE, located=True),
    Verb("look for", "looked for", "suchen", "sucht", "gesucht", CREATURES, VISIBLE, located=True),
    Verb("find", "found", "finden", "findet", "gefunden", CREATURES, ("animal", *THINGS),
         located=True),
    Verb("buy", "bought", "kaufen", "kauft", "gekauft", PERSONS, ("animal", *GOODS)),
    Verb("need", "needed", "brauchen", "braucht", "gebraucht", PERSONS, GOODS, stative=True),
    Verb("read", "read", "lesen", "liest", "gelesen", PERSONS, ("text",), located=True),
    Verb("eat", "ate", "essen", "isst", "gegessen", PERSONS, ("food",), located=True),
    Verb("drink", "drank", "trinken", "trinkt", "getrunken", CREATURES, ("drink",), located=True),
    Verb("visit", "visited", "besuchen", "besucht", "besucht", PERSONS, PERSONS),
    Verb("call", "called", "rufen", "ruft", "gerufen", PERSONS, PERSONS, particle="an"),
    Verb("open", "opened", "machen", "macht", "gemacht", PERSONS, CLOSABLE, particle="auf"),
    Verb("close", "closed", "machen", "macht", "gemacht", PERSONS, CLOSABLE, particle="zu"),
    Verb("help", "helped", "helfen", "hilft", "geholfen", recipients=CREATURES, located=True),
    Verb("thank", "thanked", "danken", "dankt", "gedankt", recipients=PERSONS),
    Verb("give", "gave", "geben", "gibt", "gegeben", PERSONS, (*THINGS, "food"), PERSONS),
    Verb("show", "showed", "zeigen", "zeigt", "gezeigt", PERSONS, (*THINGS, "animal"), PERSONS),
    Verb("bring", "brought", "bringen", "bringt", "gebracht", PERSONS, GOODS, PERSONS),
)  # fmt: skip
VERBS = (BE, *REPORTING, *ACTIONS)

I = Pronoun(1, "singular", "I", "me", "ich", "mich", "mir")  # noqa: E741
HE = Pronoun(3, "singular", "he", "him", "er", "ihn", "ihm")
SHE = Pronoun(3, "singular", "she", "her", "sie", "sie", "ihr")
WE = Pronoun(1, "plural", "we", "us", "wir", "uns", "uns")
THEY = Pronoun(3, "plural", "they", "them", "sie", "sie", "ihnen")
SUBJECT_PRONOUNS = (I, HE, SHE, WE, THEY)
OBJECT_PRONOUNS = (I, HE, WE, THEY)

THE, A = Word("the", "d"), Word("a", "ein")
MY, HIS, HER = POSSESSIVES = (Word("my", "mein"), Word("his", "sein"), Word("her", "ihr"))
KEIN = Word("not a", "kein")  # the negation of "ein"

CAN, MUST = Word("can", "können", singular="kann"), Word("must", "müssen", singular="muss")
WANT = Word("want", "wollen", singular="will")  # with "to": no English modal
MODALS = (CAN, MUST, WANT)

TODAY, YESTERDAY = Word("today", "heute"), Word("yesterday", "gestern", tenses=("past",))
NOW = Word("now", "jetzt", tenses=("present",))
MORNING, EVENING = Word("in the morning", "am Morgen"), Word("in the evening", "am Abend")
TIMES = (TODAY, YESTERDAY, NOW, MORNING, EVENING)

IN, INTO = Word("in", "in"), Word("into", "in", "accusative")
AT, TO, WITH = Word("at", "an"), Word("to", "zu"), Word("with", "mit")
BECAUSE, IF, THAT = Word("because", "weil"), Word("if", "wenn"), Word("that", "dass")
