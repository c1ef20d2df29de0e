"""The tokenizer: every text comes back, and no text can forge a special token."""

import collections
import functools
import itertools
import re
import subprocess
import sys

import numpy as np
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from flaxattn.text.subword_dropout import SubwordDropout
from flaxattn.text.tokenizer import Tokenizer

TEXTS = [
    "The small cat sleeps on the red mat.",
    "Die kleine Katze schläft auf der roten Matte.",
    "Größere Straßen führen über die Brücke.",
    "A dog runs over the long bridge to the house.",
    "Ein Hund läuft über die lange Brücke zum Haus.",
] * 8
TRICKY = [
    "Die größere Straße führt über Öl, Äpfel und Übermut: „ja“!",
    "我喜欢猫。它们也喜欢我！",
    "🦜 👩‍👩‍👧 fly 🇩🇪",
    "</s>",
    "a</s>b <pad> <s> <unk> [PAD] <0x0A>",
    "e\u0301 is not \u00e9, ﬁ not fi, Ａ not A",
    "zero\x00 byte\x1f and \u2028 separators\u0085 and \ufeff marks",
    "ไทย हिन्दी العربية עברית 한국어 日本語",
    "⁇",
    "x" * 3000,
    "▁a▁b ▁ c▁▁",
    "à\u00a0la\u202fcarte\u3000天 \t und\u2009mehr",
]
SPECIAL = {Tokenizer.pad_id, Tokenizer.bos_id, Tokenizer.unk_id}


@functools.cache
def tokenizer():
    return Tokenizer.train(TEXTS, 340)


def one(text):
    return tokenizer().encode([text])[0]


def round_trip(text):
    return tokenizer().decode([one(text)])[0]


@pytest.mark.parametrize("text", TEXTS[:5] + TRICKY, ids=lambda text: ascii(text[:12]))
def test_every_text_comes_back(text):
    assert round_trip(text) == text


@settings(deadline=None, max_examples=200)
@given(st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from("▁ \ue000"), max_size=40))
def test_any_text_comes_back_with_runs_of_spaces_collapsed(text):
    assert round_trip(text) == " ".join(word for word in text.split(" ") if word)


@pytest.mark.parametrize("text", [*TRICKY, "", " "], ids=lambda text: ascii(text[:12]))
def test_a_text_ends_in_eos_and_holds_no_other_special_token(text):
    ids = one(text)
    assert ids.dtype == np.int32
    assert ids.tolist().index(Tokenizer.eos_id) == len(ids) - 1
    assert not SPECIAL & set(ids.tolist())
    assert 0 <= ids.min() and ids.max() < tokenizer().vocab_size


def test_the_texts_of_a_list_are_encoded_one_by_one():
    together = tokenizer().encode(TRICKY)
    assert [ids.tolist() for ids in together] == [one(text).tolist() for text in TRICKY]
    assert tokenizer().decode(together) == TRICKY


def test_no_texts_give_no_rows():
    assert tokenizer().encode([]) == []
    assert tokenizer().decode([]) == []


def test_decoding_stops_at_the_first_end():
    first, second = one("The small cat").tolist(), one("Ein Hund").tolist()
    assert tokenizer().decode([first + second, second + first, first[:-1]]) == [
        "The small cat",
        "Ein Hund",
        "The small cat",
    ]
    assert tokenizer().decode([[Tokenizer.eos_id, *first]]) == [""]


def test_padding_after_the_end_changes_nothing():
    ids = np.zeros(40, np.int32)
    ids[: len(one("Ein Hund"))] = one("Ein Hund")
    assert tokenizer().decode([ids]) == ["Ein Hund"]


def test_special_ids_are_0_to_3_and_distinct_in_the_model_file_too():
    ids = (Tokenizer.pad_id, Tokenizer.bos_id, Tokenizer.eos_id, Tokenizer.unk_id)
    model = sentencepiece.SentencePieceProcessor(model_proto=tokenizer().model)
    assert ids == (0, 1, 2, 3)
    assert ids == (model.pad_id(), model.bos_id(), model.eos_id(), model.unk_id())


def test_pieces_spell_the_text():
    pieces = tokenizer().pieces(one("The small cat").tolist())
    assert "".join(pieces[:-1]).replace("▁", " ").strip() == "The small cat"


def test_common_words_are_shorter_than_their_letters():
    assert len(one("The small cat sleeps")) < 0.8 * len("The small cat sleeps")


def test_a_saved_tokenizer_is_loaded_as_it_was(tmp_path):
    tokenizer().save(tmp_path / "tokenizer.model")
    loaded = Tokenizer.load(tmp_path / "tokenizer.model")
    assert loaded.vocab_size == tokenizer().vocab_size
    for text, ids in zip(TRICKY, loaded.encode(TRICKY), strict=True):
        np.testing.assert_array_equal(ids, one(text))


def test_the_saved_file_is_read_by_sentencepiece_itself(tmp_path):
    tokenizer().save(tmp_path / "tokenizer.model")
    model = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    assert [*model.encode(TRICKY[0]), model.eos_id()] == one(TRICKY[0]).tolist()


def test_the_same_texts_give_the_same_tokenizer():
    assert Tokenizer.train(iter(TEXTS), 340).model == tokenizer().model


def test_the_vocabulary_has_the_size_asked_for_or_less():
    assert tokenizer().vocab_size == 340
    assert Tokenizer.train(TEXTS, 320).vocab_size == 320
    assert Tokenizer.train(TEXTS, 50_000).vocab_size < 1000


@pytest.mark.parametrize("size", [-1, 0, 3, 256, 270])
def test_a_vocabulary_too_small_for_bytes_and_characters_names_the_option(size):
    with pytest.raises(ValueError, match="--vocab-size") as error:
        Tokenizer.train(TEXTS, size)
    assert str(size) in str(error.value)


def test_the_least_vocabulary_that_an_error_names_is_enough_and_one_less_is_not():
    with pytest.raises(ValueError, match=r"--vocab-size 270: expected at least \d+,") as error:
        Tokenizer.train(TEXTS, 270)
    least = int(re.search(r"at least (\d+)", str(error.value))[1])
    assert Tokenizer.train(TEXTS, least).vocab_size == least
    with pytest.raises(ValueError, match=f"at least {least},"):
        Tokenizer.train(TEXTS, least - 1)


def test_rare_characters_become_bytes_when_fewer_are_covered():
    texts = ["aaaa bbbb cccc " * 20] * 50 + ["q"]
    covered = Tokenizer.train(texts, 300, character_coverage=1.0)
    uncovered = Tokenizer.train(texts, 300, character_coverage=0.9998)
    assert "q" in covered.pieces(range(covered.vocab_size))
    assert "q" not in uncovered.pieces(range(uncovered.vocab_size))
    assert uncovered.decode(uncovered.encode(["q"])) == ["q"]


@pytest.mark.parametrize("how", ["none", "nfc", "nfkc"])
def test_the_file_remembers_how_texts_were_normalised_and_is_a_model_for_others(tmp_path, how):
    learned = Tokenizer.train(TEXTS, 340, normalization=how)
    learned.save(tmp_path / "tokenizer.model")
    loaded = Tokenizer.load(tmp_path / "tokenizer.model")
    assert loaded.normalization == learned.normalization == how
    assert tokenizer().normalization == "none"
    for text, ids in zip(TRICKY, loaded.encode(TRICKY), strict=True):
        np.testing.assert_array_equal(ids, one(text))
    model = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    assert model.vocab_size() == loaded.vocab_size
    assert (
        loaded.normalize_source("e\u0301\u00a0ﬁ")
        == {
            "none": "e\u0301\u00a0ﬁ",
            "nfc": "é ﬁ",
            "nfkc": "é fi",
        }[how]
    )


# ---- Subword dropout -------------------------------------------------------------------------


def sampled(dropout=0.3, seed=(0, 1, 0), texts=TEXTS):
    return [ids.tolist() for ids in tokenizer().sample(texts, dropout, seed)]


def test_the_same_seed_gives_the_same_spelling_whatever_was_drawn_before():
    first, other = sampled(), sampled(seed=(0, 2, 0))
    assert first == sampled()
    assert first != other and first != sampled(seed=(0, 1, 1)) and first != sampled(seed=(1, 1, 0))


def test_a_text_has_many_spellings():
    spellings = {tuple(ids) for ids in sampled(texts=[TEXTS[0]] * 20)}
    assert len(spellings) > 10


def test_dropped_merges_change_the_spelling_and_not_the_text():
    texts = TEXTS + TRICKY
    rows = tokenizer().sample(texts, 0.5, [3])
    assert tokenizer().decode(rows) == texts
    assert all(ids.dtype == np.int32 and ids[-1] == Tokenizer.eos_id for ids in rows)
    assert not any(SPECIAL & set(ids.tolist()) for ids in rows)


def test_without_dropout_a_sample_is_the_encoding():
    assert sampled(0.0) == [ids.tolist() for ids in tokenizer().encode(TEXTS)]


def test_more_dropout_gives_shorter_pieces():
    counts = [sum(map(len, sampled(dropout))) for dropout in (0.0, 0.1, 0.5, 0.99)]
    assert counts == sorted(counts)
    assert counts[1] > 1.02 * counts[0] and counts[3] > 1.5 * counts[0]


def test_no_texts_give_no_samples():
    assert sampled(texts=[]) == []


def spell(word, dropout, rng):
    """Algorithm 1 of arXiv:1910.13267 as it stands there: the pieces of a word."""
    processor = sentencepiece.SentencePieceProcessor(model_proto=tokenizer().model)
    vocabulary = {processor.id_to_piece(i): processor.get_score(i) for i in range(4, 340)}
    pieces = list("▁" + word)
    while True:
        merges = [
            (-vocabulary[a + b], i)
            for i, (a, b) in enumerate(itertools.pairwise(pieces))
            if a + b in vocabulary and rng.random() >= dropout
        ]
        if not merges:
            return " ".join(pieces)
        _, i = min(merges)
        pieces[i : i + 2] = [pieces[i] + pieces[i + 1]]


@pytest.mark.thorough(quick=1)
@pytest.mark.parametrize("dropout", [0.1, 0.6])
def test_spellings_are_as_frequent_as_the_paper_has_them(dropout):
    count, rng = 4000, np.random.default_rng(0)
    found = tokenizer().sample(["Brücke"] * count, dropout, [5])
    counts = [
        collections.Counter(" ".join(tokenizer().pieces(ids[:-1].tolist())) for ids in found),
        collections.Counter(spell("Brücke", dropout, rng) for _ in range(count)),
    ]
    assert len(counts[1]) > 4
    for spelling in counts[0] | counts[1]:
        ours, theirs = (c[spelling] for c in counts)
        assert abs(ours - theirs) < 5 * (ours + theirs + 1) ** 0.5, spelling


def test_with_hardly_any_dropout_a_sample_is_the_encoding():
    texts = TEXTS[:5] + TRICKY
    for ids, sample in zip(
        tokenizer().encode(texts), tokenizer().sample(texts, 1e-12, [1]), strict=True
    ):
        assert sample.tolist() == ids.tolist()


@pytest.mark.thorough
def test_another_process_draws_the_same_spellings(tmp_path):
    tokenizer().save(tmp_path / "tokenizer.model")
    code = f"""
from pathlib import Path
from flaxattn.text.tokenizer import Tokenizer
tokenizer = Tokenizer.load(Path({str(tmp_path / "tokenizer.model")!r}))
print([ids.tolist() for ids in tokenizer.sample({TEXTS[:5]!r}, 0.3, (0, 1, 0))])
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.stdout.strip() == str(sampled(texts=TEXTS[:5])), ended.stderr


class FewPieces:
    """A BPE model that knows "ab" and no "b", or other pieces besides bytes, "▁" and "a"."""

    def __init__(self, *pieces):
        self._pieces = [*map("<0x{:02X}>".format, range(256)), "▁", "a", *pieces]

    def get_piece_size(self):
        return len(self._pieces)

    def id_to_piece(self, i):
        return self._pieces[i]

    def piece_to_id(self, piece):
        return self._pieces.index(piece)

    def get_score(self, i):
        return float(-i)

    def eos_id(self):
        return 999

    def is_control(self, i):
        return False

    def is_unknown(self, i):
        return False

    def is_byte(self, i):
        return i < 256


def test_a_character_that_is_in_pieces_alone_is_bytes_unless_it_is_merged():
    space, a, merged, b = 256, 257, 258, ord("b")
    rows = SubwordDropout(FewPieces("ab")).sample(["ab bé"] * 50, 0.5, [0])
    rest = [space, b, 0xC3, 0xA9, 999]
    expected = {(space, merged, *rest), (space, a, b, *rest)}
    assert {tuple(ids.tolist()) for ids in rows} == expected


def test_a_symbol_is_merged_with_nothing_even_if_there_is_such_a_piece():
    rows = SubwordDropout(FewPieces("ab", "b"), ["a"]).sample(["abb"], 1e-12, [0])
    assert rows[0].tolist() == [256, 257, 259, 259, 999]


def test_blank_texts_and_no_merges_at_all_are_spelt_too():
    rows = SubwordDropout(FewPieces()).sample(["", "aa a", "  "], 0.5, [0])
    expected = [[999], [256, 257, 257, 256, 257, 999], [999]]
    assert [ids.tolist() for ids in rows] == expected


def test_a_long_word_is_spelt_in_little_time_and_memory():
    (ids,) = tokenizer().sample(["lange" * 200], 0.5, [1])
    assert tokenizer().decode([ids]) == ["lange" * 200]
