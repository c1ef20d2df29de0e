"""Models written for CTranslate2: its engine gives their translations and log-probabilities."""

import builtins

import numpy as np
import pytest
import sentencepiece
from test_export import TEXTS, WORDS, loaded

from flaxattn.__main__ import main
from flaxattn.translation.config import DecodingConfig
from flaxattn.translation.decoding.forced import PairScorer
from flaxattn.translation.decoding.translator import Translator
from flaxattn.translation.trained.exporting import export
from flaxattn.translation.trained.to_ctranslate2 import export_ctranslate2

ctranslate2 = pytest.importorskip("ctranslate2")
SOURCES = [*TEXTS, " ".join(WORDS)]
TARGETS = [*reversed(TEXTS), "a red cat"]
OTHERS = [
    {"tie_embeddings": "all"},
    {"tie_embeddings": "target", "activation": "gelu", "norm_position": "post"},
    {"positions": "rotary", "activation": "swiglu", "encoder_layers": 3},
    {"positions": "learned", "max_positions": 64, "decoder_layers": 2, "share_layers": True},
    {"positions": "learned", "max_positions": 64, "param_dtype": "bfloat16"},
]


def opened(folder):
    """As its users open it."""
    model = ctranslate2.Translator(str(folder), device="cpu", intra_threads=1)
    kept = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    return model, kept


def pieces_of(kept, texts):
    return [kept.encode(text, out_type=str) for text in texts]


def small(params):
    """With inputs whose variance is about what norms add to it."""
    inputs = "source_embedding", "target_embedding", "source_positions", "target_positions"
    return params | {name: {"embedding": 1e-3 * params[name]["embedding"]} for name in inputs}


@pytest.mark.usefixtures("standard_promotion")
@pytest.mark.parametrize("changes", OTHERS, ids=str)
def test_log_probabilities_of_pairs_are_those_of_the_model(changes, tmp_path):
    check_pairs(loaded(**changes), tmp_path)


def test_norms_add_as_much_to_the_variance(tmp_path):
    ours = loaded(positions="learned", max_positions=64)
    check_pairs(ours._replace(params=small(ours.params)), tmp_path)


def check_pairs(ours, tmp_path):
    export_ctranslate2(tmp_path / "there", ours, "float32")
    model, kept = opened(tmp_path / "there")
    found = model.score_batch(pieces_of(kept, SOURCES), pieces_of(kept, TARGETS))
    expected = PairScorer(*ours).score(SOURCES, TARGETS)
    for there, here in zip(found, expected, strict=True):
        np.testing.assert_allclose(there.log_probs, here.log_probs, atol=2e-5)
    assert len({round(float(np.sum(x.log_probs)), 3) for x in found}) == len(SOURCES)


def test_greedy_translations_are_those_of_the_translator(tmp_path):
    ours = loaded()
    export_ctranslate2(tmp_path / "there", ours, "float32")
    model, kept = opened(tmp_path / "there")
    greedy = DecodingConfig(beam_size=1, max_ratio=1.25)
    expected = Translator(*ours[:3], greedy).translate(SOURCES)
    found = model.translate_batch(pieces_of(kept, SOURCES), beam_size=1)
    for there, (here, *_) in zip(found, expected, strict=True):
        text = kept.decode(there.hypotheses[0])
        assert here.text and (text.startswith(here.text) if here.at_limit else text == here.text)
    assert len({here.text for here, *_ in expected}) > 1


def test_the_command_writes_weights_of_the_type_that_is_asked_for(tmp_path, capsys):
    export(tmp_path / "model", loaded())
    sizes = {}
    for kind in ("float32", "int8"):
        folder = tmp_path / kind
        assert main(["export", str(tmp_path / "model"), str(folder), "--ctranslate2", kind]) == 0
        assert str(folder) in capsys.readouterr().err
        sizes[kind] = (folder / "model.bin").stat().st_size
        model, kept = opened(folder)
        (result,) = model.score_batch(pieces_of(kept, SOURCES[:1]), pieces_of(kept, TARGETS[:1]))
        assert np.isfinite(result.log_probs).all()
    assert sizes["int8"] < sizes["float32"]
    again = ["export", str(tmp_path / "model"), str(tmp_path / "int8"), "--ctranslate2", "int8"]
    assert main(again) == 0  # its own folder is replaced


def test_what_it_cannot_write_is_refused_in_words(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="num_kv_heads is 1 of 2 heads"):
        export_ctranslate2(tmp_path / "there", loaded(num_kv_heads=1), "float32")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years")
    with pytest.raises(ValueError, match=r"thesis\.txt"):
        export_ctranslate2(tmp_path / "mine", loaded(), "float32")
    real = builtins.__import__

    def without(name, *arguments, **named):
        if name == "ctranslate2":
            raise ModuleNotFoundError(name)
        return real(name, *arguments, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ValueError, match="pip install ctranslate2"):
        export_ctranslate2(tmp_path / "there", loaded(), "float32")
    assert not (tmp_path / "there").exists()
