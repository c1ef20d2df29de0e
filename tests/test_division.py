"""How attention by blocks is divided over devices in rarer settings, and what is said where it is
not: see `test_placement.py` for the table."""

import functools
import re
import warnings

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from flaxattn import attend, attention_weights, causal, same_segment, valid, where

QUERY = np.random.default_rng(0).standard_normal((8, 2, 12, 4, 5)).astype(np.float32)
IDS = np.random.default_rng(1).integers(0, 3, (8, 2, 12)).astype(np.int32)
MOVING = "all-gather|all-to-all|collective-permute|reduce-scatter"


def attended(query, ids):
    mask = (causal() & same_segment(ids)).plan(12, 12, block_q=5, block_kv=4)
    return attend(query, query, query, mask)


def slope(fn):
    return jax.grad(lambda query, ids: (fn(query, ids) ** 2).sum())


def curvature(query, ids):
    return jax.jvp(slope(attended), (query, ids), (query, np.zeros(ids.shape, jax.dtypes.float0)))[
        1
    ]


def deep(query, ids):
    """Layers of attention as one loop, each computed anew in the backward pass."""

    def layer(query, _):
        return jax.checkpoint(attended)(query, ids), None

    return jax.lax.scan(layer, query, None, length=2)[0]


def mesh_of(kind, sizes=(4,), names=("data",)):
    kinds = kind if isinstance(kind, tuple) else (kind,) * len(sizes)
    return jax.make_mesh(sizes, names, axis_types=kinds)


def spread(mesh, spec, query, ids):
    """The two on a mesh; ids are spread as the batch is."""
    return tuple(
        jax.device_put(x, NamedSharding(mesh, P(*spec[:n]))) for x, n in ((query, 5), (ids, 1))
    )


def ran(fn, *arrays):
    """The numbers of a program, what it moves, and where they are."""
    program = jax.jit(fn).lower(*arrays).compile()
    output = program(*arrays)
    return np.asarray(output), set(re.findall(MOVING, program.as_text())), output.sharding


@functools.cache
def alone(fn, vmapped=False):
    query, ids = (QUERY, IDS) if vmapped else (QUERY[:, 0], IDS[:, 0])
    return np.asarray(jax.jit(fn)(query, ids))


vmapped = slope(jax.vmap(attended))


@pytest.mark.thorough
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=str)
@pytest.mark.parametrize("spec", [P("data"), P(None, None, None, "data")], ids=str)
def test_an_axis_that_is_vmapped_over_is_divided_like_the_batch(kind, spec):
    arrays = spread(mesh_of(kind), spec, QUERY, IDS)
    got, moving, sharding = ran(vmapped, *arrays)
    np.testing.assert_allclose(got, alone(vmapped, True), atol=2e-5)
    assert not moving and sharding.is_equivalent_to(arrays[0].sharding, 5)


@pytest.mark.thorough
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=str)
def test_so_is_attention_in_a_loop_of_layers_that_are_computed_anew(kind):
    fn = slope(deep)
    got, moving, _ = ran(fn, *spread(mesh_of(kind), P("data"), QUERY[:, 0], IDS[:, 0]))
    np.testing.assert_allclose(got, alone(fn), atol=2e-4)
    assert not moving


@pytest.mark.thorough
def test_second_derivatives_are_those_of_one_device_and_stay_in_place_on_explicit_axes():
    for kind in (AxisType.Auto, AxisType.Explicit):
        arrays = spread(mesh_of(kind), P("data"), QUERY[:, 0], IDS[:, 0])
        got, moving, _ = ran(curvature, *arrays)
        np.testing.assert_allclose(got, alone(curvature), atol=2e-4)
        assert not moving or kind == AxisType.Auto
    mapped = jax.shard_map(
        curvature, mesh=mesh_of(AxisType.Auto), in_specs=P("data"), out_specs=P("data")
    )
    got, moving, _ = ran(mapped, *arrays)
    np.testing.assert_allclose(got, alone(curvature), atol=2e-4)
    assert not moving


@pytest.mark.thorough
def test_a_rule_that_closes_over_an_array_is_divided_too():
    ages = jnp.arange(12) % 5

    def ruled(query, ids):
        mask = where(lambda q, k: ages[q] >= ages[k]) & same_segment(ids)
        return attend(query, query, query, mask, implementation="blockwise")

    got, moving, _ = ran(ruled, *spread(mesh_of(AxisType.Auto), P("data"), QUERY[:, 0], IDS[:, 0]))
    np.testing.assert_allclose(got, alone(ruled), atol=2e-6)
    assert not moving


@pytest.mark.thorough(quick=1)
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=str)
def test_a_query_that_is_spread_over_its_positions_is_gathered_and_a_warning_says_so(kind):
    arrays = spread(mesh_of(kind), P(None, "data"), QUERY[:, 0], IDS[:, 0])
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        got, moving, _ = ran(attended, *arrays)
    assert moving == {"all-gather"}
    assert any("spread over mesh axes ['data']" in str(w.message) for w in said)
    np.testing.assert_allclose(got, alone(attended), atol=2e-6)


@pytest.mark.thorough(quick=1)
@pytest.mark.parametrize(
    "kinds", [(AxisType.Explicit, AxisType.Auto), (AxisType.Auto,) * 2], ids=str
)
def test_axes_that_a_shard_map_leaves_to_the_compiler_are_not_divided_and_a_warning_says_so(kinds):
    mesh = mesh_of(kinds, (2, 2), ("data", "model"))
    arrays = spread(mesh, P("data", None, "model"), QUERY[:, 0], IDS[:, 0])
    fn = attended
    if kinds[0] == AxisType.Auto:
        places = {"in_specs": P("data"), "out_specs": P("data")}
        fn = jax.shard_map(attended, mesh=mesh, axis_names={"data"}, **places)
    with pytest.warns(UserWarning, match=r"leaves the mesh axes \['model'\] to the compiler"):
        got, _, _ = ran(fn, *arrays)
    np.testing.assert_allclose(got, alone(attended), atol=2e-6)


def test_heads_that_neither_divide_are_gathered_and_a_warning_says_so():
    query = np.concatenate([QUERY[:, 0]] * 3, axis=2)  # 12 heads, of 3 key heads
    key = query[:, :, :3]

    def grouped(query, key):
        return attend(query, key, key, causal(), implementation="blockwise")

    place = NamedSharding(mesh_of(AxisType.Auto), P(None, None, "data"))
    arrays = jax.device_put(query, place), key
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        got, _, _ = ran(grouped, *arrays)
    assert any("and the 3 key/value heads divide" in str(w.message) for w in said)
    np.testing.assert_allclose(got, jax.jit(grouped)(query, key), atol=2e-6)


@pytest.mark.thorough
def test_an_explicit_mesh_need_not_be_set():
    arrays = spread(mesh_of(AxisType.Explicit), P("data"), QUERY[:, 0], IDS[:, 0])
    got, moving, sharding = ran(attended, *arrays)
    with jax.set_mesh(arrays[0].sharding.mesh):
        again, _, _ = ran(attended, *arrays)
    np.testing.assert_array_equal(got, again)
    assert not moving and sharding.is_equivalent_to(arrays[0].sharding, 4)


@pytest.mark.parametrize("spec", [P("data"), P(None, None, "data")], ids=str)
@pytest.mark.parametrize("chosen", [{}, {"rows": np.array([3, 3, 0])}, {"heads": np.array([2, 1])}])
@pytest.mark.filterwarnings("ignore:attention. the query is spread")  # where heads are chosen
def test_weights_on_explicit_axes_are_those_of_one_device(spec, chosen):
    key, mask = QUERY[:, 0, :, :2], same_segment(IDS[:1, 0])
    options = {"bias": QUERY[:1, :1, :, :1, :1].reshape(1, 1, 12, 1), "scale": np.arange(4.0)}
    place = NamedSharding(mesh_of(AxisType.Explicit), spec)
    query = jax.device_put(QUERY[:, 0], place)
    got = attention_weights(query, key, mask, **options, **chosen)
    alone = attention_weights(QUERY[:, 0], key, mask, **options, **chosen)
    np.testing.assert_allclose(got, alone, atol=1e-6)
    if "heads" not in chosen:  # [B, N, T, S], spread as the query [B, T, N, H] is
        batch, _, heads, _ = jax.typeof(query).sharding.spec
        assert jax.typeof(got).sharding.spec == P(batch, heads, None, None)


def test_an_array_without_entries_is_a_part_of_a_shard_map():
    mask = valid(np.zeros(0, bool)).shift(jnp.int32(0), jnp.int32(0))  # hides all that there is
    mesh = mesh_of(AxisType.Auto)

    def local(x):
        return attend(x, x, x, mask, implementation="blockwise")

    mapped = jax.shard_map(local, mesh=mesh, in_specs=P("data"), out_specs=P("data"))
    assert not jax.jit(mapped)(QUERY[:, 0]).any()


def test_a_program_for_several_devices_can_be_exported_and_a_warning_says_that_it_is_not_divided():
    query, ids = spread(mesh_of(AxisType.Auto), P("data"), QUERY[:, 0], IDS[:, 0])
    with pytest.warns(UserWarning, match="program for 4 TPUs, or for as many devices and exported"):
        written = jax.export.export(jax.jit(attended))(query, ids).serialize()
    again = jax.jit(jax.export.deserialize(written).call)(query, ids)
    np.testing.assert_allclose(again, alone(attended), atol=2e-6)
