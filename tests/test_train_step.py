"""One update: however a batch is cut into microbatches and devices, the parameters are the same."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flaxattn import EncoderDecoder, EncoderDecoderConfig
from flaxattn.text.packing import Batch
from flaxattn.text.supply import PackedPairs
from flaxattn.text.tokens import TokenizedPairs
from flaxattn.training.mesh import data_mesh, place
from flaxattn.training.optimizer import make_optimizer
from flaxattn.training.schedule import learning_rate
from flaxattn.training.train_step import (
    init_state,
    make_eval_step,
    make_train_step,
)
from flaxattn.translation.config import TranslationTraining
from flaxattn.translation.initial import init_params
from flaxattn.translation.loss import batch_loss, loss_of

V, BOS, EOS, ROWS, LENGTH = 13, 1, 2, 8, 6
CONFIG = EncoderDecoderConfig(
    vocab_size=V,
    features=8,
    ff_features=12,
    num_heads=2,
    encoder_layers=1,
    decoder_layers=1,
    dropout_rate=0.0,
)
MODEL = EncoderDecoder(CONFIG)
DROPPING = EncoderDecoder(dataclasses.replace(CONFIG, dropout_rate=0.5))
TRAINING = TranslationTraining(batch_size=ROWS, sequence_length=LENGTH, label_smoothing=0.1)
close = functools.partial(np.testing.assert_allclose, rtol=2e-4, atol=2e-5)
adam = pytest.mark.usefixtures("standard_promotion")  # optax raises floats to int32 powers


def mesh_of(devices):
    return data_mesh(jax.devices("cpu")[:devices])


@functools.cache
def parameters():
    """Random parameters, without compiling the model's initialisation."""

    def init(key):
        tokens = jnp.ones((1, 2), jnp.int32)
        return MODEL.init(key, tokens, tokens, deterministic=True)["params"]

    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(init, jax.random.key(0))
    return jax.tree.map(lambda x: rng.normal(0, 0.4, x.shape).astype(np.float32), shapes)


def fresh_state(optimizer, mesh, config=TRAINING):
    return place(init_state(parameters(), optimizer, config), mesh)


def batch_of(lengths, seed=0):
    """One segment per row, of so many source and target tokens."""
    ids = np.random.default_rng(seed).integers(3, V, (2, len(lengths), LENGTH))
    cells = np.arange(LENGTH) < np.array(lengths).T[..., None]
    source, target = np.where(cells, ids, 0).astype(np.int32)
    return Batch(source, *cells[:1].astype(np.int32), target, *cells[1:].astype(np.int32))


# ---- Microbatches and devices ----------------------------------------------------------------

UNEVEN = [(6, 6), (1, 1), (5, 2), (2, 1), (6, 5), (1, 1), (4, 3), (0, 0)]
BATCHES = [batch_of(UNEVEN, seed) for seed in range(3)]
RATE = 0.5  # of plain gradient descent, in which a factor on the gradient shows


@jax.jit
def row_gradients(params, row):
    def loss_of(params):
        sums = batch_loss(MODEL, params, row, bos_id=BOS, label_smoothing=TRAINING.label_smoothing)
        return sums.loss, sums

    return jax.grad(loss_of, has_aux=True)(params)


def summed(trees):
    return jax.tree.map(lambda *x: np.sum(x, axis=0, dtype=np.float64), *trees)


@functools.cache
def descended():
    """Parameters and sums after a few steps of descent, computed row by row in NumPy."""
    params, history = parameters(), []
    for batch in BATCHES:
        rows = [jax.tree.map(lambda x, r=r: x[r : r + 1], batch) for r in range(ROWS)]
        gradients, sums = map(summed, zip(*[row_gradients(params, r) for r in rows], strict=True))
        params = jax.tree.map(
            lambda p, g, n=sums.units: (p - RATE * g / n).astype(np.float32), params, gradients
        )
        history.append(sums)
    return params, history


def test_the_parts_of_the_batch_have_uneven_numbers_of_tokens():
    tokens = np.array(UNEVEN)[:, 1]
    for parts in (2, 4):
        assert len(set(tokens.reshape(parts, -1).sum(axis=1).tolist())) > 1
        assert len(set(tokens.reshape(-1, parts).sum(axis=0).tolist())) > 1


@pytest.mark.thorough
@pytest.mark.parametrize(
    "microbatches, devices, r_drop", [(1, 1, 0), (4, 1, 0), (1, 4, 0), (2, 4, 0), (2, 4, 3.0)]
)
def test_microbatches_and_devices_do_not_change_the_update(microbatches, devices, r_drop):
    """Nor does R-Drop where nothing is dropped: both passes are then the same."""
    config = dataclasses.replace(TRAINING, microbatches=microbatches, r_drop=r_drop)
    mesh, optimizer = mesh_of(devices), optax.sgd(RATE)
    step = make_train_step(loss_of(MODEL, config, BOS), optimizer, config, mesh=mesh)
    state, params_and_sums = fresh_state(optimizer, mesh), descended()
    for batch, expected in zip(BATCHES, params_and_sums[1], strict=True):
        state, sums = step(state, place(batch, mesh, "data"))
        jax.tree.map(close, sums, expected)
    jax.tree.map(close, state.params, params_and_sums[0])
    assert int(state.step) == len(BATCHES)
    moved = jax.tree.map(lambda x, y: np.abs(x - y).max(), parameters(), state.params)
    assert max(jax.tree.leaves(moved)) > 0.1


def test_four_devices_hold_the_same_parameters_and_two_rows_each():
    mesh = mesh_of(4)
    batch = place(BATCHES[0], mesh, "data")
    assert [x.data.shape for x in batch.source.addressable_shards] == [(2, LENGTH)] * 4
    state = fresh_state(optax.sgd(RATE), mesh)
    assert all(len(x.devices()) == 4 for x in jax.tree.leaves(state))
    assert all(x.is_fully_replicated for x in jax.tree.leaves(state))


def test_the_mesh_is_all_local_devices_where_none_are_named():
    assert data_mesh().devices.flatten().tolist() == jax.local_devices()


# ---- Dropout ---------------------------------------------------------------------------------

FULL_ROWS = [(6, 6)]


@functools.cache
def standing_step(microbatches, devices=1, seed=0):
    """A step whose rate is zero, with dropout: only the dropout changes the loss."""
    config = dataclasses.replace(TRAINING, microbatches=microbatches, seed=seed)
    optimizer, mesh = optax.sgd(0.0), mesh_of(devices)
    return make_train_step(loss_of(DROPPING, config, BOS), optimizer, config, mesh=mesh)


def losses_with_dropout(batch, *, microbatches=2, devices=1, seed=0, steps=3):
    mesh, losses = mesh_of(devices), []
    state = fresh_state(optax.sgd(0.0), mesh)
    for _ in range(steps):
        state, sums = standing_step(microbatches, devices, seed)(state, place(batch, mesh, "data"))
        losses.append(float(sums.loss))
    return losses


@pytest.mark.thorough
def test_dropout_differs_from_step_to_step_and_is_reproducible():
    losses = losses_with_dropout(BATCHES[0])
    assert len(set(losses)) == 3
    assert losses == losses_with_dropout(BATCHES[0])


@pytest.mark.thorough
def test_dropout_depends_on_the_seed():
    assert losses_with_dropout(BATCHES[0], steps=1) != losses_with_dropout(
        BATCHES[0], steps=1, seed=1
    )


@pytest.mark.thorough
def test_dropout_does_not_depend_on_the_number_of_devices():
    close(losses_with_dropout(BATCHES[0], devices=4), losses_with_dropout(BATCHES[0]))


@pytest.mark.thorough
def test_every_microbatch_has_dropout_of_its_own():
    rows = batch_of(FULL_ROWS, 1), batch_of(FULL_ROWS, 2)

    def loss(first, second):
        """The odd rows are one microbatch and the even rows are the other."""
        pairs = [rows[first], rows[second]] * (ROWS // 2)
        batch = jax.tree.map(lambda *x: np.concatenate(x), *pairs)
        return losses_with_dropout(batch, steps=1)[0]

    mixed, unmixed = loss(0, 1), (loss(0, 0) + loss(1, 1)) / 2
    assert abs(mixed - unmixed) > 0.01


def test_validation_drops_nothing():
    dropping, plain = (
        make_eval_step(loss_of(m, TRAINING, BOS), mesh=mesh_of(1)) for m in (DROPPING, MODEL)
    )
    sums = dropping(parameters(), BATCHES[0])
    jax.tree.map(close, sums, plain(parameters(), BATCHES[0]))
    close(sums.loss, sums.others.nll)


# ---- The schedule and the optimizer ----------------------------------------------------------


def rates(steps_and_rates, **settings):
    """The schedule at each step, counted from 0, beside what it should be."""
    schedule = learning_rate(TranslationTraining(**settings))
    found = [float(schedule(jnp.int32(step))) for step in steps_and_rates]
    return found, list(steps_and_rates.values())


def test_the_rate_warms_up_and_falls_with_the_inverse_square_root():
    expected = {0: 0.5, 1: 1.0, 2: 1.5, 3: 2.0, 8: 4 / 3, 15: 1.0, 63: 0.5, 399: 0.2}
    close(*rates(expected, learning_rate=2.0, warmup_steps=4, steps=400))


def test_the_rate_cools_down_to_zero_in_the_last_steps():
    expected = {
        0: 0.04,
        24: 1.0,
        48: 5 / 7,
        63: 0.625 * 37 / 50,
        98: 5 / 99**0.5 * 2 / 50,
        99: 0.5 * 1 / 50,
        100: 0.0,
        500: 0.0,
    }
    settings = {"learning_rate": 1.0, "warmup_steps": 25, "steps": 100, "cooldown_steps": 50}
    close(*rates(expected, **settings))


def test_cool_down_changes_no_step_before_it():
    settings = {"learning_rate": 1.0, "warmup_steps": 10, "steps": 100}
    warm = learning_rate(TranslationTraining(**settings))
    cool = learning_rate(TranslationTraining(**settings, cooldown_steps=20))
    for step in range(80):
        assert float(warm(jnp.int32(step))) == float(cool(jnp.int32(step)))
    assert float(warm(jnp.int32(85))) > float(cool(jnp.int32(85)))


def test_without_warm_up_the_first_step_has_the_highest_rate():
    close(*rates({0: 3.0, 3: 1.5, 8: 1.0}, learning_rate=3.0, warmup_steps=0, steps=9))


def np_adamw(x, gradients, config, rate):
    """AdamW of Loshchilov and Hutter (2019), after clipping, one update per gradient."""
    mean, square = np.zeros_like(x), np.zeros_like(x)
    for t, g in enumerate(gradients, 1):
        g = g * min(1.0, config.clip_norm / np.linalg.norm(g))
        mean = config.adam_b1 * mean + (1 - config.adam_b1) * g
        square = config.adam_b2 * square + (1 - config.adam_b2) * g**2
        corrected = mean / (1 - config.adam_b1**t)
        scale = np.sqrt(square / (1 - config.adam_b2**t)) + 1e-9
        x = x - rate[t - 1] * (corrected / scale + config.weight_decay * x)
    return x


@adam
def test_the_optimizer_is_adamw_under_the_schedule_after_clipping():
    config = TranslationTraining(
        learning_rate=0.4, warmup_steps=2, steps=4, cooldown_steps=2, weight_decay=0.1
    )
    x = np.array([1.0, -2.0])
    gradients = [np.array(g) for g in ([3.0, 4.0], [0.3, -0.4], [0.0, 0.2], [-5.0, 1.0])]
    optimizer, params = make_optimizer(config), jnp.array(x, jnp.float32)
    state = optimizer.init(params)
    for gradient in gradients:
        updates, state = optimizer.update(jnp.array(gradient, jnp.float32), state, params)
        params = optax.apply_updates(params, updates)
    rate = [0.2, 0.4, 0.4 * (2 / 3) ** 0.5, 0.4 * 0.5**0.5 / 2]
    close(params, np_adamw(x, gradients, config, rate))


# ---- Many steps of one program ---------------------------------------------------------------

TOY = TranslationTraining(
    batch_size=ROWS,
    sequence_length=LENGTH,
    learning_rate=2e-2,
    warmup_steps=5,
    label_smoothing=0.0,
    r_drop=0.5,
    ema_decay=0.6,
    seed=3,
)
STEPS = 30


@functools.cache
def toy():
    """Copying short sentences: the optimizer, the step and the data."""
    rng = np.random.default_rng(0)
    sentences = [
        np.array([*rng.integers(3, V, rng.integers(1, 4)), EOS], np.int32) for _ in range(120)
    ]
    tokens = TokenizedPairs.of(sentences, sentences)
    packed = PackedPairs(tokens, batch_size=ROWS, sequence_length=LENGTH)
    optimizer, mesh = make_optimizer(TOY), mesh_of(1)
    return optimizer, make_train_step(loss_of(MODEL, TOY, BOS), optimizer, TOY, mesh=mesh), packed


@functools.cache
def learned():
    """Loss per token of each step, the state after each, and the number of compilations."""
    optimizer, step, packed = toy()
    mesh = mesh_of(1)
    state = place(init_state(init_params(MODEL, TOY.seed), optimizer, TOY), mesh)
    losses, states = [], [jax.device_get(state)]
    for i in range(STEPS):
        state, sums = step(state, place(packed.batch(i), mesh, "data"))
        losses.append(float(sums.loss / sums.units))
        states.append(jax.device_get(state))
    return losses, states, step.function._cache_size()


@pytest.mark.thorough
@adam
def test_the_loss_falls():
    losses, (*_, state), _ = learned()
    assert losses[0] > 0.8 * np.log(V)
    assert np.mean(losses[-5:]) < 0.7 * losses[0]
    assert int(state.step) == STEPS


@adam
def test_one_program_serves_all_steps_and_epochs():
    assert STEPS > 2 * toy()[2].batches_per_epoch
    assert learned()[2] == 1


@adam
def test_the_average_follows_the_parameters_with_a_decay_that_warms_up():
    _, states, _ = learned()
    embedding = lambda tree: np.float64(tree["source_embedding"]["embedding"])  # noqa: E731
    average = embedding(states[0].params)
    for t, state in enumerate(states[1:]):
        kept = min(TOY.ema_decay, (1 + t) / (10 + t))
        average = kept * average + (1 - kept) * embedding(state.params)
        close(embedding(state.ema), average)
    assert (1 + 0) / (10 + 0) < TOY.ema_decay < STEPS / (9 + STEPS)  # both decays were met
    assert np.abs(average - embedding(states[-1].params)).max() > 1e-3


@adam
def test_the_model_to_use_is_the_average_where_there_is_one():
    state = learned()[1][-1]
    assert state.model is state.ema
    assert state._replace(ema=None).model is state.params


@adam
def test_the_state_given_to_a_step_is_donated():
    optimizer, step, packed = toy()
    state, batch = (
        fresh_state(optimizer, mesh_of(1), TOY),
        place(packed.batch(0), mesh_of(1), "data"),
    )
    given = jax.tree.leaves(state)
    after, _ = step(state, batch)
    assert all(x.is_deleted() for x in given)
    assert not any(x.is_deleted() for x in jax.tree.leaves((after, batch)))


@adam
def test_a_batch_of_empty_rows_leaves_parameters_finite_and_fresh_ones_as_they_are():
    optimizer, step, packed = toy()
    empty = place(jax.tree.map(np.zeros_like, packed.batch(0)), mesh_of(1), "data")
    state, sums = step(fresh_state(optimizer, mesh_of(1), TOY), empty)
    assert [float(x) for x in jax.tree.leaves(sums)] == [0.0] * 5
    jax.tree.map(np.testing.assert_array_equal, state.params, parameters())
    state, _ = step(state, place(packed.batch(0), mesh_of(1), "data"))
    state, _ = step(state, empty)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state))


def test_fresh_parameters_are_a_function_of_the_seed():
    first, again, other = (init_params(MODEL, seed) for seed in (0, 0, 1))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    first, other = (x["source_embedding"]["embedding"] for x in (first, other))
    assert (np.asarray(first) != np.asarray(other)).mean() > 0.9


# ---- Losses that are not finite --------------------------------------------------------------


@functools.cache
def averaging_step(microbatches):
    config = dataclasses.replace(TRAINING, microbatches=microbatches, ema_decay=0.9)
    optimizer, mesh = make_optimizer(config), mesh_of(2)
    step = make_train_step(loss_of(MODEL, config, BOS), optimizer, config, mesh=mesh)
    return step, lambda: fresh_state(optimizer, mesh, config)


@pytest.mark.thorough
@adam
@pytest.mark.parametrize("bad, microbatches", [(np.inf, 1), (np.nan, 2), (-np.inf, 2)])
def test_a_batch_without_a_finite_loss_changes_nothing_but_the_step(bad, microbatches):
    step, fresh = averaging_step(microbatches)
    state, sums = step(fresh(), BATCHES[0])
    assert float(sums.skipped) == 0 and float(sums.units) == sum(t for _, t in UNEVEN)
    broken = jax.tree.map(np.array, state.params)
    broken["decoder"]["final_norm"]["scale"][0] = bad
    before = jax.device_get(state._replace(params=broken))
    after, sums = step(place(before, mesh_of(2)), BATCHES[1])
    assert int(after.step) == 2 == int(before.step) + 1
    for name in ("params", "opt_state", "ema"):
        new, old = (jax.device_get(getattr(x, name)) for x in (after, before))
        jax.tree.map(np.testing.assert_array_equal, new, old)
    assert jax.tree.leaves(jax.device_get(sums)) == [0, 0, 0, 0, 1]
