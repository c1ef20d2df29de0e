"""Cached decoding against loops over whole prefixes; translation of any batch of texts."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxattn import EncoderDecoder, EncoderDecoderConfig
from flaxattn.search import Lengths, SpecialTokens, beam_search
from flaxattn.text.tokenizer import Tokenizer
from flaxattn.training.mesh import data_mesh
from flaxattn.translation.config import DecodingConfig
from flaxattn.translation.decoding.decode import decode
from flaxattn.translation.decoding.translator import Translator, translate

PAD, BOS, EOS, V, MAX_LENGTH = 0, 1, 2, 7, 9
IDS = SpecialTokens(BOS, EOS, PAD)
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
        return model.init(key, tokens, tokens, deterministic=True)["params"]

    def draw(path, x):
        mean, deviation = (1.0, 0.0) if path[-1].key == "scale" else (0.0, 0.7)
        return rng.normal(mean, deviation, x.shape).astype(np.float32)

    rng = np.random.default_rng(seed)
    return jax.tree_util.tree_map_with_path(draw, jax.eval_shape(init, jax.random.key(0)))


# ---- Token ids -------------------------------------------------------------------------------

MODEL = EncoderDecoder(CONFIG, pad_id=PAD)
SOURCES = [[5, 2], [3, 4, 2], [4, 3, 2], [6, 6, 5, 4, 2], [3, 6, 4, 5, 2], [2]]
LENGTH = 6  # of the padded rows
SEEDS = [147, 187]  # whose translations differ in length and content
GREEDY = DecodingConfig(beam_size=1)


@functools.cache
def params(seed):
    return random_params(MODEL, seed)


def rows_of(sources):
    rows = np.full((len(sources), LENGTH), PAD, np.int32)
    for row, ids in enumerate(sources):
        rows[row, : len(ids)] = ids
    return rows


def found_by(
    seed, config, sources, *, n_best=1, max_length=None, min_length=0, devices=1, keys=None
):
    """What `decode` finds for sources, one row each."""
    count = len(sources)
    max_length = np.full(count, MAX_LENGTH) if max_length is None else np.array(max_length)
    found = decode(
        (MODEL,),
        (params(seed),),
        rows_of(sources),
        max_length.astype(np.int32),
        np.full(count, min_length, np.int32),
        jax.random.split(jax.random.key(0), count) if keys is None else keys,
        config=config,
        padded_length=MAX_LENGTH,
        n_best=n_best,
        special_tokens=IDS,
        mesh=data_mesh(jax.devices("cpu")[:devices]),
    )
    return jax.device_get(found)


@functools.cache
def greedily(seed):
    return found_by(seed, GREEDY, SOURCES).tokens[:, 0]


@jax.jit
def all_logits(params, source, prefixes):
    """The full model, without a cache, over one unpadded source and prefixes [R, T]: [R, T, V]."""
    rows = prefixes.shape[0]
    return MODEL.apply(
        {"params": params},
        jnp.broadcast_to(source, (rows, source.shape[0])),
        prefixes,
        source_segment_ids=jnp.ones((rows, source.shape[0]), jnp.int32),
        target_segment_ids=jnp.ones(prefixes.shape, jnp.int32),
        deterministic=True,
    )


@functools.cache
def expected(seed, index):
    """The most likely token that may come after each prefix, until the end token."""
    source, tokens = np.array(SOURCES[index], np.int32), []
    while EOS not in tokens:
        prefix = np.zeros((1, MAX_LENGTH), np.int32)
        prefix[0, : len(tokens) + 1] = [BOS, *tokens]
        logits = np.array(all_logits(params(seed), source, prefix)[0, len(tokens)])
        logits[[PAD, BOS]] = -np.inf
        tokens.append(EOS if len(tokens) == MAX_LENGTH - 1 else int(np.argmax(logits)))
    return tokens


@pytest.mark.thorough
@pytest.mark.parametrize("seed", SEEDS)
def test_the_examples_end_early_and_late(seed):
    found = [expected(seed, i) for i in range(len(SOURCES))]
    assert len({len(tokens) for tokens in found}) >= 3
    assert min(map(len, found)) <= 4 and max(map(len, found)) == MAX_LENGTH
    assert len({token for tokens in found for token in tokens}) >= 4


@pytest.mark.thorough(quick=1)
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("index", range(len(SOURCES)))
def test_each_token_is_the_most_likely_after_those_before_it(seed, index):
    wanted = expected(seed, index)
    assert greedily(seed)[index].tolist() == wanted + [PAD] * (MAX_LENGTH - len(wanted))


def uncached_beams(seed, source, beam_size, n_best, penalty):
    """Beam search whose step runs the full model over every prefix, keeping tokens alone."""
    source = np.array(source, np.int32)

    def step(tokens, index, prefixes):
        prefixes = prefixes.at[:, index].set(tokens)
        return all_logits(params(seed), source, prefixes)[:, index], prefixes

    return beam_search(
        step,
        jnp.full((1, MAX_LENGTH), PAD, jnp.int32),
        batch_size=1,
        special_tokens=IDS,
        lengths=Lengths(MAX_LENGTH, length_penalty=penalty),
        beam_size=beam_size,
        n_best=n_best,
    )


@pytest.mark.thorough
@pytest.mark.parametrize("seed", SEEDS)
def test_beams_in_a_tree_of_prefixes_find_what_beams_without_a_cache_find(seed):
    beam_size, n_best = 4, 3
    config = DecodingConfig(beam_size=beam_size, length_penalty=0.7)
    found = found_by(seed, config, SOURCES, n_best=n_best)
    for i, source in enumerate(SOURCES[:3]):
        wanted = uncached_beams(seed, source, beam_size, n_best, 0.7)
        np.testing.assert_array_equal(found.tokens[i], wanted.tokens[0])
        np.testing.assert_allclose(found.scores[i], wanted.scores[0], rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(found.log_probs[i], wanted.log_probs[0], rtol=1e-4, atol=1e-4)


@pytest.mark.thorough(quick=1)
@pytest.mark.parametrize("seed", SEEDS)
def test_log_probabilities_are_those_of_teacher_forcing(seed):
    found = found_by(seed, DecodingConfig(beam_size=3), SOURCES, n_best=3)
    for i, n in itertools.product(range(len(SOURCES)), range(3)):
        tokens = found.tokens[i, n, : found.lengths[i, n]]
        prefix = np.zeros((1, MAX_LENGTH), np.int32)
        prefix[0, : len(tokens)] = [BOS, *tokens[:-1]]
        logits = all_logits(params(seed), np.array(SOURCES[i], np.int32), prefix)[0]
        each = np.asarray(jax.nn.log_softmax(logits))[np.arange(len(tokens)), tokens]
        np.testing.assert_allclose(found.log_probs[i, n], each.sum(), rtol=1e-4, atol=1e-4)


@pytest.mark.thorough
@pytest.mark.parametrize("config", [GREEDY, DecodingConfig(beam_size=3)], ids=["greedy", "beam"])
def test_devices_share_the_rows_and_find_the_same(config):
    alone = found_by(147, config, SOURCES[:4])
    shared = found_by(147, config, SOURCES[:4], devices=4)
    np.testing.assert_array_equal(alone.tokens, shared.tokens)
    np.testing.assert_allclose(alone.scores, shared.scores, rtol=1e-5)


@pytest.mark.parametrize("config", [GREEDY, DecodingConfig(beam_size=3)], ids=["greedy", "beam"])
def test_each_row_stops_at_its_own_limit(config):
    found = found_by(147, config, [SOURCES[5]] * 4, max_length=[9, 4, 1, 0])
    lengths = found.lengths[:, 0].tolist()
    assert lengths == [9, 4, 1, 0] if config is GREEDY else lengths[2:] == [1, 0]
    for tokens, length in zip(found.tokens[:, 0], found.lengths[:, 0], strict=True):
        assert set(tokens[length:]) <= {PAD} and EOS not in tokens[: max(length - 1, 0)]
        assert length == 0 or tokens[length - 1] == EOS


def test_no_row_ends_before_its_minimum():
    assert found_by(147, GREEDY, SOURCES).lengths.min() < 5
    assert found_by(147, GREEDY, SOURCES, min_length=5).lengths.min() >= 5


@pytest.mark.thorough
def test_what_is_drawn_depends_on_the_key_of_the_row_alone():
    config = DecodingConfig(sampling=True)
    keys = jax.random.split(jax.random.key(3), 4)
    together = found_by(147, config, SOURCES[:4], n_best=2, keys=keys)
    assert len({tuple(row) for row in together.tokens.reshape(8, -1).tolist()}) > 4
    backwards = found_by(147, config, SOURCES[3::-1], n_best=2, keys=keys[::-1])
    np.testing.assert_array_equal(together.tokens, backwards.tokens[::-1])


def test_decoding_another_batch_of_the_same_shape_compiles_nothing():
    found_by(147, GREEDY, SOURCES)
    size = decode._cache_size()
    found_by(187, GREEDY, [[3, 2]] * len(SOURCES), max_length=[3] * len(SOURCES), min_length=2)
    assert decode._cache_size() == size


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
    return translate(*translator(end_bias, seed), tokenizer(), texts, GREEDY, **settings)


ENDING = {"end_bias": 2.0, "seed": 298}


@functools.cache
def one_at_a_time(**model):
    return [translated([text], **model, batch_size=1)[0] for text in TEXTS]


@pytest.mark.thorough
def test_the_translations_of_the_texts_differ():
    assert len(set(one_at_a_time(**ENDING))) >= 6
    assert max(map(len, one_at_a_time(**ENDING))) < 15


@pytest.mark.thorough(quick=1)
@pytest.mark.parametrize("batch_size", [3, 64])
def test_texts_that_end_are_translated_together_as_one_at_a_time(batch_size):
    assert translated(TEXTS, **ENDING, batch_size=batch_size) == one_at_a_time(**ENDING)


@pytest.mark.thorough(quick=1)
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
    size = decode._cache_size()
    lengths = {len(ids) for ids in tokenizer().encode(TEXTS)}
    translated(TEXTS[::-1], **ENDING, batch_size=1)
    assert len(lengths) > 6
    assert decode._cache_size() == size


@pytest.mark.thorough
def test_the_best_of_several_is_the_one_found_alone_and_scores_fall():
    config = DecodingConfig(beam_size=3)
    several = Translator(*translator(**ENDING), tokenizer(), config).translate(TEXTS[:4], n_best=3)
    best = translate(*translator(**ENDING), tokenizer(), TEXTS[:4], config)
    assert [translations[0].text for translations in several] == best
    for translations in several:
        scores = [translation.score for translation in translations]
        assert len(translations) == 3 and scores == sorted(scores, reverse=True)
        assert all(t.log_prob <= t.score <= 0 for t in translations)


def test_spaces_that_are_characters_and_signs_survive_a_translation():
    ids = tokenizer().encode(["a\u00a0: la\u202f!\u3000b ▁c\td\u2028e\r"])[0]
    found = object.__new__(Translator)
    found._tokenizer = tokenizer()
    (best,) = (found._translation(50, ids, -1.0, -2.0, len(ids)),)
    assert best.text == "a\u00a0: la\u202f!\u3000b ▁c d e"


def test_sources_are_read_in_the_form_that_the_tokenizer_learned():
    normal = Tokenizer.train([" ".join(WORDS), *WORDS] * 5, 310, normalization="nfc")
    forms = ["caf\u00e9 on a mat", "cafe\u0301\u00a0on\u3000a mat"]
    for learned, alike in ((normal, True), (tokenizer(), False)):
        found = object.__new__(Translator)
        found._tokenizer, found._config = learned, GREEDY
        first, second = (ids.tolist() for ids in found._encode(forms, 0))
        assert (first == second) == alike


@pytest.mark.thorough
def test_translations_that_end_at_their_limit_are_marked():
    whole = Translator(*translator(**ENDING), tokenizer(), GREEDY).translate(TEXTS)
    assert not any(best.at_limit for (best,) in whole[1:5])
    config = dataclasses.replace(GREEDY, max_ratio=0.0)
    longest = Translator(*translator(), tokenizer(), config).translate([*TEXTS, ""])
    assert all(best.at_limit and len(best.tokens) == 8 for (best,) in longest[:-1])
    assert not longest[-1][0].at_limit


@pytest.mark.thorough
def test_samples_depend_on_the_number_of_the_text_and_the_seed_alone():
    def drawn(texts, first=0, seed=0):
        config = DecodingConfig(sampling=True, sampling_seed=seed)
        found = Translator(*translator(**ENDING), tokenizer(), config, batch_size=4)
        return [best[0].text for best in found.translate(texts, first=first)]

    whole = drawn(TEXTS)
    assert drawn(TEXTS[:3]) + drawn(TEXTS[3:], first=3) == whole
    assert drawn(TEXTS, seed=1) != whole
