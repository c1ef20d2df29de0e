"""A cache whose cells form a ring, and steps over live cells alone, against one pass over all."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_cache import call, close, jit, normal, parameters

from flaxattn import (
    CachePosition,
    Encoder,
    EncoderLayer,
    MultiHeadAttention,
    causal,
    chunked,
    prefix,
    same_segment,
    sliding_window,
    valid,
    where,
)
from flaxattn.attention.costs import live_lengths

B, T, D = 2, 19, 8
SEGMENTS = np.repeat([[1, 2, 3, 4, 5], [1, 1, 2, 2, 3]], 4, axis=1)[:, :T]  # of 4 and of 8
SINKS = np.arange(T) % 5 != 3  # some keys are hidden from all

window = functools.partial(sliding_window, right=0)


def ring_at(index, length=None):
    return {"cache_position": CachePosition(index, length, ring=True)}


def one_pass(layer, params, x, mask):
    return layer.apply({"params": params}, x, mask=mask, deterministic=True)


def through_ring(layer, params, x, mask, length, chunks, **given):
    """The outputs of one chunk after another."""
    step = functools.partial(call, layer, params, mask=mask, **given)
    step = jit(lambda cache, x, index, step=step: step(cache, x, **ring_at(index, length)))
    cache, outputs, start = None, [], 0
    for size in chunks:
        output, cache = step(cache, x[:, start : start + size], jnp.asarray(start))
        outputs.append(output)
        start += size
    return np.concatenate(outputs, axis=1), cache


# ---- As one pass ----------------------------------------------------------------------------

SETTINGS = [{"rotary": True}, {"num_kv_heads": 1}, {"implementation": "blockwise"}]


@pytest.mark.thorough(quick=1)
@pytest.mark.parametrize("seed", range(6))
def test_random_windows_in_random_rings_and_chunks_equal_one_pass(seed):
    rng = np.random.default_rng(seed)
    left = int(rng.integers(0, 7))
    length = left + 1 + int(rng.integers(0, 4))
    chunks = []
    while sum(chunks) < T:
        chunks.append(min(int(rng.choice([1, 1, 2, 3, length, length + 2, 11])), T - sum(chunks)))
    layer, x = MultiHeadAttention(2, **SETTINGS[seed % 3]), normal(B, T, D, seed=seed)
    params, mask = parameters(layer, x), window(left)
    output, cache = through_ring(layer, params, x, mask, length, chunks)
    close(output, one_pass(layer, params, x, mask))
    assert {leaf.shape[:2] for leaf in jax.tree.leaves(cache)} == {(B, length)}


MASKS = {
    "window of each example": window(np.array([1, 3])),
    "window of each head": window(np.array([[0, 3]])),
    "chunks as long as the ring": causal() & chunked(4),
    "keys hidden from all": window(3) & valid(SINKS),
    "a rule that bounds know nothing of, in a window": window(3)
    & where(lambda q, k, bar: (q + k) % 3 != bar, jnp.array([0, 1])),
    "positions of one's own": window(3).at(np.arange(T) + 7, np.arange(T) + 7),
}


@pytest.mark.thorough(quick=1)
@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_masks_that_see_no_farther_back_than_the_ring(mask):
    layer, x = MultiHeadAttention(2), normal(B, T, D)
    params = parameters(layer, x)
    close(
        through_ring(layer, params, x, mask, 4, [6, 2, 5, 1, 1, 1, 1, 2])[0],
        one_pass(layer, params, x, mask),
    )


@pytest.mark.thorough
def test_segments_no_longer_than_the_ring():
    layer, x = MultiHeadAttention(2), normal(B, T, D)
    params, mask = parameters(layer, x), causal() & same_segment(SEGMENTS)
    output, _ = through_ring(layer, params, x, mask, 8, [3, 9] + [1] * 7)
    close(output, one_pass(layer, params, x, mask))


def test_each_example_has_an_index_of_its_own_in_the_ring():
    layer, x, mask = MultiHeadAttention(2, rotary=True), normal(B, T, D), window(2)
    params = parameters(layer, x)
    expected = one_pass(layer, params, x, mask)
    step = jit(functools.partial(call, layer, params, mask=mask))
    index, cache = np.array([0, 0]), None
    for size, advance in [
        (2, [1, 2]),
        (1, [1, 0]),
        (5, [5, 4]),
        (1, [0, 1]),
        (3, [2, 3]),
        (1, [1, 1]),
    ]:
        rows, cells = np.arange(B)[:, None], index[:, None] + np.arange(size)
        output, cache = step(cache, x[rows, cells], **ring_at(index, 7))
        close(output, expected[rows, cells])
        index = index + advance


@pytest.mark.thorough
def test_a_deep_model_decodes_in_one_program_with_memory_of_its_window():
    stack = Encoder(functools.partial(EncoderLayer, 2, 9, rotary=True), 2, share_layers=True)
    x, mask = normal(B, T, D), window(3)
    params = parameters(stack, x)
    prompt, cache = jit(functools.partial(call, stack, params, mask=mask))(
        None, x[:, :7], **ring_at(0, 4)
    )

    @jit
    def decode(cache, tokens):
        def step(cache, token):
            x, index = token
            output, cache = call(stack, params, cache, x[:, None], mask=mask, **ring_at(index))
            return cache, output[:, 0]

        return jax.lax.scan(step, cache, (tokens.swapaxes(0, 1), jnp.arange(7, T)))[1]

    output = np.concatenate([prompt, decode(cache, x[:, 7:]).swapaxes(0, 1)], axis=1)
    close(output, one_pass(stack, params, x, mask))


@pytest.mark.thorough
@pytest.mark.parametrize("size", [1, 3])
def test_gradients_flow_through_the_ring(size):
    layer, x, mask = MultiHeadAttention(2), normal(B, 9, D), window(3)
    params, cotangent = parameters(layer, x), normal(B, 9, D, seed=1)

    def loss(x):
        cache, total = None, 0.0
        for start in range(0, 9, size):
            part = slice(start, start + size)
            output, cache = call(layer, params, cache, x[:, part], mask=mask, **ring_at(start, 4))
            total += jnp.vdot(output, cotangent[:, part])
        return total

    def expected(x):
        return jnp.vdot(one_pass(layer, params, x, mask), cotangent)

    close(jit(jax.grad(loss))(x), jit(jax.grad(expected))(x))


# ---- What no cell holds is not missed silently ----------------------------------------------


def seen_and_gone(mask, length, chunks):
    """bool [B, T]: the query sees a position that had left the ring when its chunk came."""
    dense = np.broadcast_to(mask.dense(T, T), (B, T, T))
    gone, start = np.zeros((B, T), bool), 0
    for size in chunks:
        oldest = max(start + size - length if size == 1 else start - length, 0)
        gone[:, start : start + size] = dense[:, start : start + size, :oldest].any(-1)
        start += size
    return gone


@pytest.mark.thorough(quick=1)
@pytest.mark.parametrize(
    "mask",
    [
        causal(),
        window(5),
        window(np.array([2, 6])),
        causal() & (sliding_window(2) | prefix(1)),
        causal() & chunked(6),
        causal() & same_segment(SEGMENTS),
    ],
    ids=str,
)
def test_exactly_the_queries_that_see_what_is_gone_are_nan(mask):
    chunks = [5, 4, 1, 1, 1, 1, 6]
    layer, x = MultiHeadAttention(2), normal(B, T, D)
    params, length = parameters(layer, x), 4
    output, _ = through_ring(layer, params, x, mask, length, chunks)
    gone = seen_and_gone(mask, length, chunks)
    assert gone.any()
    assert not gone.all()
    assert np.isnan(output[gone]).all()
    close(output[~gone], one_pass(layer, params, x, mask)[~gone])


@pytest.mark.thorough
def test_a_head_that_sees_what_is_gone_is_nan_though_others_are_right():
    layer, x = MultiHeadAttention(2), normal(B, T, D)
    params = parameters(layer, x)
    for left, lost in [([[3, 3]], False), ([[3, 4]], True)]:
        output, _ = through_ring(layer, params, x, window(np.array(left)), 4, [1] * T)
        assert np.isnan(output[:, 4:]).all() == lost
        assert np.isfinite(output[:, :4]).all()


def test_a_padded_prompt_that_wrapped_is_nan_and_one_that_did_not_is_right():
    """Padding takes cells too: what it took is gone, and never read as if it were there."""
    layer, x, mask = MultiHeadAttention(2), normal(B, T, D), window(3)
    params = parameters(layer, x)
    expected = one_pass(layer, params, x, mask)
    step = jit(functools.partial(call, layer, params, mask=mask))
    for length, right in [(6, [True, True]), (4, [False, True])]:
        _, cache = step(None, x[:, :6], **ring_at(0, length))
        index = np.array([2, 6])  # the first example had two tokens, and garbage after them
        token = x[np.arange(B), index][:, None]
        output, _ = step(cache, token, **ring_at(index))
        for b in range(B):
            if right[b]:
                close(output[b, 0], expected[b, index[b]])
            else:
                assert np.isnan(output[b]).all()


@pytest.mark.thorough
def test_going_back_is_right_as_far_as_cells_still_hold_what_is_seen():
    """Tokens that were tried and taken back have pushed others out."""
    layer, x, mask = MultiHeadAttention(2), normal(B, T, D), window(2)
    params = parameters(layer, x)
    expected = one_pass(layer, params, x, mask)
    step = jit(functools.partial(call, layer, params, mask=mask))
    _, prompt = step(None, x[:, :8], **ring_at(0, 4))
    for tried, right in [(1, True), (2, True), (3, False), (4, False)]:
        _, cache = step(prompt, x[:, :tried], **ring_at(8))
        output, _ = step(cache, x[:, 8:9], **ring_at(8))
        if right:
            close(output[:, 0], expected[:, 8])
        else:
            assert np.isnan(output).all()


@pytest.mark.thorough
@pytest.mark.parametrize("size", [3, 1])
def test_garbage_in_cells_that_the_mask_hides_changes_no_bit(size):
    layer, x, mask = MultiHeadAttention(2), normal(B, T, D), window(2)
    params = parameters(layer, x)
    _, cache = call(layer, params, None, x[:, :9], mask=mask, **ring_at(0, 8))
    step = functools.partial(call, layer, params, x=x, mask=mask, **ring_at(9))
    hidden = np.array([False, *[True] * 6, False])  # of 1 to 8 only 7 and 8 are seen from 9 on
    dirty = cache | {
        name: jnp.where(hidden[None, :, None, None], jnp.nan, cache[name])
        for name in ("cached_key", "cached_value")
    }
    step = jit(functools.partial(call, layer, params, mask=mask, **ring_at(9)))
    expected, _ = step(cache, x[:, 9 : 9 + size])
    np.testing.assert_array_equal(step(dirty, x[:, 9 : 9 + size])[0], expected)
    assert np.isfinite(expected).all()


def test_errors_of_a_ring_name_what_is_wrong():
    layer, x = MultiHeadAttention(2), normal(B, T, D)
    params = parameters(layer, x)
    _, ring = call(layer, params, None, x[:, :3], **ring_at(0, 4))
    _, line = call(layer, params, None, x[:, :3], cache_position=CachePosition(0, 4))
    step = functools.partial(call, layer, params)
    in_line, bias = {"cache_position": CachePosition(3)}, np.zeros((1, 1, 1, 4), np.float32)
    for message, cache, size, given in [
        ("ring is False, but the cache was made with True", ring, 1, in_line),
        ("ring is True, but the cache was made with False", line, 1, ring_at(3)),
        ("length is 0; expected at least 1", None, 1, ring_at(0, 0)),
        ("bias is given", ring, 1, {"bias": bias} | ring_at(3)),
        ("or as a ring", line, 5, in_line),
    ]:
        with pytest.raises(ValueError, match=message):
            step(cache, x[:, :size], **given)


# ---- Steps over live cells alone ------------------------------------------------------------


def test_lengths_of_live_cells():
    assert live_lengths(1, 511) == (511,)
    assert live_lengths(1, 4096) == (256, 512, 1024, 2048, 4096)
    assert live_lengths(1000, 4097) == (1025, 2049, 4097)
    assert live_lengths(4096, 4096) == (4096,)


@pytest.mark.thorough
@pytest.mark.parametrize("bias", [True, False])
def test_steps_over_live_cells_equal_one_pass_at_both_sides_of_their_ends(bias):
    layer, cells = MultiHeadAttention(2), 1030
    x = normal(1, cells, 4)
    params = parameters(layer, x)
    bias = normal(1, 2, 1, cells, seed=2) if bias else None
    given = {"mask": causal(), "bias": bias}
    expected = layer.apply({"params": params}, x, **given, deterministic=True)
    _, full = call(layer, params, None, x, **given, cache_position=CachePosition(0, cells))
    step = jit(lambda cache, x, at: call(layer, params, cache, x, **given, cache_position=at)[0])
    for index in (0, 257, 258, 514, 515, 1029):
        cache = jax.tree.map(lambda leaf, i=index: leaf.at[:, i:].set(jnp.nan), full)
        token = x[:, index : index + 1]
        close(step(cache, token, CachePosition(index))[:, 0], expected[:, index])
        close(step(cache, token, CachePosition(jnp.array([index])))[:, 0], expected[:, index])


def test_a_step_over_few_live_cells_has_a_program_for_few():
    layer, x = MultiHeadAttention(2), normal(1, 1, 4)
    cache = jax.eval_shape(
        lambda: call(layer, parameters(layer, x), None, x, cache_position=CachePosition(0, 4096))[1]
    )
    step = functools.partial(call, layer, parameters(layer, x), mask=causal())
    text = jax.jit(lambda cache, index: step(cache, x, cache_position=CachePosition(index))[0])
    text = text.lower(cache, jnp.int32(0)).as_text()
    assert "stablehlo.case" in text
    chex.assert_equal("tensor<1x256x2x2xf32>" in text, True)
