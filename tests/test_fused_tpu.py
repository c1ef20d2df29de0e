"""The kernels of TPUs, in interpreters of the CPU, against the definition."""

import jax.numpy as jnp
import numpy as np
import pytest
from fused_cases import CASES, assert_answers, call_of, cotangents_of, dense, fused
from jax.experimental.pallas import tpu as pltpu

from flaxattn import causal, sliding_window
from flaxattn.attention.fused import tpu
from flaxattn.attention.fused.given import Lists, columns_of
from flaxattn.attention.fused.tpu_grid import FULL, PARTIAL, _steps, _unpacked

SIZES = dict(block_q=16, block_kv=128)


@pytest.mark.thorough(quick=6)
@pytest.mark.parametrize("name", CASES)
def test_kernels_compute_the_definition(name):
    case = CASES[name]
    call, cotangents = call_of(case), cotangents_of(case)
    actual = fused(tpu, call, cotangents, case.rate, interpret=True, **SIZES)
    assert_answers(actual, dense(call, cotangents, case.rate))


@pytest.mark.thorough(quick=1)
@pytest.mark.parametrize("name", ["documents, bfloat16", "dropout, documents", "window of heads"])
def test_kernels_compute_it_with_the_memory_of_a_tpu(name):
    """In the interpreter that knows copies and the order of the grid; fresh memory holds NaN."""
    case = CASES[name]
    call, cotangents = call_of(case), cotangents_of(case)
    actual = fused(tpu, call, cotangents, case.rate, interpret=pltpu.InterpretParams(), **SIZES)
    assert_answers(actual, dense(call, cotangents, case.rate))


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


def test_columns_are_the_rows_of_the_other_side():
    rows = lists_of(causal() & sliding_window(40), 80, 112)
    columns = columns_of(rows)

    def live(lists):
        blocks, num_full, num_live = (np.asarray(x)[0, 0] for x in lists)
        return {
            (line, int(block), slot < num_full[line])
            for line, own in enumerate(blocks)
            for slot, block in enumerate(own[: num_live[line]])
        }

    assert live(rows) == {(i, j, full) for j, i, full in live(columns)}


@pytest.mark.parametrize("length", [1, 16, 100, 128, 129, 600, 4096, 8192, 100_000])
def test_blocks_are_such_as_tpus_take(length):
    block_q, block_kv = tpu.block_sizes(length, length)
    assert block_kv % 128 == 0
    assert block_q % 128 == 0 or (block_q % 16 == 0 and block_q >= length)
    assert -(-length // block_q) * block_q - length < max(128 * -(-length // block_q), 16)


def test_what_tpus_cannot_do_is_said_in_words():
    assert tpu.why_not(jnp.bfloat16, (1, 1), (256, 256), 8) is None
    assert "float16" in tpu.why_not(jnp.float16, (1, 1), (4, 4), 1)
    assert "253,952" in tpu.why_not(jnp.float32, (2, 16), (256, 256), 1)


def test_longer_sequences_get_blocks_whose_lists_fit():
    lead = (1, 8)
    block_q, block_kv = tpu.block_sizes(2**17, 2**17, lead)
    assert tpu.why_not(jnp.float32, lead, (2**17 // block_q, 2**17 // block_kv), 1) is None
