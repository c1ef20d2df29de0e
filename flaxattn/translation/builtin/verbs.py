"""The verbs: principal parts in both languages, government, and the nouns they select."""

from flaxattn.translation.builtin.lexicon import (
    CAREFULLY,
    CREATURES,
    FOOD,
    FOR,
    GLADLY,
    LOUDLY,
    PLACES,
    QUICKLY,
    QUIETLY,
    READING,
    SLOWLY,
    THINGS,
    WITH,
    WITHOUT,
    Kinds,
    Verb,
)

_PERSON: Kinds = ("person",)
_GOODS: Kinds = (*THINGS, "furniture", "vehicle", "text")
_TAME: Kinds = ("person", "animal")
_INSIDE: Kinds = ("room", "building", "outdoors")
_SIGHTS: Kinds = ("building", "town", "outdoors")

_PACE = (QUICKLY, SLOWLY)
_VOICE = (GLADLY, LOUDLY, QUIETLY)
_WORK = (QUICKLY, SLOWLY, CAREFULLY)
_COMPANY = (WITH, WITHOUT)

BE = Verb(
    "be",
    "was",
    "sein",
    "ist",
    "gewesen",
    (*CREATURES, *_GOODS, *FOOD, "drink", "opening", "room", "building", "outdoors", "town"),
    perfect_with_sein=True,
    preterite="war",
)
HAVE = Verb(
    "have",
    "had",
    "haben",
    "hat",
    "gehabt",
    _PERSON,
    (*_GOODS, "animal"),
    preterite="hatte",
    stative=True,
)

INTRANSITIVE = (
    Verb("sleep", "slept", "schlafen", "schläft", "geschlafen", CREATURES, places=PLACES,
         manners=(GLADLY,)),
    Verb("work", "worked", "arbeiten", "arbeitet", "gearbeitet", _PERSON, places=PLACES,
         manners=(GLADLY, *_WORK), companions=_COMPANY),
    Verb("play", "played", "spielen", "spielt", "gespielt", _TAME, places=PLACES,
         manners=(GLADLY, QUIETLY), companions=_COMPANY),
    Verb("sing", "sang", "singen", "singt", "gesungen", _PERSON, places=PLACES,
         manners=_VOICE, companions=_COMPANY),
    Verb("dance", "danced", "tanzen", "tanzt", "getanzt", _PERSON, places=PLACES,
         manners=(GLADLY, SLOWLY), companions=_COMPANY),
    Verb("laugh", "laughed", "lachen", "lacht", "gelacht", _PERSON, manners=_VOICE),
    Verb("cry", "cried", "weinen", "weint", "geweint", _PERSON, places=PLACES,
         manners=(LOUDLY, QUIETLY)),
    Verb("swim", "swam", "schwimmen", "schwimmt", "geschwommen", CREATURES,
         perfect_with_sein=True, manners=(GLADLY, *_PACE), companions=_COMPANY),
    Verb("fall", "fell", "schlafen", "schläft", "geschlafen", _TAME, perfect_with_sein=True,
         particle="ein", english_particle="asleep", places=PLACES, manners=(QUICKLY,)),
    Verb("wake", "woke", "wachen", "wacht", "gewacht", CREATURES, perfect_with_sein=True,
         particle="auf", english_particle="up", places=_INSIDE),
    Verb("get", "got", "stehen", "steht", "gestanden", _PERSON, perfect_with_sein=True,
         particle="auf", english_particle="up", manners=_PACE),
    Verb("come", "came", "kommen", "kommt", "gekommen", _TAME, perfect_with_sein=True,
         particle="zurück", english_particle="back", companions=_COMPANY),
    Verb("run", "ran", "laufen", "läuft", "gelaufen", CREATURES, perfect_with_sein=True,
         particle="weg", english_particle="away", manners=(QUICKLY,)),
)  # fmt: skip

LOCATED = (
    Verb("sit", "sat", "sitzen", "sitzt", "gesessen", CREATURES,
         places=(*PLACES, "furniture"), located=True, manners=(GLADLY, QUIETLY)),
    Verb("stand", "stood", "stehen", "steht", "gestanden", CREATURES, places=PLACES,
         located=True, manners=(QUIETLY,)),
    Verb("live", "lived", "wohnen", "wohnt", "gewohnt", _PERSON,
         places=("building", "town", "city"), located=True, manners=(GLADLY,), stative=True),
    Verb("arrive", "arrived", "kommen", "kommt", "gekommen", _PERSON, perfect_with_sein=True,
         particle="an", places=("town", "spot", "city"), located=True, companions=_COMPANY),
)  # fmt: skip

MOTION = (
    Verb("go", "went", "gehen", "geht", "gegangen", _PERSON, perfect_with_sein=True,
         goals=(*PLACES, "person"), manners=(GLADLY, SLOWLY), companions=_COMPANY),
    Verb("come", "came", "kommen", "kommt", "gekommen", _TAME, perfect_with_sein=True,
         goals=(*_INSIDE, "spot", "city"), companions=_COMPANY),
    Verb("run", "ran", "laufen", "läuft", "gelaufen", CREATURES, perfect_with_sein=True,
         goals=PLACES, manners=(QUICKLY,)),
    Verb("drive", "drove", "fahren", "fährt", "gefahren", _PERSON, perfect_with_sein=True,
         goals=("town", "spot", "city"), manners=(GLADLY, *_PACE), companions=_COMPANY),
    Verb("fly", "flew", "fliegen", "fliegt", "geflogen", _PERSON, perfect_with_sein=True,
         goals=("city",), manners=(GLADLY,), companions=_COMPANY),
)  # fmt: skip

PLACEMENT = (
    Verb("lay", "laid", "legen", "legt", "gelegt", _PERSON, ("thing", "text", "press", "garment"),
         goals=("furniture",), manners=(CAREFULLY,)),
    Verb("put", "put", "stellen", "stellt", "gestellt", _PERSON, ("container", "vessel"),
         goals=("furniture",), manners=(CAREFULLY,)),
)  # fmt: skip

TRANSITIVE = (
    HAVE,
    Verb("read", "read", "lesen", "liest", "gelesen", _PERSON, READING, places=PLACES,
         manners=(GLADLY, *_PACE)),
    Verb("write", "wrote", "schreiben", "schreibt", "geschrieben", _PERSON, ("text",),
         places=_INSIDE, manners=(GLADLY, *_PACE), companions=(FOR,)),
    Verb("buy", "bought", "kaufen", "kauft", "gekauft", _PERSON,
         (*_GOODS, *READING, *FOOD, "drink", "animal"), manners=(GLADLY,), companions=(FOR,)),
    Verb("find", "found", "finden", "findet", "gefunden", _PERSON, (*_GOODS, "animal", "press"),
         places=PLACES),
    Verb("see", "saw", "sehen", "sieht", "gesehen", CREATURES,
         (*CREATURES, "thing", "vehicle", "transport", "building"), places=PLACES),
    Verb("hear", "heard", "hören", "hört", "gehört", CREATURES, CREATURES, places=PLACES),
    Verb("eat", "ate", "essen", "isst", "gegessen", _PERSON, FOOD, places=_INSIDE,
         manners=(GLADLY, *_PACE)),
    Verb("eat", "ate", "fressen", "frisst", "gefressen", ("animal", "beast"),
         ("snack", "meat", "baked"), places=("outdoors",), manners=(GLADLY, *_PACE)),
    Verb("drink", "drank", "trinken", "trinkt", "getrunken", _TAME, ("drink",), places=_INSIDE,
         manners=(GLADLY, *_PACE)),
    Verb("cook", "cooked", "kochen", "kocht", "gekocht", _PERSON, ("meal", "meat"),
         manners=(GLADLY,), companions=(FOR,)),
    Verb("bake", "baked", "backen", "backt", "gebacken", _PERSON, ("baked",),
         manners=(GLADLY,), companions=(FOR,)),
    Verb("love", "loved", "lieben", "liebt", "geliebt", _PERSON, _TAME, stative=True),
    Verb("know", "knew", "kennen", "kennt", "gekannt", _PERSON, ("person", *_SIGHTS, "text"),
         stative=True),
    Verb("like", "liked", "mögen", "mag", "gemocht", _PERSON,
         ("person", "animal", *FOOD, "drink", *_SIGHTS, "text"), stative=True),
    Verb("visit", "visited", "besuchen", "besucht", "besucht", _PERSON,
         ("person", *_SIGHTS, "city"), manners=(GLADLY,)),
    Verb("ask", "asked", "fragen", "fragt", "gefragt", _PERSON, _PERSON),
    Verb("meet", "met", "treffen", "trifft", "getroffen", _PERSON, _PERSON, places=PLACES),
    Verb("paint", "painted", "malen", "malt", "gemalt", _PERSON, (*CREATURES, *_SIGHTS),
         manners=(GLADLY, SLOWLY), companions=(FOR,)),
    Verb("wash", "washed", "waschen", "wäscht", "gewaschen", _PERSON,
         ("garment", "vehicle", "animal"), manners=_WORK),
    Verb("repair", "repaired", "reparieren", "repariert", "repariert", _PERSON,
         ("vehicle", "furniture", "opening"), places=("room", "outdoors"), manners=_WORK,
         companions=(FOR,)),
    Verb("catch", "caught", "fangen", "fängt", "gefangen", CREATURES, ("animal", "beast"),
         places=("outdoors",)),
    Verb("carry", "carried", "tragen", "trägt", "getragen", _PERSON,
         (*THINGS, "furniture"), manners=_WORK, companions=(FOR,)),
    Verb("need", "needed", "brauchen", "braucht", "gebraucht", _PERSON, (*_GOODS, "drink"),
         stative=True),
    Verb("forget", "forgot", "vergessen", "vergisst", "vergessen", _PERSON, (*THINGS, "text")),
    Verb("lose", "lost", "verlieren", "verliert", "verloren", _PERSON, THINGS,
         places=("outdoors", "town")),
    Verb("understand", "understood", "verstehen", "versteht", "verstanden", _PERSON,
         ("person", "text"), stative=True),
    Verb("take", "took", "nehmen", "nimmt", "genommen", _PERSON,
         (*THINGS, "transport", *FOOD, *READING)),
    Verb("clean", "cleaned", "putzen", "putzt", "geputzt", _PERSON,
         ("room", "opening", "vehicle", "vessel"), manners=_WORK),
    Verb("look", "looked", "suchen", "sucht", "gesucht", _PERSON,
         (*THINGS, "text", *CREATURES), english_preposition="for", places=PLACES),
    Verb("call", "called", "rufen", "ruft", "gerufen", _PERSON, _PERSON, particle="an",
         manners=(GLADLY,)),
    Verb("invite", "invited", "laden", "lädt", "geladen", _PERSON, _PERSON, particle="ein",
         manners=(GLADLY,)),
    Verb("pick", "picked", "holen", "holt", "geholt", _PERSON, _PERSON, particle="ab",
         english_particle="up", places=("spot", "building")),
    Verb("open", "opened", "machen", "macht", "gemacht", _PERSON, ("opening", "container"),
         particle="auf", manners=_WORK),
    Verb("close", "closed", "machen", "macht", "gemacht", _PERSON, ("opening", "container"),
         particle="zu", manners=_WORK),
    Verb("throw", "threw", "werfen", "wirft", "geworfen", _PERSON,
         (*THINGS, *READING, *FOOD), particle="weg", english_particle="away"),
    Verb("put", "put", "ziehen", "zieht", "gezogen", _PERSON, ("garment",), particle="an",
         english_particle="on", manners=_PACE),
    Verb("look", "looked", "sehen", "sieht", "gesehen", _PERSON,
         (*CREATURES, "thing", "building", "vehicle"), particle="an", english_preposition="at"),
    Verb("tidy", "tidied", "räumen", "räumt", "geräumt", _PERSON, ("room",), particle="auf",
         english_particle="up", manners=(GLADLY, *_PACE)),
)  # fmt: skip

DATIVE = (
    Verb("help", "helped", "helfen", "hilft", "geholfen", _PERSON, _TAME, "dative",
         places=PLACES, manners=(GLADLY,)),
    Verb("thank", "thanked", "danken", "dankt", "gedankt", _PERSON, _PERSON, "dative"),
    Verb("answer", "answered", "antworten", "antwortet", "geantwortet", _PERSON, _PERSON,
         "dative", manners=(GLADLY, *_PACE)),
    Verb("follow", "followed", "folgen", "folgt", "gefolgt", CREATURES, CREATURES, "dative",
         perfect_with_sein=True, manners=(SLOWLY, QUIETLY)),
    Verb("trust", "trusted", "vertrauen", "vertraut", "vertraut", _PERSON, _TAME, "dative",
         stative=True),
    Verb("listen", "listened", "hören", "hört", "gehört", _PERSON, _PERSON, "dative",
         particle="zu", english_preposition="to", manners=(GLADLY,)),
    Verb("belong", "belonged", "gehören", "gehört", "gehört", (*_GOODS, "animal"), _PERSON,
         "dative", english_preposition="to", stative=True),
)  # fmt: skip

PREPOSITIONAL = (
    Verb("wait", "waited", "warten", "wartet", "gewartet", _PERSON, ("person", "transport"),
         german_preposition="auf", english_preposition="for", places=PLACES),
    Verb("think", "thought", "denken", "denkt", "gedacht", _PERSON, ("person", "town"),
         german_preposition="an", english_preposition="of", manners=(GLADLY,)),
    Verb("speak", "spoke", "sprechen", "spricht", "gesprochen", _PERSON, _PERSON, "dative",
         german_preposition="mit", english_preposition="with", places=PLACES, manners=_VOICE),
    Verb("dream", "dreamed", "träumen", "träumt", "geträumt", _PERSON,
         ("person", "animal", *_SIGHTS), "dative",
         german_preposition="von", english_preposition="of"),
)  # fmt: skip

DITRANSITIVE = (
    Verb("give", "gave", "geben", "gibt", "gegeben", _PERSON,
         (*THINGS, *READING, "animal", *FOOD), recipient=True, manners=(GLADLY,)),
    Verb("show", "showed", "zeigen", "zeigt", "gezeigt", _PERSON,
         (*_GOODS, *_SIGHTS, "animal"), recipient=True, manners=(GLADLY,)),
    Verb("send", "sent", "schicken", "schickt", "geschickt", _PERSON, (*THINGS, *READING),
         recipient=True),
    Verb("bring", "brought", "bringen", "bringt", "gebracht", _PERSON,
         (*THINGS, *READING, *FOOD), recipient=True),
    Verb("sell", "sold", "verkaufen", "verkauft", "verkauft", _PERSON,
         (*_GOODS, "animal"), recipient=True),
    Verb("lend", "lent", "leihen", "leiht", "geliehen", _PERSON,
         (*THINGS, "text", "vehicle"), recipient=True, manners=(GLADLY,)),
)  # fmt: skip

ASK = next(verb for verb in TRANSITIVE if verb.english == "ask")
KNOW = Verb("know", "knew", "wissen", "weiß", "gewusst", _PERSON, stative=True)
REPORTING = (
    KNOW,
    Verb("say", "said", "sagen", "sagt", "gesagt", _PERSON),
    Verb("believe", "believed", "glauben", "glaubt", "geglaubt", _PERSON, stative=True),
    Verb("hope", "hoped", "hoffen", "hofft", "gehofft", _PERSON, stative=True),
)

VERBS = (
    BE, *INTRANSITIVE, *LOCATED, *MOTION, *PLACEMENT, *TRANSITIVE, *DATIVE, *PREPOSITIONAL,
    *DITRANSITIVE, *REPORTING,
)  # fmt: skip


def verb(infinitive: str) -> Verb:
    """The verb with this German dictionary form, its separable particle in front."""
    return next(verb for verb in VERBS if verb.infinitive == infinitive)
