"""The kernels of Hopper GPUs, in the interpreter of the CPU, against the definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attention_cases import Shape
from fused_cases import CASES, Case, assert_answers, call_of, cotangents_of, dense, fused
from hopper_interpreter import INTERPRETER, interpreted

from flaxattn import causal, same_segment
from flaxattn.attention.fused.given import Lists, columns_of
from flaxattn.attention.fused.hopper import machine

SIZES = {"block_q": 128, "block_kv": 128}
TINY = Shape(B=1, T=37, S=128, N=1, K=1, H=8, H_value=8)
SLOW = {  # of what the interpreter takes longest for, other cases show as much
    *("global tokens", "a rule of one's own", "chunks, shifted", "dilated", "no mask", "prefix"),
    *("nothing at all", "documents, bfloat16", "causal"),
    *("window of heads", "a score without values past the last query"),
    "shared bias of pairs, bfloat16",
}


needs_interpreter = pytest.mark.skipif(INTERPRETER is None, reason="this jax has none for GPUs")


@needs_interpreter
@pytest.mark.thorough(quick=1)
@pytest.mark.parametrize("name", [name for name in CASES if name not in SLOW])
def test_kernels_compute_the_definition(name):
    """In float32, which the interpreter multiplies, if tensor cores do not."""
    case = CASES[name]
    call, cotangents = call_of(case), cotangents_of(case)
    with interpreted():
        actual = fused("hopper", call, cotangents, case.rate, **SIZES)
    assert_answers(actual, dense(call, cotangents, case.rate))


@needs_interpreter
@pytest.mark.thorough(quick=1)
@pytest.mark.parametrize("name", ["nothing at all", "no mask", "causal"])
def test_one_block_is_enough(name):
    """Of which all, or nothing, may be seen."""
    case = CASES[name]._replace(shape=TINY)
    call, cotangents = call_of(case), cotangents_of(case)
    with interpreted():
        actual = fused("hopper", call, cotangents, case.rate, **SIZES)
    assert_answers(actual, dense(call, cotangents, case.rate))


@needs_interpreter
def test_errors_in_bfloat16_are_those_of_the_definition():
    """Beside float32; a tenth more is let pass."""
    case = Case(lambda rng, shape: causal(), CASES["causal"].shape, dtype=jnp.bfloat16)
    call, cotangents = call_of(case), cotangents_of(case)
    with interpreted():
        actual = fused("hopper", call, cotangents, 0.0, **SIZES)
    expected = dense(call, cotangents, 0.0)
    exact = dense(*jax.tree.map(lambda x: x.astype(jnp.float32), (call, cotangents)), 0.0)
    for name in ("output", "query", "key", "value"):
        a, b, c = (getattr(x, name) for x in (actual, expected, exact))
        assert distance(a, c) <= 1.1 * distance(b, c)


def distance(x, y):
    return float(jnp.linalg.norm((x.astype(jnp.float32) - y).ravel()))


@pytest.mark.parametrize("grid", [(1, 1, 1), (5, 3, 2), (4, 16, 3)])
@pytest.mark.parametrize("heads_cached", [0.3, 1, 2, 5, 1000])
@pytest.mark.parametrize("last_first", [False, True])
def test_programs_do_each_row_once_and_few_heads_at_a_time(grid, heads_cached, last_first):
    rows, heads, batch = grid
    order = machine.Order.of(grid, int(machine.CACHED / heads_cached), last_first=last_first)
    numbers = jnp.arange(rows * heads * batch)
    places = jax.vmap(lambda number: jnp.stack(order.here(number, jnp.int32(0))))(numbers)
    found = [tuple(x) for x in np.asarray(places).tolist()]
    assert sorted(found) == [
        (r, h, b, 0) for r in range(rows) for h in range(heads) for b in range(batch)
    ]
    together = min(max(1, int(heads_cached)), heads * batch)
    for start in range(0, len(found), rows * together):
        these = found[start : start + rows * together]
        assert len({(head, example) for _, head, example, _ in these}) <= together
        by_row = [row for row, *_ in these]
        assert by_row == sorted(by_row, reverse=last_first)


def test_rows_and_columns_of_a_plan():
    """The query blocks of each key block, as the plan itself tells them."""
    mask = causal() & same_segment(jnp.asarray([[0] * 5 + [1] * 8, [0] * 9 + [1] * 4]))
    plan = mask.plan(13, 13, block_q=2, block_kv=3)
    rows = Lists(*(jnp.asarray(x)[:, None] for x in plan.live))
    for x, y in zip(columns_of(rows), plan.transpose(), strict=True):
        np.testing.assert_array_equal(x[:, 0], y)
