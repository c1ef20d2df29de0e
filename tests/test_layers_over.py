"""Layers whose sequence is spread over devices by flax's rules: the numbers of one device."""

import contextlib
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from test_placement import moved

from flaxattn import (
    CachePosition,
    EncoderDecoder,
    EncoderDecoderConfig,
    MultiHeadAttention,
    alibi,
    causal,
    where,
)

RULES = [("batch", ("data", "fsdp")), ("length", "context"), ("heads", "model"), ("embed", None)]
CONFIG = EncoderDecoderConfig(
    vocab_size=13,
    features=8,
    ff_features=16,
    num_heads=4,
    num_kv_heads=2,
    encoder_layers=1,
    decoder_layers=1,
    dropout_rate=0.2,
)
SOURCE = np.random.default_rng(0).integers(1, 13, (4, 8))
TARGET = np.random.default_rng(1).integers(1, 13, (4, 12))
IDS = [np.sort(np.random.default_rng(n).integers(0, 3, (4, n)))[:, ::-1] for n in (8, 12)]


def mesh_of(**sizes):
    """Of all axes that the rules name: flax asks for each."""
    sizes = {name: sizes.get(name, 1) for name in ("data", "fsdp", "context", "model")}
    kinds = (AxisType.Auto,) * len(sizes)
    return jax.make_mesh(tuple(sizes.values()), tuple(sizes), axis_types=kinds)


@contextlib.contextmanager
def within(mesh, rules=RULES):
    with jax.set_mesh(mesh), nn.logical_axis_rules(rules):
        yield


@functools.cache
def start():
    model = EncoderDecoder(CONFIG)
    init = jax.jit(functools.partial(model.init, deterministic=True))
    return model, init(jax.random.key(0), SOURCE, TARGET)["params"]


def loss_and_gradients(params, source, target, source_ids, target_ids):
    model, _ = start()

    def loss(params):
        logits = model.apply(
            {"params": params},
            source,
            target,
            source_segment_ids=source_ids,
            target_segment_ids=target_ids,
            deterministic=False,
            rngs={"dropout": jax.random.key(1)},
        )
        return -jnp.take_along_axis(jax.nn.log_softmax(logits), target[..., None], -1).mean()

    return jax.value_and_grad(loss)(params)


@functools.cache
def on_one():
    return jax.jit(loss_and_gradients)(start()[1], SOURCE, TARGET, *IDS)


MESHES = [{"data": 2, "context": 2}, {"context": 2, "model": 2}, {"context": 4}]


@pytest.mark.thorough(quick=1)
@pytest.mark.usefixtures("standard_promotion")
@pytest.mark.parametrize("sizes", MESHES, ids=str)
def test_an_encoder_decoder_over_devices_is_that_of_one(sizes):
    mesh = mesh_of(**sizes)
    place = NamedSharding(mesh, P(("data", "fsdp"), "context"))
    rows = [jax.device_put(x, place) for x in (SOURCE, TARGET, *IDS)]
    with within(mesh):
        program = jax.jit(loss_and_gradients).lower(start()[1], *rows).compile()
        got = program(start()[1], *rows)
    assert "collective-permute" in {name for name, _ in moved(program.as_text())}
    for a, e in zip(jax.tree.leaves(got), jax.tree.leaves(on_one()), strict=True):
        np.testing.assert_allclose(a, e, atol=2e-5 * max(np.abs(e).max(), 1))


def attended(layer, x, **given):
    variables = layer.init(jax.random.key(0), x, deterministic=True)
    return jax.jit(lambda x: layer.apply(variables, x, deterministic=True, **given))(x)


X = np.random.default_rng(2).standard_normal((2, 8, 16)).astype(np.float32)
BIAS = np.random.default_rng(4).standard_normal((1, 1, 8, 8)).astype(np.float32)
GIVEN = {
    "a score and a bias": {
        "score": alibi(),
        "bias": np.arange(64.0, dtype=np.float32).reshape(1, 1, 8, 8),
    },
    "a rule without arrays": {"mask": where(lambda q, k: (q + k) % 3 > 0)},
    "booleans": {"mask": np.random.default_rng(3).random((2, 4, 8, 8)) < 0.5},
    "the plan of a mask": {"mask": causal().plan(8, 8, block_q=4, block_kv=4)},
}


@pytest.mark.parametrize("name", GIVEN)
def test_layers_take_over_devices_what_they_take_on_one(name):
    layer = MultiHeadAttention(num_heads=4, use_sinks=True, rotary=True)
    expected = attended(layer, X, **GIVEN[name])
    with within(mesh_of(context=2, model=2)):
        np.testing.assert_allclose(attended(layer, X, **GIVEN[name]), expected, atol=2e-6)


@pytest.mark.parametrize(
    "sizes, rules, length",
    [
        ({"context": 4}, [("batch", "data")], 8),  # nothing spreads positions
        ({"data": 2, "fsdp": 2}, RULES, 8),  # over one device
        ({"context": 4}, RULES, 6),  # they do not divide
    ],
)
def test_elsewhere_nothing_is_sent(sizes, rules, length):
    layer, x = MultiHeadAttention(num_heads=4), X[:, :length]
    variables = layer.init(jax.random.key(0), x, deterministic=True)
    with within(mesh_of(**sizes), rules):
        call = jax.jit(lambda x: layer.apply(variables, x, mask=causal(), deterministic=True))
        assert not moved(call.lower(x).compile().as_text())


def test_a_cache_is_read_by_each_device_as_before():
    layer = MultiHeadAttention(num_heads=4)
    position = CachePosition(jnp.int32(0), length=8)
    variables = layer.init(jax.random.key(0), X, deterministic=True)

    def call(x):
        given = {"mask": causal(), "cache_position": position, "deterministic": True}
        return layer.apply(variables, x, **given, mutable=["cache"])[0]

    with within(mesh_of(context=4)):
        text = jax.jit(call).lower(X).compile().as_text()
        np.testing.assert_allclose(jax.jit(call)(X), attended(layer, X, mask=causal()), atol=2e-6)
    assert not moved(text)
