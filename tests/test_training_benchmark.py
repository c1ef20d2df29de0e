"""The contenders of benchmarks/training.py train one model, and their batches hold every pair."""

import importlib
import pathlib

import jax
import numpy as np
import pytest

from flaxattn.models import EncoderDecoder, EncoderDecoderConfig
from flaxattn.training.schedule import learning_rate
from flaxattn.translation.config import TranslationTraining
from flaxattn.translation.initial import init_params

BENCHMARKS = pathlib.Path(__file__).parents[1] / "benchmarks"
UPDATES = 3


@pytest.fixture
def load(monkeypatch):
    """Imports a file of benchmarks/."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


@pytest.fixture
def problem(load):
    """Pairs that all fit one batch, so that every update sees the same sum over the same tokens."""
    rng = np.random.default_rng(0)
    pairs = [
        tuple(rng.integers(4, 40, rng.integers(1, 9)).astype(np.int32) for _ in range(2))
        for _ in range(17)
    ]
    model = EncoderDecoderConfig(
        vocab_size=40,
        features=8,
        ff_features=12,
        num_heads=2,
        encoder_layers=1,
        decoder_layers=1,
        dropout_rate=0.0,
    )
    training = TranslationTraining(
        batch_size=32, sequence_length=8, learning_rate=0.03, warmup_steps=1, weight_decay=0.1
    )
    return load("training_problem").Problem(
        model,
        training,
        jax.device_get(init_params(EncoderDecoder(model), 0)),
        np.asarray(learning_rate(training)(np.arange(UPDATES))),
        pairs[:13],
        pairs[13:],
        tokens_per_update=sum(len(target) for _, target in pairs[:13]),
    )


def losses(contender):
    """Validation losses before and after each update."""
    found = []
    for step in range(UPDATES):
        found.append(contender.validate())
        contender.update(step)
    return np.array([*found, contender.validate()])


@pytest.mark.thorough
@pytest.mark.parametrize("module", ["linen_training", "torch_training"])
@pytest.mark.usefixtures("standard_promotion")
def test_contenders_take_the_same_course(load, problem, monkeypatch, module):
    if module == "torch_training":
        pytest.importorskip("torch")
    ours = load("flaxattn_training")
    monkeypatch.setattr(ours, "split_cpu", lambda rows: None)  # the tests have their own devices
    with jax.numpy_rank_promotion("allow"):
        mine, theirs = (of.Contender(problem) for of in (ours, load(module)))
        expected, found = losses(mine), losses(theirs)
    np.testing.assert_allclose(found, expected, rtol=2e-5)
    assert theirs.parameters == mine.parameters
    assert expected[-1, 0] < 0.99 * expected[0, 0]


def test_batches_hold_every_pair_once_and_as_many_tokens(load):
    batching = load("training_problem")
    lengths = np.random.default_rng(1).integers(1, 30, (997, 2))
    for make in (batching.by_length, batching.evenly):
        batches = make(lengths, 211, np.random.default_rng(2))
        seen = np.concatenate(batches)
        assert len(set(seen.tolist())) == len(seen) > len(lengths) - len(batches[0])
        assert abs(lengths[seen, 1].sum() / len(batches) - 211) < 15
    by_length = batching.by_length(lengths, 211, np.random.default_rng(2))
    assert sorted(np.concatenate(by_length).tolist()) == list(range(997))
    assert max(np.ptp(lengths[batch, 1]) for batch in by_length) <= 4
    assert {len(batch) for batch in batching.evenly(lengths, 211, np.random.default_rng(2))} == {14}


def test_seconds_to_a_loss(load):
    seconds_to = load("training").seconds_to
    rows = [{"seconds": 2.0, "nll": 5.0}, {"seconds": 4.0, "nll": 3.0}]
    assert seconds_to(rows, 6.0, 3.5) == 2.0 + 0.75 * 4.0
    assert seconds_to(rows, 6.0, 5.5) == 1.0
    assert seconds_to(rows, 6.0, 2.9) is None
