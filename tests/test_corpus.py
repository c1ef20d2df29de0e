"""Corpora: what a line is, how two sides are aligned, and how pairs are held out."""

import random

import pytest

from flaxattn.text.lines import read_lines
from flaxattn.translation.config import DataConfig
from flaxattn.translation.text import corpus


def load_corpus(config):
    found = corpus.load_corpus(config, print)
    return found._replace(train=[*found.train])


def read_pairs(paths, config=DataConfig()):
    return [*corpus.read_pairs(paths, config, print)]


BOM = b"\xef\xbb\xbf"
NOT_LINE_BREAKS = "\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"  # all of which str.splitlines breaks at
AS_THEY_ARE = DataConfig(normalization="none")
LINES = ["Ein Haus.", "", "Größe 5", "我喜欢猫。"]


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def write_pairs(folder, name, pairs):
    """Two aligned files; their names."""
    for side, lines in zip(("en", "de"), zip(*pairs, strict=True), strict=True):
        write(folder / f"{name}.{side}", "".join(f"{line}\n" for line in lines))
    return f"{name}.en", f"{name}.de"


def numbered_pairs(count, prefix="x"):
    return [(f"{prefix}{i} source", f"{prefix}{i} target") for i in range(count)]


# ---- Lines -----------------------------------------------------------------------------------


@pytest.mark.parametrize("character", NOT_LINE_BREAKS, ids=ascii)
def test_lines_are_broken_at_newlines_alone(tmp_path, character):
    path = write(tmp_path / "text.en", f"a{character}b\nc{character}{character}d\ne\n")
    assert read_lines(path) == [f"a{character}b", f"c{character}{character}d", "e"]


@pytest.mark.parametrize("start", [b"", BOM], ids=["no BOM", "BOM"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"], ids=["LF", "CRLF"])
@pytest.mark.parametrize("last", [True, False], ids=["last newline", "no last newline"])
def test_the_ways_to_end_lines_give_the_same_lines(tmp_path, start, newline, last):
    text = newline.join(LINES) + newline * last
    assert read_lines(write(tmp_path / "text", start + text.encode())) == LINES


def test_mixed_line_ends_in_one_file(tmp_path):
    assert read_lines(write(tmp_path / "text", "a\r\nb\nc\r\r\nd")) == ["a", "b", "c\r", "d"]


def test_a_blank_last_line_counts_as_a_line(tmp_path):
    assert read_lines(write(tmp_path / "text", "a\n\n")) == ["a", ""]


def test_a_byte_order_mark_is_dropped_at_the_start_of_the_file_alone(tmp_path):
    text = BOM + b"a\n" + BOM + b"b" + BOM + b"\n"
    assert read_lines(write(tmp_path / "text", text)) == ["a", "\ufeffb\ufeff"]


@pytest.mark.parametrize("content", [b"", BOM])
def test_an_empty_file_has_no_lines(tmp_path, content):
    assert read_lines(write(tmp_path / "text", content)) == []


@pytest.mark.parametrize("bad", ["größe".encode("latin-1"), b"\xed\xa0\x80", b"\xe2\x82"])
def test_invalid_utf8_names_file_and_line(tmp_path, bad):
    path = write(tmp_path / "text.de", b"gut\r\n\xc3\xbc\nx " + bad + b"\ngut\n")
    with pytest.raises(ValueError, match=r"text\.de.*\b3\b"):
        read_lines(path)


def test_utf16_is_invalid_in_line_1(tmp_path):
    with pytest.raises(ValueError, match=r"text\.de.*\b1\b"):
        read_lines(write(tmp_path / "text.de", "ein Haus\n".encode("utf-16")))


@pytest.mark.parametrize("name", ["missing.en", "."], ids=["missing", "folder"])
def test_a_missing_file_is_named(tmp_path, name):
    with pytest.raises(FileNotFoundError) as error:
        read_lines(tmp_path / name)
    assert str(tmp_path / name) in str(error.value)


# ---- Pairs -----------------------------------------------------------------------------------


def two_files(folder, source, target):
    return [write(folder / "text.en", source), write(folder / "text.de", target)]


def test_two_files_are_aligned_line_by_line(tmp_path):
    files = two_files(tmp_path, "one\ntwo\nthree\n", "eins\r\nzwei\r\ndrei")
    assert read_pairs(files) == [("one", "eins"), ("two", "zwei"), ("three", "drei")]


@pytest.mark.parametrize("character", NOT_LINE_BREAKS, ids=ascii)
def test_odd_characters_on_one_side_do_not_shift_the_other(tmp_path, character):
    files = two_files(tmp_path, f"o{character}ne\ntwo\n", "eins\nzwei\n")
    assert read_pairs(files, AS_THEY_ARE) == [(f"o{character}ne", "eins"), ("two", "zwei")]


def test_a_tsv_file_gives_its_first_two_columns(tmp_path):
    path = write(tmp_path / "text.tsv", BOM + b"one\teins\r\ntwo\tzwei\tCC-BY\t\r\n")
    assert read_pairs([path]) == [("one", "eins"), ("two", "zwei")]


def test_what_is_taken_of_a_tsv_file_is_told_with_its_first_line(tmp_path, capsys):
    read_pairs([write(tmp_path / "text.tsv", "one\teins\n")])
    told = capsys.readouterr().out
    assert told.endswith(
        "text.tsv: the source is column 1, 'one'; the target is column 2, 'eins'.\n"
    )


def test_columns_that_are_not_used_are_told_wherever_they_begin(tmp_path, capsys):
    path = write(tmp_path / "text.tsv", "one\teins\ntwo\tzwei\tCC\tme\n")
    read_pairs([path])
    assert "; not used: columns 3, 4." in capsys.readouterr().out


IDS = "12\tone\t77\teins\n13\ttwo\t78\tzwei\n"
NAMED = "id\ten\tnr\tde\n" + IDS


@pytest.mark.parametrize(
    "text, columns", [(IDS, ("2", "4")), (NAMED, ("en", "de")), (NAMED[:-1], ("en", "de"))]
)
def test_columns_are_chosen_by_number_or_by_name(tmp_path, capsys, text, columns):
    path = write(tmp_path / "text.tsv", text)
    assert read_pairs([path], DataConfig(columns=columns)) == [("one", "eins"), ("two", "zwei")]
    told = capsys.readouterr().out
    assert "column 2, 'one'; the target is column 4, 'eins'; not used: columns 1, 3." in told
    assert "identifiers" not in told


def test_columns_can_be_taken_the_other_way_round(tmp_path):
    path = write(tmp_path / "text.tsv", "eins\tone\n")
    assert read_pairs([path], DataConfig(columns=("2", "1"))) == [("one", "eins")]


@pytest.mark.parametrize("names", ["1 2 3", "s-4 x-9 m-7", "5f0e-1 5f0e-2 5f0e-3"])
def test_identifiers_in_a_column_that_is_taken_are_noticed(tmp_path, capsys, names):
    lines = "".join(f"{name}\tone\teins\n" for name in names.split())
    read_pairs([write(tmp_path / "text.tsv", lines)])
    told = capsys.readouterr().out
    assert "column 1 looks like identifiers" in told and "--columns" in told


def test_numbers_that_are_all_there_is_to_translate_are_no_identifiers(tmp_path, capsys):
    read_pairs([write(tmp_path / "text.tsv", "12\ttwelve\n13\tthirteen\n")])
    assert "identifiers" not in capsys.readouterr().out


@pytest.mark.parametrize("columns", [("en", "fr"), ("0", "1"), ("-1", "en")])
def test_columns_that_are_not_there_are_refused_with_those_that_are(tmp_path, columns):
    path = write(tmp_path / "text.tsv", NAMED)
    with pytest.raises(ValueError, match=r"--columns.*text\.tsv.*id, en, nr, de"):
        read_pairs([path], DataConfig(columns=columns))


def test_a_line_with_too_few_columns_is_named(tmp_path):
    path = write(tmp_path / "text.tsv", IDS + "14\tthree\n")
    with pytest.raises(ValueError, match=r"text\.tsv, line 3: expected 4 columns.* found 2"):
        read_pairs([path], DataConfig(columns=("2", "4")))


@pytest.mark.parametrize("blank", ["", " ", "\t", " \t \t"])
def test_a_blank_line_counts_alike_in_a_tsv_file_and_in_two_files(tmp_path, capsys, blank):
    path = write(tmp_path / "text.tsv", f"one\teins\n{blank}\ntwo\tzwei\n")
    of_two = read_pairs(two_files(tmp_path, f"one\n{blank}\ntwo\n", "eins\n\nzwei\n"))
    assert read_pairs([path]) == of_two
    assert capsys.readouterr().out.count("left out 1 pairs that are blank on one side") == 2


def test_a_tsv_line_without_tab_names_file_and_line(tmp_path):
    path = write(tmp_path / "text.tsv", "one\teins\ntwo zwei\n")
    with pytest.raises(ValueError, match=r"text\.tsv.*\b2\b.*tab"):
        read_pairs([path])


def test_different_line_counts_name_both_files_and_both_counts(tmp_path):
    files = two_files(tmp_path, "a\n" * 17, "b\n" * 19)
    with pytest.raises(ValueError) as error:
        read_pairs(files)
    for word in (str(files[0]), str(files[1]), "17", "19"):
        assert word in str(error.value)


def test_a_missing_second_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"text\.de"):
        read_pairs([write(tmp_path / "text.en", "a\n"), tmp_path / "text.de"])


def test_pairs_blank_on_either_side_are_dropped_and_counted(tmp_path, capsys):
    source = "one\n\nthree\n \t\n\u3000\nsix\n"
    target = "eins\nzwei\n \n\nfünf\nsechs\n"
    assert read_pairs(two_files(tmp_path, source, target)) == [("one", "eins"), ("six", "sechs")]
    said = capsys.readouterr().out
    assert "4 pairs" in said and "text.en" in said and "text.de" in said


def test_pairs_blank_on_one_side_of_a_tsv_file_are_dropped_and_counted(tmp_path, capsys):
    path = write(tmp_path / "text.tsv", "one\teins\n\tzwei\nthree\t \n\t\nfive\tfünf\n")
    assert read_pairs([path]) == [("one", "eins"), ("five", "fünf")]
    assert "3 pairs" in capsys.readouterr().out


def test_nothing_is_said_when_nothing_is_dropped_or_changed(tmp_path, capsys):
    read_pairs(two_files(tmp_path, "one\n", "eins\n"))
    assert capsys.readouterr().out == ""


def test_space_around_a_sentence_goes_and_space_inside_stays(tmp_path):
    assert read_pairs(two_files(tmp_path, "  a  b \n", "\tc\u00a0d\r\n")) == [("a  b", "c\u00a0d")]


@pytest.mark.parametrize("source", ["", "\n \n"], ids=["empty", "blank"])
def test_no_pair_left_is_an_error_that_names_the_files(tmp_path, source):
    with pytest.raises(ValueError, match=r"text\.en.*text\.de"):
        read_pairs(two_files(tmp_path, source, source))


# ---- Normalisation ---------------------------------------------------------------------------

ODD = "e\u0301\u00a0ﬁ ² Ａ\u3000x"


@pytest.mark.parametrize(
    "how, source, target",
    [
        ("none", ODD, ODD),
        ("nfc", "é ﬁ ² Ａ x", "é\u00a0ﬁ ² Ａ\u3000x"),
        ("nfkc", "é fi 2 A x", "é\u00a0ﬁ ² Ａ\u3000x"),
    ],
)
def test_sources_and_targets_are_normalised_as_the_option_says(
    tmp_path, capsys, how, source, target
):
    files = two_files(tmp_path, f"{ODD}\nplain\n", f"{ODD}\nplain\n")
    assert read_pairs(files, DataConfig(normalization=how))[0] == (source, target)
    assert ("normalised 1 pairs" in capsys.readouterr().out) == (how != "none")


# ---- Splits ----------------------------------------------------------------------------------


def data_config(folder, **splits):
    """A configuration of files that hold the pairs of each split."""
    files = {name: write_pairs(folder, name, pairs) for name, pairs in splits.items()}
    return DataConfig(data_dir=str(folder), **files)


def hold_out(folder, pairs, count=1000, **splits):
    config = data_config(folder, train=pairs, **splits)
    return load_corpus(DataConfig(**{**vars(config), "held_out": count}))


def sources(pairs):
    return {source for source, _ in pairs}


def test_named_splits_are_taken_whole(tmp_path):
    splits = {name: numbered_pairs(3, name) for name in ("train", "valid", "test")}
    assert load_corpus(data_config(tmp_path, **splits))._asdict() == splits


def test_files_are_found_by_absolute_name_too(tmp_path):
    path = write(tmp_path / "all.tsv", "one\teins\n")
    name = (str(path),)
    config = DataConfig(data_dir="elsewhere", train=name, valid=name, test=name)
    assert load_corpus(config).test == [("one", "eins")]


def test_what_is_held_out_is_taken_out_of_training_and_nothing_is_lost(tmp_path):
    pairs = numbered_pairs(100)
    corpus = hold_out(tmp_path, pairs, 7)
    assert (len(corpus.train), len(corpus.valid), len(corpus.test)) == (86, 7, 7)
    assert sorted(corpus.train + corpus.valid + corpus.test) == sorted(pairs)


def test_splits_share_no_source_where_sources_repeat(tmp_path):
    rng = random.Random(0)
    pairs = [(f"source {rng.randrange(40)}", f"target {i}") for i in range(300)]
    corpus = hold_out(tmp_path, pairs)
    train, valid, test = map(sources, corpus)
    assert not (train & valid or train & test or valid & test)
    assert len(valid) == len(test) == len(corpus.valid) == len(corpus.test) == 4
    assert sorted(corpus.train) == sorted(p for p in pairs if p[0] not in valid | test)
    assert set(corpus.valid + corpus.test) <= set(pairs)


def test_n_pairs_held_out_are_n_and_copies_leave_training_and_are_counted(tmp_path, capsys):
    pairs = numbered_pairs(100) + [("x1 source", f"another {i}") for i in range(50)]
    pairs += numbered_pairs(100) + [(f"x{i} source", f"second {i}") for i in range(100)]
    corpus = hold_out(tmp_path, pairs, 9)
    assert not sources(corpus.train) & sources(corpus.valid + corpus.test)
    assert len(corpus.valid) == len(corpus.test) == 9
    left = sum(pair[0] in sources(corpus.valid + corpus.test) for pair in pairs) - 18
    assert len(corpus.train) == len(pairs) - 18 - left
    assert f"Left {left} pairs out of training" in capsys.readouterr().out


def test_the_order_of_translations_does_not_decide_which_is_held_out(tmp_path):
    pairs = [(f"x{i} source", f"target {j}") for i in range(30) for j in range(9)]
    corpus, backwards = (hold_out(tmp_path, order) for order in (pairs, pairs[::-1]))
    assert sorted(corpus.test) == sorted(backwards.test)
    assert len({target for _, target in corpus.valid + corpus.test}) > 2


def test_fewer_pairs_held_out_than_asked_for_are_told(tmp_path, capsys):
    hold_out(tmp_path, numbered_pairs(59), 6)
    assert "--held-out 6: 5 pairs" in capsys.readouterr().out


def test_sources_that_only_look_different_are_in_one_split(tmp_path):
    pairs = [(f"é{i}", "a") for i in range(40)] + [(f"e\u0301{i}", "b") for i in range(40)]
    corpus = hold_out(tmp_path, pairs)
    assert not sources(corpus.train) & sources(corpus.valid + corpus.test)
    assert len(corpus.test) == 4 and len(corpus.train) == 80 - 16


def test_at_most_a_tenth_of_the_sources_is_held_out(tmp_path):
    corpus = hold_out(tmp_path, numbered_pairs(59), 1000)
    assert (len(corpus.train), len(corpus.valid), len(corpus.test)) == (49, 5, 5)


def test_held_out_pairs_are_spread_over_the_file(tmp_path):
    pairs = numbered_pairs(200)
    corpus = hold_out(tmp_path, pairs)
    for split in (corpus.valid, corpus.test):
        places = [pairs.index(pair) for pair in split]
        assert min(places) < 100 <= max(places)


def test_the_same_file_gives_the_same_splits(tmp_path):
    assert hold_out(tmp_path, numbered_pairs(50)) == hold_out(tmp_path, numbered_pairs(50))


def test_the_order_of_lines_does_not_decide_what_is_held_out(tmp_path):
    pairs = numbered_pairs(50)
    backwards = hold_out(tmp_path, pairs[::-1])
    for split, other in zip(hold_out(tmp_path, pairs), backwards, strict=True):
        assert sorted(split) == sorted(other)


@pytest.mark.parametrize("named, missing", [("valid", "test"), ("test", "valid")])
def test_only_the_split_without_files_is_held_out(tmp_path, named, missing):
    pairs, own = numbered_pairs(50), numbered_pairs(3, "own")
    corpus = hold_out(tmp_path, pairs, **{named: own})
    assert getattr(corpus, named) == own
    assert len(getattr(corpus, missing)) == 5
    assert sorted(corpus.train + getattr(corpus, missing)) == sorted(pairs)


def test_too_few_pairs_to_hold_out_is_an_error_that_says_what_to_do(tmp_path):
    with pytest.raises(ValueError, match=r"9 .*--valid.*--test"):
        hold_out(tmp_path, numbered_pairs(9))
    assert len(hold_out(tmp_path, numbered_pairs(10)).test) == 1


# ---- The built-in corpus ---------------------------------------------------------------------


def test_without_files_the_built_in_corpus_is_drawn():
    corpus = load_corpus(DataConfig(builtin_pairs=120, held_out=12))
    train, valid, test = map(sources, corpus)
    assert (len(corpus.train), len(corpus.valid), len(corpus.test)) == (120, 12, 12)
    assert not (train & valid or train & test or valid & test)
    assert all(source and target and source != target for source, target in corpus.train)
