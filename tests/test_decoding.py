"""Greedy decoding against a plain loop over prefixes; translation of any batch of texts."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxattn import EncoderDecoder, EncoderDecoderConfig
from flaxattn.translation.decoding import greedy_decode, translate
from flaxattn.translation.tokenizer import Tokenizer

PAD, BOS, EOS, V, MAX_LENGTH = 0, 1, 2, 7, 9
CONFIG = EncoderDecoderConfig(
    vocab_size=V,
    features=8,
    ff_features=12,
    num_heads=2,
    encoder_layers=1,
    decoder_layers=1,
    tie_embeddings="none",
    dropout_rate=0.3,
)


def random_params(model, seed):
    """Parameters so large that the most likely token changes along a sentence."""

    def init(key):
        tokens = jnp.ones((1, 2), jnp.int32)
        return nn.unbox(model.init(key, tokens, tokens, deterministic=True))["params"]

    def draw(path, x):
        mean, deviation = (1.0, 0.0) if path[-1].key == "scale" else (0.0, 0.7)
        return rng.normal(mean, deviation, x.shape).astype(np.float32)

    rng = np.random.default_rng(seed)
    return jax.tree_util.tree_map_with_path(draw, jax.eval_shape(init, jax.random.key(0)))


# ---- Token ids -------------------------------------------------------------------------------

MODEL = EncoderDecoder(CONFIG, pad_id=PAD)
SOURCES = [[5, 2], [3, 4, 2], [4, 3, 2], [6, 6, 5, 4, 2], [3, 6, 4, 5, 2], [2]]


SEEDS = [344, 329]  # whose translations differ in length and content


@functools.cache
def params(seed):
    return random_params(MODEL, seed)


@functools.cache
def decoded(seed):
    source = np.full((len(SOURCES), 6), PAD, np.int32)
    for row, ids in enumerate(SOURCES):
        source[row, : len(ids)] = ids
    return np.asarray(
        greedy_decode(MODEL, params(seed), source, max_length=MAX_LENGTH, bos_id=BOS, eos_id=EOS)
    )


@jax.jit
def next_logits(params, source, prefix, length):
    """The full model over one unpadded source and a prefix of `length` tokens."""
    logits = MODEL.apply(
        {"params": params},
        source[None],
        prefix[None],
        source_segment_ids=jnp.ones((1, source.shape[0]), jnp.int32),
        target_segment_ids=(jnp.arange(MAX_LENGTH) < length).astype(jnp.int32)[None],
        deterministic=True,
    )
    return logits[0, length - 1]


@functools.cache
def expected(seed, index):
    """The most likely token after each prefix, until the end token or the maximum length."""
    source, tokens = np.array(SOURCES[index], np.int32), []
    while len(tokens) < MAX_LENGTH and EOS not in tokens:
        prefix = np.zeros(MAX_LENGTH, np.int32)
        prefix[: len(tokens) + 1] = [BOS, *tokens]
        tokens.append(int(np.argmax(next_logits(params(seed), source, prefix, len(tokens) + 1))))
    return tokens


@pytest.mark.parametrize("seed", SEEDS)
def test_the_examples_end_early_late_and_not_at_all(seed):
    found = [expected(seed, i) for i in range(len(SOURCES))]
    assert len({len(tokens) for tokens in found}) >= 3
    assert min(map(len, found)) <= 3
    assert any(EOS not in tokens and tokens[-1] != PAD for tokens in found)
    assert len({token for tokens in found for token in tokens}) >= 4


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("index", range(len(SOURCES)))
def test_each_token_is_the_most_likely_after_those_before_it(seed, index):
    wanted = expected(seed, index)
    assert decoded(seed)[index].tolist() == wanted + [PAD] * (MAX_LENGTH - len(wanted))


def test_after_the_end_there_is_only_padding():
    rows = [row for seed in SEEDS for row in decoded(seed).tolist() if EOS in row]
    assert len(rows) >= 6
    for row in rows:
        assert set(row[row.index(EOS) + 1 :]) <= {PAD}


def test_the_maximum_length_counts_the_end_token():
    assert decoded(SEEDS[0]).shape == (len(SOURCES), MAX_LENGTH)
    assert decoded(SEEDS[0]).dtype == np.int32
    assert any(row.index(EOS) == MAX_LENGTH - 1 for row in decoded(329).tolist() if EOS in row)


def test_a_shorter_maximum_length_cuts_the_same_translations():
    source = jnp.array([SOURCES[1], SOURCES[2]], jnp.int32)
    found = greedy_decode(MODEL, params(344), source, max_length=3, bos_id=BOS, eos_id=EOS)
    np.testing.assert_array_equal(found, decoded(344)[1:3, :3])


def test_each_row_stops_at_its_own_limit():
    source = np.full((4, 6), PAD, np.int32)
    source[:, : len(SOURCES[5])] = SOURCES[5]
    limits = np.array([9, 4, 2, 1], np.int32)
    found = greedy_decode(
        MODEL, params(344), source, max_length=MAX_LENGTH, bos_id=BOS, eos_id=EOS, limits=limits
    )
    whole = decoded(344)[5].tolist()
    assert PAD not in whole
    assert found.tolist() == [whole[:n] + [PAD] * (MAX_LENGTH - n) for n in limits.tolist()]


def test_decoding_another_batch_of_the_same_shape_compiles_nothing():
    decoded(344)
    size = greedy_decode._cache_size()
    source = np.full((len(SOURCES), 6), 3, np.int32)
    greedy_decode(MODEL, params(344), source, max_length=MAX_LENGTH, bos_id=BOS, eos_id=EOS)
    assert greedy_decode._cache_size() == size


# ---- Texts -----------------------------------------------------------------------------------

WORDS = "the small cat sleeps on a red mat and dogs run over long bridges".split()
TEXTS = [" ".join(WORDS[i % 5 : i % 5 + 1 + i]) for i in range(10)]


@functools.cache
def tokenizer():
    return Tokenizer.train([" ".join(WORDS), *WORDS] * 5, 310)


@functools.cache
def translator(end_bias=0.0, seed=0):
    """A model of random parameters; the larger `end_bias`, the sooner its translations end."""
    model = EncoderDecoder(dataclasses.replace(CONFIG, vocab_size=tokenizer().vocab_size))
    params = random_params(model, seed)
    params["output_embedding"]["embedding"][EOS] *= 1 + end_bias
    return model, params


def translated(texts, *, end_bias=0.0, seed=0, **settings):
    return translate(*translator(end_bias, seed), tokenizer(), texts, **settings)


ENDING = {"end_bias": 2.0, "seed": 298}


@functools.cache
def one_at_a_time(**model):
    return [translated([text], **model, batch_size=1)[0] for text in TEXTS]


def test_the_translations_of_the_texts_differ():
    assert len(set(one_at_a_time(**ENDING))) >= 6
    assert max(map(len, one_at_a_time(**ENDING))) < 15


@pytest.mark.parametrize("batch_size", [3, 64])
def test_texts_that_end_are_translated_together_as_one_at_a_time(batch_size):
    assert translated(TEXTS, **ENDING, batch_size=batch_size) == one_at_a_time(**ENDING)


@pytest.mark.parametrize("batch_size", [3, 64])
def test_texts_that_do_not_end_are_translated_together_as_one_at_a_time(batch_size):
    assert translated(TEXTS, batch_size=batch_size) == one_at_a_time()


def test_the_order_of_texts_is_kept():
    backwards = translated(TEXTS[::-1], **ENDING, batch_size=3)
    assert backwards[::-1] == translated(TEXTS, **ENDING, batch_size=3)


def test_blank_texts_stay_blank_and_shift_no_other():
    texts = ["", TEXTS[5], " \t", "\u3000", TEXTS[2], ""]
    full = one_at_a_time(**ENDING)
    assert translated(texts, **ENDING, batch_size=3) == ["", full[5], "", "", full[2], ""]


def test_no_texts_and_blank_texts_need_no_model():
    assert translate(None, None, tokenizer(), []) == []
    assert translate(None, None, tokenizer(), ["", " "]) == ["", ""]


def test_progress_adds_up_to_the_texts_that_are_not_blank():
    done = []
    translated([*TEXTS, ""], **ENDING, batch_size=3, progress=done.append)
    assert sum(done) == len(TEXTS) and all(count > 0 for count in done)


def test_few_shapes_are_compiled_for_many_lengths():
    translated(TEXTS, **ENDING, batch_size=1)
    size = greedy_decode._cache_size()
    lengths = {len(ids) for ids in tokenizer().encode(TEXTS)}
    translated(TEXTS[::-1], **ENDING, batch_size=1)
    assert len(lengths) > 6
    assert greedy_decode._cache_size() == size
