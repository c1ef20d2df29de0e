"""What cannot fit into memory is refused before it starts, by an estimate that is a lower bound."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import pytest
from run_cases import tiny

from configs import PRESETS
from flaxattn import EncoderDecoder, EncoderDecoderConfig
from flaxattn.__main__ import main
from flaxattn.training import devices, memory
from flaxattn.training.memory import state_bytes
from flaxattn.training.mesh import data_mesh, place
from flaxattn.training.optimizer import make_optimizer
from flaxattn.training.train_step import init_state, make_train_step
from flaxattn.translation.config import RunConfig, TranslationTraining
from flaxattn.translation.initial import axes_of, init_params
from flaxattn.translation.loss import loss_of
from flaxattn.translation.memory import (
    check_decoding,
    check_training,
    decoding_bytes,
    parameter_count,
    training_bytes,
)

BASE = EncoderDecoderConfig(11, features=12, ff_features=7, num_heads=6, encoder_layers=2)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_kv_heads": 2, "activation": "swiglu", "positions": "learned", "max_positions": 5},
        {"norm_position": "post", "tie_embeddings": "target", "share_layers": True},
        {"tie_embeddings": "none", "num_kv_heads": 1, "norm_position": "post"},
    ],
)
def test_parameters_are_counted_as_they_are_made(changes):
    config = dataclasses.replace(BASE, **changes)
    tokens = jax.ShapeDtypeStruct((1, 2), jnp.int32)
    init = functools.partial(EncoderDecoder(config).init, deterministic=True)
    shapes = jax.eval_shape(init, jax.random.key(0), tokens, tokens)
    assert parameter_count(config) == sum(x.size for x in jax.tree.leaves(shapes))


@pytest.mark.thorough
@pytest.mark.usefixtures("standard_promotion")
@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_the_estimate_of_a_step_is_no_more_than_it_takes_and_not_much_less(name):
    sizes = {"features": 48, "ff_features": 64, "decoder_layers": 1}
    model = dataclasses.replace(BASE, vocab_size=500, **sizes)
    training = TranslationTraining(batch_size=16, sequence_length=32, optimizer=name)
    config = RunConfig("", model, training=training)
    module = EncoderDecoder(model)
    params = init_params(module, 0)
    optimizer = make_optimizer(config.training, params, axes_of(module))
    mesh = data_mesh(jax.local_devices()[:1])
    step = make_train_step(
        loss_of(module, config.training, 1), optimizer, config.training, mesh=mesh
    )
    batch = jax.tree.map(lambda _: jax.ShapeDtypeStruct((16, 32), jnp.int32), _batch())
    state = init_state(params, optimizer, config.training)
    gradients = sum(x.nbytes for x in jax.tree.leaves(params))
    held = sum(x.nbytes for x in jax.tree.leaves(state)) + gradients
    assert 0.7 * held < state_bytes(gradients, training) <= held
    found = step.lower(place(state, mesh), batch).compile().memory_analysis()
    taken = found.argument_size_in_bytes + found.temp_size_in_bytes
    assert 0.1 * taken < training_bytes(config, 1) <= taken
    assert training_bytes(config, 1 / 2, 2) == training_bytes(config, 1) / 2  # each has half of all


def _batch():
    from flaxattn.text.packing import Batch

    return Batch(0, 0, 0, 0)


ENORMOUS = [
    {"--features": 1_000_000, "--num-heads": 1},
    {"--ff-features": 1_000_000, "--features": 100_000, "--encoder-layers": 1000},
    {"--vocab-size": 10_000_000, "--features": 100_000},
    {"--batch-size": 1_000_000, "--sequence-length": 1_000_000},
    {"--positions": "learned", "--max-positions": 10_000_000, "--features": 1_000_000},
]


@pytest.mark.parametrize("options", ENORMOUS, ids=lambda x: next(iter(x)))
@pytest.mark.parametrize("flags", [(), ("--dry-run",)], ids=["train", "dry run"])
def test_what_no_machine_holds_is_refused_before_it_starts(tmp_path, capsys, options, flags):
    assert tiny(tmp_path / "run", options, *flags) == 2
    error = capsys.readouterr().err
    assert "GiB of memory" in error and len(error) < 400
    assert all(option in error for option in ("--features", "--batch-size", "--vocab-size"))
    assert not (tmp_path / "run").exists()


TASKS = (["denoising"], ["denoising", "spans"], ["language"], ["labelling"], ["classification"])


@pytest.mark.parametrize("task", TASKS, ids=" ".join)
def test_so_it_is_with_every_task(tmp_path, capsys, monkeypatch, task):
    words = ["train", *task, "--output", str(tmp_path / "run")]
    assert main([*words, "--features", "1000000", "--num-heads", "1"]) == 2
    error = capsys.readouterr().err
    assert "a step of training needs at least" in error and "--sequence-length" in error
    monkeypatch.setattr(memory, "device_memory", lambda: 3_000_000)  # of the preset as it is
    assert main(words) == 2
    assert "GiB of memory; there are 0.0" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_beam_that_does_not_fit_is_refused_before_training(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(memory, "device_memory", lambda: 40_000_000)
    assert tiny(tmp_path / "run", {"--beam-size": 1000}) == 2
    assert "with 1000 beams needs at least" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_everything_is_compared_with_the_memory_there_is(monkeypatch):
    config, decoding = PRESETS["tiny"], PRESETS["tiny"].decoding
    shape = {"rows": 64, "source_length": 512, "target_length": 776}
    needed = training_bytes(config, jax.local_device_count())
    beams = decoding_bytes(config.model, 5, **shape)
    for memory_there, check in (
        (needed, lambda: check_training(config)),
        (beams, lambda: check_decoding(config.model, decoding, **shape)),
    ):
        monkeypatch.setattr(memory, "device_memory", lambda size=memory_there: size)
        check()
        monkeypatch.setattr(memory, "device_memory", lambda size=memory_there: size - 1)
        with pytest.raises(ValueError, match="GiB of memory"):
            check()


def test_the_memory_is_that_of_the_machine_or_of_its_container(monkeypatch, tmp_path):
    monkeypatch.setattr(devices, "CGROUP_LIMITS", (tmp_path / "max", tmp_path / "none"))
    monkeypatch.setattr(devices.os, "sysconf", lambda name: 1000)
    assert devices.device_memory() == 1_000_000
    for content, expected in (("max\n", 1_000_000), ("7000\n", 7000), ("9" * 19, 1_000_000)):
        (tmp_path / "max").write_text(content)
        assert devices.device_memory() == expected
