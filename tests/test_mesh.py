"""One mesh: what lies where on it, and a step that is the same on all of them."""

import dataclasses
import functools
import os
import re
import subprocess
import sys

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh, PartitionSpec
from test_train_step import BOS, MODEL, ROWS, TRAINING, V, adam, parameters

from flaxattn.logical import spec_of
from flaxattn.models import EncoderDecoder
from flaxattn.ranges import FieldError
from flaxattn.text.packing import Batch
from flaxattn.training.mesh import (
    RULES,
    check_batch_size,
    describe_mesh,
    make_mesh,
    mesh_sizes,
    place_batch,
)
from flaxattn.training.optimizer import make_optimizer
from flaxattn.training.processes import whole
from flaxattn.training.train_step import (
    make_eval_step,
    make_train_step,
    spread_state,
)
from flaxattn.translation.initial import axes_of, init_params
from flaxattn.translation.loss import loss_of

CELLS = 16  # of a row: eight devices divide them
MESHES = ["context=4", "fsdp=2,model=2", "data=2,fsdp=2"]


def mesh_of(text):
    return make_mesh(text, jax.devices("cpu")[: np.prod([*mesh_sizes(text).values()])])


@functools.cache
def packed():
    """Rows of two segments and padding, of other lengths in each."""
    rng = np.random.default_rng(3)
    sides = []
    for _ in range(2):
        tokens = rng.integers(4, V, (ROWS, CELLS)).astype(np.int32)
        ends = np.sort(rng.integers(1, CELLS, (ROWS, 2)), axis=1)
        ids = (np.arange(CELLS) < ends[:, :1]) + (np.arange(CELLS) < ends[:, 1:])
        ids = np.where(ids == 0, 0, 3 - ids).astype(np.int32)
        sides += [np.where(ids == 0, 0, tokens), ids]
    return Batch(*sides)


def begun(text, model=MODEL, params=None, training=TRAINING):
    """A mesh, and the state and the step of training on it."""
    params, axes = parameters() if params is None else params, axes_of(model)
    mesh, optimizer = mesh_of(text), make_optimizer(training, params, axes)
    state = spread_state(params, axes, optimizer, training, mesh)
    shardings = jax.tree.map(lambda x: x.sharding, state)
    loss = loss_of(model, training, BOS)
    return mesh, state, make_train_step(loss, optimizer, training, mesh=mesh, shardings=shardings)


def stepped(text, training=TRAINING):
    """The state after two steps, and the sums of the second, as of one device."""
    mesh, state, step = begun(text, training=training)
    before = jax.tree.map(lambda x: x.sharding, state)
    for _ in range(2):
        state, sums = step(state, place_batch(packed(), mesh))
    assert jax.tree.map(lambda x: x.sharding, state) == before
    evaluated = make_eval_step(loss_of(MODEL, TRAINING, BOS), mesh=mesh)(
        state.params, place_batch(packed(), mesh)
    )
    return whole((state.params, state.opt_state)), jax.device_get((sums, evaluated))


one = functools.cache(lambda: stepped("data=1"))


@pytest.mark.thorough(quick=2)
@adam
@pytest.mark.parametrize("text", MESHES)
def test_a_step_is_that_of_one_device(text):
    check_step(text)


def check_step(text):
    (state, sums), (expected_state, expected_sums) = stepped(text), one()
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=2e-5), sums, expected_sums)
    close = functools.partial(np.testing.assert_allclose, rtol=2e-3, atol=2e-5)
    jax.tree.map(close, state, expected_state)


@adam
def test_so_is_one_of_muon_whose_momentum_lies_where_its_parameters_do():
    training = dataclasses.replace(TRAINING, optimizer="muon")
    (state, sums), (expected, expected_sums) = (
        stepped(text, training) for text in ("data=2,fsdp=2", "data=1")
    )
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4), sums, expected_sums)
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=2e-4), state, expected)
    _, state, _ = begun("data=2,fsdp=2", training=training)
    layer = state.params["encoder"]["layer_0"]["feed_forward"]["up"]["kernel"]
    assert not layer.sharding.is_fully_replicated
    same = [x.sharding for x in jax.tree.leaves(state.opt_state) if x.shape == layer.shape]
    assert same and set(same) == {layer.sharding}


EIGHT = """
import sys
import jax
jax.config.update("jax_num_cpu_devices", 8)
from test_mesh import check_step
with jax.numpy_dtype_promotion("standard"):
    for text in sys.argv[1:]:
        check_step(text)
        print(text, "is as one")
"""


@pytest.mark.thorough
def test_a_step_over_eight_devices_is_that_of_one():
    meshes = [
        "data=8",
        "fsdp=8",
        "context=8",
        "data=4,fsdp=2",
        "fsdp=4,model=2",
        "context=4,model=2",
    ]
    path = os.pathsep.join([os.path.dirname(__file__), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", EIGHT, *meshes],
        env=os.environ | {"PYTHONPATH": path, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.splitlines() == [f"{text} is as one" for text in meshes], done.stderr


# ---- What lies where -------------------------------------------------------------------------


def spread_sizes(text):
    """The bytes of the state on each device, and in all."""
    _, state, _ = begun(text)
    parts = [(x.addressable_shards[0].data.nbytes, x.nbytes) for x in jax.tree.leaves(state)]
    return np.sum(parts, axis=0)


SPREAD = [("data=4", 1), ("fsdp=4", 4), ("fsdp=2,model=2", 3.8)]  # its vectors not over model


@pytest.mark.parametrize("text, parts", SPREAD)
def test_parameters_and_moments_are_spread_over_fsdp_and_model(text, parts):
    part, all_of_it = spread_sizes(text)
    assert all_of_it / parts <= part <= 1.2 * all_of_it / parts


def shapes_moved(text, model, params):
    """The sizes of the floating arrays that the compiled step gathers, and of those it adds up."""
    mesh, state, step = begun(text, model, params)
    program = step.lower(state, place_batch(packed(), mesh)).compile().as_text()
    gathered = re.findall(r"= f32\[([\d,]*)\]\S* all-gather(?:-start)?\(", program)
    added = "".join(re.findall(r"= (.*?) all-reduce(?:-start)?\(", program))
    return {sizes(x) for x in gathered}, {sizes(x) for x in re.findall(r"f32\[([\d,]*)\]", added)}


def sizes(shape):
    """In whatever order."""
    return tuple(sorted(int(x) for x in shape.split(",") if x))


@adam
def test_where_parameters_are_spread_they_are_gathered_and_activations_are_not():
    """With so many features a compiler that is left alone would rather gather activations."""
    model = EncoderDecoder(dataclasses.replace(MODEL.config, features=32, ff_features=68))
    params = jax.tree.map(np.asarray, init_params(model, 0))
    of_params = {tuple(sorted(x.shape)) for x in jax.tree.leaves(params)}
    gathered, added = shapes_moved("fsdp=2", model, params)
    assert gathered and gathered <= of_params
    assert added <= of_params | {()}
    gathered, added = shapes_moved("data=2", model, params)
    assert not gathered and added <= of_params | {()}


def test_an_axis_is_spread_once_and_where_it_divides():
    mesh = AbstractMesh((2, 2, 2, 2), ("data", "fsdp", "context", "model"))
    spec = functools.partial(spec_of, rules=RULES, mesh=mesh)
    assert spec(("batch", "length"), (8, 6)) == PartitionSpec(("data", "fsdp"), "context")
    assert spec(("batch", "length"), (8, 7)) == PartitionSpec(("data", "fsdp"), None)
    assert spec(("batch", "embed"), (4, 6)) == PartitionSpec(("data", "fsdp"), None)
    assert spec(("heads", "mlp", "nobody"), (3, 4, 2)) == PartitionSpec(None, "model", None)
    assert spec((), (4, 4)) == PartitionSpec(None, None)


def test_names_of_parameters_are_those_that_layers_give():
    axes = axes_of(MODEL)
    assert tuple(axes["source_embedding"]["embedding"]) == ("vocab", "embed")
    attention = axes["encoder"]["layer_0"]["self_attention"]
    assert tuple(attention["query"]["kernel"]) == ("embed", "heads", "kv")
    is_names = lambda x: isinstance(x, PartitionSpec)  # noqa: E731
    jax.tree.map(lambda names, x: None, axes, parameters(), is_leaf=is_names)  # of one structure


# ---- What is said of it ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ["data", "data=", "rows=2", "data=2,data=2", "data=0", "data=-1", "data=1e1", "fsdp=²"]
)
def test_what_is_no_mesh_is_refused_by_the_name_of_the_option(text):
    with pytest.raises(FieldError, match=r"mesh .*expected") as error:
        mesh_sizes(text)
    assert error.value.of_option().startswith("--mesh ")


def test_a_mesh_of_other_devices_than_there_are_is_refused():
    for text in ("data=3", "fsdp=3", "data=2,model=4"):
        with pytest.raises(ValueError, match=f"--mesh {text}: is of .* devices; there are 4"):
            make_mesh(text)


def test_data_takes_what_is_left():
    assert dict(make_mesh("model=2").shape) == {"data": 2, "fsdp": 1, "context": 1, "model": 2}
    assert describe_mesh(make_mesh("model=2")) == "; mesh data=2,model=2"
    assert describe_mesh(make_mesh()) == ""


def test_rows_are_everywhere_as_many():
    check_batch_size(16, 2, mesh_of("data=2,fsdp=2"))
    check_batch_size(6, 1, mesh_of("model=4"))
    with pytest.raises(ValueError, match="--batch-size is 12; expected a multiple of 4 devices"):
        check_batch_size(12, 2, mesh_of("data=2,fsdp=2"))
