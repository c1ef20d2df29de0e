"""`attend_over`: a sequence over several devices is the sequence on one, in values and gradients.

Devices are named by an axis, and jax names axes of a `vmap` alike: so any number of them costs none.
What moves, and who needs how much memory, is asked of the four devices that tests have.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attention_cases import Shape, inputs
from mask_cases import B, N, random_mask
from score_cases import as_floats, random_score

from flaxattn import (
    Layout,
    attend,
    attend_over,
)

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
    return layouts, shape, random_mask(rng).mask, options, bias, made, rate


@pytest.mark.thorough(quick=9)
@pytest.mark.parametrize("seed", range(60))
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
