"""Scores and sinks in layers: as written out by hand, with a cache as without, in stacks."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_cache import assert_chunks_equal_one_pass, cache_at, call, close, jit, normal, parameters
from test_layers_anywhere import Deep
from test_ring import ring_at, through_ring

from flaxattn import (
    Decoder,
    DecoderLayer,
    Encoder,
    EncoderLayer,
    MultiHeadAttention,
    RelativeBias,
    alibi,
    alibi_slopes,
    causal,
    relative_bias,
    relative_positions,
    score,
    sliding_window,
    softcap,
    temperature,
)

B, T, S, D, N = 3, 7, 5, 12, 2


def wave(logit, q_idx, kv_idx, numbers):
    """Tells positions themselves apart, not distances alone; not finite before the first one."""
    q, kv = (jnp.asarray(i, logit.dtype) for i in (q_idx, kv_idx))
    return logit * jnp.cos(numbers * q) + jnp.sin(1.7 * kv * numbers) / jnp.where(kv < 0, 0.0, 1.0)


SCORES = {
    "own": score(wave, normal(B, N)),
    "ALiBi": alibi(),
    "T5": relative_bias(normal(N, 8), 8, 16, bidirectional=False),
    "clipped distances": relative_positions(normal(N, 5)),
    "soft cap": alibi(normal(N)) >> softcap(0.5),
    "temperatures": temperature(np.array([0.3, 3.0], np.float32)),
}
all_scores = pytest.mark.parametrize("given", SCORES.values(), ids=SCORES)


def one_pass(layer, params, *inputs, **keywords):
    return layer.apply({"params": params}, *inputs, **keywords, deterministic=True)


# ---- One layer ------------------------------------------------------------------------------


def by_hand(params, x, rule):
    """The output and weights of one example, causal, by loops in float64."""
    params = jax.tree.map(np.float64, params)
    query, key, value = (
        np.einsum("td,dnh->tnh", x, params[name]["kernel"]) + params[name]["bias"]
        for name in ("query", "key", "value")
    )
    weights = np.zeros((N, len(x), len(x)))
    for n in range(N):
        for t in range(len(x)):
            logits = [query[t, n] @ key[s, n] * (D // N) ** -0.5 for s in range(t + 1)]
            powers = np.exp([rule(logit, t, s, n) for s, logit in enumerate(logits)])
            weights[n, t, : t + 1] = powers / (powers.sum() + np.exp(params["sinks"][n]))
    mixed = np.einsum("nts,snh->tnh", weights, value)
    return np.einsum("tnh,nhd->td", mixed, params["out"]["kernel"]) + params["out"]["bias"], weights


def test_score_and_sinks_are_those_written_out_by_hand_in_output_and_weights():
    layer, x = MultiHeadAttention(N, use_sinks=True), normal(2, T, D)
    params, slopes = parameters(layer, x), alibi_slopes(N)
    output, state = layer.apply(
        {"params": params},
        x,
        mask=causal(),
        score=alibi() >> softcap(0.5),
        sow_weights=True,
        deterministic=True,
        mutable=["intermediates"],
    )

    def rule(logit, t, s, n):
        return 0.5 * np.tanh((logit - slopes[n] * (t - s)) / 0.5)

    for b in range(2):
        expected, weights = by_hand(params, x[b], rule)
        close(output[b], expected)
        close(state["intermediates"]["attention_weights"][0][b], weights)


def test_leading_axes_are_one_to_the_arrays_of_a_score():
    layer, x, numbers = MultiHeadAttention(N), normal(2, 3, T, D), normal(6, N, seed=1)
    params = parameters(layer, x)
    expected = one_pass(layer, params, x.reshape(6, T, D), score=alibi(numbers))
    close(one_pass(layer, params, x, score=alibi(numbers)).reshape(6, T, D), expected)


@pytest.mark.usefixtures("standard_promotion")
def test_sinks_are_a_parameter_of_heads_in_the_dtype_of_parameters():
    layer = EncoderLayer(N, 5, use_sinks=True, param_dtype=jnp.bfloat16)
    with nn.logical_axis_rules([("heads", "model")]):
        init = functools.partial(layer.init, deterministic=True)
        shapes = jax.eval_shape(init, jax.random.key(0), jnp.ones((1, T, D), jnp.bfloat16))
    sinks = shapes["params"]["self_attention"]["sinks"]
    assert sinks.names == ("heads",)
    assert (sinks.value.shape, sinks.value.dtype) == ((N,), jnp.bfloat16)


# ---- With a cache ---------------------------------------------------------------------------


@pytest.mark.thorough(quick=2)
@all_scores
def test_the_score_of_training_serves_chunks_and_single_tokens(given):
    layer = MultiHeadAttention(N, use_sinks=True)
    assert_chunks_equal_one_pass(layer, causal(), [3, 2, 1, 1], score=given)


@pytest.mark.thorough(quick=2)
@all_scores
def test_the_score_of_training_serves_a_ring_before_and_after_it_is_full(given):
    layer, x = MultiHeadAttention(N, use_sinks=True), normal(B, 19, D)
    params, mask = parameters(layer, x), causal() & sliding_window(3)
    expected = one_pass(layer, params, x, mask=mask, score=given)
    chunks = [3, 1, 3, 1, 1, 3, 3, 1, 1, 1, 1]
    close(through_ring(layer, params, x, mask, 5, chunks, score=given)[0], expected)


@pytest.mark.parametrize("at", [cache_at, ring_at])
def test_each_example_is_scored_from_its_own_index(at):
    layer, x = MultiHeadAttention(N, use_sinks=True), normal(B, T, D)
    params = parameters(layer, x)
    given = {"mask": causal() & sliding_window(3), "score": SCORES["own"]}
    expected = one_pass(layer, params, x, **given)
    step = jit(functools.partial(call, layer, params, **given))
    index, cache = np.array([0, 0, 0]), None
    for advance in ([0, 1, 2], [2, 0, 1], [1, 1, 1], [1, 0, 0]):
        rows, cells = np.arange(B)[:, None], index[:, None] + np.arange(2)
        output, cache = step(cache, x[rows, cells], **at(index, T))
        close(output, expected[rows, cells])
        index = index + advance


@pytest.mark.parametrize("index", [np.array([2, 2, 2]), 2], ids=["each its own", "one"])
def test_steps_over_few_live_cells_are_scored_as_those_over_all(index):
    layer, x = MultiHeadAttention(N, use_sinks=True), normal(B, T, D)
    params = parameters(layer, x)
    given = {"mask": causal(), "score": SCORES["own"]}
    _, cache = call(layer, params, None, x[:, :2], **given, **cache_at(0, 300))
    output, _ = jit(functools.partial(call, layer, params, **given))(
        cache, x[:, 2:5], **cache_at(index)
    )
    close(output, one_pass(layer, params, x, **given)[:, 2:5])


def test_queries_of_other_inputs_that_were_kept_are_scored_where_they_stand():
    layer, x, y = MultiHeadAttention(N, use_sinks=True), normal(B, T, D), normal(B, S, D, seed=1)
    params, given = parameters(layer, x, y), {"score": SCORES["own"]}
    expected = one_pass(layer, params, x, y, **given)
    output, cache = call(layer, params, None, x[:, :3], y, **given, **cache_at(0))
    close(output, expected[:, :3])
    output, _ = call(layer, params, cache, x[:, 3:], "cached", **given, **cache_at(3))
    close(output, expected[:, 3:])


def test_weights_of_a_step_are_rows_of_those_of_one_pass():
    layer, x = MultiHeadAttention(N, use_sinks=True), normal(B, T, D)
    given = {"mask": causal() & sliding_window(3), "score": SCORES["own"]}
    params, sown = parameters(layer, x), {"sow_weights": True, "deterministic": True}
    _, whole = layer.apply({"params": params}, x, **given, **sown, mutable=["intermediates"])
    (expected,) = whole["intermediates"]["attention_weights"]
    for at in (cache_at, ring_at):  # in both cell i holds position i, as long as there is room
        _, cache = jit(functools.partial(call, layer, params, **given))(None, x, **at(0, T + 2))
        step = functools.partial(layer.apply, mutable=["cache", "intermediates"], **given, **sown)
        _, state = jit(step)({"params": params, "cache": cache}, x[:, 4:5], **at(4))
        (weights,) = state["intermediates"]["attention_weights"]
        close(weights[..., :T], expected[:, :, 4:5])


def test_what_is_no_score_is_an_error_with_and_without_a_cache():
    layer, x = MultiHeadAttention(N), normal(B, T, D)
    params = parameters(layer, x)
    for at in ({}, cache_at(0, T), ring_at(0, T)):
        for error, message, given in [
            (TypeError, r"score is .*; expected a Score", wave),
            (ValueError, "query has N = 2", alibi(normal(3))),
        ]:
            with pytest.raises(error, match=message):
                jax.eval_shape(functools.partial(call, layer, score=given, **at), params, None, x)


# ---- Stacks ---------------------------------------------------------------------------------


def t5_bucket(distance, num_buckets, max_distance, bidirectional):
    """The bucket of key index - query index, as mesh_tensorflow's code and T5's have it."""
    first, back = 0, -distance
    if bidirectional:
        num_buckets //= 2
        first, back = (num_buckets, -back) if back < 0 else (0, back)
    back, exact = max(back, 0), num_buckets // 2
    if back < exact:
        return first + back
    share = np.log(back / exact) / np.log(max_distance / exact)
    return first + min(exact + int(share * (num_buckets - exact) + 1e-6), num_buckets - 1)


def t5_bias(table, q_len, kv_len, max_distance, bidirectional):
    """float [1, N, T, S]."""
    bucket = functools.partial(
        t5_bucket,
        num_buckets=table.shape[1],
        max_distance=max_distance,
        bidirectional=bidirectional,
    )
    buckets = np.array([[bucket(s - t) for s in range(kv_len)] for t in range(q_len)])
    return table[:, buckets][None]


def adding(bias):
    """A context in which every self-attention is given `bias`."""

    def give(call, args, keywords, context):
        if isinstance(context.module, MultiHeadAttention) and context.method_name == "__call__":
            keywords = keywords | {"bias": bias}
        return call(*args, **keywords)

    return nn.intercept_methods(give)


@pytest.mark.thorough(quick=1)
@pytest.mark.parametrize("length", [389, T])  # by blocks from some 360 on
def test_a_stack_gives_its_score_to_every_layer_and_its_table_a_gradient(length):
    layer = functools.partial(EncoderLayer, N, 5, use_sinks=True)
    stack = Encoder(layer, 2, share_layers=True, remat=True)
    x, cotangent, table = normal(1, length, 4), normal(1, length, 4, seed=1), normal(N, 8, seed=2)
    params = parameters(stack, x)

    def loss(table, params):
        given = relative_bias(table, 8, 16, bidirectional=False)
        return jnp.vdot(one_pass(stack, params, x, mask=causal(), score=given), cotangent)

    def expected(table, params):
        plain = stack.clone(remat=False)
        with adding(t5_bias(table, length, length, 16, False)):
            return jnp.vdot(one_pass(plain, params, x, mask=causal()), cotangent)

    actual, wanted = (
        jit(jax.value_and_grad(f, argnums=(0, 1)))(table, params) for f in (loss, expected)
    )
    assert (np.abs(wanted[1][0]).max() > 1e-3).all()
    jax.tree.map(functools.partial(close, rtol=1e-3, atol=1e-3), actual, wanted)


@pytest.mark.thorough(quick=1)
@pytest.mark.parametrize("remat", [True, False])
def test_a_learned_table_outside_a_scan_over_layers_has_the_gradient_of_all(remat):
    class Model(nn.Module):
        scanned: bool

        @nn.compact
        def __call__(self, x, *, deterministic):
            how = {"score": RelativeBias(N, name="bias")() >> softcap(3.0), "mask": causal()}
            layer = EncoderLayer(N, 5, name="layers")
            if self.scanned:
                return Deep(layer, remat, name="deep")(x, deterministic=deterministic, **how)
            for _ in range(3):
                x = layer(x, deterministic=deterministic, **how)
            return x

    x = normal(B, T, 4)
    params = parameters(Model(scanned=False), x)
    alike = jax.tree.map(lambda leaf: np.stack([leaf] * 3), params["layers"])
    scanned = {"bias": params["bias"], "layers": alike}

    def loss(model):
        return jit(
            jax.value_and_grad(lambda p: jnp.vdot(one_pass(model, p, x), normal(*x.shape, seed=1)))
        )

    value, gradient = loss(Model(scanned=True))(scanned)
    expected, in_turn = loss(Model(scanned=False))(params)
    close(value, expected)
    assert np.abs(in_turn["bias"]["rel_embedding"]).max() > 1e-3
    close(gradient["bias"]["rel_embedding"], in_turn["bias"]["rel_embedding"], atol=1e-4)


def test_a_decoder_scores_its_self_attention_alone_also_with_a_cache():
    stack = Decoder(functools.partial(DecoderLayer, N, 5, use_sinks=True), 1)
    x, y, seen = normal(B, T, D), normal(B, S, D), {}
    params = parameters(stack, x, y)

    def look(call, args, keywords, context):
        if isinstance(context.module, MultiHeadAttention) and context.method_name == "__call__":
            seen["/".join(context.module.path)] = keywords.get("score")
        return call(*args, **keywords)

    given = {"mask": causal(), "score": SCORES["own"]}
    with nn.intercept_methods(look):
        expected = one_pass(stack, params, x, y, **given)
    assert seen == {
        "layer_0/self_attention": SCORES["own"],
        "layer_0/cross_attention": None,
    }
    step = jit(functools.partial(call, stack, params, **given))
    output, cache = step(None, x[:, :4], y, **cache_at(0, T))
    close(output, expected[:, :4])
    close(step(cache, x[:, 4:], None, **cache_at(4))[0], expected[:, 4:])


# ---- A learned table ------------------------------------------------------------------------


@pytest.mark.parametrize("bidirectional", [True, False])
def test_the_parameters_of_t5x_load_and_add_what_its_rule_says(bidirectional):
    table = normal(N, 32)
    module = RelativeBias(N, bidirectional=bidirectional)
    shapes = jax.eval_shape(module.init, jax.random.key(0))
    assert jax.tree.map(jnp.shape, shapes) == {"params": {"rel_embedding": (N, 32)}}
    given = module.apply({"params": {"rel_embedding": table}})
    expected = t5_bias(table, 3, 300, 128, bidirectional)
    close(given.dense(3, 300)[None, 0], expected)
    close(
        given.shift(q_start=297).dense(3, 300),
        t5_bias(table, 300, 300, 128, bidirectional)[:, :, 297:],
    )
