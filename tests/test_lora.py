"""Low-rank adapters: trained alone, exact at their start, merged, kept apart, resumed."""

import dataclasses
import json
import shutil
import signal
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import language_task
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from language_task import LanguageTask, raising
from run_cases import tiny
from safetensors import safe_open

from flaxattn.ranges import FieldError
from flaxattn.training.adapted import Adapted, adapted, kept_model, parameter_counts
from flaxattn.training.ending import exit_code
from flaxattn.training.mesh import make_mesh
from flaxattn.training.parameters.lora import fresh_adapters, merged
from flaxattn.training.run import run
from flaxattn.training.storage.adapter import with_adapter
from flaxattn.training.storage.layout import ADAPTER, START
from flaxattn.training.storage.weights import read_weights
from flaxattn.translation.trained.loading import load

WIDTH, HEADS, RANK = 16, 2, 3
ALL = ("query|value", "out", "feed_forward")
SAME = (ADAPTER, START, "model.safetensors", "log.jsonl", "data.json")


class Started(LanguageTask):
    """The language model, which starts from the parameters of another run."""

    def __init__(self, config, begun=None, screen=None, before_step=lambda step: None):
        super().__init__(config, begun, screen, before_step)
        if start := config.training.init_from:
            path = begun / START if begun else Path(start) / "model.safetensors"
            self.params = jax.device_get(read_weights(path, self.params))

    def with_params(self, **changes):
        self.__dict__.update(changes)
        return self


def settings(folder, start="", **changes):
    training = dataclasses.replace(language_task.TRAINING, init_from=str(start), **changes)
    return language_task.Config(str(folder), training=training)


def train(config, before_step=lambda step: None):
    """The exit code of training."""
    prepare = lambda *given: Started(*given, before_step=before_step)  # noqa: E731
    with jax.numpy_dtype_promotion("standard"):  # optax raises floats to int32 powers
        return exit_code(lambda: run(config, prepare, language_task.RULES))


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """The folder of a run that others start from."""
    folder = tmp_path_factory.mktemp("start") / "run"
    assert train(settings(folder)) == 0
    return folder


@pytest.fixture(scope="module")
def tuned(start, tmp_path_factory):
    """A run that has trained adapters of all kernels without a break."""
    config = settings(
        tmp_path_factory.mktemp("tuned") / "run", start, lora=RANK, lora_on=ALL, lora_alpha=6.0
    )
    assert train(config) == 0
    return config


def learner(config):
    task = adapted(Started(config))
    assert isinstance(task, Adapted)
    return task


def moved(adapters):
    """Adapters none of which is zero."""
    drawn = np.random.default_rng(3)
    return jax.tree.map(lambda x: drawn.normal(0, 0.3, x.shape).astype(np.float32), adapters)


def arrays_of(path):
    with safe_open(path, "numpy") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


# ---- The mathematics -------------------------------------------------------------------------


def test_fresh_adapters_change_not_a_bit(start, tmp_path):
    task = learner(settings(tmp_path, start, lora=RANK, lora_on=ALL))
    base, batch = task.base, task.batch(0)
    jax.tree.map(
        np.testing.assert_array_equal, merged(base.params, task.params, 2.0), base.params
    )
    key = jax.random.key(7)
    assert float(task.loss(task.params, batch, key).loss) == float(
        base.loss(base.params, batch, key).loss
    )


def unmerged(adapters, scale):
    """What adds to each projection of an input x its scale * (x A) B, and merges nothing."""
    low = flatten_dict(adapters, sep="/")

    def apply(next_module, inputs, options, context):
        y = next_module(*inputs, **options)
        path = "/".join(context.module.path) + "/kernel"
        if context.method_name == "__call__" and f"{path}/a" in low:
            a, b = low[f"{path}/a"], low[f"{path}/b"]
            y += scale * jnp.tensordot(jnp.tensordot(inputs[0], a, a.ndim - 1), b, 1)
        return y

    return nn.intercept_methods(apply)


def test_merged_is_unmerged(start, tmp_path):
    task = learner(settings(tmp_path, start, lora=RANK, lora_on=ALL))
    low, base, tokens = moved(task.params), task.base, task.batch(0)[:, :-1]
    network = lambda params: base._network.apply({"params": params}, tokens, deterministic=True)  # noqa: E731
    found = network(merged(base.params, low, 0.5))
    with unmerged(low, 0.5):
        expected = network(base.params)
    np.testing.assert_allclose(found, expected, atol=1e-6, rtol=0)
    assert np.abs(expected - network(base.params)).max() > 0.1


def test_kernels_have_sides_and_biases_none(start, tmp_path):
    low = learner(settings(tmp_path, start, lora=RANK, lora_on=("*",))).params
    found = {path: x.shape for path, x in flatten_dict(low, sep="/").items()}
    (layer,) = {path.split("/self_attention/")[0] for path in found if "/self_attention/" in path}
    head = WIDTH // HEADS
    expected = {
        f"{layer}/self_attention/query/kernel": ((WIDTH, RANK), (RANK, HEADS, head)),
        f"{layer}/self_attention/key/kernel": ((WIDTH, RANK), (RANK, HEADS, head)),
        f"{layer}/self_attention/value/kernel": ((WIDTH, RANK), (RANK, HEADS, head)),
        f"{layer}/self_attention/out/kernel": ((HEADS, head, RANK), (RANK, WIDTH)),
        f"{layer}/feed_forward/up/kernel": ((WIDTH, RANK), (RANK, 32)),
        f"{layer}/feed_forward/down/kernel": ((32, RANK), (RANK, WIDTH)),
    }
    assert found == {
        f"{path}/{side}": shape
        for path, sides in expected.items()
        for side, shape in zip("ab", sides, strict=True)
    }
