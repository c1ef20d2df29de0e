"""The loss against float64 NumPy; a packed batch against its sentence pairs one at a time."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxattn import EncoderDecoder, EncoderDecoderConfig, shift_right
from flaxattn.text.packing import Batch, to_batch
from flaxattn.translation.loss import batch_loss, cross_entropy, divergence

V, BOS, SMOOTHING = 11, 1, 0.1
MODEL = EncoderDecoder(
    EncoderDecoderConfig(
        vocab_size=V,
        features=8,
        ff_features=12,
        num_heads=2,
        encoder_layers=1,
        decoder_layers=1,
        dropout_rate=0.0,
    )
)
smoothings = pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.7])
close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)


@functools.cache
def params():
    """Parameters that make the model's predictions vary, without compiling its initialisation."""

    def init(key):
        tokens = jnp.ones((1, 2), jnp.int32)
        return MODEL.init(key, tokens, tokens, deterministic=True)["params"]

    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(init, jax.random.key(0))
    return jax.tree.map(lambda x: rng.normal(0, 0.5, x.shape).astype(np.float32), shapes)


# ---- One token -------------------------------------------------------------------------------


def np_log_softmax(logits):
    logits = np.asarray(logits, np.float64)
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def np_wanted(size, target, smoothing):
    """The distribution that the loss compares with."""
    return (1 - smoothing) * np.eye(size)[target] + smoothing / size


def random_logits(scale=3.0, size=V):
    return np.random.default_rng(1).normal(0, scale, size).astype(np.float32)


@smoothings
@pytest.mark.parametrize("target", [0, 4, V - 1])
@pytest.mark.parametrize("scale", [1e-3, 3.0, 100.0])
def test_cross_entropy_of_the_smoothed_and_of_the_plain_target(target, scale, smoothing):
    logits = random_logits(scale)
    found = cross_entropy(jnp.array(logits), jnp.int32(target), smoothing)
    close(found.loss, -np_wanted(V, target, smoothing) @ np_log_softmax(logits))
    close(found.nll, -np_log_softmax(logits)[target])
    assert all(x.dtype == jnp.float32 and x.shape == () for x in found)


@smoothings
def test_large_logits_overflow_nowhere(smoothing):
    logits = np.array([9984.0, 10000.0, -10000.0, 9996.0], np.float32)
    for target in range(4):
        found = cross_entropy(jnp.array(logits), jnp.int32(target), smoothing)
        expected = -np_wanted(4, target, smoothing) @ np_log_softmax(logits)
        np.testing.assert_allclose(found.loss, expected, rtol=1e-6, atol=2e-3)
        np.testing.assert_allclose(found.nll, -np_log_softmax(logits)[target], atol=2e-3)


@smoothings
@pytest.mark.parametrize("scale", [3.0, 1e4])
def test_the_gradient_is_the_difference_of_the_distributions(smoothing, scale):
    logits = random_logits(scale)
    for target in (0, 4):
        found = jax.grad(lambda x, t=target: cross_entropy(x, jnp.int32(t), smoothing).loss)(
            jnp.array(logits)
        )
        close(found, np.exp(np_log_softmax(logits)) - np_wanted(V, target, smoothing))


@smoothings
def test_the_gradient_of_the_plain_loss_ignores_smoothing(smoothing):
    logits = random_logits()
    found = jax.grad(lambda x: cross_entropy(x, jnp.int32(2), smoothing).nll)(jnp.array(logits))
    close(found, np.exp(np_log_softmax(logits)) - np_wanted(V, 2, 0.0))


def test_only_the_highest_logit_is_correct():
    logits = jnp.array([0.0, 3.0, 2.5])
    assert [float(cross_entropy(logits, jnp.int32(t), 0.3).correct) for t in range(3)] == [0, 1, 0]


def test_equal_logits_cost_the_logarithm_of_their_number():
    found = cross_entropy(jnp.full(V, 5.0), jnp.int32(3), 0.1)
    close(found.loss, np.log(V))
    close(found.nll, np.log(V))


# ---- A batch ---------------------------------------------------------------------------------

PAIRS = [
    ([4, 5, 6, 2], [7, 2]),
    ([8, 2], [9, 4, 10, 5, 2]),
    ([10, 9, 8, 7, 6, 2], [3, 2]),
]
ROWS = [PAIRS[:2], PAIRS[2:], []]
ROW_LENGTH = 7


def packed_batch():
    return batch_of_rows(ROWS)


def batch_of_rows(rows):
    arrays = [[tuple(np.array(ids, np.int32) for ids in pair) for pair in row] for row in rows]
    return to_batch(arrays, len(rows), ROW_LENGTH)


@jax.jit
def sums_and_gradients(params, batch):
    def loss_of(params):
        sums = batch_loss(MODEL, params, batch, bos_id=BOS, label_smoothing=SMOOTHING)
        return sums.loss, sums

    gradients, sums = jax.grad(loss_of, has_aux=True)(params)
    return sums, gradients


@functools.cache
def of_packed_batch():
    return jax.device_get(sums_and_gradients(params(), packed_batch()))


@functools.cache
def of_single_pairs():
    batches = [batch_of_rows([[pair]]) for pair in PAIRS]
    return [jax.device_get(sums_and_gradients(params(), batch)) for batch in batches]


@pytest.mark.thorough
def test_packed_rows_have_the_summed_loss_of_their_pairs():
    singles = [sums for sums, _ in of_single_pairs()]
    jax.tree.map(lambda value, *parts: close(value, sum(parts)), of_packed_batch()[0], *singles)


def test_packed_rows_have_the_summed_gradients_of_their_pairs():
    singles = [gradients for _, gradients in of_single_pairs()]
    summed = jax.tree.map(lambda *x: np.sum(x, axis=0), *singles)
    jax.tree.map(close, of_packed_batch()[1], summed)
    assert max(np.abs(x).max() for x in jax.tree.leaves(summed)) > 0.1


def test_every_target_token_is_counted_once():
    assert of_packed_batch()[0].units == 2 + 5 + 2


@jax.jit
def logits_of(params, source, inputs):
    """The logits of a sentence pair, without packing: int [S], int [T] -> [T, V]."""
    return MODEL.apply({"params": params}, source[None], inputs[None], deterministic=True)[0]


@pytest.mark.parametrize("index", range(len(PAIRS)))
def test_each_token_is_predicted_from_those_before_it(index):
    source, target = np.zeros(ROW_LENGTH, np.int32), PAIRS[index][1]
    source[: len(PAIRS[index][0])] = PAIRS[index][0]
    inputs = np.zeros(ROW_LENGTH, np.int32)
    inputs[: len(target)] = [BOS, *target[:-1]]
    logs = np_log_softmax(logits_of(params(), source, inputs))[: len(target)]
    wanted = [np_wanted(V, token, SMOOTHING) for token in target]
    sums, _ = of_single_pairs()[index]
    close(sums.others.nll, -sum(logs[t, token] for t, token in enumerate(target)))
    close(sums.loss, -sum(w @ log for w, log in zip(wanted, logs, strict=True)))
    assert sums.others.correct == sum(logs.argmax(axis=-1) == target)


@pytest.mark.thorough
def test_padding_adds_nothing_to_loss_and_gradients():
    source, target = (np.array([ids], np.int32) for ids in PAIRS[1])
    unpadded = Batch(source, np.ones_like(source), target, np.ones_like(target))
    jax.tree.map(close, sums_and_gradients(params(), unpadded), of_single_pairs()[1])


def test_what_stands_in_padding_changes_neither_loss_nor_gradients():
    batch = packed_batch()
    garbage = np.random.default_rng(2).integers(0, V, batch.source.shape, np.int32)
    filled = batch._replace(
        source=np.where(batch.source_segment_ids == 0, garbage, batch.source),
        target=np.where(batch.target_segment_ids == 0, garbage, batch.target),
    )
    assert (filled.source != batch.source).any() and (filled.target != batch.target).any()
    jax.tree.map(close, sums_and_gradients(params(), filled), of_packed_batch())


def test_an_empty_batch_has_no_loss_and_no_gradient():
    empty = jax.tree.map(np.zeros_like, packed_batch())
    for x in jax.tree.leaves(sums_and_gradients(params(), empty)):
        assert (np.asarray(x) == 0).all()


def test_without_smoothing_the_loss_is_the_likelihood():
    sums = jax.jit(functools.partial(batch_loss, MODEL, bos_id=BOS))(params(), packed_batch())
    close(sums.loss, sums.others.nll)
    close(sums.others.nll, of_packed_batch()[0].others.nll)


# ---- R-Drop ----------------------------------------------------------------------------------

DROPPING = EncoderDecoder(dataclasses.replace(MODEL.config, dropout_rate=0.4))
KEY = jax.random.key(5)


def np_divergence(logits, others):
    """KL(p || q) + KL(q || p) along the last axis."""
    p, q = np_log_softmax(logits), np_log_softmax(others)
    return (np.exp(p) * (p - q)).sum(axis=-1) + (np.exp(q) * (q - p)).sum(axis=-1)


@pytest.mark.parametrize("scale", [1e-2, 3.0, 100.0])
def test_the_divergence_is_both_relative_entropies(scale):
    rng = np.random.default_rng(0)
    logits, others = rng.normal(0, scale, (2, V)).astype(np.float32)
    np.testing.assert_allclose(
        divergence(jnp.array(logits), jnp.array(others)),
        np_divergence(logits, others),
        rtol=1e-4,
        atol=1e-9,
    )
    assert float(divergence(jnp.array(logits), jnp.array(logits))) == 0


def test_the_gradient_of_the_divergence_reaches_both_distributions():
    rng = np.random.default_rng(0)
    pair = rng.normal(0, 2, (2, V)).astype(np.float32)
    found = jax.grad(divergence, argnums=(0, 1))(*map(jnp.array, pair))
    for side in (0, 1):
        shift = np.eye(V)[:, None] * 1e-6 * (np.arange(2) == side)[:, None]
        above, below = (np_divergence(*np.moveaxis(pair + s * shift, 1, 0)) for s in (1, -1))
        close(found[side], (above - below) / 2e-6, rtol=1e-4)


@functools.partial(jax.jit, static_argnames="r_drop")
def dropping_sums(params, batch, r_drop):
    return batch_loss(
        DROPPING,
        params,
        batch,
        bos_id=BOS,
        label_smoothing=SMOOTHING,
        r_drop=r_drop,
        dropout_key=KEY,
    )


@functools.cache
def two_passes():
    """The logits of each row's two passes: [R, L, V] each."""
    twice = jax.tree.map(lambda x: np.repeat(x, 2, axis=0), packed_batch())
    logits = DROPPING.apply(
        {"params": params()},
        twice.source,
        shift_right(twice.target, twice.target_segment_ids, BOS),
        source_segment_ids=twice.source_segment_ids,
        target_segment_ids=twice.target_segment_ids,
        deterministic=False,
        rngs={"dropout": KEY},
    )
    return np.asarray(logits[::2]), np.asarray(logits[1::2])


@pytest.mark.thorough
def test_r_drop_is_the_mean_loss_of_two_passes_and_a_quarter_of_their_divergence():
    batch, passes = packed_batch(), two_passes()
    loss = nll = correct = tokens = divergences = 0.0
    for r, t in zip(*np.nonzero(batch.target_segment_ids), strict=True):
        tokens += 1
        divergences += np_divergence(passes[0][r, t], passes[1][r, t])
        for logits in passes:
            logs, target = np_log_softmax(logits[r, t]), batch.target[r, t]
            loss -= np_wanted(V, target, SMOOTHING) @ logs / 2
            nll -= logs[target] / 2
            correct += (logs.argmax() == target) / 2
    assert tokens == 9 and divergences > 0.5  # the passes differ
    for weight in (0.7, 5.0):
        found = dropping_sums(params(), batch, weight)
        expected = [loss + weight / 4 * divergences, nll, correct, tokens, 0]
        close(jax.tree.leaves(found), expected, rtol=1e-4)


def test_what_stands_in_padding_changes_nothing_under_r_drop():
    batch = packed_batch()
    garbage = np.random.default_rng(2).integers(0, V, batch.source.shape, np.int32)
    filled = batch._replace(
        source=np.where(batch.source_segment_ids == 0, garbage, batch.source),
        target=np.where(batch.target_segment_ids == 0, garbage, batch.target),
    )
    jax.tree.map(close, dropping_sums(params(), filled, 5.0), dropping_sums(params(), batch, 5.0))
