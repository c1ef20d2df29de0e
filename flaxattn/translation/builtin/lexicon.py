"""The kinds of word the generator knows, and the closed classes of both languages."""

from dataclasses import dataclass
from typing import Literal

Gender = Literal["masculine", "feminine", "neuter"]
Number = Literal["singular", "plural"]
Case = Literal["nominative", "accusative", "dative", "genitive"]
Tense = Literal["present", "past", "future"]
Kinds = tuple[str, ...]

CREATURES: Kinds = ("person", "animal", "beast")
THINGS: Kinds = ("thing", "container", "vessel", "garment")
READING: Kinds = ("text", "press")
FOOD: Kinds = ("snack", "meal", "meat", "baked")
PLACES: Kinds = ("room", "building", "outdoors", "town", "spot")


# Words are compared by identity: one object is one word, and hashing it costs nothing.
@dataclass(frozen=True, eq=False)
class Preposition:
    """A preposition with the case it governs in this use ("in" is two of them)."""

    english: str
    german: str
    case: Case


@dataclass(frozen=True, eq=False)
class Noun:
    """A noun; `kind` is its semantic class, which verbs and adjectives select by.

    `weak` nouns add -(e)n outside the nominative; `mass` nouns are not counted. `kin` mostly
    belongs to somebody (my aunt), what is `public` to nobody (the river).
    """

    english: str
    english_plural: str
    german: str
    german_plural: str
    gender: Gender
    kind: str
    weak: bool = False
    mass: bool = False
    kin: bool = False
    public: bool = False
    location: Preposition | None = None


@dataclass(frozen=True, eq=False)
class Name:
    """A proper name of a person or a city, used without an article."""

    english: str
    german: str
    kind: str


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
class Interrogative:
    """Who or what, asked for in any role of a clause."""

    english: str
    english_object: str
    nominative: str
    accusative: str
    dative: str


@dataclass(frozen=True, eq=False)
class Determiner:
    """An article or article-like word; `german` is its stem where it has endings.

    `pattern` says how it declines: like "der", like "ein", or not at all ("zwei").
    """

    english: str
    english_plural: str
    german: str
    german_plural: str
    pattern: Literal["definite article", "der", "ein", "fixed"]
    definite: bool = False


@dataclass(frozen=True, eq=False)
class Adjective:
    """An adjective, the German stem its endings join, and the kinds of noun it suits."""

    english: str
    german: str
    stem: str
    kinds: Kinds
    temporary: bool = False


@dataclass(frozen=True, eq=False)
class Adverb:
    """An adverbial of time or manner; a `frequent` one stands mid-sentence in English."""

    english: str
    german: str
    tenses: tuple[Tense, ...] = ("present", "past", "future")
    frequent: bool = False


@dataclass(frozen=True, eq=False)
class Modal:
    """A modal: an English auxiliary or "verb + to", and its German counterpart."""

    english: str
    english_past: str
    singular: str
    plural: str
    past: str
    auxiliary: bool


@dataclass(frozen=True, eq=False)
class Conjunction:
    """A word joining two clauses, and the German word order it calls for."""

    english: str
    german: str
    verb_final: bool = True
    comma: bool = True


@dataclass(frozen=True, eq=False)
class Verb:
    """A verb with its principal parts, government, and what it selects.

    `german` lacks the separable `particle`; `subjects`, `objects`, `places` and `goals`
    list the kinds of noun it goes with; `recipient` asks for a second, dative object.
    A `preterite` replaces the perfect where German speakers prefer it (war, hatte).
    """

    english: str
    english_past: str
    german: str
    third: str
    participle: str
    subjects: Kinds
    objects: Kinds = ()
    case: Case = "accusative"
    recipient: bool = False
    perfect_with_sein: bool = False
    particle: str = ""
    english_particle: str = ""
    german_preposition: str = ""
    english_preposition: str = ""
    preterite: str = ""
    goals: Kinds = ()
    places: Kinds = ()
    located: bool = False
    manners: tuple[Adverb, ...] = ()
    companions: tuple[Preposition, ...] = ()
    stative: bool = False

    @property
    def infinitive(self) -> str:
        """The dictionary form: "anrufen"."""
        return self.particle + self.german


IN = Preposition("in", "in", "dative")
INTO = Preposition("into", "in", "accusative")
AT = Preposition("at", "an", "dative")
AT_OPEN = Preposition("at", "auf", "dative")
ON = Preposition("on", "auf", "dative")
ONTO = Preposition("on", "auf", "accusative")
TO = Preposition("to", "zu", "dative")
TO_CITY = Preposition("to", "nach", "dative")
WITH = Preposition("with", "mit", "dative")
WITHOUT = Preposition("without", "ohne", "accusative")
FOR = Preposition("for", "für", "accusative")

PEOPLE_NAMES = tuple(
    Name(name, name, "person") for name in ("Anna", "Peter", "Maria", "Paul", "Julia", "Martin")
)
CITIES = (
    Name("Berlin", "Berlin", "city"),
    Name("Vienna", "Wien", "city"),
    Name("Munich", "München", "city"),
    Name("Cologne", "Köln", "city"),
)

I = Pronoun(1, "singular", "I", "me", "ich", "mich", "mir")  # noqa: E741
YOU = Pronoun(2, "singular", "you", "you", "du", "dich", "dir")
HE = Pronoun(3, "singular", "he", "him", "er", "ihn", "ihm")
SHE = Pronoun(3, "singular", "she", "her", "sie", "sie", "ihr")
WE = Pronoun(1, "plural", "we", "us", "wir", "uns", "uns")
THEY = Pronoun(3, "plural", "they", "them", "sie", "sie", "ihnen")
PRONOUNS = (I, YOU, HE, SHE, WE, THEY)

IT: dict[Gender, Pronoun] = {
    "masculine": Pronoun(3, "singular", "it", "it", "er", "ihn", "ihm"),
    "feminine": Pronoun(3, "singular", "it", "it", "sie", "sie", "ihr"),
    "neuter": Pronoun(3, "singular", "it", "it", "es", "es", "ihm"),
}

WHO = Interrogative("who", "whom", "wer", "wen", "wem")
WHAT = Interrogative("what", "what", "was", "was", "")

THE = Determiner("the", "the", "", "", "definite article", definite=True)
A = Determiner("a", "", "ein", "", "ein")
THIS = Determiner("this", "these", "dies", "dies", "der", definite=True)
EVERY = Determiner("every", "all", "jed", "all", "der")
WHICH = Determiner("which", "which", "welch", "welch", "der")
NO = Determiner("no", "no", "kein", "kein", "ein")
TWO = Determiner("two", "two", "zwei", "zwei", "fixed")
THREE = Determiner("three", "three", "drei", "drei", "fixed")
POSSESSIVES = tuple(
    Determiner(english, english, german, german, "ein", definite=True)
    for english, german in (
        ("my", "mein"),
        ("your", "dein"),
        ("his", "sein"),
        ("her", "ihr"),
        ("our", "unser"),
        ("their", "ihr"),
    )
)

TODAY = Adverb("today", "heute")
NOW = Adverb("now", "jetzt", ("present",))
YESTERDAY = Adverb("yesterday", "gestern", ("past",))
TOMORROW = Adverb("tomorrow", "morgen", ("future",))
TIMES = (
    TODAY,
    NOW,
    YESTERDAY,
    TOMORROW,
    Adverb("last week", "letzte Woche", ("past",)),
    Adverb("next week", "nächste Woche", ("future",)),
    Adverb("on Monday", "am Montag", ("past", "future")),
    Adverb("in the morning", "am Morgen"),
    Adverb("in the evening", "am Abend"),
)
OFTEN = Adverb("often", "oft", ("present", "past"), frequent=True)
ALWAYS = Adverb("always", "immer", ("present", "past"), frequent=True)
SOMETIMES = Adverb("sometimes", "manchmal", ("present", "past"), frequent=True)
NEVER = Adverb("never", "nie", ("present", "past"), frequent=True)
EVERY_DAY = Adverb("every day", "jeden Tag", ("present", "past"))
HABITS = (OFTEN, ALWAYS, SOMETIMES, NEVER, EVERY_DAY)

WHERE = Adverb("where", "wo")
WHITHER = Adverb("where", "wohin")
WHEN = Adverb("when", "wann")
WHY = Adverb("why", "warum")

GLADLY = Adverb("gladly", "gern")  # English says "likes to"
QUICKLY = Adverb("quickly", "schnell")
SLOWLY = Adverb("slowly", "langsam")
LOUDLY = Adverb("loudly", "laut")
QUIETLY = Adverb("quietly", "leise")
CAREFULLY = Adverb("carefully", "vorsichtig")

CAN = Modal("can", "could", "kann", "können", "konnte", auxiliary=True)
MUST = Modal("have", "had", "muss", "müssen", "musste", auxiliary=False)
WANT = Modal("want", "wanted", "will", "wollen", "wollte", auxiliary=False)
MAY = Modal("may", "", "darf", "dürfen", "", auxiliary=True)
SHOULD = Modal("should", "", "sollte", "sollten", "", auxiliary=True)
MODALS = (CAN, MUST, WANT, MAY, SHOULD)

BECAUSE = Conjunction("because", "weil")
ALTHOUGH = Conjunction("although", "obwohl")
IF = Conjunction("if", "wenn")
BEFORE = Conjunction("before", "bevor")
THAT = Conjunction("that", "dass")
WHETHER = Conjunction("whether", "ob")
AND = Conjunction("and", "und", verb_final=False, comma=False)
BUT = Conjunction("but", "aber", verb_final=False)
