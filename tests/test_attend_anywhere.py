"""`attend` inside whatever jax has: transformations, loops, checks, programs that are kept.

One table: each place is given the same call, at sizes on both sides of what "auto" decides by, and
has to give the oracle's output and gradients. A batch has an example that sees nothing.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from attention_cases import Shape, enable_x64, inputs
from jax import export

from flaxattn import alibi, attend, causal, explain, lengths, prepare, sliding_window, softcap

SMALL = Shape(3, 11, 13, 4, 2, 3, 2)
LARGE = Shape(3, 367, 373, 2, 1, 2, 3)
OFFSET = 4  # of the first query
ENDS = {13: [13, 0, 6], 373: [373, 0, 101]}
KEY = jax.random.key(2)


class Data(NamedTuple):
    """What a call reads, with the batch in front of each."""

    query: Any
    key: Any
    value: Any
    ends: Any
    cotangent: Any


@functools.cache
def data_of(shape, dtype=np.float32):
    query, key, value, _, cotangent = inputs(shape, bias=(1, 1, 1, 1), dtype=dtype)
    return Data(query, key, value, np.array(ENDS[shape.S], np.int32), cotangent)


@functools.cache
def expected(shape, dtype=np.float32, scored=False):
    """The oracle's output, and its gradients of query, key and value."""
    data = data_of(shape, dtype)
    given = {}
    if scored:
        caps = 0.5 + data.ends
        rules = oracle.Score(
            lambda _, b, n: oracle.in_turn(oracle.alibi(2.0**-n), oracle.softcap(caps[b]))
        )
        given = {"score": rules, "sinks": np.arange(shape.N)}
    seen = np.tri(shape.T, shape.S, OFFSET, bool)
    mask = (seen & (np.arange(shape.S) < data.ends[:, None, None]))[:, None]
    output = oracle.attend(*data[:3], mask, **given)
    return output, *oracle.gradients(data.cotangent, *data[:3], mask, **given)[:3]


Call = Callable[[Any, Any, Any, Any], jax.Array]
"""Attention to query, key and value with keys that end somewhere."""


def call_of(implementation, scored=False) -> Call:
    """With `scored` the caps are the lengths of keys, so that they go wherever these go."""

    def call(query, key, value, ends):
        mask, given = causal().shift(q_start=OFFSET) & lengths(kv_lengths=ends), {}
        if scored:
            heads = np.arange(SMALL.N, dtype=np.float32)
            caps = 0.5 + jnp.asarray(ends, query.dtype)[:, None]
            given = {"score": alibi(2.0**-heads) >> softcap(caps), "sinks": heads}
        return attend(query, key, value, mask, **given, implementation=implementation)

    return call


def slopes(call, data):
    """The output and the gradients: what a place gives, unless it gives the output alone."""
    output, pull = jax.vjp(lambda *x: call(*x, data.ends), *data[:3])
    return output, *pull(data.cotangent)


def of_one(call):
    """The call of one example, without its axis."""
    return lambda *x: call(*(jnp.asarray(a)[None] for a in x))[0]


# ---- The places: of a call and its data ----------------------------------------------------------


def by_itself(call, data):
    return slopes(call, data)


def jit(call, data):
    return jax.jit(functools.partial(slopes, call))(data)


def vmap(call, data):
    return jit(jax.vmap(of_one(call)), data)


def vmap_in_vmap(call, data):
    halves = jax.vmap(jax.vmap(of_one(call)))
    return jit(lambda *x: halves(*(jnp.asarray(a)[None] for a in x))[0], data)


def vmap_of_queries_alone(call, data):
    """One head of each group at a time; all of them share keys, values and mask."""
    num_kv_heads = data.key.shape[2]

    def grouped(query, key, value, ends):
        split = query.reshape(*query.shape[:2], num_kv_heads, -1, query.shape[3])
        output = jax.vmap(call, (3, None, None, None), 3)(split, key, value, ends)
        return output.reshape(*query.shape[:3], -1)

    return jit(grouped, data)


def vmap_of_slopes(call, data):
    found = jax.vmap(lambda *x: slopes(call, Data(*(a[None] for a in x))))(*data)
    return [x[:, 0] for x in found]


def checkpoint(call, data):
    return jit(jax.checkpoint(call), data)


def scan(call, data):
    def scanned(*x):
        return jax.lax.scan(lambda _, one: (None, of_one(call)(*one)), None, x)[1]

    return jit(scanned, data)


def lax_map(call, data):
    return jit(lambda *x: jax.lax.map(lambda one: of_one(call)(*one), x, batch_size=2), data)


def while_loop(call, data):
    """Forward alone: jax has no gradient of such a loop."""

    def looped(*x):
        output = jnp.zeros(data.cotangent.shape)

        def step(state):
            i, output = state
            return i + 1, output.at[i].set(of_one(call)(*(jnp.asarray(a)[i] for a in x)))

        return jax.lax.while_loop(lambda state: state[0] < len(x[0]), step, (0, output))[1]

    return (jax.jit(looped)(*data[:4]),)


def cond(call, data):
    def chosen(flag, *x):
        return jax.lax.cond(flag, call, lambda *x: jnp.zeros(data.cotangent.shape), *x)

    both = [jax.jit(functools.partial(slopes, functools.partial(chosen, f)))(data) for f in (1, 0)]
    assert not any(np.any(x) for x in both[1])
    return both[0]


def debug_nans(call, data):
    with jax.debug_nans(True):
        return slopes(call, data)


def debug_infs(call, data):
    with jax.debug_infs(True):
        return jit(call, data)


def checking_leaks(call, data):
    with jax.checking_leaks():
        return jit(call, data)


def enable_checks(call, data):
    with jax.enable_checks(True):
        return jit(call, data)


def without_jit(call, data):
    with jax.disable_jit():
        return slopes(call, data)


def ahead_of_time(call, data):
    return jax.jit(functools.partial(slopes, call)).lower(data).compile()(data)


def exported(call, data):
    program = export.export(jax.jit(lambda *x: slopes(call, Data(*x))))(*data)
    return export.deserialize(program.serialize()).call(*data)


def exported_with_any_batch(call, data):
    return with_symbols(call, data, "b, {t}, {n}, {h}", "b, {s}, {k}, {h}", "b, {s}, {k}, {v}")


def exported_with_any_lengths(call, data):
    return with_symbols(call, data, "b, t, {n}, {h}", "b, s, {k}, {h}", "b, s, {k}, {v}")


def with_symbols(call, data, *letters):
    """Exported with some sizes unknown, and called with those of the data."""
    (_, t, n, h), (_, s, k, v) = data.query.shape, data.value.shape
    named = [text.format(t=t, n=n, h=h, s=s, k=k, v=v) for text in letters]
    of_output = named[0].rpartition(",")[0] + f", {v}"
    shapes, scope = [*named, "b", of_output], export.SymbolicScope()
    specs = [
        jax.ShapeDtypeStruct(export.symbolic_shape(text, scope=scope), x.dtype)
        for text, x in zip(shapes, data, strict=True)
    ]
    program = export.export(jax.jit(lambda *x: slopes(call, Data(*x))))(*specs)
    return export.deserialize(program.serialize()).call(*data)


PLACES = [
    *(vmap, scan, debug_nans, exported_with_any_lengths),
    *(exported, vmap_of_queries_alone, while_loop, cond, debug_infs, checking_leaks, jit),
    *(by_itself, vmap_in_vmap, vmap_of_slopes, checkpoint, lax_map, enable_checks, without_jit),
    *(ahead_of_time, exported_with_any_batch),
]
CALLS = [("auto", LARGE), ("blockwise", SMALL), ("auto", SMALL), ("dense", LARGE)]
TABLE = [
    (place, *call)
    for call in CALLS
    for place in PLACES
    if place is not without_jit or call[1] is SMALL  # else it takes long
]


@pytest.mark.thorough(quick=5)
@pytest.mark.parametrize(
    "place, implementation, shape",
    TABLE,
    ids=[f"{place.__name__}-{name}-{shape.T}x{shape.S}" for place, name, shape in TABLE],
)
def test_attention_is_the_same_wherever_it_is(place, implementation, shape):
    call = call_of(implementation)
    if (place, implementation) == (exported_with_any_lengths, "blockwise"):
        with pytest.raises(ValueError, match=r"query has T = t, a symbolic size.*\"dense\""):
            place(call, data_of(shape))
        return
    for a, e in zip(place(call, data_of(shape)), expected(shape), strict=False):
        np.testing.assert_allclose(a, e, atol=2e-5 * max(np.abs(e).max(), 1))


SCORED = [place for place in PLACES if place is not vmap_of_queries_alone]  # of all heads' slopes


@pytest.mark.thorough(quick=2)
@pytest.mark.parametrize("implementation", ["blockwise", "dense"])
@pytest.mark.parametrize("place", SCORED, ids=lambda place: place.__name__)
def test_so_it_is_with_scores_and_sinks(place, implementation):
    if (place, implementation) == (exported_with_any_lengths, "blockwise"):
        return
    found = place(call_of(implementation, scored=True), data_of(SMALL))
    for a, e in zip(found, expected(SMALL, scored=True), strict=False):
        np.testing.assert_allclose(a, e, atol=2e-5 * max(np.abs(e).max(), 1))


@pytest.mark.thorough(quick=1)
@pytest.mark.parametrize("dtype", [np.float64, np.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("implementation, shape", CALLS, ids=str)
def test_with_64_bits_it_is_exact_to_the_dtype_of_the_query(implementation, shape, dtype):
    with enable_x64(True):
        got = jit(call_of(implementation), data_of(shape, dtype))
    tolerance = 1e-11 if dtype == np.float64 else 2e-5
    for a, e in zip(got, expected(shape, dtype), strict=True):
        assert a.dtype == dtype
        np.testing.assert_allclose(a, e, atol=tolerance * max(np.abs(e).max(), 1))


# ---- What is not the same call ------------------------------------------------------------------


@pytest.mark.parametrize("shape", [SMALL, LARGE], ids=["small", "large"])
def test_a_mask_without_arrays_may_be_a_static_argument(shape):
    query, key, value, *_ = data_of(shape)
    call = jax.jit(functools.partial(attend), static_argnames="mask")
    mask = causal() & sliding_window(5)
    expected = attend(query, key, value, mask)
    np.testing.assert_allclose(call(query, key, value, mask=mask), expected, atol=1e-6)
    call(query, key, value, mask=causal() & sliding_window(5))
    assert call._cache_size() == 1


@pytest.mark.thorough(quick=1)
@pytest.mark.parametrize("implementation", ["blockwise", "dense"])
def test_dropout_mapped_over_keys_drops_for_each_of_them(implementation):
    query, key, value, *_ = data_of(SMALL)
    keys = jax.random.split(KEY, 2)

    def call(dropout_key):
        options = {"dropout_rate": 0.5, "implementation": implementation}
        return attend(query, key, value, dropout_key=dropout_key, **options)

    with jax.debug_key_reuse(True):
        together = jax.jit(jax.vmap(call))(keys)
    for i in range(2):
        np.testing.assert_allclose(together[i], call(keys[i]), atol=1e-6)
    assert np.abs(together[0] - together[1]).max() > 0.1


@pytest.mark.parametrize("name", ["q_len", "kv_len"])
def test_plans_of_symbolic_lengths_are_refused_by_name(name):
    (length,) = export.symbolic_shape("t")
    given = {"q_len": 512, "kv_len": 512} | {name: length}
    for draw in (
        functools.partial(causal().plan, block_q=4, block_kv=4),
        functools.partial(explain, causal()),
    ):
        with pytest.raises(ValueError, match=f"{name} is t, a symbolic length"):
            draw(**given)
    assert prepare(causal(), **given) == causal()  # as "auto", which takes the definition there


@pytest.mark.parametrize("implementation", ["blockwise", "dense"])
def test_symbolic_features_are_refused_by_name_unless_the_scale_is_given(implementation):
    spec = jax.ShapeDtypeStruct(export.symbolic_shape("b, 11, 4, h"), jnp.float32)
    call = functools.partial(attend, implementation=implementation)
    with pytest.raises(ValueError, match="H = h, a symbolic size; pass scale"):
        export.export(jax.jit(lambda x: call(x, x, x)))(spec)
    program = export.export(jax.jit(lambda x: call(x, x, x, scale=0.5)))(spec)
    query = data_of(SMALL).query
    expected = call(query, query, query, scale=0.5)
    np.testing.assert_allclose(program.call(query), expected, atol=1e-6)
