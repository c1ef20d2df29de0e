"""What the explorer shows: the numbers, against computations of their own; text that stays text."""

import base64
import dataclasses
import functools
import html.parser
import importlib.resources
import json
import math
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxattn import EncoderDecoder, EncoderDecoderConfig, MultiHeadAttention, causal, shift_right
from flaxattn.__main__ import main
from flaxattn.explorer import (
    Attention,
    Hypothesis,
    Labels,
    Sentence,
    Written,
    attentions,
    figure,
    page,
)
from flaxattn.explorer.colours import scale
from flaxattn.text.tokenizer import Tokenizer
from flaxattn.translation.config import DecodingConfig
from flaxattn.translation.decoding import explanation
from flaxattn.translation.decoding.explaining import (
    MOST_TEXTS,
    MOST_TOKENS,
    explain,
    explain_translations,
)
from flaxattn.translation.decoding.translator import Translation, Translator
from flaxattn.translation.trained import loading
from flaxattn.translation.trained.loading import Loaded

WORDS = "the small cat sleeps on a red mat and dogs run over long bridges".split()
TEXT, OTHER = "the small cat sleeps", "dogs run over a red mat and on"
DECODING = DecodingConfig(beam_size=3, max_ratio=1.0)
LAYERS, HEADS = 2, 2


@functools.cache
def loaded(**changes):
    """A model of random parameters, so large that its attention is far from even."""
    tokenizer = Tokenizer.train([" ".join(WORDS), *WORDS] * 5, 310)
    config = EncoderDecoderConfig(
        vocab_size=tokenizer.vocab_size,
        features=8,
        ff_features=12,
        num_heads=HEADS,
        encoder_layers=LAYERS,
        decoder_layers=LAYERS,
        tie_embeddings="none",
    )
    model = EncoderDecoder(dataclasses.replace(config, **changes))
    tokens = jnp.ones((1, 2), jnp.int32)
    init = functools.partial(model.init, deterministic=True)
    shapes = jax.eval_shape(init, jax.random.key(0), tokens, tokens)["params"]
    rng = np.random.default_rng(3)
    draw = lambda x: jnp.asarray(rng.normal(0.0, 0.7, x.shape), x.dtype)  # noqa: E731
    return Loaded(model, jax.tree.map(draw, shapes), tokenizer, DECODING)


@functools.cache
def explained():
    return explain(*loaded()[:3], [TEXT, " ", OTHER], DECODING)


@functools.cache
def translations():
    return Translator(*loaded()).translate([TEXT, " ", OTHER], n_best=3)


def ids_of(number):
    """Source and translation of a text, as ids [1, S] and [1, T]."""
    best = translations()[2 * number][0]
    source = loaded().tokenizer.encode([TEXT, OTHER][number : number + 1])[0]
    return source[None], np.array(best.tokens, np.int32)[None]


def softmax(logits, seen):
    """In float64, of what may be seen."""
    powers = np.where(seen, np.exp(np.where(seen, logits, -np.inf) - logits.max()), 0.0)
    return powers / powers.sum(-1, keepdims=True)


# ---- Translations that are explained ---------------------------------------------------------


@pytest.mark.thorough
def test_weights_are_the_softmax_of_the_models_own_queries_and_keys():
    model, params, tokenizer, _ = loaded()
    source, target = ids_of(1)

    @jax.jit
    def capture(params):
        return model.apply(
            {"params": params},
            source,
            shift_right(target, np.ones_like(target), tokenizer.bos_id),
            source_segment_ids=np.ones_like(source),
            target_segment_ids=np.ones_like(target),
            deterministic=True,
            capture_intermediates=lambda module, _: module.name in ("query", "key"),
            mutable=["intermediates"],
        )[1]["intermediates"]

    captured = capture(params)
    seen = explained()[1].attentions
    assert len(seen) == 3 * LAYERS
    for attention in seen:
        tree = captured
        for name in attention.name.split("/"):
            tree = tree[name]
        query, key = (np.float64(tree[name]["__call__"][0][0]) for name in ("query", "key"))
        logits = np.einsum("tnh,snh->nts", query, key) / math.sqrt(query.shape[-1])
        may = np.ones(logits.shape, bool)
        if attention.kind == "Decoder self-attention":
            may = np.arange(logits.shape[2]) <= np.arange(logits.shape[1])[:, None]
        np.testing.assert_allclose(attention.weights, softmax(logits, may), atol=2e-6)


def test_each_kind_is_seen_layer_by_layer_with_its_tokens_and_its_mask():
    sentence, tokenizer = explained()[0], loaded().tokenizer
    source, target = ids_of(0)
    read, written = tokenizer.pieces(source[0].tolist()), tokenizer.pieces(target[0].tolist())
    given = ["<s>", *written[:-1]]
    s, t = len(read), len(written)
    wanted = [
        ("Encoder self-attention", "encoder/layer_{}/self_attention", read, read, None),
        ("Decoder self-attention", "decoder/layer_{}/self_attention", given, given, written),
        ("Cross-attention", "decoder/layer_{}/cross_attention", given, read, written),
    ]
    masks = [np.ones((s, s), bool), np.tri(t, dtype=bool), np.ones((t, s), bool)]
    places = [(kind, layer) for kind in range(3) for layer in range(LAYERS)]
    for attention, (kind, layer) in zip(sentence.attentions, places, strict=True):
        name, path, queries, keys, writes = wanted[kind]
        assert (attention.kind, attention.layer) == (name, layer)
        assert attention.name == path.format(layer)
        assert (attention.q_tokens, attention.kv_tokens, attention.q_writes) == (
            queries,
            keys,
            writes,
        )
        np.testing.assert_array_equal(attention.mask, masks[kind])


@pytest.mark.parametrize("number", [0, 1])
def test_probabilities_multiply_to_that_of_the_translation_and_others_follow(number):
    sentence = explained()[number]
    total = sum(math.log(written.probability) for written in sentence.written)
    assert total == pytest.approx(sentence.hypotheses[0].log_prob, abs=1e-4)
    for written in sentence.written:
        others = [share for _, share in written.others]
        assert len(others) == 4 and others == sorted(others, reverse=True)
        assert sum(others) + written.probability <= 1 + 1e-6
        assert written.token not in [token for token, _ in written.others]


def test_hypotheses_are_those_of_the_translator_and_blank_texts_are_left_out():
    found = translations()
    assert [sentence.text for sentence in explained()] == [TEXT, OTHER]
    for sentence, best in zip(explained(), (found[0], found[2]), strict=True):
        assert sentence.translation == best[0].text
        got = [(x.text, x.score, x.log_prob) for x in sentence.hypotheses]
        assert got == [x[:3] for x in best]


def given(*lengths):
    """Translations of so many tokens, which nobody sought."""
    return [
        [Translation("", -1.0, -1.0, (*range(4, 3 + length), 2)[:length])] for length in lengths
    ]


@pytest.mark.thorough
def test_layers_that_share_their_parameters_and_are_rematerialised_are_all_seen():
    model, params, tokenizer, _ = loaded(share_layers=True, remat=True)
    (sentence,) = explain_translations(model, params, tokenizer, [TEXT], given(3))
    kinds = [(attention.kind, attention.layer) for attention in sentence.attentions]
    assert len(set(kinds)) == 3 * LAYERS
    first, second = sentence.attentions[:2]
    assert second.name == "encoder/layer_0/self_attention (call 1)"
    assert not np.allclose(first.weights, second.weights)


def test_texts_that_cannot_be_explained_are_told():
    model = loaded()[:3]
    long = " ".join(["mat"] * MOST_TOKENS)
    for text, length, why in (
        (long, 3, rf"it has \d+ tokens, and at most {MOST_TOKENS} can be shown"),
        ("mat", MOST_TOKENS + 1, f"its translation has {MOST_TOKENS + 1} tokens"),
        ("mat", 0, "no translation was found"),
    ):
        with pytest.warns(UserWarning, match=f"text 2 is not explained: {why}"):
            assert explain_translations(*model, [" ", text], given(1, length)) == []
    with pytest.raises(ValueError, match=f"{MOST_TEXTS + 1} texts; at most {MOST_TEXTS}"):
        explain_translations(*model, [TEXT] * (MOST_TEXTS + 1), [])


# ---- The command -----------------------------------------------------------------------------


@pytest.fixture
def model_in_no_folder(monkeypatch):
    monkeypatch.setattr(loading, "load", lambda folder, *_: loaded())


WORDS_OF_DECODING = ["--beam-size", "3", "--max-ratio", "1.0"]


@pytest.mark.usefixtures("model_in_no_folder")
def test_translate_prints_as_ever_and_writes_the_page(tmp_path, capsys):
    path = tmp_path / "out.html"
    command = ["translate", str(tmp_path), TEXT, "", OTHER, *WORDS_OF_DECODING]
    assert main([*command, "--explain", str(path)]) == 0
    printed = capsys.readouterr()
    assert printed.out.splitlines() == [found[0].text for found in translations()]
    assert f"wrote {path}, {path.stat().st_size / 1000:,.0f} kB" in printed.err
    sentences = data_of(path.read_text("utf-8"))["sentences"]
    assert [sentence["text"] for sentence in sentences] == [TEXT, OTHER]
    assert [len(sentence["hypotheses"]) for sentence in sentences] == [3, 3]


@pytest.mark.usefixtures("model_in_no_folder")
def test_translate_writes_a_figure_of_one_text(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(explanation, "DPI", 40)
    path = tmp_path / "out.PNG"
    assert main(["translate", str(tmp_path), TEXT, *WORDS_OF_DECODING, "--explain", str(path)]) == 0
    assert path.read_bytes().startswith(b"\x89PNG")
    assert len(capsys.readouterr().out.splitlines()) == 1


@pytest.mark.usefixtures("model_in_no_folder")
def test_translate_says_that_there_is_nothing_to_explain(tmp_path, capsys):
    path = tmp_path / "out.html"
    assert main(["translate", str(tmp_path), " ", "--explain", str(path)]) == 2
    assert "no text can be explained" in capsys.readouterr().err and not path.exists()


@pytest.mark.parametrize(
    "words, message",
    [
        (["a", "--explain", "out.pdf"], "out.pdf ends in '.pdf'; expected .html"),
        (["a", "--explain", "out"], "out ends in ''; expected .html"),
        (["a", "b", "--explain", "out.png"], "2 texts; expected at most 1"),
        (["a"] * (MOST_TEXTS + 1) + ["--explain", "out.html"], f"expected at most {MOST_TEXTS}"),
        (["a", "--explain", "nowhere/out.html"], "there is no folder nowhere"),
    ],
)
def test_translate_refuses_what_it_cannot_explain_before_loading(tmp_path, capsys, words, message):
    assert main(["translate", str(tmp_path / "nothing"), *words]) == 2
    printed = capsys.readouterr()
    assert "error: --explain: " in printed.err and message in printed.err
    assert "loading" not in printed.err and printed.out == ""


# ---- The page --------------------------------------------------------------------------------

NASTY = ["x", "</script>", "<b>fett</b>", "<!--", "&amp;", "'\"", "\u2028", "${data}", "$x$"]


def attention(q_len=3, kv_len=4, heads=2, **fields):
    rng = np.random.default_rng(0)
    weights = softmax(rng.normal(size=(heads, q_len, kv_len)), True)
    names = [[f"{side}{i}" for i in range(n)] for side, n in (("q", q_len), ("k", kv_len))]
    return Attention(**{"name": "a", "q_tokens": names[0], "kv_tokens": names[1],
                        "weights": weights, **fields})  # fmt: skip


class Elements(html.parser.HTMLParser):
    """What a browser makes of a page: its elements, and the text of its scripts."""

    def __init__(self, text):
        super().__init__()
        self.names, self.attributes, self.scripts = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.names.append(tag)
        self.attributes += attributes

    def handle_data(self, data):
        if self.names and self.names[-1] == "script":
            self.scripts.append(data)


def data_of(text):
    return json.loads(Elements(text).scripts[0])


def bytes_of(text, dtype):
    return np.frombuffer(base64.b64decode(text), dtype)


@pytest.mark.parametrize("mask_heads", [0, 1, 3])
def test_the_page_holds_the_weights_and_the_masks(mask_heads):
    shape = {0: None, 1: (5, 7), 3: (3, 5, 7)}[mask_heads]
    mask = None if shape is None else np.random.default_rng(1).random(shape) < 0.5
    seen = attention(5, 7, 3, mask=mask)
    kept = data_of(page([Sentence("x", [seen])]))
    (layer,) = kept["sentences"][0]["kinds"][0]["layers"]
    weights = bytes_of(layer["weights"], "<u2").reshape(3, 5, 7) / kept["full"]
    np.testing.assert_allclose(weights, seen.weights, atol=1e-5)
    assert layer["maskHeads"] == mask_heads
    if mask is not None:
        bits = np.unpackbits(bytes_of(layer["mask"], np.uint8), bitorder="little")[: mask.size]
        np.testing.assert_array_equal(bits.reshape(shape), mask)


def test_text_stays_text_wherever_it_is_given():
    seen = attention(9, 9, q_tokens=NASTY, kv_tokens=NASTY, q_writes=NASTY, name=NASTY[0],
                     kind=NASTY[1])  # fmt: skip
    text = " ".join(NASTY)
    written = [Written(token, 0.5, [(token, 0.25)]) for token in NASTY]
    sentence = Sentence(text, [seen], text, written, [Hypothesis(text, -1.0, -2.0)])
    plain, nasty = (
        Elements(page([Sentence("x", [attention()])])),
        Elements(page([sentence], title=text)),
    )
    assert nasty.names == plain.names
    (kept,) = json.loads(nasty.scripts[0])["sentences"]
    assert kept["text"] == kept["translation"] == kept["hypotheses"][0]["text"] == text
    (kind,) = kept["kinds"]
    assert kind["name"] == NASTY[1] and kind["layers"][0]["name"] == NASTY[0]
    for key in ("queries", "keys", "writes"):
        assert kind["layers"][0][key] == NASTY
    assert [w["token"] for w in kept["written"]] == NASTY
    assert [w["others"][0][0] for w in kept["written"]] == NASTY


def test_the_page_names_nothing_outside_itself():
    text = page([Sentence("x", [attention()])])
    found = Elements(text)
    assert {value for name, value in found.attributes if name in ("src", "href")} == {"data:,"}
    assert not re.search(r"https?://|@import|url\(|fetch\(|XMLHttpRequest|import\(", text)
    assert "default-src 'none'" in text


def test_a_page_of_thirty_tokens_with_four_and_four_layers_of_four_heads_is_small():
    kinds = [("Encoder", False), ("Decoder", True), ("Cross", False)]
    seen = [
        attention(30, 30, 4, kind=kind, layer=i, mask=np.tri(30, dtype=bool) if hides else None)
        for kind, hides in kinds
        for i in range(4)
    ]
    written = [Written("token", 0.5, [("other", 0.1)] * 4)] * 30
    size = len(page([Sentence("word " * 30, seen, "Wort " * 30, written)]).encode())
    assert size < 250_000  # 2 MB are allowed


def test_the_packages_files_are_beside_the_code():
    folder = importlib.resources.files("flaxattn.explorer")
    for name in ("page.html", "page.css", "weights.js", "map.js", "page.js"):
        text = folder.joinpath(name).read_text("utf-8")
        assert text and (name == "page.html" or "</" not in text)  # which would end its element


@pytest.mark.parametrize(
    "fields, message",
    [
        (
            {"weights": np.ones((2, 3))},
            r"a: weights have shape \(2, 3\); expected \[N, T, S\] with",
        ),
        ({"q_tokens": ["x"]}, "T = 1 q_tokens"),
        ({"weights": np.full((2, 3, 4), 1.5)}, "go from 1.5 to 1.5; expected 0 to 1"),
        ({"weights": np.full((2, 3, 4), np.nan)}, "expected 0 to 1"),
        ({"mask": np.ones((4, 3), bool)}, r"mask has shape \(4, 3\); expected \(3, 4\) or"),
        ({"mask": np.ones((3, 4))}, "mask has dtype float64; expected bool"),
        ({"q_writes": ["x"]}, "1 q_writes for 3 q_tokens"),
    ],
)
def test_attentions_that_do_not_fit_are_refused(fields, message):
    with pytest.raises((ValueError, TypeError), match=message):
        attention(**fields)


def test_sentences_that_cannot_be_shown_are_refused():
    with pytest.raises(ValueError, match="sentences: expected at least one"):
        page([])
    with pytest.raises(ValueError, match="attentions of 'x': expected at least one"):
        Sentence("x", [])
    with pytest.raises(ValueError, match="two are of kind 'Attention' and layer 0"):
        Sentence("x", [attention(), attention()])
    with pytest.raises(ValueError, match="score -inf"):
        Hypothesis("x", -math.inf, -math.inf)
    with pytest.raises(ValueError, match="probability of 'y' is nan"):
        Written("x", 0.5, [("y", math.nan)])


# ---- Weights of one's own models -------------------------------------------------------------


class Mine(nn.Module):
    """Two blocks of one's own, and a layer that is called twice."""

    @nn.compact
    def __call__(self, x, mask):
        attend = functools.partial(MultiHeadAttention, num_heads=2)
        how = {"mask": mask, "sow_weights": True, "deterministic": True}
        for i in (2, 10):
            x += attend(name=f"block_{i}")(x, **how)
        shared = attend(name="shared")
        return shared(shared(x, **how), **how)


@functools.cache
def sown():
    x = jax.random.normal(jax.random.key(0), (2, 5, 8))
    variables = Mine().init(jax.random.key(1), x, causal())
    _, state = Mine().apply(variables, x, causal(), mutable=["intermediates"])
    return state["intermediates"]


def test_sown_weights_are_named_by_their_modules():
    found = attentions(sown())
    assert [(x.name, x.kind, x.layer) for x in found] == [
        ("block_2", "block", 2),
        ("block_10", "block", 10),
        ("shared", "shared", 0),
        ("shared (call 1)", "shared", 1),
    ]
    assert page([Sentence("mine", found)])
    assert found[0].q_tokens == ["0", "1", "2", "3", "4"] == found[0].kv_tokens


def test_sown_weights_are_those_of_the_example_without_its_padding():
    mask = np.asarray(causal().dense(5, 5))
    labels = {"block_2": Labels(list("abc"), list("wxyz"), mask), "*": Labels(list("abcde"))}
    found = attentions(sown(), labels, example=1)
    weights = np.asarray(sown()["block_2"]["attention_weights"][0])
    np.testing.assert_array_equal(found[0].weights, weights[1, :, :3, :4])
    np.testing.assert_array_equal(found[0].mask, mask[:3, :4])
    assert found[0].kv_tokens == list("wxyz") and found[1].kv_tokens == list("abcde")


def test_what_was_not_sown_cannot_be_shown():
    with pytest.raises(ValueError, match=r"no \"attention_weights\"; call apply\(..., sow_weights"):
        attentions({"block": {"other": (1,)}})
    with pytest.raises(ValueError, match="no pattern matches 'block_2'; there are 'x/\\*'"):
        attentions(sown(), {"x/*": Labels(["a"])})
    with pytest.raises(ValueError, match="example = 2"):
        attentions(sown(), example=2)
    with pytest.raises(ValueError, match="T = 6 q_tokens"):
        attentions(sown(), {"*": Labels(list("abcdef"))})


# ---- The figure, and the colours -------------------------------------------------------------


def test_the_figure_shows_the_chosen_heads_their_masks_and_tokens_as_they_are():
    mask = np.tri(9, dtype=bool)
    seen = attention(9, 9, 3, q_tokens=NASTY, kv_tokens=NASTY, mask=mask)
    drawn = figure([seen, attention(9, 2, 3)], heads=[2, 0], title="$x$")
    maps = drawn.axes[:4]
    for ax, head in zip(maps[:2], (2, 0), strict=True):
        image, hatching = ax.get_images()[0], ax.collections[0]
        np.testing.assert_array_equal(image.get_array(), seen.weights[head])
        assert image.get_clim() == (0, 1)
        np.testing.assert_array_equal(
            ~np.ma.getmaskarray(hatching.get_array()).reshape(9, 9), ~mask
        )
        assert hatching.get_hatch()
        assert [t.get_text() for t in ax.get_xticklabels()] == NASTY
    assert not maps[2].collections
    drawn.draw_without_rendering()  # "$x$" would be mathematics, "${data}" an error


def test_the_figure_refuses_heads_that_are_not_there():
    with pytest.raises(ValueError, match=r"heads are \[2\]; expected one or more, from 0 to 1"):
        figure([attention()], heads=[2])
    with pytest.raises(ValueError, match="attentions: expected at least one"):
        figure([])


@pytest.mark.parametrize("dark", [False, True])
def test_equal_steps_of_weight_are_equal_steps_of_lightness(dark):
    rgb = scale(dark=dark) / 255
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    lightness = 116 * np.cbrt(np.maximum(linear @ [0.2126, 0.7152, 0.0722], 1e-6)) - 16  # CIELAB
    steps = np.diff(lightness[::32]) * (1 if dark else -1)
    assert (steps > 0).all() and steps.max() < 1.5 * steps.min()
    assert abs(lightness[-1] - lightness[0]) > 60
