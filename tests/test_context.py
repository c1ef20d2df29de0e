"""`attend_over`: a sequence over several devices is the sequence on one, in values and gradients.

Devices are named by an axis, and jax names axes of a `vmap` alike: any number of them costs none.
What moves, and who needs how much memory, is asked of the four devices that tests have.
"""

import functools
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from attention_cases import Shape, enable_x64, inputs, with_garbage
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
from mask_cases import B, N, random_mask
from score_cases import as_floats, random_score
from test_placement import moved

from flaxattn import (
    Layout,
    alibi,
    attend,
    attend_over,
    causal,
    dropout_keys,
    explain,
    full,
    lengths,
    same_segment,
    sliding_window,
    softcap,
)
from flaxattn.attention import spread as methods
from flaxattn.attention.balance import live_hops

AXIS, KEY = "context", jax.random.key(7)
METHODS = ("ring", "gather", "heads")


def parts(layout, x, axis=1):
    """What each device holds, one after another along a new first axis."""
    return jnp.stack(jnp.split(layout.split(x, axis), layout.shards, axis))


def whole(layout, parts, axis=1):
    """All that the devices hold, in order."""
    return layout.join(jnp.concatenate(list(parts), axis), axis)


def both_over(layouts, call, arrays, cotangent):
    """The output and all gradients of a call of queries, keys, values, a bias and a rest.

    Those that devices have of what is the same on all are added up.
    """
    q_layout, kv_layout = layouts
    query, key, value, bias, *rest = arrays
    of_rows = bias is not None and bias.shape[2] > 1
    split = [parts(q_layout, query), parts(kv_layout, key), parts(kv_layout, value)]
    split.append(parts(q_layout, bias, 2) if of_rows else bias)

    def local(*x):
        *arrays, cotangent = x
        return both(call, arrays, cotangent)

    axes = (0, 0, 0, 0 if of_rows else None, *[None] * len(rest), 0)
    mapped = jax.vmap(local, axes, axis_name=AXIS)
    output, (*found, d_bias, d_rest) = mapped(*split, *rest, parts(q_layout, cotangent))
    d_qkv = map(whole, (q_layout, kv_layout, kv_layout), found)
    if bias is not None:
        d_bias = whole(q_layout, d_bias, 2) if of_rows else d_bias.sum(0)
    return whole(q_layout, output), (*d_qkv, d_bias, jax.tree.map(lambda x: x.sum(0), d_rest))


def both(call, arrays, cotangent):
    """The output and all gradients."""
    output, pull = jax.vjp(call, *arrays)
    return output, pull(cotangent)


def random_layout(rng, shards, chunks, chunk):
    starts = rng.permutation(shards * chunks).reshape(shards, chunks) * chunk
    return Layout(tuple(map(tuple, starts.tolist())), chunk)


def random_case(seed):
    """Layouts, shape, a mask, and options whose leaves all have gradients, or none."""
    rng = np.random.default_rng(seed)
    shards, chunks = int(rng.integers(2, 9)), int(rng.integers(1, 3))
    chunk = int(rng.integers(1, 1 + min(40 // (shards * chunks), 4)))
    layouts = [random_layout(rng, shards, chunks, chunk)]
    layouts.append(layouts[0])
    if rng.random() < 0.5:
        layouts[1] = random_layout(rng, shards, 1, int(rng.integers(1, 1 + 40 // shards)))
    shape = Shape(B, layouts[0].length, layouts[1].length, N, (1, N)[rng.integers(2)], 3, 2)
    options = {}
    if rng.random() < 0.7:
        options["scale"] = jnp.asarray(
            rng.uniform(0.2, 1, [(), (N,)][rng.integers(2)]), jnp.float32
        )
    if rng.random() < 0.5:
        options["sinks"] = jnp.asarray(
            rng.standard_normal([(), (N,)][rng.integers(2)]), jnp.float32
        )
    bias = None
    if rng.random() < 0.4:
        sizes = [int(n) if rng.random() < 0.6 else 1 for n in shape.logits]
        bias = jnp.asarray(rng.standard_normal(sizes), jnp.float32)
    made = None
    if rng.random() < 0.5:
        made = random_score(seed, shape)
    rate = 0.4 if rng.random() < 0.3 else 0.0
    return layouts, shape, random_mask(rng, depth=2).mask, options, bias, made, rate


@pytest.mark.thorough(quick=3)
@pytest.mark.parametrize("seed", range(12))
def test_many_devices_are_one_for_any_mask(seed):
    layouts, shape, mask, options, bias, score, rate = random_case(seed)
    data, method = inputs(shape, seed, bias=(1, 1, 1, 1)), METHODS[seed % 3]
    if method == "heads" and (shape.K % layouts[0].shards or shape.N % layouts[0].shards):
        method = METHODS[seed % 2]
    make, numbers = (None, ()) if score is None else (score[0], as_floats(score[1].arrays))
    dropped = {"dropout_rate": rate, "dropout_key": KEY}

    def call_of(fn, **given):
        def call(query, key, value, bias, rest):
            options, numbers = rest
            made = {} if make is None else {"score": make(numbers)}
            return fn(query, key, value, mask, bias=bias, **options, **made, **given, **dropped)

        return call

    one = call_of(attend, implementation="dense")
    many = call_of(
        attend_over,
        axis=AXIS,
        method=method,
        layout=layouts[0],
        kv_layout=layouts[1],
        implementation=("blockwise", "dense")[seed % 5 > 2],
    )
    arrays = (*map(jnp.asarray, data[:3]), bias, (options, numbers))
    expected = jax.jit(functools.partial(both, one))(arrays, data.cotangent)
    got = jax.jit(functools.partial(both_over, layouts, many))(arrays, data.cotangent)
    for a, e in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, e, atol=3e-5 * max(np.abs(e).max(initial=0), 1))


# ---- On real devices: numbers, and what moves ---------------------------------------------------

SHAPE = Shape(2, 32, 32, 4, 4, 5, 3)
IDS = np.random.default_rng(0).integers(0, 3, (2, 32))
OWN = Layout(((8, 20), (4, 28), (12, 16), (24, 0)), 4)
LAYOUTS = {
    "contiguous": Layout.contiguous(32, 4),
    "zigzag": Layout.zigzag(32, 4),
    "own": OWN,
}


def mesh_of(*sizes, names=(AXIS,)):
    devices = jax.devices()[: int(np.prod(sizes))]
    return jax.make_mesh(sizes, names, axis_types=(AxisType.Auto,) * len(sizes), devices=devices)


def spread_over(mesh, layout, spec=None, **given):
    """`attend_over` in a `shard_map`, of whole arrays; all else is the same on all devices."""
    spec = P(None, AXIS) if spec is None else spec

    def local(query, key, value, mask, options):
        call = functools.partial(attend_over, axis=AXIS, layout=layout, **given)
        return call(query, key, value, mask, **options)

    def call(query, key, value, mask, options):
        fn = jax.shard_map(local, mesh=mesh, in_specs=(*[spec] * 3, P(), P()), out_specs=spec)
        return layout.join(fn(*map(layout.split, (query, key, value)), mask, options))

    return call


def everything():
    """Options that have gradients, of random numbers."""
    rng = np.random.default_rng(1)
    slopes, cap, scale, sinks = (
        jnp.asarray(rng.uniform(0.2, 1, n), jnp.float32) for n in ((4,), (), (4,), (4,))
    )
    return {"slopes": slopes, "cap": cap, "scale": scale, "sinks": sinks}


def with_score(call, mask, **given):
    """Of query, key, value and `everything`."""

    def of(query, key, value, numbers):
        score = alibi(numbers["slopes"]) >> softcap(numbers["cap"])
        options = {"score": score, "scale": numbers["scale"], "sinks": numbers["sinks"]}
        return call(query, key, value, mask, options | given)

    return of


CASES = [*itertools.product(METHODS, LAYOUTS, ("blockwise", "dense"))]
QUICK = [("ring", "own", "blockwise"), ("gather", "zigzag", "dense"), ("heads", "own", "dense")]
CASES = QUICK + [case for case in CASES if case not in QUICK]


@functools.cache
def on_one():
    data, drop = inputs(SHAPE, bias=(1, 1, 1, 1)), {"dropout_rate": 0.3, "dropout_key": KEY}
    mask = causal() & same_segment(IDS)

    def one(query, key, value, mask, options):
        return attend(query, key, value, mask, **options, implementation="dense")

    arrays = (*map(jnp.asarray, data[:3]), everything())
    call = functools.partial(both, with_score(one, mask, **drop))
    return mask, arrays, data.cotangent, drop, jax.jit(call)(arrays, data.cotangent)


@pytest.mark.thorough(quick=len(QUICK))
@pytest.mark.parametrize("method, layout, implementation", CASES)
def test_four_devices_are_one_in_a_shard_map(method, layout, implementation):
    mask, arrays, cotangent, drop, expected = on_one()
    key = drop["dropout_key"]
    many = spread_over(
        mesh_of(4), LAYOUTS[layout], method=method, implementation=implementation, dropout_rate=0.3
    )
    call = functools.partial(both, with_score(many, mask, dropout_key=key))
    got = jax.jit(call)(arrays, cotangent)
    for a, e in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, e, atol=2e-5 * max(np.abs(e).max(), 1))


@pytest.mark.parametrize("method", METHODS)
def test_examples_are_spread_at_the_same_time(method):
    """Over two axes; leaves of a mask, and dropout's keys, lie as the examples do."""
    mesh, spec = mesh_of(2, 2, names=("data", AXIS)), P("data", AXIS)
    data, keys = inputs(SHAPE, bias=(1, 1, 1, 1)), dropout_keys(KEY, 2, 4)
    drop, mask = {"dropout_rate": 0.3}, same_segment(IDS)

    def local(query, key, value, mask, keys):
        given = drop | {"dropout_key": keys}
        return attend_over(query, key, value, mask, axis=AXIS, method=method, **given)

    in_specs = (*[spec] * 3, P("data"), P("data"))
    call = jax.shard_map(local, mesh=mesh, in_specs=in_specs, out_specs=spec)
    got = jax.jit(call)(*data[:3], mask, keys)
    np.testing.assert_allclose(
        got, attend(*data[:3], mask, **drop, dropout_key=KEY), rtol=0, atol=2e-6
    )


def permutes(text, what="collective-permute"):
    """The bytes of each time that a program sends, what is in a loop as often as that goes."""
    inside, called, name = {}, {}, ""
    for line in text.splitlines():
        if head := re.match(r"(?:ENTRY )?%?([\w.-]+) \(.*\{$", line):
            name = head[1]
        inside.setdefault(name, []).append(line)
        for body in re.findall(r"(?:body|to_apply|calls)=%?([\w.-]+)", line):
            times = re.search(r'known_trip_count":\{"n":"(\d+)"', line)
            called[body] = (name, int(times[1]) if times else 1)

    def often(name):
        caller, times = called.get(name, (None, 1))
        return times if caller is None else times * often(caller)

    sent = []
    for name, lines in inside.items():
        sent += often(name) * [size for kind, size in moved("\n".join(lines)) if kind == what]
    return sent


def compiled(mask, devices=4, gradient=False, shape=SHAPE, **given):
    mesh, layout = mesh_of(devices), Layout.contiguous(shape.T, devices)
    call = spread_over(mesh, layout, implementation="blockwise", **given)
    fn = functools.partial(call, mask=mask, options={})
    if gradient:
        fn = jax.grad(lambda *x: call(*x, mask, {}).sum(), (0, 1, 2))
    place = jax.sharding.NamedSharding(mesh, P(None, AXIS))
    b, t, s, n, k, h, h_value = shape
    shapes = (b, t, n, h), (b, s, k, h), (b, s, k, h_value)
    described = [jax.ShapeDtypeStruct(x, jnp.float32, sharding=place) for x in shapes]
    return jax.jit(fn).lower(*described).compile()


SENT = {  # at which hops anything is seen
    "causal": (causal(), (0, 1, 2, 3)),
    "of all": (None, (0, 1, 2, 3)),
    "window": (causal() & sliding_window(5, 0), (0, 1)),
    "window of both sides": (sliding_window(5), (0, 1, 3)),
    "keys of the next": (full() & ~causal() & sliding_window(0, 8), (0, 3)),
    "none": (~full(), (0,)),
}


@pytest.mark.parametrize("name", SENT)
def test_a_ring_sends_what_is_seen_somewhere_and_no_more(name):
    mask, hops = SENT[name]
    text = compiled(mask).as_text()
    of_device = 2 * 8 * 4 * 4  # B, T and S of a device, N, bytes
    key, value = of_device * SHAPE.H, of_device * SHAPE.H_value
    assert sorted(permutes(text)) == sorted([key, value] * (len(hops) - 1))
    assert {kind for kind, _ in moved(text)} <= {"collective-permute"}


def test_its_gradient_sends_keys_once_more_and_their_gradients_home():
    text = compiled(causal(), gradient=True).as_text()
    assert len(permutes(text)) == 2 * 3 + 2 * 3 + 2 * 4


def test_gradients_of_what_all_devices_share_are_added_up_once_at_the_end():
    """And not at each hop, which devices may leave out: they would wait for each other for ever."""
    mesh, spec = mesh_of(4), P(None, AXIS)

    def local(query, scale):
        given = {"axis": AXIS, "scale": scale, "implementation": "dense"}
        return attend_over(query, query, query, causal(), **given)

    over = jax.shard_map(local, mesh=mesh, in_specs=(spec, P()), out_specs=spec)
    gradient = jax.jit(jax.grad(lambda *x: over(*x).sum(), 1))
    text = gradient.lower(jnp.ones((1, 32, 2, 4)), jnp.ones(2)).compile().as_text()
    assert [kind for kind, _ in moved(text) if "reduce" in kind] == ["all-reduce"]
    assert permutes(text, "all-reduce") == [8]


def test_hops_that_are_known_to_be_empty_are_not_computed(monkeypatch):
    """Of a mask whose arrays are traced, too: then each device tells by itself."""
    seen, (name, entry) = [], ("dense", methods.IMPLEMENTATIONS["dense"])

    def counted(*call):
        jax.debug.callback(lambda: seen.append(1))
        return entry.attend(*call)

    monkeypatch.setitem(methods.IMPLEMENTATIONS, name, entry._replace(attend=counted))
    data, ids = inputs(SHAPE, bias=(1, 1, 1, 1)), np.repeat(np.arange(1, 5), 8)[None]
    for layout, mask, pairs in (
        (LAYOUTS["contiguous"], causal(), 10),
        (LAYOUTS["zigzag"], causal(), 16),
        (LAYOUTS["contiguous"], same_segment(ids), 4),
    ):
        call = spread_over(mesh_of(4), layout, implementation=name)
        jax.block_until_ready(jax.jit(call)(*data[:3], mask, {}))
        jax.effects_barrier()
        assert len(seen) == pairs
        seen.clear()


LONG = Shape(1, 2**17, 2**17, 8, 8, 64, 64)


@pytest.mark.thorough(quick=1)
@pytest.mark.parametrize("method, gradient", [("ring", True), ("ring", False), ("heads", True)])
def test_memory_of_a_device_falls_with_their_number(method, gradient):
    def of(devices):
        program = compiled(causal(), devices, gradient, LONG, method=method)
        found = program.memory_analysis()
        return found.temp_size_in_bytes + found.argument_size_in_bytes

    assert 0 < of(4) <= 1.25 * of(2) / 2


@pytest.mark.thorough(quick=1)
@pytest.mark.parametrize("method", ["ring", "gather"])
def test_mapped_over_queries_that_share_keys_it_is_the_same(method):
    query, key, value, _, cotangent = inputs(SHAPE, bias=(1, 1, 1, 1))
    queries = np.stack([query, cotangent[..., :1] * query])
    spec, of_key = P(None, None, AXIS), P(None, AXIS)

    def mapped(call):
        return lambda queries, *of_key: jax.vmap(lambda query: call(query, *of_key, causal()))(
            queries
        )

    local = mapped(functools.partial(attend_over, axis=AXIS, method=method))
    specs = {"in_specs": (spec, of_key, of_key), "out_specs": spec}
    over = jax.shard_map(local, mesh=mesh_of(4), **specs)

    def slopes(call):
        return jax.jit(jax.grad(lambda *x: jnp.sin(call(*x)).sum(), (0, 1, 2)))(queries, key, value)

    for a, e in zip(slopes(over), slopes(mapped(attend)), strict=True):
        np.testing.assert_allclose(a, e, atol=5e-6)


# ---- The laws that hold everywhere --------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_what_is_hidden_on_another_device_is_deleted(method):
    """NaN in keys and values that nobody sees, and in cotangents of rows that see nothing."""
    mask = np.random.default_rng(3).random((32, 32)) < 0.3
    mask[:, [3, 17, 30]] = mask[[5, 20]] = False
    data = inputs(SHAPE, bias=(1, 1, 1, 1))
    where = np.zeros((2, 32, 4), bool)
    where[:, [3, 17, 30]] = True
    blind = np.broadcast_to(~mask.any(1)[None, :, None], where.shape)
    broken = data._replace(
        key=with_garbage(data.key, where),
        value=with_garbage(data.value, where),
        cotangent=with_garbage(data.cotangent, blind),
    )

    def call(query, key, value, bias, rest):
        given = {"axis": AXIS, "method": method, "layout": OWN, "sinks": rest}
        return attend_over(query, key, value, mask, **given)

    fn, sinks = jax.jit(functools.partial(both_over, (OWN, OWN), call)), jnp.ones(4)
    expected, got = (fn((*d[:3], None, sinks), d.cotangent) for d in (data, broken))
    for a, e in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(a, e)


@pytest.mark.parametrize("method", METHODS)
def test_rows_that_see_what_is_not_finite_are_nan_and_no_others(method):
    data = inputs(SHAPE, bias=(1, 1, 1, 1))
    value = data.value.copy()
    value[:, 9] = np.nan

    def call(query, key, value, bias, rest):
        return attend_over(query, key, value, causal(), axis=AXIS, method=method)

    layout = LAYOUTS["contiguous"]
    output, _ = both_over((layout, layout), call, (*data[:2], value, None, ()), data.cotangent)
    np.testing.assert_array_equal(np.isnan(output).any((0, 2, 3)), np.arange(32) >= 9)


@pytest.mark.thorough(quick=1)
@pytest.mark.parametrize("method", METHODS)
def test_with_64_bits_it_is_exact(method):
    shape = Shape(2, 8, 8, 2, 2, 3, 2)
    data, mask = inputs(shape, bias=(1, 1, 1, 1), dtype=np.float64), np.tri(8, dtype=bool)
    layout = Layout.zigzag(8, 2)
    expected = oracle.attend(*data[:3], mask[None, None])
    slopes = oracle.gradients(data.cotangent, *data[:3], mask[None, None])[:3]

    def call(query, key, value, bias, rest):
        return attend_over(query, key, value, mask, axis=AXIS, method=method, layout="zigzag")

    with enable_x64(True):
        arrays = (*map(jnp.asarray, data[:3]), None, ())
        output, found = both_over((layout, layout), call, arrays, jnp.asarray(data.cotangent))
    for a, e in zip((output, *found[:3]), (expected, *slopes), strict=True):
        np.testing.assert_allclose(a, e, atol=1e-12)


def test_half_precision_is_as_exact_as_on_one_device():
    shape = Shape(1, 512, 512, 2, 2, 16, 16)
    data = inputs(shape, bias=(1, 1, 1, 1))
    narrow = [jnp.asarray(x, jnp.bfloat16) for x in data[:3]]
    exact = attend(*(x.astype(jnp.float32) for x in narrow), causal())
    one = attend(*narrow, causal(), implementation="dense")
    layout = Layout.contiguous(512, 8)

    def call(query, key, value, bias, rest):
        return attend_over(query, key, value, causal(), axis=AXIS)

    many, _ = both_over((layout, layout), call, (*narrow, None, ()), jnp.asarray(one))
    errors = [np.abs(np.asarray(x, np.float32) - exact).mean() for x in (many, one)]
    assert many.dtype == jnp.bfloat16 and errors[0] <= 1.1 * errors[1]


# ---- Layouts ------------------------------------------------------------------------------------


def documents(spread, length=8192, count=16):
    sizes = np.random.default_rng(0).uniform(1 - spread, 1 + spread, count)
    ends = np.round(np.cumsum(sizes) / sizes.sum() * length).astype(int)
    return np.searchsorted(ends, np.arange(length), side="right") + 1


BALANCED = {
    "causal": causal(),
    "causal window": causal() & sliding_window(256, 0),
    "documents": same_segment(documents(0.0)),
    "documents of any length": same_segment(documents(0.9)),
    "causal documents": causal() & same_segment(documents(0.9)),
    "full": full(),
    "padding": lengths(3000, 3000),
}


@pytest.mark.parametrize("name", BALANCED)
def test_a_balanced_layout_leaves_nobody_waiting(name):
    """By the cells that are seen, which no bounds have been asked about."""
    layout = Layout.balanced(BALANCED[name], 8192, 8)
    seen = np.asarray(BALANCED[name].dense(8192, 8192)).sum(axis=1)[layout.order]
    work = seen.reshape(8, -1).sum(axis=1)
    assert work.max() / work.mean() <= 1.15
    assert np.bincount(layout.order // layout.chunk).tolist() == [layout.chunk] * (
        8 * layout.chunks
    )


@pytest.mark.parametrize("seed", range(3))
def test_layouts_hold_each_position_once_and_can_be_undone(seed):
    rng = np.random.default_rng(seed)
    layout = random_layout(rng, 3, 4, 5)
    x = rng.standard_normal((2, 60))
    assert sorted(layout.order) == list(range(60))
    np.testing.assert_array_equal(layout.split(x), x[:, layout.order].astype(np.float32))
    np.testing.assert_array_equal(layout.join(layout.split(x)), x.astype(np.float32))


def test_a_table_of_work_is_of_live_blocks():
    cells = Layout.contiguous(1024, 4).cells(causal())
    on_diagonal = 64**2 * 10  # four blocks of 64 and what is before them
    np.testing.assert_array_equal(cells, np.tri(4, k=-1) * 256**2 + np.eye(4) * on_diagonal)
    assert live_hops(np.eye(4, dtype=bool)) == (0,)


def test_explain_tells_what_devices_wait_for_and_send():
    lines = explain(sliding_window(64), 2048, 2048, shards=8).splitlines()[-6:]
    names, rows = zip(*(line.split(None, 1) for line in lines[1:4]), strict=True)
    assert names == ("contiguous", "zigzag", "balanced")
    assert rows[0].split() == rows[2].split() == ["1.02", "1.02", "256", "KiB"]  # two hops
    refused(lambda: explain(causal(), 100, 100, shards=8), "length is 100 and shards 8")
    refused(lambda: explain(causal(), 64, 64, shards=0), "shards is 0; expected at least 1")
    assert "zigzag" not in explain(causal(), 64, 32, shards=4)


# ---- Errors -------------------------------------------------------------------------------------


def refused(fn, message, kind=ValueError):
    with pytest.raises(kind, match=message):
        fn()


def test_errors_name_the_argument():
    x, devices = jnp.ones((4, 1, 4, 3, 2)), {"axis_name": AXIS}

    def call(x=x, **given):
        given = {"axis": AXIS} | given
        return jax.vmap(lambda x: attend_over(x, x, x, **given), **devices)(x)

    refused(lambda: attend_over(x[0], x[0], x[0], axis=AXIS), "axis is 'context', which no")
    refused(lambda: call(axis="data"), "axis is 'data', which no jax.shard_map around has")
    refused(lambda: call(method="rings"), "method is 'rings'; expected one of")
    refused(lambda: call(method="heads"), "exchanged over 4 devices, but query has N = 3")
    refused(lambda: call(layout="zag"), "layout is 'zag'; expected a Layout or one of")
    refused(lambda: call(layout=Layout.zigzag(16, 2)), "layout is of 16 positions on 2 devices")
    refused(lambda: call(x[:, :, :3], layout="zigzag"), "length is 12.*a multiple of 8")
    refused(lambda: call(mask=np.ones((4, 4), bool)), r"mask has shape \(4, 4\).*\[16, 16\]")
    refused(lambda: call(mask=same_segment(np.ones(8, int))), "8 positions, but .* 0 to 15")
    refused(lambda: call(bias=jnp.ones((1, 3, 4, 4))), r"bias has shape.*\[1, 3, 4, 16\]")
    refused(lambda: call(implementation="fast"), "implementation is 'fast'")
    refused(lambda: Layout(((0, 8), (4, 4)), 4), "starts are .* each once")
    refused(lambda: Layout.contiguous(10, 4), "length is 10 and shards 4")
    refused(lambda: Layout.balanced(np.ones((4, 4)), 4, 2), "expected a Mask", TypeError)
    refused(
        lambda: jax.jit(lambda i: Layout.balanced(same_segment(i), 16, 2))(jnp.ones(16, int)),
        "traced arrays",
    )


def test_a_key_that_devices_for_examples_share_is_refused():
    mesh, spec = mesh_of(2, 2, names=("data", AXIS)), P("data", AXIS)

    def local(x, key):
        return attend_over(x, x, x, axis=AXIS, dropout_rate=0.5, dropout_key=key)

    call = jax.shard_map(local, mesh=mesh, in_specs=(spec, P()), out_specs=spec)
    refused(lambda: jax.jit(call)(jnp.ones((2, 4, 1, 3)), KEY), "the same on devices")
