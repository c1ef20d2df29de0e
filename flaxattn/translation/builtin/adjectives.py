"""The adjectives: English, German with its stem where that differs, and the nouns they suit."""

from collections.abc import Iterator

from flaxattn.translation.builtin.lexicon import Adjective, Noun

_ABBREVIATIONS = {
    "creature": "person animal beast",
    "object": "thing container vessel garment furniture opening vehicle",
    "reading": "text press",
    "food": "snack meal meat baked",
    "place": "room building outdoors town",
}

# Each line: English, German (predicative/stem of the endings), the kinds; "now" marks a quality
# that comes and goes.
_TABLE = """
    old alt creature object reading transport building town
    young jung creature
    big groß animal beast object transport place spot
    small klein creature object place spot
    new neu object reading transport building
    beautiful schön person animal text thing vessel garment furniture place spot
    good gut person text food drink
    bad schlecht text food drink
    expensive teuer/teur object text
    cheap billig object text
    red rot thing container vessel garment furniture opening vehicle
    blue blau thing container vessel garment furniture opening vehicle
    green grün thing container vessel garment furniture opening vehicle
    black schwarz animal container vessel garment vehicle
    white weiß animal container vessel garment furniture opening
    heavy schwer container furniture
    cold kalt food drink room now
    warm warm garment room meal drink now
    dirty schmutzig thing container vessel garment room vehicle now
    clean sauber container vessel garment room vehicle now
    tired müde/müd creature now
    hungry hungrig creature now
    sick krank creature now
    happy glücklich person now
    friendly freundlich person
    famous berühmt person text town
    clever klug person animal
    strong stark creature
    dangerous gefährlich beast outdoors
    long lang text
    short kurz text
    quiet ruhig room building outdoors town now
    dark dunkel/dunkl room building outdoors now
"""


def _read(table: str) -> Iterator[Adjective]:
    for line in filter(None, map(str.strip, table.splitlines())):
        english, german, *kinds = line.split()
        word, _, stem = german.partition("/")
        expanded = " ".join(_ABBREVIATIONS.get(kind, kind) for kind in kinds).split()
        yield Adjective(english, word, stem or word, tuple(expanded), temporary="now" in kinds)


ADJECTIVES = tuple(_read(_TABLE))


def adjective(english: str) -> Adjective:
    """The adjective with this English form."""
    return next(adjective for adjective in ADJECTIVES if adjective.english == english)


def adjectives_for(noun: Noun) -> tuple[Adjective, ...]:
    """All adjectives that suit `noun`: its age is already in a word like "boy"."""
    unsuited = ("old", "young") if noun.english in ("boy", "girl", "child") else ()
    return tuple(
        word for word in ADJECTIVES if noun.kind in word.kinds and word.english not in unsuited
    )
