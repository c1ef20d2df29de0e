"""Translations that begin as one says, have the terms one wants, or are those of several models."""

import dataclasses
import functools
import itertools
import re
from pathlib import Path

import jax
import numpy as np
import pytest
from test_decoding import TEXTS, WORDS, random_params

from flaxattn import EncoderDecoder
from flaxattn.__main__ import main
from flaxattn.models import EncoderDecoderConfig
from flaxattn.text.tokenizer import Tokenizer
from flaxattn.translation.commands.constraint_options import ConstraintOptions
from flaxattn.translation.config import DecodingConfig
from flaxattn.translation.decoding.text_constraints import (
    arrays_of,
    constraints_of_texts,
    most_terms,
)
from flaxattn.translation.decoding.translator import Translator
from flaxattn.translation.trained import loading

KEPT = str(Path(__file__).parent / "kept" / "1")  # English to German
BEAMS = DecodingConfig(beam_size=4)
CONFIG = EncoderDecoderConfig(
    vocab_size=310, features=8, ff_features=12, num_heads=2, encoder_layers=1, decoder_layers=1
)


@functools.cache
def tokenizer():
    return Tokenizer.train([" ".join(WORDS), *WORDS, "mats, bridged!"] * 5, 310)


@functools.cache
def model(seed=0, **change):
    """A model of random parameters, as `load` gives one."""
    config = dataclasses.replace(CONFIG, vocab_size=tokenizer().vocab_size, **change)
    model = EncoderDecoder(config, pad_id=tokenizer().pad_id)
    return model, random_params(model, seed), tokenizer(), BEAMS


def has(text, words):
    return re.search(rf"(?<!\w){re.escape(words)}(?!\w)", text) is not None


@functools.cache
def asked():
    """For each of many texts a beginning and terms: words, parts of words, and new ones."""
    rng = np.random.default_rng(0)
    pool = [*WORDS, "mat", "ma", "bridge", "Ungehörtes", "e\u0301t", "a cat", "sleeps on a", "x1"]
    texts = [TEXTS[i % 4] for i in range(24)]  # of one rounded length
    beginnings = [" ".join(rng.choice(pool, rng.integers(0, 4))) for _ in texts]
    terms = [rng.choice(pool, rng.integers(0, 5)).tolist() for _ in texts]
    return texts, beginnings, terms


@functools.cache
def found():
    texts, beginnings, terms = asked()
    translator = Translator(*model(), batch_size=24)
    return translator.translate(texts, n_best=2, beginnings=beginnings, terms=terms)


def test_every_translation_begins_as_asked_and_has_all_terms_as_whole_words():
    assert sum(map(len, asked()[2])) > 30
    for beginning, terms, translations in zip(*asked()[1:], found(), strict=True):
        for translation in translations:
            text = translation.text
            assert text.startswith(beginning)
            assert not re.match(r"\w", text[len(beginning) :]) or not beginning
            assert [term for term in terms if not has(text, term)] == []
            assert translation.tokens and np.isfinite(translation.score)


@pytest.mark.thorough
def test_what_is_asked_of_one_text_changes_no_other():
    texts, beginnings, terms = asked()
    plain = Translator(*model(), batch_size=8).translate(texts, n_best=2)
    for i in (0, 5, 11):
        alone = Translator(*model(), batch_size=1).translate(
            [texts[i]], n_best=2, beginnings=[beginnings[i]], terms=[terms[i]]
        )
        assert [x.tokens for x in alone[0]] == [x.tokens for x in found()[i]]
    some = [i for i in range(len(texts)) if not (beginnings[i] or terms[i])]
    assert some
    for i in some:
        assert [x.tokens for x in plain[i]] == [x.tokens for x in found()[i]]


def test_log_probabilities_are_those_of_teacher_forcing_with_what_was_given():
    texts, *_ = asked()
    for i in (0, 5):
        best = found()[i][0]
        np.testing.assert_allclose(
            best.log_prob, log_probs(model(), texts[i], best.tokens).sum(), rtol=1e-4
        )


@functools.partial(jax.jit, static_argnames="module")
def forced(module, params, source, prefix):
    """The logits [T, V] of a whole model after a prefix [T]."""
    return module.apply({"params": params}, source[None], prefix[None], deterministic=True)[0]


def log_probs(model, text, tokens):
    """float32 [T]: of each token of a translation."""
    module, params, *_ = model
    source, prefix = tokenizer().encode([text])[0], np.array([tokenizer().bos_id, *tokens[:-1]])
    logits = forced(module, params, source, prefix.astype(np.int32))
    return np.asarray(jax.nn.log_softmax(logits))[np.arange(len(tokens)), np.array(tokens)]


def test_tokens_of_terms_are_those_of_words_within_a_text():
    ids = lambda text: tuple(tokenizer().encode([text])[0].tolist()[:-1])  # noqa: E731
    (one,) = constraints_of_texts(tokenizer(), 1, ["the cat"], [["mat", " mat ", "", "red dogs"]])
    assert one.beginning == ids("the cat") and one.terms == (ids("mat"), ids("red dogs"))
    (chinese,) = constraints_of_texts(tokenizer(), 1, None, [["猫"]])
    assert ids("a猫") == (*ids("a"), *chinese.terms[0])
    assert arrays_of(tokenizer(), [one], 4).terms[0].shape[:2] == (4, 2)
    assert most_terms([one, chinese]) >= sum(map(len, one.terms))


@pytest.mark.parametrize(
    "constraints, message",
    [
        ({"beginnings": ["a"]}, "beginnings has 1 entries; expected one for each text, 2"),
        ({"terms": "ab"}, "terms has 2 entries; expected one for each text"),
        ({"terms": ["a", "b"]}, "terms has 'a' for a text; expected a list"),
    ],
)
def test_constraints_that_do_not_fit_the_texts_are_told(constraints, message):
    with pytest.raises(ValueError, match=message):
        Translator(*model()).translate(["a", "b"], **constraints)


@pytest.mark.parametrize("config", [{"beam_size": 1}, {"sampling": True}], ids=str)
def test_terms_need_beams(config):
    with pytest.raises(ValueError, match=r"--terms: .*--beam-size of 2"):
        Translator(*model()[:3], DecodingConfig(**config)).translate(["a"], terms=[["b"]])


@pytest.mark.thorough(quick=1)
@pytest.mark.parametrize(
    "config", [{"beam_size": 3}, {"beam_size": 1}, {"sampling": True}], ids=str
)
def test_no_n_tokens_come_twice(config):
    def repeats(n):
        config_of_n = DecodingConfig(**config, no_repeat_ngram=n)
        best = Translator(*model()[:3], config_of_n).translate(TEXTS[:4], n_best=1)
        rows = [found[0].tokens for found in best]
        grams = [[row[i : i + 2] for i in range(len(row) - 1)] for row in rows]
        return sum(len(gram) - len(set(gram)) for gram in grams)

    assert repeats(2) == 0
    if not config.get("sampling"):
        assert repeats(0) > 0


def test_groups_of_beams_differ_more():
    def words(**groups):
        config = DecodingConfig(beam_size=4, **groups)
        found = Translator(*model()[:3], config).translate(TEXTS[3:4], n_best=4)[0]
        assert len({one.tokens for one in found}) == 4
        return len({token for one in found for token in one.tokens})

    assert words() < words(beam_groups=4, diversity=3.0)
    with pytest.raises(ValueError, match="beam_groups is 3; expected one that divides beam_size"):
        DecodingConfig(beam_size=4, beam_groups=3)


# ---- Several models --------------------------------------------------------------------------


def test_a_model_twice_is_the_model():
    texts = TEXTS[:4]
    alone = Translator(*model()).translate(texts, n_best=2)
    twice = Translator(*model(), others=[model()]).translate(texts, n_best=2)
    for one, two in zip(*map(itertools.chain.from_iterable, (alone, twice)), strict=True):
        assert one.tokens == two.tokens
        np.testing.assert_allclose(one.log_prob, two.log_prob, rtol=1e-6)


def test_probabilities_of_different_models_are_averaged():
    others = [model(1, features=16, decoder_layers=2)]
    (best,) = Translator(*model(), others=others).translate([TEXTS[2]])[0]
    of_each = [log_probs(one, TEXTS[2], best.tokens) for one in (model(), *others)]
    mean = np.log(np.mean(np.exp(np.array(of_each, np.float64)), axis=0)).sum()
    np.testing.assert_allclose(best.log_prob, mean, rtol=1e-4)


def test_another_tokenizer_is_told():
    other = (*model()[:2], Tokenizer.train([*WORDS] * 5, 300), BEAMS)
    with pytest.raises(ValueError, match=r"others\[0\] has another tokenizer"):
        Translator(*model(), others=[other])


# ---- The command -----------------------------------------------------------------------------


def test_the_command_asks_for_beginnings_and_terms_line_by_line(tmp_path, capsys):
    (tmp_path / "begin").write_text("Der alte\n\n")
    (tmp_path / "terms").write_text("Hund\tKatze\nalte Frau\n")
    words = ["translate", KEPT, "The dog sleeps.", "A cat sleeps."]
    files = ["--beginnings", str(tmp_path / "begin"), "--terms-file", str(tmp_path / "terms")]
    assert main([*words, *files]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("Der alte ") and has(first, "Hund") and has(first, "Katze")
    assert has(second, "alte Frau")
    (tmp_path / "begin").write_text("Der\n")
    assert main([*words, *files]) == 2
    assert "begin: ends before the texts do" in capsys.readouterr().err
    (tmp_path / "begin").write_text("Der\n" * 3)
    assert main([*words, *files]) == 2
    assert "begin: has more lines than there are texts" in capsys.readouterr().err


def test_the_command_asks_the_same_of_all_texts_and_takes_several_models(capsys):
    words = ["translate", KEPT, "The dog sleeps.", "A cat.", "--scores"]
    words += ["--beginning", "Eine", "--terms", "Hund", "--no-repeat-ngram", "2"]
    assert main(words) == 0
    alone = capsys.readouterr().out.splitlines()
    assert all(re.search(r"\tEine(?!\w)", line) and has(line, "Hund") for line in alone)
    assert main([*words, "--ensemble", KEPT, KEPT]) == 0
    together = capsys.readouterr().out.splitlines()
    assert [line.split("\t")[1] for line in together] == [line.split("\t")[1] for line in alone]


def test_the_command_names_both_folders_of_different_tokenizers(monkeypatch, capsys):
    others = {KEPT: model(), "other": (*model()[:2], Tokenizer.train(WORDS * 5, 300), BEAMS)}
    monkeypatch.setattr(loading, "load", lambda folder, *_: loading.Loaded(*others[str(folder)]))
    assert main(["translate", KEPT, "a", "--ensemble", "other"]) == 2
    message = " ".join(capsys.readouterr().err.split())
    assert f"--ensemble other: has another tokenizer than {KEPT}" in message


def test_what_excludes_each_other_is_told(tmp_path, capsys):
    path = tmp_path / "file"
    with pytest.raises(ValueError, match=r"--terms: expected either it, .*--terms-file"):
        ConstraintOptions(terms=("a",), terms_file=path).check()
    with pytest.raises(FileNotFoundError, match="file: no such file"):
        ConstraintOptions(beginnings=path).check()
    for option in (["--explain", "c.html"], ["--json"]):
        words = ["translate", str(tmp_path), "a", "--ensemble", "b", *option]
        assert main(words) == 2
        assert f"{option[0]}: tells of one model" in capsys.readouterr().err
    words = ["translate", KEPT, "a", "--ensemble", str(tmp_path), "--output"]
    (tmp_path / "config.json").write_text("{}")
    assert main([*words, str(tmp_path / "config.json")]) == 2
    assert "--output: is the same file as the model's" in capsys.readouterr().err
