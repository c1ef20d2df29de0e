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
from safetensors import safe_open

from flaxattn.ranges import FieldError
from flaxattn.training.adapted import Adapted, adapted, kept_model, parameter_counts
from flaxattn.training.ending import exit_code
from flaxattn.training.mesh import make_mesh
from flaxattn.training.parameters.lora import merged
from flaxattn.training.run import run
from flaxattn.training.storage.adapter import with_adapter
from flaxattn.training.storage.layout import ADAPTER, START
from flaxattn.training.storage.weights import read_weights, write_weights

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
    """The folder of a model that runs start from."""
    folder = tmp_path_factory.mktemp("start") / "run"
    folder.mkdir()
    write_weights(folder / "model.safetensors", LanguageTask(settings(folder)).params)
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
    return jax.tree.map(lambda x: drawn.normal(0, 0.1, x.shape).astype(np.float32), adapters)


def arrays_of(path):
    with safe_open(path, "numpy") as file:
        return {name: file.get_tensor(name) for name in file.keys()}


# ---- The mathematics -------------------------------------------------------------------------


def test_fresh_adapters_change_not_a_bit(start, tmp_path):
    task = learner(settings(tmp_path, start, lora=RANK, lora_on=ALL))
    base = task.base
    jax.tree.map(np.testing.assert_array_equal, merged(base.params, task.params, 2.0), base.params)


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
    task = learner(settings(tmp_path, start, lora=4, lora_on=ALL, lora_alpha=2.0))
    low, base, tokens = moved(task.params), task.base, task.batch(0)[:, :-1]
    network = lambda params: base._network.apply({"params": params}, tokens, deterministic=True)  # noqa: E731
    found = network(merged(base.params, low, 0.5))
    with unmerged(low, 0.5):
        expected = network(base.params)
    np.testing.assert_allclose(found, expected, atol=1e-6 * np.abs(expected).max(), rtol=0)
    assert np.abs(expected - network(base.params)).max() > 0.01
    losses = task.loss(low, tokens, None), base.loss(merged(base.params, low, 0.5), tokens, None)
    assert float(losses[0].loss) == float(losses[1].loss)


def test_kernels_have_sides_and_biases_none(start, tmp_path):
    task = learner(settings(tmp_path, start, lora=RANK, lora_on=("*",)))
    low, axes = task.params, flatten_dict(task.axes, sep="/")
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
    assert axes[f"{layer}/self_attention/out/kernel/a"] == ("heads", "kv", None)
    assert axes[f"{layer}/self_attention/out/kernel/b"] == (None, "embed")
    assert axes[f"{layer}/self_attention/query/kernel/a"] == ("embed", None)
    assert axes[f"{layer}/self_attention/query/kernel/b"] == (None, "heads", "kv")
    assert found == {
        f"{path}/{side}": shape
        for path, sides in expected.items()
        for side, shape in zip("ab", sides, strict=True)
    }


# ---- What cannot be --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes, told",
    [
        ({"lora": 3, "lora_on": ("querry",)}, "'querry'; there are down, key, out, query, up, va"),
        ({"lora": 3, "lora_on": ("query|self",)}, "no kernel matches 'self'"),
        ({"lora": 3, "lora_on": ("query/bias",)}, "no kernel matches 'query/bias'"),
        ({"lora": 3, "lora_on": ("",)}, "no kernel matches ''"),
        ({"lora": 3, "lora_on": ()}, "--lora-on: names no kernel"),
        ({"lora": 17}, "query/kernel is of 16 inputs and 16 outputs; expected a rank of 1 to 16"),
    ],
)
def test_adapters_that_fit_no_kernel_are_refused(start, tmp_path, capsys, changes, told):
    folder = tmp_path / "run"
    assert train(settings(folder, start, **changes)) == 2
    assert told in capsys.readouterr().err
    assert not folder.exists()


@pytest.mark.parametrize(
    "changes",
    [{"lora": 3}, {"lora": 3, "init_from": "a", "freeze": ("encoder",)}, {"lora": -1}],
)
def test_adapters_need_what_they_adapt_and_leave_nothing_else_to_freeze(changes):
    with pytest.raises(FieldError, match=r"^lora"):
        dataclasses.replace(language_task.TRAINING, **changes)


# ---- Runs ------------------------------------------------------------------------------------


def test_adapters_alone_have_changed_and_are_kept_alone(start, tuned):
    folder = Path(tuned.output)
    before, base = arrays_of(start / "model.safetensors"), arrays_of(folder / START)
    after, low = arrays_of(folder / "model.safetensors"), arrays_of(folder / ADAPTER)
    adapted = {name[:-2] for name in low}
    assert {name for name in before if not np.array_equal(before[name], after[name])} == adapted
    assert before.keys() == base.keys() == after.keys()
    for name, x in before.items():
        np.testing.assert_array_equal(base[name], x)
    for name in adapted:
        a, b = (low[f"{name}.{side}"] for side in "ab")
        change = 6.0 / RANK * np.tensordot(a.astype(float), b.astype(float), 1)
        np.testing.assert_allclose(after[name], before[name] + change, atol=1e-6, rtol=0)
        assert np.abs(change).max() > 1e-4
    sizes = {path: (folder / path).stat().st_size for path in (ADAPTER, START)}
    assert sizes[ADAPTER] < 4 * sum(x.size for x in low.values()) + 2000
    for kept in (*folder.glob("checkpoints/*"), *folder.glob("models/*")):
        arrays = json.loads((kept / "manifest.json").read_text())["about"]["arrays"]
        of_params = {name for name in arrays if "step" not in name and "count" not in name}
        assert of_params and all(name.endswith(("['a']", "['b']")) for name in of_params)


def test_the_result_tells_how_many_were_trained(tuned, capsys):
    result = json.loads((Path(tuned.output) / "result.json").read_text())
    low, base = (arrays_of(Path(tuned.output) / name) for name in (ADAPTER, START))
    trained = sum(x.size for x in low.values())
    assert result["trained_parameters"] == trained == parameter_counts(learner(tuned))[0]
    assert result["parameters"] == sum(x.size for x in base.values())
    prepare = lambda *given: Started(*given)  # noqa: E731
    with jax.numpy_dtype_promotion("standard"):
        run(tuned, prepare, language_task.RULES, stop_before_training=True)
    told = capsys.readouterr().out
    share = f"{trained / result['parameters']:.2%}"
    assert f"{trained:,} parameters are trained, {share} of {result['parameters']:,}." in told
    assert "query/kernel/a" in told and "up/kernel/b" in told


def test_the_model_is_what_was_kept_and_what_the_file_of_adapters_makes(start, tuned, tmp_path):
    folder, base = Path(tuned.output), Started(settings("", start))
    model = read_weights(folder / "model.safetensors", base.params)
    kept = kept_model(folder, tuned.training, on_a_device(base.params), base.axes, None)
    jax.tree.map(np.testing.assert_array_equal, kept, model)
    jax.tree.map(np.testing.assert_array_equal, with_adapter(base.params, folder / ADAPTER), model)
    with pytest.raises(ValueError, match="was trained on other parameters"):
        with_adapter(model, folder / ADAPTER)
    with pytest.raises(ValueError, match="holds no adapters"):
        with_adapter(model, folder / START)
    content = bytearray((folder / ADAPTER).read_bytes())
    content[-3] ^= 1
    damaged = tmp_path / ADAPTER
    for change in (content, content[:-5]):
        damaged.write_bytes(change)
        with pytest.raises(ValueError, match=r"damaged|not a whole"):
            with_adapter(base.params, damaged)


def on_a_device(params):
    place = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), params)


def test_a_run_that_was_stopped_ends_in_the_same_bytes_without_the_one_it_started_from(
    start, tuned, tmp_path
):
    begun = shutil.copytree(start, tmp_path / "start" / start.name)  # the name is in the hash
    training = dataclasses.replace(tuned.training, init_from=str(begun))
    config = dataclasses.replace(tuned, output=str(tmp_path / "run"), training=training)
    assert train(config, raising(signal.SIGTERM, 6)) == 75
    shutil.rmtree(begun)
    assert train(config) == 0
    for name in SAME:
        assert (tmp_path / "run" / name).read_bytes() == (Path(tuned.output) / name).read_bytes()


@pytest.mark.thorough
def test_a_run_goes_on_with_more_steps(tuned, tmp_path):
    folder = shutil.copytree(tuned.output, tmp_path / "run")
    training = dataclasses.replace(tuned.training, steps=14)
    assert train(dataclasses.replace(tuned, output=str(folder), training=training)) == 0
    assert json.loads((folder / "result.json").read_text())["steps"] == 14
    before, after = (arrays_of(path / ADAPTER) for path in (Path(tuned.output), folder))
    assert all(not np.array_equal(before[name], after[name]) for name in before)


def test_a_mesh_changes_nothing(tuned, tmp_path):
    training = dataclasses.replace(tuned.training, mesh="fsdp=2,model=2")
    config = dataclasses.replace(tuned, output=str(tmp_path / "run"), training=training)
    fixed = flatten_dict(learner(config).loss.args[0], sep="/")
    mesh = make_mesh(training.mesh)
    for name, x in fixed.items():
        if name.endswith("kernel"):
            assert x.addressable_shards[0].data.size * mesh.size == x.size, name
    assert train(config) == 0
    expected, found = (
        arrays_of(Path(folder) / ADAPTER) for folder in (tuned.output, config.output)
    )
    for name, x in expected.items():
        np.testing.assert_allclose(found[name], x, atol=1e-5, rtol=0, err_msg=name)
