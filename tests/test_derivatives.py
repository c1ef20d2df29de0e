"""Every derivative of attention, forward and reverse, first and higher, against the definition.

The definition here is a dozen lines of float64 that share nothing with the library, differentiated
by jax; where only first derivatives are asked for, the oracle's, derived by hand.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from attention_cases import (
    Shape,
    blind_rows,
    enable_x64,
    inputs,
    random_mask,
    unseen_keys,
    with_garbage,
)

from flaxattn import (
    alibi,
    attend,
    attend_with_stats,
    causal,
    from_dense,
    relative_positions,
    same_segment,
    softcap,
)

KEY, RATE = jax.random.key(3), 0.3


class Point(NamedTuple):
    """What is differentiated: where, or in which direction."""

    query: Any
    key: Any
    value: Any
    bias: Any
    scale: Any
    sinks: Any = None
    numbers: Any = None  # of the score, all in one


class Case(NamedTuple):
    """A call, and what of it is hidden."""

    shape: Shape
    bias: tuple[int, ...]
    mask: np.ndarray | None  # bool [B, N, T, S], 1 where shared
    scale: tuple[int, ...] = ()
    rate: float = 0.0
    dirty: bool = False  # what is hidden is NaN or inf
    sizes: tuple[int, int] | None = (4, 3)  # of the blocks; None: as "auto" draws them
    scored: bool = False  # and with sinks


GROUPED = Shape(2, 11, 13, 4, 2, 3, 2)
RANDOM = random_mask(GROUPED, 1)
LONG = Shape(1, 367, 373, 1, 1, 2, 2)

CASES = {
    "all at once": Case(
        GROUPED, (1, 4, 11, 1), RANDOM, scale=(4,), rate=RATE, dirty=True, sizes=(4, 3)
    ),
    "scores and sinks": Case(GROUPED, (1, 4, 1, 13), RANDOM, scale=(4,), scored=True),
    "mask of examples": Case(GROUPED, (2, 1, 11, 13), RANDOM[:, :1]),
    "no mask": Case(GROUPED, (1, 4, 1, 13), None, sizes=None),
    "one key head": Case(GROUPED._replace(K=1), (1, 1, 1, 1), RANDOM[:1, :1], rate=RATE),
    "as auto chooses": Case(GROUPED, (1, 1, 1, 13), RANDOM, sizes=None),
    "above the rule of auto": Case(
        LONG, (1, 1, 1, 1), np.tri(367, 373, 2, bool)[None, None], sizes=None
    ),
}


@functools.cache
def kept(shape):
    """bool [B, N, T, S]: what dropout keeps, read through equal weights and identity values."""
    query, keys = np.zeros((shape.B, shape.T, shape.N, 1)), np.zeros((shape.B, shape.S, shape.K, 1))
    identity = np.broadcast_to(np.eye(shape.S)[:, None], (shape.B, shape.S, shape.K, shape.S))
    options = {"dropout_rate": RATE, "dropout_key": KEY, "implementation": "dense"}
    return np.asarray(attend(query, keys, identity, **options)).swapaxes(1, 2) > 0


def definition(case, query, key, value, bias, scale, sinks, numbers):
    """Output and log-sum-exp, in a dozen lines; rows that see nothing are 0 and 0."""
    key, value = (jnp.repeat(x, case.shape.N // case.shape.K, axis=2) for x in (key, value))
    logits = jnp.einsum("btnh,bsnh->bnts", query, key) * scale.reshape(1, -1, 1, 1) + bias
    if case.scored:
        distance = np.arange(case.shape.S) - np.arange(case.shape.T)[:, None].astype(float)
        distance, numbers = distance[None, None], numbers.T[:, None, :, None, None]
        cap, slope, *table = numbers
        logits = cap * jnp.tanh(logits / cap) - slope * np.abs(distance)
        at = np.clip(distance, -1, 1)
        logits += sum(x * (at == i - 1).astype(float) for i, x in enumerate(table))
    seen = np.broadcast_to(True if case.mask is None else case.mask, case.shape.logits)
    blind = blind_rows(seen)
    top = jax.lax.stop_gradient(logits.max(-1))
    powers = jnp.where(seen, jnp.exp(logits - top[..., None]), 0.0)
    of_sinks = 0.0 if sinks is None else jnp.exp(sinks[None, :, None] - top)
    total = jnp.where(seen.any(-1), powers.sum(-1) + of_sinks, 1.0)
    weights = powers / total[..., None]
    if case.rate:
        weights = jnp.where(kept(case.shape), weights / (1.0 - case.rate), 0.0)
    lse = jnp.log(total) + top
    return jnp.einsum("bnts,bsnh->btnh", weights, value), jnp.where(
        blind, 0.0 if sinks is None else sinks[None, None], lse.swapaxes(1, 2)
    )


def attended(case, implementation, query, key, value, bias, scale, sinks, numbers):
    """The same of the library."""
    mask = case.mask if case.mask is None else from_dense(case.mask)
    if mask is not None and case.sizes is not None:
        (block_q, block_kv), (_, q_len, kv_len, *_) = case.sizes, case.shape
        mask = mask.plan(q_len, kv_len, block_q=block_q, block_kv=block_kv)
    dropout = {"dropout_rate": case.rate, "dropout_key": KEY} if case.rate else {}
    given = {"bias": bias, "scale": scale, "implementation": implementation} | dropout
    if case.scored:
        cap, slope, table = numbers[:, 0], numbers[:, 1], numbers[:, 2:]
        given |= {"score": softcap(cap) >> alibi(slope) >> relative_positions(table)}
        given |= {"sinks": sinks}
    output, lse = attend_with_stats(query, key, value, mask, **given)
    return output, jnp.where(jnp.isfinite(lse), lse, 0.0)


def point(case, seed, clean=None):
    """Normal variates; with `clean` what is hidden is 0, or garbage."""
    data = inputs(case.shape, seed, bias=case.bias, dtype=np.float64)
    rng = np.random.default_rng(seed)
    found = Point(*data[:4], 0.4 + 0.1 * rng.standard_normal(case.scale))
    if case.scored:
        numbers = 2 + 0.1 * rng.standard_normal((case.shape.N, 5))
        found = found._replace(sinks=rng.standard_normal(case.shape.N), numbers=numbers)
    if not case.dirty or clean is None:
        return found
    seen = np.broadcast_to(case.mask, case.shape.logits)
    hidden = {"query": blind_rows(seen)} | dict.fromkeys(
        ("key", "value"), unseen_keys(seen, case.shape.K)
    )
    return found._replace(
        **{
            name: np.where(where[..., None], 0, array) if clean else with_garbage(array, where)
            for name, where in hidden.items()
            for array in (getattr(found, name),)
        }
    )


# ---- The derivatives: of `f`, at x, along directions v and w ------------------------------------


def loss_of(f, case):
    """A number whose second derivatives are none of them zero."""
    cotangent = inputs(case.shape, 9, dtype=np.float64).cotangent

    def loss(x):
        output, lse = f(*x)
        return (output * cotangent).sum() + (output**2).sum() / 2 + (jnp.sin(lse)).sum()

    return loss


def dot(x, y):
    leaves = map(jax.tree.leaves, (x, y))
    return sum((a * b).sum() for a, b in zip(*leaves, strict=True))


def hvp(loss, x, v):
    return jax.jvp(jax.grad(loss), (x,), (v,))[1]


def gradient(f, loss, x, v, w):
    return jax.grad(loss)(x)


def jvp(f, loss, x, v, w):
    return jax.jvp(lambda x: f(*x), (x,), (v,))


def linearize(f, loss, x, v, w):
    outputs, push = jax.linearize(lambda x: f(*x), x)
    return outputs, push(v), push(w)


def forward_over_reverse(f, loss, x, v, w):
    return hvp(loss, x, v)


def reverse_over_forward(f, loss, x, v, w):
    return jax.grad(lambda x: jax.jvp(loss, (x,), (v,))[1])(x)


def forward_over_forward(f, loss, x, v, w):
    return jax.jvp(lambda x: jax.jvp(lambda x: f(*x), (x,), (v,))[1], (x,), (w,))[1]


def gradient_of_gradient(f, loss, x, v, w):
    return jax.grad(lambda x: dot(jax.grad(loss)(x), v))(x)


def hessian(f, loss, x, v, w):
    """Of three numbers that the point depends on."""

    def along(a):
        return loss(jax.tree.map(lambda x, v, w: x + a[0] * v + a[1] * w + a[2] * v * w, x, v, w))

    return jax.hessian(along)(np.zeros(3))


def vmap_of_jvp(f, loss, x, v, w):
    along = jax.tree.map(lambda *x: jnp.stack(x), v, w)
    return jax.vmap(lambda v: jax.jvp(lambda x: f(*x), (x,), (v,))[1])(along)


def vmap_of_vjp(f, loss, x, v, w):
    outputs, pull = jax.vjp(lambda x: f(*x), x)
    return jax.vmap(pull)(jax.tree.map(lambda y: jnp.stack([y, jnp.sin(y)]), outputs))


def vmap_of_hvp(f, loss, x, v, w):
    points = jax.tree.map(lambda a, b: jnp.stack([a, jnp.where(jnp.isfinite(a), a + b, a)]), x, v)
    return jax.vmap(lambda x: hvp(loss, x, w))(points)


def third(f, loss, x, v, w):
    return jax.grad(lambda x: dot(hvp(loss, x, v), w))(x)


DERIVATIVES: list[Callable] = [
    *(gradient_of_gradient, forward_over_reverse, jvp, vmap_of_hvp),
    *(gradient, linearize, reverse_over_forward, forward_over_forward, hessian),
    *(vmap_of_jvp, vmap_of_vjp, third),
]
TABLE = [("all at once", derivative, "blockwise") for derivative in DERIVATIVES]
TABLE += [("all at once", derivative, "dense") for derivative in DERIVATIVES]
TABLE += [
    ("scores and sinks", derivative, implementation)
    for derivative in DERIVATIVES
    for implementation in ("blockwise", "dense")
]
TABLE += [
    (name, derivative, "auto" if name.endswith(("chooses", "auto")) else "blockwise")
    for name in list(CASES)[2:]
    for derivative in (jvp, forward_over_reverse, gradient_of_gradient)
]


def evaluate(f, case, derivative, clean):
    x, v, w = point(case, 0, clean), point(case, 1), point(case, 2)
    fn = functools.partial(derivative, f, loss_of(f, case))
    return jax.tree.map(np.asarray, jax.jit(fn)(x, v, w))


@functools.cache
def expected(name, derivative):
    case = CASES[name]
    kept(case.shape)  # not while tracing
    return evaluate(functools.partial(definition, case), case, derivative, True)


@pytest.mark.thorough(quick=1)
@pytest.mark.parametrize(
    "name, derivative, implementation",
    TABLE,
    ids=[f"{name} - {derivative.__name__} - {kind}" for name, derivative, kind in TABLE],
)
def test_derivatives_are_those_of_the_definition(name, derivative, implementation):
    with enable_x64(True):
        case, wanted = CASES[name], expected(name, derivative)
        got = evaluate(functools.partial(attended, case, implementation), case, derivative, False)
        for a, e in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
            assert np.isfinite(e).all() and np.any(e)
            np.testing.assert_allclose(a, e, atol=1e-9 * max(np.abs(e).max(), 1))


def beside(bias, f):
    """`f` of the rest of a point, with this bias."""
    return lambda *x: f(*x[:3], bias, *x[4:])


BESIDE = [gradient, jvp, gradient_of_gradient, forward_over_reverse, vmap_of_vjp, vmap_of_hvp]


@pytest.mark.thorough(quick=2)
@pytest.mark.parametrize("name", ["all at once", "scores and sinks", "mask of examples", "no mask"])
@pytest.mark.parametrize("derivative", BESIDE, ids=lambda derivative: derivative.__name__)
def test_derivatives_beside_a_bias_that_stays(name, derivative):
    case = CASES[name]

    def found(f, clean):
        def of_rest(bias, *points):
            own = beside(bias, f)
            return derivative(own, loss_of(own, case), *points)

        points = [point(case, 0, clean), point(case, 1), point(case, 2)]
        rest = [x._replace(bias=None) for x in points]
        return jax.tree.map(np.asarray, jax.jit(of_rest)(points[0].bias, *rest))

    with enable_x64(True):
        kept(case.shape)  # not while tracing
        wanted = found(functools.partial(definition, case), True)
        got = found(functools.partial(attended, case, "blockwise"), False)
        for a, e in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
            assert np.isfinite(e).all() and np.any(e)
            np.testing.assert_allclose(a, e, atol=1e-9 * max(np.abs(e).max(), 1))


@pytest.mark.thorough(quick=1)
@pytest.mark.parametrize("name", ["all at once", "mask of examples", "no mask"])
def test_a_bias_that_stays_in_the_gradient_may_move_after_it(name):
    case = CASES[name]

    def found(f, clean):
        x, v = point(case, 0, clean), point(case, 1)._replace(bias=None)

        def slope(bias):
            loss = loss_of(beside(bias, f), case)
            return dot(jax.grad(loss)(x._replace(bias=None)), v)

        return np.asarray(jax.jit(jax.grad(slope))(x.bias))

    with enable_x64(True):
        kept(case.shape)
        wanted = found(functools.partial(definition, case), True)
        got = found(functools.partial(attended, case, "blockwise"), False)
        assert np.isfinite(wanted).all() and np.any(wanted)
        np.testing.assert_allclose(got, wanted, atol=1e-9 * max(np.abs(wanted).max(), 1))


def test_no_gradient_of_a_bias_that_stays_is_summed():
    x, bias = np.zeros((1, 104, 2, 3), np.float32), np.zeros((1, 2, 104, 104), np.float32)

    def loss(x, bias):
        return attend(x, x, x, causal(), bias=bias, implementation="blockwise").sum()

    def largest_sum(argnums):
        jaxpr = jax.make_jaxpr(jax.grad(loss, argnums))(x, bias).jaxpr
        sums = [e for e in equations(jaxpr) if e.primitive.name == "scatter-add"]
        return max(e.outvars[0].aval.size for e in sums)

    assert largest_sum((0, 1)) >= bias.size
    assert largest_sum(0) < bias.size / 4


@pytest.mark.thorough(quick=1)
@pytest.mark.parametrize("implementation", ["blockwise", "dense"])
def test_first_derivatives_forward_are_those_of_the_oracle(implementation):
    """Derived by hand: <cotangent, J v> = <J' cotangent, v>."""
    with enable_x64(True):
        case = CASES["mask of examples"]
        x, v, cotangent = point(case, 0), point(case, 1), point(case, 5).query[..., :2]
        f = functools.partial(attended, case, implementation)
        pushed = jax.jit(lambda x, v: jax.jvp(f, x, v)[1][0])(x, v)
        slopes = oracle.gradients(cotangent, *x[:3], case.mask, x.bias, float(x.scale))
        np.testing.assert_allclose((pushed * cotangent).sum(), dot(slopes, v[:5]), rtol=1e-10)


# ---- What they cost ------------------------------------------------------------------------------


def packed(x, ids):
    return attend(x, x, x, causal() & same_segment(ids), implementation="blockwise")


def program(derivative, length):
    """The compiled derivative of packed causal attention; nothing is run."""
    x = jax.ShapeDtypeStruct((1, length, 2, 8), jnp.float32)
    ids = jax.ShapeDtypeStruct((1, length), jnp.int32)

    def call(x, v, ids):
        def f(x):
            return (packed(x, ids),)

        return derivative(lambda x: f(x), lambda x: jnp.sin(f(*x)[0]).sum(), (x,), (v,), (v,))

    return jax.jit(call).lower(x, x, ids).compile()


COSTLY = [gradient_of_gradient, jvp, forward_over_reverse, linearize, reverse_over_forward]


@pytest.mark.thorough
@pytest.mark.parametrize("derivative", COSTLY, ids=lambda derivative: derivative.__name__)
def test_memory_at_most_doubles_with_the_lengths(derivative):
    small, large = (
        program(derivative, length).memory_analysis().temp_size_in_bytes for length in (4096, 8192)
    )
    assert 0 < large <= 2.05 * small
    assert large < 8192 * 8192


def equations(jaxpr):
    """Those of a jaxpr and of all that it calls."""
    for equation in jaxpr.eqns:
        yield equation
        for value in jax.tree.leaves(equation.params, is_leaf=lambda x: hasattr(x, "eqns")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from equations(inner)


@pytest.mark.parametrize("derivative", [gradient, jvp], ids=lambda derivative: derivative.__name__)
def test_first_derivatives_visit_live_blocks_alone(derivative):
    """Their loops go on for as long as there is work, and none over all places of a list."""
    x = np.zeros((1, 26 * 4, 2, 3), np.float32)
    plan = causal().plan(26 * 4, 26 * 4, block_q=4, block_kv=4)

    def f(x):
        return (attend(x, x, x, plan),)

    args = (lambda x: f(x), lambda x: f(*x)[0].sum(), (x,), (x,), (x,))
    found = list(equations(jax.make_jaxpr(lambda: derivative(*args))().jaxpr))
    lengths = {e.params["length"] for e in found if e.primitive.name == "scan"}
    assert any(e.primitive.name == "while" for e in found)
    assert not lengths & {13, 26, 27}, lengths  # lists of 26 places, two to a visit
