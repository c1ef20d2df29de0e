"""People's own files: documents, texts with labels, words with tags, and what is told of them."""

import gzip

import pytest

from flaxattn.tasks.reading import documents, labelled_texts, tagged_sentences
from flaxattn.text.pairs import StoredPairs


@pytest.fixture
def write(tmp_path):
    def written(text, name="file.txt"):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return written


def read(reader, path, *args, **options):
    """The pairs of a file, and what is told without the file's name."""
    told = []
    pairs = list(reader(path, told.append, *args, **options))
    assert list(StoredPairs([pairs])) == pairs
    assert all(line.startswith(f"{path}: ") for line in told)
    return pairs, [line.removeprefix(f"{path}: ") for line in told]


TEXT = "One.\nTwo.\n\n \t\n\nThree\tthree.\r\nFour\n"


@pytest.mark.parametrize(
    "by, texts",
    [
        ("paragraphs", ["One.\nTwo.", "Three\tthree.\nFour"]),
        ("lines", ["One.", "Two.", "Three\tthree.", "Four"]),
        ("files", ["One.\nTwo.\n\n \t\n\nThree\tthree.\nFour"]),
    ],
)
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_documents(write, by, texts, pack):
    found, told = read(documents, write(pack(TEXT.encode())), by)
    assert found == [(text, "") for text in texts]
    assert told == []


def test_documents_are_paragraphs_unless_told_otherwise(write):
    assert [text for text, _ in read(documents, write("a\nb\n\nc"))[0]] == ["a\nb", "c"]


def test_documents_of_any_size_are_read_in_pieces(write):
    texts = [f"Text {number} of many, which fill more than one piece." for number in range(9_000)]
    found, _ = read(documents, write("\n\n".join(texts)))
    assert found == [(text, "") for text in texts]


def test_invalid_lines_of_documents(write):
    path = write(b"a\nb\xff\nc\n\nd\n")
    with pytest.raises(ValueError, match=r"file.txt, line 2: invalid UTF-8 at byte 1"):
        list(documents(path, print))
    found, told = read(documents, path, skip_invalid=True)
    assert found == [("a\nc", ""), ("d", "")]
    assert told == ["left out 1 lines that are not valid UTF-8 or have a NUL."]


@pytest.mark.parametrize(
    "reader, message",
    [
        (documents, "no text found"),
        (labelled_texts, "no label with a text found"),
        (tagged_sentences, "no sentence found"),
    ],
)
def test_files_with_nothing_in_them(write, tmp_path, reader, message):
    for text in ("", "\n \n\n"):
        with pytest.raises(ValueError, match=f"file.txt: {message}"):
            list(reader(write(text), lambda _: None))
    with pytest.raises(FileNotFoundError, match=r"Did you mean 'file.txt'"):
        list(reader(tmp_path / "fil.txt", print))


def test_documents_by_something_else(write):
    with pytest.raises(ValueError, match="one of paragraphs, lines, files, not 'words'"):
        list(documents(write("a"), print, "words"))


def test_labelled_texts(write):
    found, told = read(labelled_texts, write("good\tI like  it. \n\nbad\tI do not.\tx\nbad\t\n"))
    assert found == [("I like it.", "good"), ("I do not.", "bad")]
    assert told == [
        "left out 2 lines that lack a label or a text.",
        "2 texts with 2 labels: good 1, bad 1.",
    ]


@pytest.mark.parametrize("columns", [("3", "1"), ("stars", "review")])
def test_labelled_texts_of_other_columns(write, columns):
    lines = "review\tid\tstars\nfine\t1\tfive\n"
    found, _ = read(labelled_texts, write(lines), columns)
    assert found[-1:] == [("fine", "five")]
    assert len(found) == (2 if columns[0] == "3" else 1)  # a header that is not named is a line


def test_lines_without_label_or_tab(write):
    with pytest.raises(ValueError, match=r"line 2: expected label TAB text, found no tab"):
        list(labelled_texts(write("a\tb\nc d\n"), print))
    with pytest.raises(ValueError, match=r"line 1: expected 3 columns .* found 2 columns"):
        list(labelled_texts(write("a\tb\n"), print, ("1", "3")))
    with pytest.raises(ValueError, match=r"no 'text' in the first line .* label, texts"):
        list(labelled_texts(write("label\ttexts\na\tb\n"), print, ("label", "text")))


def test_invalid_lines_of_labelled_texts(write):
    path = write(b"a\tb\nc\t\xff\nd\te\n")
    with pytest.raises(ValueError, match=r"line 2: invalid UTF-8"):
        list(labelled_texts(path, print))
    found, told = read(labelled_texts, path, skip_invalid=True)
    assert found == [("b", "a"), ("e", "d")]
    assert told[0] == "left out 1 lines that are not valid UTF-8 or have a NUL."


def test_what_looks_like_other_columns_is_told(write):
    lines = [f"text {number}\tlabel {number % 3}" for number in range(40)]
    _, told = read(labelled_texts, write("\n".join(lines)))
    assert "--columns 2 1" in told[-1]
    _, told = read(labelled_texts, write("\n".join(["text\tlabel", *lines])), ("2", "1"))
    assert "the first label, 'label', occurs once" in told[-1]
    _, told = read(labelled_texts, write("\n".join(lines)), ("2", "1"))
    assert told == ["40 texts with 3 labels: label 0 14, label 1 13, label 2 13."]


CONLL = """-DOCSTART- -X- -X- O

EU NNP B-NP B-ORG
rejects VBZ B-VP O
New JJ B-NP B-LOC
York NN I-NP I-LOC

-DOCSTART- -X- -X- O
Peter NNP B-NP B-PER
"""
SENTENCES = [("EU rejects New York", "B-ORG O B-LOC I-LOC"), ("Peter", "B-PER")]


@pytest.mark.parametrize("separator", [" ", "\t", "   "])
@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_tagged_sentences(write, separator, ending):
    text = CONLL.replace(" ", separator).replace("\n", ending)
    assert read(tagged_sentences, write(text)) == (SENTENCES, [])


def test_tagged_sentences_of_other_columns(write):
    found, _ = read(tagged_sentences, write(CONLL.replace("-X- O", "-X-")), (1, 3))
    assert found[0][1] == "B-NP B-VP B-NP I-NP"
    swapped = "1\tB-PER\tAnna\n2\tO\tsleeps\n"
    assert read(tagged_sentences, write(swapped), (-1, 2))[0] == [("Anna sleeps", "B-PER O")]


IOB1 = 'took {} "I-" tags that begin an entity for "B-", as in IOB1.'
BIOES = 'took {} tags that begin with "E", "S", "L" or "U" for "B-" and "I-": BIOES or BILOU.'


@pytest.mark.parametrize(
    "given, taken, told",
    [
        ("I-A I-A O I-B", "B-A I-A O B-B", [IOB1.format(2)]),
        ("I-A B-A I-B", "B-A B-A B-B", [IOB1.format(2)]),
        ("S-A B-A E-A O B-B I-B E-B", "B-A B-A I-A O B-B I-B I-B", [BIOES.format(3)]),
        ("U-A B-A L-A S-A", "B-A B-A I-A B-A", [BIOES.format(3)]),
        ("B-A E-A E-A", "B-A I-A B-A", [BIOES.format(2)]),  # nothing is open
        ("B-A-x I-A-x I-A", "B-A-x I-A-x B-A", [IOB1.format(1)]),
        ("O B-A B-A I-A O", "O B-A B-A I-A O", []),
    ],
)
def test_other_schemes_become_bio(write, given, taken, told):
    tags = given.split()
    found = read(tagged_sentences, write("\n".join(f"w {tag}" for tag in tags)))
    assert found == ([(" ".join("w" for _ in tags), taken)], told)


@pytest.mark.parametrize(
    "line, message",
    [
        ("b", r"line 3: expected 2 columns or more, a word and its tag among them, found 1: 'b'"),
        ("b PER", r"line 3: expected a tag such as O, B-PER or I-PER, found 'PER'"),
        ("b X-PER", r"line 3: .* found 'X-PER'"),
        ("b B-", r"line 3: .* found 'B-'"),
        ("b o", r"line 3: .* found 'o'"),
        ("b c\tO", r"line 3: expected a word without spaces, found 'b c'"),
        ("\tO", r"line 3: expected a word without spaces, found ''"),
    ],
)
def test_malformed_lines_are_named(write, line, message):
    with pytest.raises(ValueError, match=message):
        list(tagged_sentences(write(f"a O\n\n{line}\n"), print))


@pytest.mark.parametrize("columns", [(0, 1), (2, 2)])
def test_columns_that_cannot_be(write, columns):
    with pytest.raises(ValueError, match="two different numbers, from 1"):
        list(tagged_sentences(write("a O\n"), print, columns))


def test_invalid_lines_of_sentences(write):
    path = write(b"a O\n\nb O\nc\xff O\n\nd O\n")
    with pytest.raises(ValueError, match=r"line 4: invalid UTF-8"):
        list(tagged_sentences(path, print))
    found, told = read(tagged_sentences, path, skip_invalid=True)
    assert found == [("a", "O"), ("d", "O")]
    assert told == ["left out 1 sentences with a line that is not valid UTF-8 or has a NUL."]


def test_words_hold_spaces_of_other_kinds(write):
    assert read(tagged_sentences, write("1\u00a0000 O\n"))[0] == [("1\u00a0000", "O")]
