"""The nouns, in tables like a dictionary page: English, then German with its article."""

from collections.abc import Iterator

from flaxattn.translation.builtin.lexicon import AT, AT_OPEN, IN, ON, Gender, Noun, Preposition

_GENDERS: dict[str, Gender] = {"der": "masculine", "die": "feminine", "das": "neuter"}
_LOCATIONS: dict[str, Preposition] = {"an": AT, "auf": AT_OPEN}

# Each line: singular, plural, article, Singular, Plural, with "-" for a plural that is not used;
# then "weak", "mass", "kin" or "public", which are explained at `Noun`, and the German preposition
# of a place where it is not "in".
_TABLES = {
    "person": """
        man men der Mann Männer public
        woman women die Frau Frauen public
        child children das Kind Kinder
        boy boys der Junge Jungen weak
        girl girls das Mädchen Mädchen
        father - der Vater - kin
        mother - die Mutter - kin
        brother brothers der Bruder Brüder kin
        sister sisters die Schwester Schwestern kin
        son sons der Sohn Söhne kin
        daughter daughters die Tochter Töchter kin
        uncle uncles der Onkel Onkel kin
        aunt aunts die Tante Tanten kin
        teacher teachers der Lehrer Lehrer
        student students der Student Studenten weak
        doctor doctors der Arzt Ärzte
        neighbor neighbors der Nachbar Nachbarn weak
        friend friends der Freund Freunde
        cook cooks der Koch Köche
        farmer farmers der Bauer Bauern weak
        queen queens die Königin Königinnen public
        guest guests der Gast Gäste
    """,
    "animal": """
        dog dogs der Hund Hunde
        cat cats die Katze Katzen
        horse horses das Pferd Pferde
        cow cows die Kuh Kühe
        duck ducks die Ente Enten
        pig pigs das Schwein Schweine
    """,
    "beast": """
        bear bears der Bär Bären weak public
        monkey monkeys der Affe Affen weak public
        mouse mice die Maus Mäuse public
    """,
    "text": """
        book books das Buch Bücher
        letter letters der Brief Briefe
        story stories die Geschichte Geschichten
        poem poems das Gedicht Gedichte
        novel novels der Roman Romane
    """,
    "press": """
        newspaper newspapers die Zeitung Zeitungen
    """,
    "thing": """
        key keys der Schlüssel Schlüssel
        knife knives das Messer Messer
        picture pictures das Bild Bilder
        clock clocks die Uhr Uhren
        ball balls der Ball Bälle
        gift gifts das Geschenk Geschenke
        flower flowers die Blume Blumen
        hat hats der Hut Hüte
        umbrella umbrellas der Regenschirm Regenschirme
    """,
    "container": """
        bottle bottles die Flasche Flaschen
        box boxes die Kiste Kisten
        bag bags die Tasche Taschen
        suitcase suitcases der Koffer Koffer
    """,
    "vessel": """
        cup cups die Tasse Tassen
        plate plates der Teller Teller
        lamp lamps die Lampe Lampen
    """,
    "garment": """
        coat coats der Mantel Mäntel
        shirt shirts das Hemd Hemden
        jacket jackets die Jacke Jacken
        dress dresses das Kleid Kleider
    """,
    "furniture": """
        table tables der Tisch Tische
        chair chairs der Stuhl Stühle
        bed beds das Bett Betten
    """,
    "opening": """
        door doors die Tür Türen
        window windows das Fenster Fenster
    """,
    "vehicle": """
        car cars das Auto Autos
        bicycle bicycles das Fahrrad Fahrräder
        ship ships das Schiff Schiffe
    """,
    "transport": """
        bus buses der Bus Busse public
        train trains der Zug Züge public
    """,
    "snack": """
        apple apples der Apfel Äpfel
        pear pears die Birne Birnen
        cheese - der Käse - mass
    """,
    "meal": """
        egg eggs das Ei Eier
        potato potatoes die Kartoffel Kartoffeln
        soup soups die Suppe Suppen
        rice - der Reis - mass
    """,
    "meat": """
        meat - das Fleisch - mass
    """,
    "baked": """
        cake cakes der Kuchen Kuchen
        bread - das Brot - mass
    """,
    "drink": """
        water - das Wasser - mass
        milk - die Milch - mass
        coffee - der Kaffee - mass
        tea - der Tee - mass
        juice - der Saft - mass
    """,
    "room": """
        kitchen kitchens die Küche Küchen
        room rooms das Zimmer Zimmer
        office offices das Büro Büros
    """,
    "building": """
        house houses das Haus Häuser
        school schools die Schule Schulen
        library libraries die Bibliothek Bibliotheken public
        restaurant restaurants das Restaurant Restaurants public
        hospital hospitals das Krankenhaus Krankenhäuser public
        church churches die Kirche Kirchen public
        hotel hotels das Hotel Hotels public
    """,
    "outdoors": """
        garden gardens der Garten Gärten
        park parks der Park Parks public
        forest forests der Wald Wälder public
    """,
    "town": """
        city cities die Stadt Städte public
        village villages das Dorf Dörfer
    """,
    "spot": """
        station stations der Bahnhof Bahnhöfe an public
        beach beaches der Strand Strände an public
        lake lakes der See Seen an public
        river rivers der Fluss Flüsse an public
        market markets der Markt Märkte auf public
    """,
}

_PLACE_KINDS = ("room", "building", "outdoors", "town", "spot")


def _location(kind: str, notes: list[str]) -> Preposition | None:
    """The preposition that places something at a noun of this kind."""
    if kind == "furniture":
        return ON
    if kind not in _PLACE_KINDS:
        return None
    return next((_LOCATIONS[note] for note in notes if note in _LOCATIONS), IN)


def _read(kind: str, table: str) -> Iterator[Noun]:
    for line in filter(None, map(str.strip, table.splitlines())):
        english, english_plural, article, german, german_plural, *notes = line.split()
        yield Noun(
            english,
            english_plural,
            german,
            german_plural,
            _GENDERS[article],
            kind,
            weak="weak" in notes,
            mass="mass" in notes,
            kin="kin" in notes,
            public="public" in notes,
            location=_location(kind, notes),
        )


NOUNS = tuple(noun for kind, table in _TABLES.items() for noun in _read(kind, table))


def noun(english: str) -> Noun:
    """The noun with this English singular."""
    return next(noun for noun in NOUNS if noun.english == english)
