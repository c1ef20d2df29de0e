"""The kernels of TPUs, in interpreters of the CPU, against the definition."""

import functools
from contextlib import ExitStack, contextmanager
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fused_cases import CASES, assert_answers, call_of, cotangents_of, dense, fused
from jax.sharding import NamedSharding, PartitionSpec
from tpu_interpreter import interpreted

from flaxattn import attend, causal, sliding_window
from flaxattn.attention.fused import tpu
from flaxattn.attention.fused.given import Lists
from flaxattn.attention.fused.tpu.grid import FULL, PARTIAL, _steps, _unpacked


@contextmanager
def on_tpu():
    """Inside, calls are made as for a TPU, and no loops can take the place of kernels."""
    with ExitStack() as stack:
        attend = "flaxattn.attention.fused.attend.chip"
        stack.enter_context(mock.patch(attend, lambda: "tpu"))
        for name in ("forward", "backward"):
            stack.enter_context(mock.patch(f"flaxattn.attention.blockwise.{name}", None))
        yield


def assert_kernels_compute_the_definition(name, interpreter):
    case = CASES[name]
    call, cotangents = call_of(case), cotangents_of(case)
    with interpreted(interpreter):
        sizes = dict(block_q=16, block_kv=128)
        actual = fused("tpu", call, cotangents, case.rate, interpreter=interpreter, **sizes)
    assert_answers(actual, dense(call, cotangents, case.rate))


@pytest.mark.thorough(quick=6)
@pytest.mark.parametrize("name", CASES)
def test_kernels_compute_the_definition(name):
    assert_kernels_compute_the_definition(name, "plain")


@pytest.mark.thorough(quick=1)
@pytest.mark.parametrize("name", ["documents, bfloat16", "dropout, documents", "window of heads"])
def test_kernels_compute_it_in_the_memory_of_a_tpu(name):
    assert_kernels_compute_the_definition(name, "memory")


def test_they_are_an_implementation_of_attend():
    """In blocks of sizes of their own, with the rules of its derivatives, and under vmap."""
    query, key, value, mask, score, sinks, *_ = call_of(CASES["empty rows, sinks, softcap"])

    def gradients(implementation):
        def loss(query, key, value, sinks, mask):
            given = dict(score=score, sinks=sinks, implementation=implementation)
            return jnp.sin(attend(query, key, value, mask, **given)).sum()

        each = jax.tree.map(lambda x: x[:, None], (query, key, value)), sinks, mask
        over = jax.vmap(jax.grad(loss, (0, 1, 2, 3)), (0, 0, 0, None, 0))
        return jax.jit(over)(*each[0], sinks, jax.tree.map(lambda x: x[:, None], mask))

    expected = gradients("dense")
    with interpreted(), on_tpu():
        actual = gradients("fused")
    for a, e in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, e, atol=1e-5)


def test_devices_attend_in_place_by_kernels():
    """Under a plain jit, with examples and heads spread: nothing is gathered."""
    query, key, value, mask, *_ = call_of(CASES["window of heads"])
    mesh = jax.make_mesh((2, 2), ("b", "h"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    place = NamedSharding(mesh, PartitionSpec("b", None, "h"))

    def pulled(implementation, *arrays):
        def attended(*arrays):
            return attend(*arrays, mask, implementation=implementation)

        output, pull = jax.vjp(attended, *arrays)
        return output, pull(jnp.sin(output))

    arrays = [jax.device_put(x, place) for x in (query, key, value)]
    with interpreted(), on_tpu():
        program = jax.jit(functools.partial(pulled, "fused")).lower(*arrays).compile()
    assert "all-gather" not in program.as_text()
    expected = jax.jit(functools.partial(pulled, "dense"))(query, key, value)
    for a, e in zip(*map(jax.tree.leaves, (program(*arrays), expected)), strict=True):
        np.testing.assert_allclose(a, e, atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 4, 37, 300), (2, 1, 1, 300), (1, 4, 37, 1)])
def test_a_bias_has_a_gradient(shape):
    query, key, value, mask, *_ = call_of(CASES["empty rows, sinks, softcap"])
    bias = jnp.asarray(np.random.default_rng(0).standard_normal(shape), jnp.float32)

    def gradients(implementation):
        def loss(*arrays, bias):
            return jnp.sin(attend(*arrays, mask, bias=bias, implementation=implementation)).sum()

        return jax.jit(jax.grad(lambda x, bias: loss(*x, bias=bias), (0, 1)))(
            (query, key, value), bias
        )

    expected = gradients("dense")
    with interpreted(), on_tpu():  # loops that kernels give the gradients to are others
        actual = gradients("fused")
    for a, e in zip(*map(jax.tree.leaves, (actual, expected)), strict=True):
        np.testing.assert_allclose(a, e, atol=1e-5)


@pytest.mark.parametrize("in_axes", [(0, None, None), (None, 0, None), (0, 0, 0)])
def test_arrays_are_vmapped_beside_a_mask_that_is_not(in_axes):
    """Whether all is finite then differs, and with it which blocks count as partial."""
    query, key, value, mask, *_ = call_of(CASES["what is seen is not finite"])

    def pulled(implementation):
        def loss(*arrays):
            return jnp.sin(attend(*arrays, mask, implementation=implementation)).sum()

        arrays = [
            x if axis is None else jnp.stack([x, jnp.cos(x)])
            for x, axis in zip((query, key, value), in_axes, strict=True)
        ]
        return jax.jit(jax.vmap(jax.value_and_grad(loss, (0, 1, 2)), in_axes))(*arrays)

    expected = pulled("dense")
    with interpreted(), on_tpu():
        actual = pulled("fused")
    for a, e in zip(*map(jax.tree.leaves, (actual, expected)), strict=True):
        np.testing.assert_allclose(a, e, atol=1e-4)


def lists_of(mask, q_len, kv_len):
    return Lists(
        *(
            jnp.asarray(x)[None, None]
            for x in mask.plan(q_len, kv_len, block_q=16, block_kv=16).live
        )
    )


@pytest.mark.parametrize("mask", [causal() & sliding_window(40), ~causal()])
def test_steps_are_all_live_blocks_line_by_line_full_ones_first(mask):
    lists = lists_of(mask, 80, 112)
    steps, longest = _steps(lists)
    line, block, kind, first, last = map(np.asarray, _unpacked(steps))
    start = 0
    for i in range(5):
        live = int(lists.num_live[0, 0, i])
        stop = start + max(live, 1)
        assert (line[start:stop] == i).all()
        assert first[start:stop].tolist() == [True] + [False] * (stop - start - 1)
        assert last[start:stop].tolist() == [False] * (stop - start - 1) + [True]
        full = int(lists.num_full[0, 0, i])
        assert kind[start : start + live].tolist() == [FULL] * full + [PARTIAL] * (live - full)
        assert block[start : start + live].tolist() == lists.blocks[0, 0, i, :live].tolist()
        start = stop
    assert longest == start
    assert not kind[start:].any() and not first[start:].any() and not last[start:].any()
    assert (line[start:] == 4).all()


@pytest.mark.parametrize("length", [1, 16, 100, 128, 129, 600, 4096, 8192, 100_000])
def test_blocks_are_such_as_tpus_take(length):
    block_q, block_kv = tpu.block_sizes(length, length)
    assert block_kv % 128 == 0
    assert block_q % 128 == 0 or (block_q % 16 == 0 and block_q >= length)
    assert -(-length // block_q) * block_q - length < max(128 * -(-length // block_q), 16)


def test_what_tpus_cannot_do_is_said_in_words():
    long = 2**17, 2**17
    assert tpu.why_not(jnp.bfloat16, (128, 128), long, ()) is None
    assert "float16" in tpu.why_not(jnp.dtype("float16"), (128, 128), long, ())
    assert "up to 512" in tpu.why_not(jnp.float32, (640, 640), (9, 9), (2,))
    assert "253,952" in tpu.why_not(jnp.float32, (64, 64), long, (2, 16))


def test_longer_sequences_get_blocks_whose_lists_fit():
    long, lead = (2**17, 2**17), (1, 8)
    assert tpu.why_not(jnp.float32, (64, 64), long, lead) is None
    assert np.prod(tpu.block_sizes(*long, lead)) > np.prod(tpu.block_sizes(*long))
