"""Attention on several devices: the numbers of one device, in place, and nothing is moved.

Every case is a row of one table, in each of three homes (a plain `jit` of placed arrays, which
names no axis; an Explicit mesh; the user's own `shard_map`), with the batch, the heads or both
spread over four devices. The trainer's own step is at the end.
"""

import contextlib
import functools
import itertools
import math
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attention_cases import Shape, assert_close
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from flaxattn import (
    EncoderDecoder,
    EncoderDecoderConfig,
    alibi,
    attend,
    causal,
    dropout_keys,
    relative_positions,
    same_segment,
    score,
    sliding_window,
    softcap,
)
from flaxattn.text.packing import Batch
from flaxattn.training.mesh import data_mesh
from flaxattn.training.optimizer import make_optimizer
from flaxattn.training.train_step import init_state, make_train_step
from flaxattn.translation.config import TranslationTraining
from flaxattn.translation.initial import init_params
from flaxattn.translation.loss import loss_of

SHAPE = Shape(B=8, T=13, S=13, N=8, K=8, H=5, H_value=3)
RATE, KEY = 0.4, jax.random.key(5)


class Layout(NamedTuple):
    """How arrays [B, T, N, ...] lie on the devices: a mesh, and its axes for B and N."""

    devices: tuple[int, ...]
    names: tuple[str, ...]
    batch: str | None
    heads: str | None


LAYOUTS = {
    "batch": Layout((4,), ("data",), "data", None),
    "heads": Layout((4,), ("model",), None, "model"),
    "both": Layout((2, 2), ("data", "model"), "data", "model"),
}


class Row(NamedTuple):
    """What is attended to: a mask of its leaves, and how these and the bias lie."""

    mask: Any = lambda leaves: causal()
    leaves: Any = np.zeros((), np.int32)
    lead: str = ""  # what the leading axes of the leaves are: of "BN"; "" where they are replicated
    bias: tuple[int, ...] = (1, 1, 1, 1)
    shape: Shape = SHAPE
    scale: tuple[int, ...] = ()
    rate: float = 0.0
    score: Any = None  # of numbers [B, N, ...], 1 where shared
    numbers: tuple[int, ...] = (1, 1)
    sinks: tuple[int, ...] = ()
    bias_stays: bool = False  # no gradient of it is asked for


def capped(numbers):
    return softcap(1.0 + numbers**2)


def tabled(numbers):
    return relative_positions(numbers) >> softcap(9.0)


def of_ones_own(numbers):
    return score(lambda x, q, k, w: x - w * jnp.log((q - k + 1).astype(x.dtype)), numbers)


IDS = np.random.default_rng(0).integers(0, 3, (8, 13)).astype(np.int32)
WIDTHS = np.arange(8, dtype=np.int32)[None] % 5

ROWS = {
    "segments, bias of examples": Row(same_segment, IDS, "B", bias=(8, 1, 1, 13)),
    "segments on all devices": Row(same_segment, IDS, bias=(1, 8, 13, 1)),
    "no mask, bias shared": Row(lambda leaves: None, bias=(1, 1, 13, 13)),
    "causal, scale of every head": Row(scale=(8,)),
    "window of every head": Row(sliding_window, WIDTHS, "BN", bias=(8, 8, 13, 13)),
    "windows on all devices": Row(sliding_window, WIDTHS, shape=SHAPE._replace(K=2)),
    "two key heads": Row(same_segment, IDS, "B", bias=(1, 8, 1, 13), shape=SHAPE._replace(K=2)),
    "one key head": Row(same_segment, IDS, "B", bias=(8, 1, 13, 1), shape=SHAPE._replace(K=1)),
    "dropout": Row(same_segment, IDS, "B", rate=RATE),
    "dropout, one key head, no mask": Row(
        lambda leaves: None, shape=SHAPE._replace(K=1), rate=RATE
    ),
    "slopes and sinks of every head": Row(score=alibi, numbers=(1, 8), sinks=(8,)),
    "tables of every head": Row(
        same_segment, IDS, "B", score=tabled, numbers=(1, 8, 5), shape=SHAPE._replace(K=2)
    ),
    "caps of examples": Row(score=capped, numbers=(8, 1), sinks=(8,)),
    "a rule of examples and heads": Row(
        score=of_ones_own, numbers=(8, 8), sinks=(8,), shape=SHAPE._replace(K=1)
    ),
    "one table, one sink": Row(lambda leaves: None, score=tabled, numbers=(1, 1, 5)),
    "window of every head, bias stays": Row(
        sliding_window, WIDTHS, "BN", bias=(8, 8, 13, 13), bias_stays=True
    ),
    "slopes of none": Row(score=lambda numbers: alibi() >> capped(numbers), numbers=(1, 8)),
}
HOMES = ("jit", "explicit", "shard_map")
IMPLEMENTATIONS = ("blockwise", "dense")


def is_asked_for(name, home, layout, implementation):
    """Every row: in blocks on the mesh of both and on one of the others, in `jit` here and with
    explicit axes there, in turn, and in `shard_map`; and dense, in one of them."""
    number = list(ROWS).index(name)
    if home == "shard_map":  # of examples: one has no use for the leaves of all of them
        alone = "segments on all devices", "slopes of none"
        return implementation == "blockwise" and layout == "batch" and name not in alone
    if implementation == "dense":
        return layout == "both" and home == HOMES[number % 2]
    other = "heads" if number // 2 % 2 else "batch"
    return layout == ("both" if home == HOMES[number % 2] else other)


EVERYWHERE = list(itertools.product(ROWS, HOMES, LAYOUTS, IMPLEMENTATIONS))
QUICK = [
    ("segments, bias of examples", "jit", "batch", "blockwise"),
    ("segments on all devices", "explicit", "batch", "blockwise"),
    ("no mask, bias shared", "shard_map", "batch", "blockwise"),
    ("window of every head", "jit", "both", "blockwise"),
    ("two key heads", "explicit", "both", "blockwise"),
    ("dropout", "shard_map", "batch", "blockwise"),
    ("slopes and sinks of every head", "jit", "both", "blockwise"),
    ("tables of every head", "explicit", "both", "blockwise"),
    ("causal, scale of every head", "jit", "heads", "dense"),
]
CASES = QUICK + [case for case in EVERYWHERE if case not in QUICK and is_asked_for(*case)]


class Call(NamedTuple):
    """What a call reads, all of it traced."""

    query: Any
    key: Any
    value: Any
    bias: Any
    scale: Any
    sinks: Any
    numbers: Any
    leaves: Any
    dropout_keys: Any
    cotangent: Any


class Answer(NamedTuple):
    """The output and all gradients."""

    output: Any
    query: Any
    key: Any
    value: Any
    bias: Any
    scale: Any
    sinks: Any
    numbers: Any


def shapes_of(row):
    b, t, s, n, k, h, h_value = row.shape
    of_key, floats = (b, s, k, h), jnp.float32
    of_value, of_output = (b, s, k, h_value), (b, t, n, h_value)
    shapes = [(b, t, n, h), of_key, of_value, row.bias, row.scale, row.sinks, row.numbers]
    shapes.append(of_output)
    *data, cotangent = (jax.ShapeDtypeStruct(shape, floats) for shape in shapes)
    leaves = jax.ShapeDtypeStruct(row.leaves.shape, row.leaves.dtype)
    return Call(*data, leaves, jax.ShapeDtypeStruct((b, n, 2), jnp.uint32), cotangent)


def call_of(row):
    rng, keys = np.random.default_rng(0), dropout_keys(KEY, row.shape.B, row.shape.N)
    *shapes, _, _, last = shapes_of(row)
    floats = [np.asarray(rng.standard_normal(x.shape), x.dtype) for x in (*shapes, last)]
    return Call(*floats[:-1], row.leaves, np.asarray(jax.random.key_data(keys)), floats[-1])


def specs_of(row, layout):
    """A PartitionSpec for each array; axes of 1, or that do not divide, are replicated."""
    batch, heads = layout.batch, layout.heads
    parts = math.prod(layout.devices) if layout.batch is None else layout.devices[-1]
    key_heads = heads if row.shape.K % parts == 0 else None

    def shared(shape):
        names = zip((batch, heads), shape, strict=False)
        return P(*(name if size > 1 else None for name, size in names))

    of_leaves = shared(row.leaves.shape[: len(row.lead)]) if row.lead else P()
    of_query, of_key = P(batch, None, heads), P(batch, None, key_heads)
    of_scale, of_sinks = (P(*[heads] * len(x)) for x in (row.scale, row.sinks))
    of_all = of_scale, of_sinks, shared(row.numbers), of_leaves, P(batch, heads)
    return Call(of_query, of_key, of_key, shared(row.bias), *of_all, of_query)


def answer_of(specs):
    """The specs of an answer: those of what it belongs to."""
    return Answer(specs.cotangent, *specs[:7])


def differentiate(row, implementation, home, call):
    """Traced: the `Answer` to a call; in a `shard_map` each example and head has its key."""
    mask = row.mask(call.leaves)
    if implementation == "blockwise" and mask is not None:
        mask = mask.plan(
            row.shape.T, row.shape.S, block_q=row.shape.T // 3, block_kv=row.shape.S // 3
        )
    options = {}
    if row.rate:
        key = call.dropout_keys if home == "shard_map" else KEY
        options = {"dropout_rate": row.rate, "dropout_key": key}

    def output(query, key, value, bias, scale, sinks, numbers):
        bias = jax.lax.stop_gradient(bias) if row.bias_stays else bias
        given = {"bias": bias, "scale": scale, "implementation": implementation}
        if row.score is not None:
            given |= {"score": row.score(numbers), "sinks": sinks}
        return attend(query, key, value, mask, **given, **options)

    result, pull = jax.vjp(output, *call[:7])
    return Answer(result, *pull(call.cotangent))


@functools.cache
def on_one_device(name):
    """The definition's answer; implementations are compared with it elsewhere."""
    row = ROWS[name]
    got = jax.jit(functools.partial(differentiate, row, "dense", "one"))(call_of(row))
    return Answer(*map(np.asarray, got))


# ---- The three homes: each gives the compiled program and what it is called with ---------------


def mesh_of(home, layout):
    kind = AxisType.Explicit if home == "explicit" else AxisType.Auto
    devices, kinds = jax.devices()[: math.prod(layout.devices)], (kind,) * len(layout.names)
    return jax.make_mesh(layout.devices, layout.names, axis_types=kinds, devices=devices)


def compiled(home, row, layout, implementation):
    """The program of a case."""
    fn, specs = functools.partial(differentiate, row, implementation, home), specs_of(row, layout)
    mesh = mesh_of(home, layout)

    def described(x, spec):
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, spec))

    call = Call(*map(described, shapes_of(row), specs))
    if home == "shard_map":
        fn = jax.shard_map(fn, mesh=mesh, in_specs=(specs,), out_specs=answer_of(specs))
    with jax.set_mesh(mesh) if home == "explicit" else contextlib.nullcontext():
        return jax.jit(fn).lower(call).compile()


def answered(home, name, layout, implementation):
    """The program of a case and its answer, whose numbers are those of one device."""
    row, mesh = ROWS[name], mesh_of(home, LAYOUTS[layout])
    specs = specs_of(row, LAYOUTS[layout])
    program = compiled(home, row, LAYOUTS[layout], implementation)
    given = zip(call_of(row), specs, strict=True)
    got = program(Call(*(jax.device_put(x, NamedSharding(mesh, spec)) for x, spec in given)))
    assert_close(Answer(*map(np.asarray, got)), on_one_device(name), 2e-5)
    return program, got, Answer(*(NamedSharding(mesh, spec) for spec in answer_of(specs)))


# ---- What a program may do ---------------------------------------------------------------------

BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4}
MOVING = "all-gather|all-to-all|collective-permute|collective-broadcast|reduce-scatter|all-reduce"


def moved(text):
    """What a program sends between devices: the name of each collective and the bytes it gives."""
    found = re.findall(rf"= (.*?) ({MOVING})(?:-start)?\(", text)
    return [(name, sum(map(size_of, SHAPES.findall(shape)))) for shape, name in found]


SHAPES = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\]")


def size_of(shape):
    dtype, sizes = shape
    return BYTES.get(dtype, 8) * math.prod(int(n) for n in sizes.split(",") if n)


def assert_nothing_moves(text, most=64 * 2**10):
    for name, size in moved(text):
        assert name == "all-reduce" and size < most, moved(text)


def test_what_moves_is_read_from_the_text_of_a_program():
    text = """
      %x.1 = f32[4,8]{1,0} all-reduce(%a), channel_id=1
      ROOT %y = (f32[], bf16[3,2]{1,0}) all-reduce-start(%a, %b)
      %z = s32[5]{0} all-gather(%c), dimensions={0}
      %gte = f32[9] get-tuple-element(%all-reduce.1), index=0
    """
    assert moved(text) == [("all-reduce", 128), ("all-reduce", 16), ("all-gather", 20)]
    with pytest.raises(AssertionError):
        assert_nothing_moves(text)


# ---- The table ---------------------------------------------------------------------------------


@pytest.mark.thorough(quick=len(QUICK))
@pytest.mark.parametrize("case", CASES, ids=" - ".join)
def test_many_devices_give_the_numbers_of_one_in_place(case):
    name, home, layout, implementation = case
    program, got, places = answered(home, name, layout, implementation)
    assert_nothing_moves(program.as_text())
    for part, array, place in zip(Answer._fields, got, places, strict=True):
        if part != "bias" or not ROWS[name].bias_stays:  # zeros may be anywhere
            assert array.sharding.is_equivalent_to(place, array.ndim), (part, array.sharding)


def test_a_dropout_key_that_all_shards_share_is_refused_by_name():
    mesh = mesh_of("shard_map", LAYOUTS["batch"])

    def attended(x, key):
        return attend(x, x, x, dropout_rate=RATE, dropout_key=key)

    spread = jax.shard_map(attended, mesh=mesh, in_specs=(P("data"), P()), out_specs=P("data"))
    with pytest.raises(ValueError, match="dropout_key is the same on devices"):
        jax.jit(spread)(jnp.ones((4, 2, 1, 3)), jax.random.key(0))


@pytest.mark.parametrize("spec", [P("data"), P(None, None, "data")], ids=str)
def test_slopes_of_as_many_heads_as_there_are_are_not_known_in_a_shard_map(spec):
    def attended(x, made):
        return attend(x, x, x, score=made)

    def spread(made):
        mesh = mesh_of("shard_map", LAYOUTS["batch"])
        call = functools.partial(attended, made=made)
        return jax.shard_map(call, mesh=mesh, in_specs=spec, out_specs=spec)

    for made in (alibi(), softcap(3.0) >> alibi().shift(1)):
        with pytest.raises(ValueError, match=r"slopes is None inside jax.shard_map.*alibi_slopes"):
            jax.jit(spread(made))(jnp.ones((4, 2, 4, 3)))


LONG = Row(
    same_segment, np.zeros((256, 512), np.int32), "B", shape=Shape(256, 512, 512, 8, 2, 32, 32)
)
ALONE = Layout((1,), ("data",), None, None)


@functools.cache
def temporaries(home, layout, implementation):
    program = compiled(home, LONG, layout, implementation)
    return program.memory_analysis().temp_size_in_bytes


@pytest.mark.thorough(quick=1)
@pytest.mark.parametrize(
    "home, layout",
    [("jit", "batch"), ("explicit", "both"), ("jit", "both"), ("shard_map", "batch")],
)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_each_of_four_devices_needs_a_quarter_of_the_memory(home, layout, implementation):
    one = temporaries("jit", ALONE, implementation)
    assert 0 < temporaries(home, LAYOUTS[layout], implementation) <= 1.3 * one / 4


# ---- The trainer's own step --------------------------------------------------------------------

CONFIG = EncoderDecoderConfig(
    vocab_size=16,
    features=8,
    ff_features=16,
    num_heads=2,
    encoder_layers=1,
    decoder_layers=1,
    dropout_rate=0.1,
)
TRAINING = TranslationTraining(batch_size=128, sequence_length=512)  # "auto" takes blocks


def train_step_of(devices):
    """The compiled step of rows of 512 on so many devices; nothing is run."""
    mesh, model = data_mesh(jax.devices()[:devices]), EncoderDecoder(CONFIG)
    optimizer = make_optimizer(TRAINING)
    everywhere, spread = NamedSharding(mesh, P()), NamedSharding(mesh, P("data"))
    step = make_train_step(loss_of(model, TRAINING, 1), optimizer, TRAINING, mesh=mesh)
    state = jax.eval_shape(lambda: init_state(init_params(model, 0), optimizer, TRAINING))
    cells = jax.ShapeDtypeStruct((TRAINING.batch_size, TRAINING.sequence_length), jnp.int32)

    def described(tree, place):
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), tree)

    return step.lower(
        described(state, everywhere), described(Batch(*[cells] * 4), spread)
    ).compile()


@pytest.mark.thorough
@pytest.mark.usefixtures("standard_promotion")
def test_the_step_of_the_trainer_moves_sums_and_gradients_of_parameters_alone():
    one, four = train_step_of(1), train_step_of(4)
    assert {name for name, _ in moved(four.as_text())} == {"all-reduce"}
    params = jax.eval_shape(lambda: init_params(EncoderDecoder(CONFIG), 0))
    of_params = sum(4 * x.size for x in jax.tree.leaves(params))
    tied = 2  # the gradient of an embedding may be summed for each of its uses
    assert sum(size for _, size in moved(four.as_text())) <= tied * of_params
    sizes = [program.memory_analysis().temp_size_in_bytes for program in (one, four)]
    assert 0 < sizes[1] <= 1.3 * sizes[0] / 4
