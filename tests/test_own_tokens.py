"""Tokens that people bring: strings that are never split, models learned elsewhere, new ones."""

import io

import jax
import numpy as np
import pytest
import sentencepiece
from run_cases import prepared_by, tiny

from flaxattn.text.model_file import is_bpe, symbols_of, with_special_first
from flaxattn.text.tokenizer import Tokenizer
from flaxattn.translation.trained.loading import load

TEXTS = ["the old man sees a dog on <date> .", "der alte Mann sieht am <date>einen Hund"] * 50
TEXTS += [f"number {i} of the <name>s" for i in range(50)]
SYMBOLS = ("<date>", "<da", "<name>")
KINDS = {
    "unigram": {"model_type": "unigram"},
    "BPE with bytes": {"model_type": "bpe", "byte_fallback": True, "vocab_size": 330},
    "other ids": {"pad_id": 5, "unk_id": 2, "bos_id": 1, "eos_id": 0},
    "no ends": {"bos_id": -1, "eos_id": -1},
    "other names": {"pad_id": 0, "bos_id": 2, "eos_id": 1, "unk_id": 3, "pad_piece": "[PAD]"},
    "characters": {"model_type": "char"},
}


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(TEXTS, 420, symbols=SYMBOLS, normalization="nfc")


def own(**how):
    """The bytes of a model as SentencePiece makes it, and what reads it."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS),
        model_writer=model,
        minloglevel=2,
        hard_vocab_limit=False,
        **{"vocab_size": 70, **how},
    )
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    return model.getvalue(), processor


@pytest.mark.parametrize(
    "text, expected",
    [
        ("on <date>x", ["<date>"]),
        ("a<date><date>", ["<date>", "<date>"]),
        ("<name>s <dax", ["<name>", "<da"]),
        ("<dat <nam>", ["<da"]),
        ("the old man", []),
    ],
)
@pytest.mark.parametrize("dropout", [0.0, 1e-9, 0.5, 0.999])
def test_symbols_are_never_split(tokenizer, text, expected, dropout):
    (ids,) = tokenizer.sample([text], dropout, [3])
    assert [x for x in tokenizer.pieces(ids) if x in SYMBOLS] == expected
    assert tokenizer.decode([ids]) == [text]
    if dropout < 1e-3:
        np.testing.assert_array_equal(ids, tokenizer.encode([text])[0])


def test_a_tokenizer_grows_behind_what_it_has(tokenizer):
    grown = tokenizer.grown(["<new>", "<date>", "e\u0301t"])
    assert grown.vocab_size == tokenizer.vocab_size + 2 and grown.normalization == "nfc"
    assert symbols_of(grown.model) == [*SYMBOLS, "<new>", "ét"]  # spelt as texts are
    for text in TEXTS[:2]:
        np.testing.assert_array_equal(grown.encode([text])[0], tokenizer.encode([text])[0])
    ids = grown.encode(["x<new>ét"])[0]
    assert grown.pieces(ids[-3:-1]) == ["<new>", "ét"] and min(ids[-3:-1]) >= tokenizer.vocab_size
    assert tokenizer.grown(["<date>"]) is tokenizer and is_bpe(grown.model)


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_from_elsewhere_reads_as_it_does_there(kind, tmp_path):
    model, there = own(**KINDS[kind])
    (tmp_path / "own.model").write_bytes(model)
    here = Tokenizer.adopted(tmp_path / "own.model")
    for text in (*TEXTS[:3], "naïve ﬁn  x"):
        ids = here.encode([text])[0]
        pieces = there.encode(text, out_type=str)
        known = [x if there.piece_to_id(x) != there.unk_id() else "<unk>" for x in pieces]
        assert here.pieces(ids[:-1]) == known and ids[-1] == here.eos_id
        assert here.decode([ids]) == [there.decode(there.encode(text))]
    processor = sentencepiece.SentencePieceProcessor(model_proto=here.model)
    special = processor.pad_id(), processor.bos_id(), processor.eos_id(), processor.unk_id()
    assert special == (here.pad_id, here.bos_id, here.eos_id, here.unk_id) == (0, 1, 2, 3)
    assert here.spells_anew == (kind == "BPE with bytes")
    assert with_special_first(here.model) == here.model


@pytest.mark.parametrize("cut", [0, 3, 100, 5000])
def test_what_is_no_model_is_refused_by_name(cut, tmp_path):
    path = tmp_path / "own.model"
    path.write_bytes(own()[0][:cut])
    with pytest.raises(ValueError, match=r"own\.model: expected a SentencePiece model"):
        Tokenizer.adopted(path)
    with pytest.raises(FileNotFoundError):
        Tokenizer.adopted(tmp_path / "none.model")


def test_a_run_takes_a_tokenizer_of_ones_own(tmp_path, capsys, monkeypatch):
    path = tmp_path / "own.model"
    path.write_bytes(own()[0])
    options = {"--tokenizer": path, "--symbols": ("<q>",), "--subword-dropout": 0}
    prepared = prepared_by(monkeypatch, tmp_path / "run", options)
    assert prepared.tokenizer.model == Tokenizer.adopted(path).grown(["<q>"]).model
    assert prepared.model.config.vocab_size == prepared.tokenizer.vocab_size
    assert tiny(tmp_path / "run", options | {"--subword-dropout": 0.1}) == 2
    assert "--subword-dropout 0.1: expected 0" in capsys.readouterr().err
    assert tiny(tmp_path / "run", {"--symbols": ("a b",)}) == 2
    assert "'a b'; expected strings without spaces" in capsys.readouterr().err


def test_a_model_that_is_taken_further_learns_new_tokens(finished, tmp_path, monkeypatch):
    start = load(finished.folder)
    prepared = prepared_by(
        monkeypatch, tmp_path / "run", {"--init-from": finished.folder, "--symbols": ("<a>", "<b>")}
    )
    size = start.tokenizer.vocab_size
    assert prepared.tokenizer.vocab_size == prepared.model.config.vocab_size == size + 2

    def check(new, old):
        if new.shape != old.shape:
            assert new.shape[0] == old.shape[0] + 2 and np.asarray(new[-2:]).any()
        np.testing.assert_array_equal(new[: len(old)], old)
        return new.shape != old.shape

    grown = jax.tree.leaves(jax.tree.map(check, prepared.params, start.params))
    assert 0 < sum(grown) < len(grown)
    assert load(finished.folder).tokenizer.model == start.tokenizer.model
