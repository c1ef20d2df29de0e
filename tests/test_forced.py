"""Given translations: log-probabilities, word alignments, and what commands tell of them."""

import functools
import importlib
import json
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxattn.__main__ import main
from flaxattn.models import EncoderDecoder
from flaxattn.translation import Translator, load
from flaxattn.translation.decoding.aligning import align, links_of, pharaoh
from flaxattn.translation.decoding.forced import Forced, PairScorer
from flaxattn.translation.text.builtin.corpus import examples
from flaxattn.translation.trained import loading

ROOT = pathlib.Path(__file__).parents[1]
KEPT = ROOT / "tests" / "kept" / "1"
PAIRS = [(x.english, x.german) for x in examples("test", 9, seed=3)]
PAIRS[4] = (" ".join(x for x, _ in PAIRS[:4]), " ".join(x for _, x in PAIRS[:4]))  # a long one


@pytest.fixture(scope="module")
def loaded():
    """A model whose attention is as clear as that of one that is trained."""
    kept = load(KEPT)

    def clear(path, x):
        names = [key.key for key in path]
        return 40 * x if "cross_attention" in names and "query" in names else x

    return kept._replace(params=jax.tree_util.tree_map_with_path(clear, kept.params))


@pytest.fixture
def commanded(monkeypatch, loaded):
    """The commands have that model."""
    monkeypatch.setattr(loading, "load", lambda folder, *_: loaded)


@pytest.fixture(scope="module")
def scorer(loaded):
    return PairScorer(*loaded, batch_size=4)


@functools.partial(jax.jit, static_argnums=0)
def looked_at(model, params, source, given):
    """Logits and weights of one pair: no padding, no packing."""
    variables, settings = {"params": params}, {"sow_weights": True, "deterministic": True}
    return model.apply(variables, source, given, **settings, mutable=["intermediates"])


def alone(loaded, source, target):
    """The log-probability of each target id, in float64, and the weights of all attentions."""
    model, params, tokenizer, _ = loaded
    given = np.array([[tokenizer.bos_id, *target[:-1]]], np.int32)
    logits, state = looked_at(model, params, source[None], given)
    logits = np.asarray(logits[0], np.float64)
    logits -= logits.max(axis=1, keepdims=True)
    every = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return every[np.arange(len(target)), target], state["intermediates"]


# ---- Scores ----------------------------------------------------------------------------------


def test_scores_are_the_log_probabilities_of_teacher_forcing(loaded, scorer):
    found = scorer.score(*zip(*PAIRS, strict=True))
    assert len({len(x.tokens) for x in found}) > 4
    for i in (0, 4):
        source, target = loaded.tokenizer.encode(PAIRS[i])
        forced = found[i]
        assert forced.tokens == tuple(target.tolist())
        wanted, _ = alone(loaded, source, target)
        np.testing.assert_allclose(forced.log_probs, wanted, rtol=1e-5, atol=1e-5)
        assert forced.log_prob == pytest.approx(sum(wanted), rel=1e-5, abs=1e-5)


def test_the_score_of_a_pair_does_not_depend_on_those_beside_it(loaded, scorer):
    together = scorer.score(*zip(*PAIRS, strict=True))
    apart = PairScorer(*loaded, batch_size=1).score(*zip(*PAIRS[::-1], strict=True))[::-1]
    for one, other in zip(together, apart, strict=True):
        assert one.tokens == other.tokens
        np.testing.assert_allclose(one.log_probs, other.log_probs, rtol=1e-5, atol=1e-5)


def test_what_beams_found_has_the_log_probability_they_found(loaded, scorer):
    texts = [source for source, _ in PAIRS[:3]]
    found = Translator(*loaded).translate(texts, n_best=3)
    sources = loaded.tokenizer.encode(texts)
    pairs = [
        (source, np.array(one.tokens, np.int32))
        for source, several in zip(sources, found, strict=True)
        for one in several
    ]
    forced = scorer.force(pairs)
    wanted = [one.log_prob for several in found for one in several]
    np.testing.assert_allclose([x.log_prob for x in forced], wanted, rtol=1e-5, atol=1e-5)


def test_blank_pairs_are_not_scored_and_shift_no_other(scorer):
    sources, targets = map(list, zip(*PAIRS[:4], strict=True))
    sources[1], targets[2] = " ", "\u3000"
    found = scorer.score(sources, targets)
    assert found[1] is None and found[2] is None
    assert found[3].log_prob == pytest.approx(scorer.score(*zip(PAIRS[3]))[0].log_prob, rel=1e-5)
    assert scorer.score(["", ""], ["x", " "]) == [None, None] and scorer.score([], []) == []


def test_what_cannot_be_scored_is_refused_by_its_number(loaded):
    short = loaded._replace(decoding=loaded.decoding.__class__(max_source_length=8))
    scorer = PairScorer(*short)
    long = " ".join(["dog"] * 40)
    with pytest.raises(ValueError, match="pair 12: the source has more than 8 tokens"):
        scorer.score(["a", long], ["a", "a"], first=10)
    with pytest.raises(ValueError, match="pair 1: the target has more than 20 tokens"):
        scorer.score(["a"], [long])
    with pytest.raises(ValueError, match="1 sources and 2 targets"):
        scorer.score(["a"], ["a", "b"])


# ---- Alignments ------------------------------------------------------------------------------


def forced_with(tokenizer, target, weights):
    """A pair as if a model of one layer had looked at it; weights [T, S] of its tokens."""
    (ids,) = tokenizer.encode([target])
    return Forced(tuple(ids.tolist()), (0.0,) * len(ids), np.array([weights], np.float32))


def test_attention_between_tokens_is_read_as_links_between_words(loaded):
    tokenizer, source, target = loaded.tokenizer, "the dog sleeps", "der Hund schläft"
    read, written = (
        [piece.startswith("\u2581") for piece in tokenizer.pieces(ids.tolist()[:-1])]
        for ids in tokenizer.encode([source, target])
    )
    of_read, of_written = np.cumsum(read) - 1, np.cumsum(written) - 1
    assert of_read.max() == of_written.max() == 2 and len(of_written) > 3
    order = [2, 0, 1]  # what each word attends to in truth, with its first token
    weights = np.zeros((len(written) + 1, len(read) + 1))
    for t, word in enumerate(of_written):
        mine = of_read == (order[word] if written[t] else 0)
        weights[t, :-1] = np.where(mine, 1 / mine.sum(), 0)
    forced = forced_with(tokenizer, target, weights)
    (ids,) = tokenizer.encode([source])
    assert pharaoh(links_of(tokenizer, source, ids, forced)) == "0-1 1-2 2-0"


@pytest.fixture(scope="module")
def two(loaded):
    """Two words, each of which is one token."""
    ids = range(loaded.tokenizer.vocab_size)
    words = [piece[1:] for piece in loaded.tokenizer.pieces(ids) if piece[1:].isalpha()]
    words = [x for x in words if len(loaded.tokenizer.encode([x])[0]) == 2]
    return " ".join(words[:2])


def test_a_word_that_all_attend_to_does_not_take_the_links_of_others(loaded, two):
    tokenizer, source = loaded.tokenizer, two
    (ids,) = tokenizer.encode([source])
    assert len(ids) == 3
    forced = forced_with(tokenizer, two, [[0.4, 0.5, 0.1], [0.05, 0.9, 0.05], [0, 0, 1]])
    assert links_of(tokenizer, source, ids, forced) == [(0, 0), (1, 1)]


def test_attention_is_that_of_each_layer_and_padding_gets_none(loaded, scorer):
    source, target = loaded.tokenizer.encode(PAIRS[0])
    layers = alone(loaded, source, target)[1]["decoder"]
    wanted = [
        np.mean(layers[f"layer_{i}"]["cross_attention"]["attention_weights"][0][0], axis=0)
        for i in range(loaded.model.config.decoder_layers)
    ]
    pairs = scorer.encode(*zip(*PAIRS, strict=True))
    found = scorer.force(pairs, attention=True)[0].attention
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.sum(axis=-1), 1, rtol=1e-5)


def test_of_layers_the_one_that_is_decided_counts(loaded, two):
    tokenizer = loaded.tokenizer
    (ids,) = tokenizer.encode([two])
    clear = [[0.0, 0.9, 0.1], [0.9, 0.0, 0.1], [0.0, 0.0, 1.0]]
    vague = [[0.4, 0.3, 0.3], [0.3, 0.4, 0.3], [0.0, 0.0, 1.0]]
    for layers in ([clear] + [vague] * 20, [vague] * 20 + [clear]):
        forced = forced_with(tokenizer, two, clear)._replace(attention=np.array(layers))
        assert links_of(tokenizer, two, ids, forced) == [(0, 1), (1, 0)]


@pytest.mark.thorough
def test_shared_layers_that_are_computed_anew_are_aligned(loaded):
    config = loaded.model.config.__class__(
        vocab_size=loaded.tokenizer.vocab_size,
        features=8,
        ff_features=8,
        num_heads=2,
        encoder_layers=1,
        decoder_layers=3,
        share_layers=True,
        remat=True,
    )
    model = EncoderDecoder(config, loaded.model.pad_id)
    tokens = jnp.ones((1, 2), jnp.int32)
    params = model.init(jax.random.key(0), tokens, tokens, deterministic=True)["params"]
    scorer = PairScorer(model, params, loaded.tokenizer)
    (pair,) = scorer.encode(*zip(PAIRS[0]))
    (found,) = scorer.force([pair], attention=True)
    assert found.attention.shape == (3, len(pair[1]), len(pair[0]))
    assert not np.allclose(found.attention[0], found.attention[1])


ODD = ["a\u00a0b  c\td", "x \u2028 y", "\u2581 d\u2581 ", "a\u3000\u3000b", "...", "\u200b"]


@pytest.mark.parametrize("normalization", ["none", "nfc"])
def test_words_are_those_that_white_space_parts_in_the_text(loaded, normalization):
    tokenizer = loaded.tokenizer.__class__.train(
        ["the dog sees a cat"] * 9, 290, normalization=normalization
    )
    for text in ODD:
        (ids,) = tokenizer.encode([tokenizer.normalize_source(text)])
        forced = forced_with(
            tokenizer, "c d", np.ones((len(tokenizer.encode(["c d"])[0]), len(ids)))
        )
        links = links_of(tokenizer, text, ids, forced)
        assert all(0 <= i < len(text.split()) and 0 <= j < 2 for i, j in links)


@pytest.fixture
def grammar_links(monkeypatch):
    """What the benchmark knows of the built-in grammar."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("grammar_links")


KNOWN = {  # by hand
    "The boy said that I got up.": "0-0 1-1 2-3 3-4 4-5 5-6 6-6",
    "Did boys shop today?": "0-0 1-1 2-3 3-2",
    "If he cannot help the woman, we find his horse in the school.": (
        "0-0 1-1 2-4 2-6 3-5 4-2 5-3 6-8 7-7 8-12 9-13 10-9 11-10 12-11"
    ),
}


def test_the_grammar_knows_its_alignments(grammar_links):
    seen = {}
    for example in examples("train", 300, seed=5):
        found = grammar_links.gold(example)  # asserts that its words are those of the sentences
        assert found.sure and found.sure <= found.possible
        s, t = len(found.source.split()), len(found.target.split())
        assert {j for _, j in found.possible} == set(range(t))
        seen |= {found.source: pharaoh(sorted(found.sure))}
        assert all(i < s and j < t for i, j in found.possible)
    assert {text: seen[text] for text in KNOWN} == KNOWN


def test_the_alignment_error_rate_is_that_of_och_and_ney(grammar_links):
    golds = [grammar_links.Gold("a b", "c d", {(0, 0), (1, 1)}, {(0, 0), (1, 1), (0, 1)})]
    rate = lambda *links: grammar_links.error_rate([set(links)], golds)  # noqa: E731
    assert rate((0, 0), (1, 1)) == rate((0, 0), (1, 1), (0, 1)) == 0
    assert rate((1, 0)) == 1
    assert rate((0, 0)) == pytest.approx(1 - (1 + 1) / (1 + 2))
    assert rate((0, 0), (1, 0)) == pytest.approx(1 - (1 + 1) / (2 + 2))


# ---- Commands --------------------------------------------------------------------------------


@pytest.fixture
def files(tmp_path):
    """Two aligned files, of which line 2 has a blank side."""
    sources, targets = map(list, zip(*PAIRS[:3], strict=True))
    targets[1] = ""
    for name, lines in (("my.en", sources), ("my.de", targets)):
        (tmp_path / name).write_text("".join(f"{line}\n" for line in lines))
    return [str(tmp_path / "my.en"), str(tmp_path / "my.de")]


def printed(capsys, *words):
    assert main([*map(str, words)]) == 0
    out, err = capsys.readouterr()
    return out.removesuffix("\n").split("\n"), err


def test_score_tells_log_probabilities_of_pairs(commanded, files, scorer, capsys):
    lines, told = printed(capsys, "score", KEPT, "--pairs", *files)
    objects, _ = printed(capsys, "score", KEPT, "--json", "--pairs", *files)
    (wanted,) = scorer.score(*zip(PAIRS[0]))
    assert lines[1] == "" and json.loads(objects[1]) is None and "(line 2)" in told
    each = [float(x) for x in lines[0].split("\t")]
    assert each == pytest.approx([wanted.log_prob, wanted.log_prob / len(wanted.tokens)], abs=1e-5)
    found = json.loads(objects[0])
    assert found["tokens"] == scorer.tokenizer.pieces(wanted.tokens)
    assert found["token_log_probs"] == pytest.approx(wanted.log_probs, abs=1e-5)
    assert found["log_prob"] == pytest.approx(sum(found["token_log_probs"]), abs=1e-6)


def test_score_of_pairs_needs_a_folder_and_files_of_one_length(files, capsys):
    assert main(["score", "--pairs", *files]) == 2
    assert "expected one folder" in capsys.readouterr().err
    pathlib.Path(files[1]).write_text("x\n")
    assert main(["score", str(KEPT), "--pairs", *files]) == 2
    assert "has 3 lines" in capsys.readouterr().err


def test_align_writes_a_line_of_links_for_each_pair(commanded, files, scorer, capsys):
    lines, told = printed(capsys, "align", KEPT, *files)
    wanted = align(scorer, *zip(PAIRS[0], PAIRS[2], strict=True))
    assert lines == [pharaoh(wanted[0]), "", pharaoh(wanted[1])] and "(line 2)" in told
    assert all(wanted)


def test_translations_as_json_have_scores_tokens_and_alignments(commanded, loaded, capsys):
    text = PAIRS[0][0]
    lines, _ = printed(capsys, "translate", KEPT, text, " ", "--json", "--n-best", 2)
    (wanted,) = Translator(*loaded).translate([text], n_best=2)
    first, blank = map(json.loads, lines)
    assert blank == {"text": " ", "translations": []}
    assert first["text"] == text and len(first["translations"]) == 2
    for found, one in zip(first["translations"], wanted, strict=True):
        assert found["text"] == one.text
        assert found["score"] == pytest.approx(one.score, abs=1e-5)
        assert found["log_prob"] == pytest.approx(one.log_prob, abs=1e-5)
        assert found["tokens"] == loaded.tokenizer.pieces(one.tokens)
        assert sum(found["token_log_probs"]) == pytest.approx(one.log_prob, abs=1e-4)
        each = found["log_prob"] / len(one.tokens)
        assert found["confidence"] == pytest.approx(math.exp(each), abs=1e-5)
        links = [tuple(map(int, link.split("-"))) for link in found["alignment"].split()]
        assert links and links == sorted(set(links))
        for i, j in links:
            assert i < len(text.split()) and j < len(one.text.split())
