"""Layers against flax's own attention and against an independent float64 forward in NumPy.

The NumPy side works on one example, [T, D], in plain loops over heads and positions.
"""

import functools
import inspect

import chex
import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxattn import (
    Decoder,
    DecoderLayer,
    Encoder,
    EncoderLayer,
    FeedForward,
    LearnedPositions,
    MultiHeadAttention,
    causal,
    from_dense,
    lengths,
    rotary,
    same_segment,
    segment_positions,
    sinusoidal,
)

B, T, S, D, F = 3, 5, 7, 12, 11
ALMOST_ONE = 1 - 1e-7  # a dropout rate at which nothing is kept
QUICK = {"xla_backend_optimization_level": 0}  # compiles faster, and these programs are small

close = functools.partial(np.testing.assert_allclose, rtol=3e-5, atol=3e-5)
jit = functools.partial(jax.jit, compiler_options=QUICK)


# ---- The oracle -----------------------------------------------------------------------------


def np_turn(x, positions):
    """Rotary positions as a product of complex numbers: [T, N, H], int [T] -> [T, N, H]."""
    half = x.shape[-1] // 2
    frequencies = [10_000.0 ** (-i / half) for i in range(half)]
    phases = np.exp(1j * np.outer(positions, frequencies))[:, None, :]
    turned = (x[..., :half] + 1j * x[..., half:]) * phases
    return np.concatenate([turned.real, turned.imag], axis=-1)


def np_heads(p, x):
    return np.einsum("td,dnh->tnh", x, p["kernel"]) + p.get("bias", 0.0)


def np_softmax(logits):
    weights = np.exp(logits - logits.max())
    return weights / weights.sum()


def np_attention(p, x, y, seen, *, turn=None):
    """Attention of `x` [T, D] to `y` [S, D] where `seen` [T, S]; `turn`: rotary positions."""
    query, key, value = np_heads(p["query"], x), np_heads(p["key"], y), np_heads(p["value"], y)
    if turn is not None:
        query, key = np_turn(query, turn), np_turn(key, turn)
    num_heads, group = query.shape[1], query.shape[1] // key.shape[1]
    mixed = np.zeros((len(x), num_heads, value.shape[2]))
    for t in range(len(x)):
        for n in range(num_heads):
            visible = np.flatnonzero(seen[t])
            if visible.size:
                logits = key[visible, n // group] @ query[t, n] / np.sqrt(query.shape[2])
                mixed[t, n] = np_softmax(logits) @ value[visible, n // group]
    return np.einsum("tnh,nhd->td", mixed, p["out"]["kernel"]) + p["out"].get("bias", 0.0)


def np_dense(p, x):
    return x @ p["kernel"] + p.get("bias", 0.0)


def np_relu(x):
    return np.where(x > 0, x, 0.0)


def np_gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def np_feed_forward(p, x, activation):
    up = np_dense(p["up"], x)
    if activation == "swiglu":
        gate = np_dense(p["gate"], x)
        return np_dense(p["down"], gate / (1 + np.exp(-gate)) * up)
    return np_dense(p["down"], {"relu": np_relu, "gelu": np_gelu}[activation](up))


def np_norm(p, x):
    centred = x - x.mean(axis=-1, keepdims=True)
    deviation = np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-6)
    return centred / deviation * p["scale"] + p["bias"]


def np_sublayer(p, x, name, sublayer, norm_position):
    norm = functools.partial(np_norm, p[f"{name}_norm"])
    sublayer = functools.partial(sublayer, p[name])
    return x + sublayer(norm(x)) if norm_position == "pre" else norm(x + sublayer(x))


def np_layer(p, x, seen, *, encoded=None, cross=None, turn=None, norm="pre", activation="relu"):
    """An encoder layer, or with `encoded` [S, D] and `cross` [T, S] a decoder layer."""

    def self_attention(p, x):
        return np_attention(p, x, x, seen, turn=turn)

    def cross_attention(p, x):
        return np_attention(p, x, encoded, cross)

    x = np_sublayer(p, x, "self_attention", self_attention, norm)
    if encoded is not None:
        x = np_sublayer(p, x, "cross_attention", cross_attention, norm)
    last = functools.partial(np_feed_forward, activation=activation)
    return np_sublayer(p, x, "feed_forward", last, norm)


# ---- What the tests share -------------------------------------------------------------------


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def shapes_of(module, *inputs, **keywords):
    init = functools.partial(module.init, **keywords)
    return jax.eval_shape(init, jax.random.key(0), *inputs)["params"]


def parameters(module, *inputs, seed=0, **keywords):
    """Random parameters of the right shapes: biases and scales too, so that none hides."""
    keywords = {"deterministic": True} | keywords
    return random_like(shapes_of(module, *inputs, **keywords), seed)


def random_like(shapes, seed=0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: (0.4 * rng.normal(size=leaf.shape)).astype(leaf.dtype), shapes)


def run(module, params, *inputs, deterministic=True, **keywords):
    """The module's output in NumPy; not jitted, as operations compiled once serve all tests."""
    variables = {"params": params}
    output = module.apply(variables, *inputs, deterministic=deterministic, **keywords)
    return jax.tree.map(np.asarray, output)


def float64(tree):
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tree)


RULES = [("heads", "model"), ("mlp", "model"), ("embed", None), ("kv", None)]


def named_shapes(module, *inputs, **keywords):
    """The shapes of parameters, in boxes with the names of their axes."""
    with nn.logical_axis_rules(RULES):
        return shapes_of(module, *inputs, **keywords)


def unnamed(tree):
    """The paths of the parameters without a logical name on every axis."""
    paths = jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_box)
    return [
        jax.tree_util.keystr(path)
        for path, box in paths
        if not is_box(box) or len(box.names) != box.value.ndim or None in box.names
    ]


def is_box(leaf):
    return isinstance(leaf, nn.meta.AxisMetadata)


PADDED = np.arange(S) < np.array([S, 4, 2])[:, None]  # [B, S]
IDS = np.array([[1, 1, 2, 2, 2], [1, 1, 1, 1, 0], [3, 2, 2, 0, 0]])  # [B, T]
SEEN = np.array([[[s <= t and r[s] == r[t] != 0 for s in range(T)] for t in range(T)] for r in IDS])


# ---- MultiHeadAttention against flax --------------------------------------------------------


def flax_and_ours(**settings):
    return nn.MultiHeadDotProductAttention(2, **settings), MultiHeadAttention(2, **settings)


def loss_and_gradients(module, params, inputs, **keywords):
    """Output, and gradients of a weighted sum of it by parameters and inputs."""

    def loss(params, inputs):
        output = module.apply({"params": params}, *inputs, deterministic=True, **keywords)
        return jnp.vdot(output.astype(jnp.float32), normal(*output.shape, seed=9)), output

    (_, output), gradients = jax.value_and_grad(loss, (0, 1), has_aux=True)(params, inputs)
    return output, gradients


def assert_equals_flax(settings, inputs, flax_mask, our_mask):
    theirs, ours = flax_and_ours(**settings)
    params = parameters(theirs, *inputs)
    expected = loss_and_gradients(theirs, params, inputs, mask=flax_mask)
    actual = loss_and_gradients(ours, params, inputs, mask=our_mask)
    chex.assert_trees_all_equal_structs(actual, expected)
    jax.tree.map(close, actual, expected)


@pytest.mark.thorough
def test_self_attention_equals_flax_in_values_and_gradients():
    assert_equals_flax({}, (normal(B, T, D),), None, None)


@pytest.mark.thorough
def test_cross_attention_of_other_sizes_with_a_mask_of_flax_equals_flax():
    settings = {"qkv_features": 18, "out_features": 5}
    mask = nn.make_attention_mask(jnp.ones((B, T), bool), PADDED, jnp.logical_and, dtype=bool)
    assert mask.shape == (B, 1, T, S)
    assert_equals_flax(settings, (normal(B, T, D), normal(B, S, D - 1, seed=1)), mask, mask)


@pytest.mark.thorough
def test_causal_mask_of_flax_is_taken_as_it_stands_and_biases_may_be_left_out():
    mask = nn.make_causal_mask(jnp.ones((B, T)), dtype=bool)
    assert_equals_flax({"use_bias": False}, (normal(B, T, D),), mask, mask)


def test_float_mask_of_flax_is_refused_by_name():
    mask = nn.make_causal_mask(jnp.ones((B, T)))
    layer, x = MultiHeadAttention(2), normal(B, T, D)
    with pytest.raises(TypeError, match="mask has dtype float32"):
        layer.init(jax.random.key(0), x, mask=mask, deterministic=True)


def test_our_masks_equal_their_dense_arrays_in_flax():
    ours = causal() & lengths(kv_lengths=np.array([5, 4, 2]))
    order = np.tril(np.ones((T, T), bool))
    dense = order & (np.arange(T) < np.array([5, 4, 2])[:, None, None])
    assert_equals_flax({}, (normal(B, T, D),), dense[:, None], ours)


def test_bias_is_added_to_the_logits_as_by_flax():
    bias = normal(1, 2, T, T, seed=3)
    theirs, ours = flax_and_ours()
    x = normal(B, T, D)
    params = parameters(theirs, x)
    with_bias = functools.partial(nn.dot_product_attention, bias=bias)
    theirs = nn.MultiHeadDotProductAttention(2, attention_fn=with_bias)
    close(run(ours, params, x, bias=bias), run(theirs, params, x))


def test_initial_parameters_are_those_of_flax():
    theirs, ours = flax_and_ours()
    x, y = normal(B, T, D), normal(B, S, D)
    key = jax.random.key(7)
    expected = theirs.init(key, x, y, deterministic=True)
    actual = ours.init(key, x, y, deterministic=True)
    chex.assert_trees_all_equal(actual, expected)


def test_parameter_tree_with_fewer_key_value_heads():
    layer = MultiHeadAttention(4, qkv_features=20, num_kv_heads=2, out_features=3)
    params = parameters(layer, normal(B, T, D), normal(B, S, D + 1))
    assert jax.tree.map(jnp.shape, params) == {
        "query": {"kernel": (D, 4, 5), "bias": (4, 5)},
        "key": {"kernel": (D + 1, 2, 5), "bias": (2, 5)},
        "value": {"kernel": (D + 1, 2, 5), "bias": (2, 5)},
        "out": {"kernel": (4, 5, 3), "bias": (3,)},
    }


@pytest.mark.parametrize("num_kv_heads", [1, 2])
def test_grouped_heads_equal_flax_with_repeated_key_value_kernels(num_kv_heads):
    x, y = normal(B, T, D), normal(B, S, D, seed=1)
    grouped = MultiHeadAttention(4, num_kv_heads=num_kv_heads)
    params = parameters(grouped, x, y)
    full = dict(params)
    for name in ("key", "value"):
        full[name] = {
            "kernel": jnp.repeat(params[name]["kernel"], 4 // num_kv_heads, axis=1),
            "bias": jnp.repeat(params[name]["bias"], 4 // num_kv_heads, axis=0),
        }
    close(run(grouped, params, x, y), run(nn.MultiHeadDotProductAttention(4), full, x, y))


# ---- MultiHeadAttention: masks, weights, dropout, errors ------------------------------------


@pytest.mark.parametrize("rotated", [False, True])
def test_attention_equals_float64_loops_with_segments_and_shared_heads(rotated):
    layer = MultiHeadAttention(6, num_kv_heads=3, qkv_features=24, rotary=rotated)
    x, positions = normal(B, T, D), np.array([[4, 0, 9, 2, 3], [7, 8, 9, 10, 11], [0, 0, 1, 1, 5]])
    params = parameters(layer, x)
    mask = causal() & same_segment(IDS)
    output = run(layer, params, x, mask=mask, q_positions=positions, kv_positions=positions)
    for b in range(B):
        turn = positions[b] if rotated else None
        close(output[b], np_attention(float64(params), x[b], x[b], SEEN[b], turn=turn))


def test_a_row_that_sees_nothing_is_the_bias_of_out():
    layer, x = MultiHeadAttention(2), normal(B, T, D)
    params = parameters(layer, x)
    output = run(layer, params, x, mask=same_segment(IDS))
    np.testing.assert_array_equal(output[IDS == 0], np.stack([params["out"]["bias"]] * 3))
    assert (np.abs(output - np.asarray(params["out"]["bias"]))[IDS != 0] > 1e-3).any(-1).all()


def test_a_row_that_sees_nothing_gives_its_input_no_gradient():
    layer, x = MultiHeadAttention(2), normal(B, T, D)
    _, (_, (gradient,)) = loss_and_gradients(
        layer, parameters(layer, x), (x,), mask=same_segment(IDS)
    )
    assert (gradient[IDS == 0] == 0).all()
    assert (gradient[IDS != 0] != 0).any(axis=-1).all()


@pytest.mark.parametrize("garbage", [np.nan, np.inf, -1e30])
def test_garbage_in_hidden_keys_changes_no_output_and_no_gradient_of_the_inputs(garbage):
    layer, x, clean = MultiHeadAttention(2), normal(B, T, D), normal(B, S, D, seed=1)
    params = parameters(layer, x, clean)
    dirty = np.where(PADDED[:, :, None], clean, np.float32(garbage))
    mask = lengths(kv_lengths=PADDED.sum(1))
    output, (_, gradients) = loss_and_gradients(layer, params, (x, clean), mask=mask)
    output_2, (_, gradients_2) = loss_and_gradients(layer, params, (x, dirty), mask=mask)
    assert np.isfinite(output).all()
    np.testing.assert_array_equal(output_2, output)
    chex.assert_trees_all_equal(gradients_2, gradients)


def test_sown_weights_are_the_softmax_and_mix_the_values():
    layer, x = MultiHeadAttention(2, num_kv_heads=1), normal(B, T, D)
    params = parameters(layer, x)
    mask = causal() & same_segment(IDS)
    output, state = run(layer, params, x, mask=mask, sow_weights=True, mutable="intermediates")
    (weights,) = state["intermediates"]["attention_weights"]
    chex.assert_shape(weights, (B, 2, T, T))
    close(weights.sum(-1), np.repeat((IDS != 0)[:, None], 2, axis=1))
    assert not weights[~np.repeat(SEEN[:, None], 2, axis=1)].any()
    p = float64(params)
    for b in range(B):
        mixed = np.einsum("nts,sh->tnh", weights[b], np_heads(p["value"], x[b])[:, 0])
        close(output[b], np.einsum("tnh,nhd->td", mixed, p["out"]["kernel"]) + p["out"]["bias"])


def test_sown_weights_of_one_example_by_hand():
    layer, x = MultiHeadAttention(1, use_bias=False), normal(1, 3, 4)
    params = parameters(layer, x)
    _, state = run(layer, params, x, mask=causal(), sow_weights=True, mutable="intermediates")
    query, key = (x[0] @ np.asarray(params[name]["kernel"])[:, 0] for name in ("query", "key"))
    expected = np.zeros((3, 3))
    for t in range(3):
        expected[t, : t + 1] = np_softmax(key[: t + 1] @ query[t] / 2.0)
    close(state["intermediates"]["attention_weights"][0][0, 0], expected)


def test_weights_are_not_sown_unless_asked_for():
    layer, x = MultiHeadAttention(2), normal(B, T, D)
    _, state = run(layer, parameters(layer, x), x, mutable="intermediates")
    assert not state


def test_attention_dropout_needs_a_key_and_depends_on_it_alone():
    layer, x = MultiHeadAttention(2, dropout_rate=0.5), normal(B, T, D)
    params = parameters(layer, x)
    drop = functools.partial(run, layer, params, x, deterministic=False)
    with pytest.raises(flax.errors.InvalidRngError):
        drop()
    one, again, two = (drop(rngs={"dropout": jax.random.key(i)}) for i in (1, 1, 2))
    np.testing.assert_array_equal(one, again)
    assert (one != two).any(axis=-1).all()
    assert (one != run(layer, params, x)).any()


def test_without_a_rate_no_key_is_needed():
    layer, x = MultiHeadAttention(2), normal(B, T, D)
    params = parameters(layer, x)
    np.testing.assert_array_equal(run(layer, params, x, deterministic=False), run(layer, params, x))


def test_attention_dropout_keeps_the_mean():
    layer, x = MultiHeadAttention(2, dropout_rate=0.5), normal(1, T, D)
    params = parameters(layer, x)

    def drop(key):
        return layer.apply({"params": params}, x, deterministic=False, rngs={"dropout": key})

    samples = jit(jax.vmap(drop))(jax.random.split(jax.random.key(0), 4000))
    error = np.abs(samples.mean(0) - run(layer, params, x))
    assert (error < 5 * samples.std(0) / np.sqrt(4000)).all()


def test_sown_weights_are_those_before_dropout():
    layer, x = MultiHeadAttention(2, dropout_rate=0.5), normal(B, T, D)
    drop = functools.partial(
        run, layer, parameters(layer, x), x, sow_weights=True, mutable="intermediates"
    )
    _, dropped = drop(deterministic=False, rngs={"dropout": jax.random.key(1)})
    _, kept = drop(deterministic=True)
    chex.assert_trees_all_equal(dropped, kept)


MODULES = {
    "attention": (MultiHeadAttention(2), 1),
    "feed-forward": (FeedForward(F), 1),
    "encoder layer": (EncoderLayer(2, F), 1),
    "decoder layer": (DecoderLayer(2, F), 2),
    "encoder": (Encoder(functools.partial(EncoderLayer, 2, F), 2), 1),
    "decoder": (Decoder(functools.partial(DecoderLayer, 2, F), 2), 2),
}


@pytest.mark.parametrize(("module", "inputs"), MODULES.values(), ids=MODULES)
def test_deterministic_is_keyword_only_and_has_no_default(module, inputs):
    parameter = inspect.signature(type(module).__call__).parameters["deterministic"]
    assert parameter.kind == parameter.KEYWORD_ONLY
    assert parameter.default is parameter.empty
    with pytest.raises(TypeError, match="deterministic"):
        module.init(jax.random.key(0), *[normal(B, T, D)] * inputs)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"num_heads": 5}, "qkv_features is 12 and num_heads 5"),
        ({"num_heads": 3, "qkv_features": 10}, "qkv_features is 10"),
        ({"num_heads": 3, "num_kv_heads": 2}, "num_kv_heads 2"),
        ({"num_heads": 2, "implementation": "fast"}, "implementation is 'fast'"),
        ({"num_heads": 4, "rotary": True}, "head dimension.* 3"),
    ],
)
def test_settings_that_do_not_fit_raise_naming_them(settings, match):
    with pytest.raises(ValueError, match=match):
        shapes_of(MultiHeadAttention(**settings), normal(B, T, D), deterministic=True)


@pytest.mark.parametrize(
    ("x", "y", "match"),
    [
        ((D,), (B, S, D), r"inputs_q has shape \(12,\)"),
        ((B, T, D), (S, D), "inputs_k has shape .7, 12. of rank 2"),
        ((B, T, D), (B + 1, S, D), "inputs_k .* B = 4; but inputs_q has B = 3"),
    ],
)
def test_inputs_that_do_not_fit_raise_naming_them(x, y, match):
    with pytest.raises(ValueError, match=match):
        shapes_of(MultiHeadAttention(2), normal(*x), normal(*y), deterministic=True)


# ---- Positions ------------------------------------------------------------------------------


def test_rotary_equals_multiplication_by_complex_numbers():
    x = normal(B, T, 2, 6)
    positions = np.array([[0, 1, 2, 3, 4], [9, 9, 0, 1, 50], [3, 1, 4, 1, 5]])
    turned = rotary(x, jnp.asarray(positions))
    for b in range(B):
        close(turned[b], np_turn(x[b].astype(np.float64), positions[b]))


def test_rotary_positions_may_be_shared_by_the_batch():
    x = normal(B, T, 2, 6)
    turned = rotary(x, jnp.arange(T)[None] + 3)
    for b in range(B):
        close(turned[b], np_turn(x[b].astype(np.float64), np.arange(T) + 3))


def test_rotary_scores_depend_on_the_distance_alone():
    q, k = (np.repeat(normal(1, 1, 1, 8, seed=i), 31, axis=1) for i in (1, 2))
    positions = jnp.arange(31)[None]
    scores = np.einsum("tnh,snh->ts", rotary(q, positions)[0], rotary(k, positions)[0])
    for distance in range(-29, 30):
        diagonal = np.diagonal(scores, distance)
        close(diagonal, np.full_like(diagonal, diagonal[0]))
    assert np.ptp(scores[15]) > 0.1


def test_rotary_keeps_the_dtype_and_computes_in_float32():
    x = jnp.asarray(normal(1, T, 2, 6), jnp.bfloat16)
    turned = rotary(x, jnp.arange(T)[None] + 1000)
    assert turned.dtype == jnp.bfloat16
    expected = np_turn(np.asarray(x[0], np.float64), np.arange(T) + 1000)
    np.testing.assert_allclose(np.asarray(turned[0], np.float64), expected, rtol=2**-8, atol=1e-3)


def test_rotary_refuses_an_odd_head_dimension():
    with pytest.raises(ValueError, match=r"head dimension of x is 5.*even"):
        rotary(normal(B, T, 2, 5), jnp.arange(T)[None])


def test_rotary_refuses_positions_that_are_not_integers():
    with pytest.raises(TypeError, match="positions"):
        rotary(normal(B, T, 2, 6), jnp.zeros((1, T)))


@pytest.mark.parametrize("shape", [(T,), (B + 1, T), (B, T - 1), (1, T + 1), (B, 1), (B, T, 1)])
def test_rotary_refuses_positions_of_another_shape_by_name(shape):
    with pytest.raises(ValueError, match="positions has shape"):
        rotary(normal(B, T, 2, 6), jnp.zeros(shape, int))


def test_rotary_attention_sees_distances_not_positions():
    layer, x = MultiHeadAttention(2, rotary=True), normal(B, T, D)
    params = parameters(layer, x)
    apply = functools.partial(run, layer, params, x, mask=causal())
    index = jnp.arange(T)[None]
    close(apply(q_positions=index + 40, kv_positions=index + 40), apply())
    moved = apply(q_positions=index + 41, kv_positions=index + 40)
    assert np.abs(moved - apply())[:, 1:].max() > 1e-2


def test_rotary_attention_follows_its_keys_and_their_positions_together():
    layer, x, y = MultiHeadAttention(2, rotary=True), normal(B, T, D), normal(B, S, D, seed=1)
    apply = functools.partial(run, layer, parameters(layer, x, y), x)
    order = np.array([3, 0, 6, 5, 1, 2, 4])
    positions = jnp.arange(S)[None]
    close(apply(y[:, order], kv_positions=positions[:, order]), apply(y))
    assert np.abs(apply(y[:, order]) - apply(y)).max() > 1e-2


def test_sinusoidal_equals_a_loop():
    positions = np.array([[0, 1, 2, 3], [0, 1, 0, 1000]])
    table = sinusoidal(jnp.asarray(positions), 10)
    chex.assert_shape(table, (2, 4, 10))
    assert table.dtype == jnp.float32
    for b in range(2):
        for t in range(4):
            for i in range(5):
                angle = positions[b, t] / 10_000 ** (2 * i / 10)
                np.testing.assert_allclose(table[b, t, i], np.sin(angle), atol=1e-4)
                np.testing.assert_allclose(table[b, t, 5 + i], np.cos(angle), atol=1e-4)


def test_sinusoidal_base_and_rank_are_free():
    table = sinusoidal(jnp.arange(5), 4, base=100.0)
    close(table, [[np.sin(t), np.sin(t / 10), np.cos(t), np.cos(t / 10)] for t in range(5)])


def test_sinusoidal_refuses_odd_features_and_float_positions():
    with pytest.raises(ValueError, match="features is 7"):
        sinusoidal(jnp.arange(3), 7)
    with pytest.raises(TypeError, match="positions"):
        sinusoidal(jnp.arange(3.0), 8)


def test_learned_positions_look_up_and_share_the_last_one_beyond_the_table():
    table = normal(4, 6)
    learned = LearnedPositions(4, 6)
    positions = jnp.array([[0, 3, 1], [4, 5, 10_000]])
    variables = {"params": {"embedding": table}}
    output = learned.apply(variables, positions)
    np.testing.assert_array_equal(output[0], table[[0, 3, 1]])
    np.testing.assert_array_equal(output[1], table[[3, 3, 3]])
    assert shapes_of(learned, positions)["embedding"].shape == (4, 6)


def test_learned_positions_train_only_what_was_looked_up():
    learned, table = LearnedPositions(5, 2), normal(5, 2)
    positions = jnp.array([1, 1, 9])
    gradient = jax.grad(lambda t: learned.apply({"params": {"embedding": t}}, positions).sum())
    np.testing.assert_array_equal(gradient(table)[:, 0], [0, 2, 0, 0, 1])


def test_learned_positions_cast_and_refuse_floats():
    learned = LearnedPositions(4, 6, dtype=jnp.bfloat16)
    variables = learned.init(jax.random.key(0), jnp.arange(3))
    assert variables["params"]["embedding"].dtype == jnp.float32
    assert learned.apply(variables, jnp.arange(3)).dtype == jnp.bfloat16
    with pytest.raises(TypeError, match="positions"):
        learned.apply(variables, jnp.zeros(3))


def test_segment_positions_equal_a_loop():
    ids = np.random.default_rng(0).integers(0, 3, (17, 13))
    expected = np.zeros_like(ids)
    for row, counts in zip(ids, expected, strict=True):
        for t in range(1, 13):
            counts[t] = counts[t - 1] + 1 if row[t] == row[t - 1] else 0
    positions = jit(segment_positions)(ids)
    np.testing.assert_array_equal(positions, expected)
    assert positions.dtype == jnp.int32


# ---- FeedForward ----------------------------------------------------------------------------


@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("activation", ["relu", "gelu", "swiglu"])
def test_feed_forward_equals_float64(activation, use_bias):
    layer = FeedForward(F, activation=activation, use_bias=use_bias)
    x = 2 * normal(B, T, D)
    params = parameters(layer, x)
    names = {"up", "down", "gate"} if activation == "swiglu" else {"up", "down"}
    assert set(params) == names
    assert {len(p) for p in params.values()} == {1 + use_bias}
    close(run(layer, params, x), np_feed_forward(float64(params), x, activation), atol=1e-4)


def test_feed_forward_takes_any_leading_axes():
    layer, x = FeedForward(F), normal(D)
    params = parameters(layer, x)
    close(run(layer, params, x), np_feed_forward(float64(params), x, "relu"))


def test_feed_forward_drops_hidden_units_and_keeps_the_mean():
    layer, x = FeedForward(F, dropout_rate=0.3), normal(D)
    params = parameters(layer, x)

    def drop(key):
        return layer.apply({"params": params}, x, deterministic=False, rngs={"dropout": key})

    samples = jit(jax.vmap(drop))(jax.random.split(jax.random.key(0), 2000))
    error = np.abs(samples.mean(0) - np_feed_forward(float64(params), x, "relu"))
    assert (samples.std(0) > 0.01).all()
    assert (error < 5 * samples.std(0) / np.sqrt(2000)).all()


@pytest.mark.parametrize(
    ("module", "match"),
    [
        (FeedForward(F, activation="tanh"), "activation is 'tanh'"),
        (EncoderLayer(2, F, activation="Relu"), "activation is 'Relu'"),
        (EncoderLayer(2, F, norm_position="sandwich"), "norm_position is 'sandwich'"),
        (EncoderLayer(2, F, implementation="flash"), "implementation is 'flash'"),
    ],
)
def test_unknown_names_raise_naming_the_argument(module, match):
    with pytest.raises(ValueError, match=match):
        shapes_of(module, normal(B, T, D), deterministic=True)


# ---- EncoderLayer and DecoderLayer ----------------------------------------------------------

LAYERS = {
    "pre relu": {},
    "post gelu": {"norm_position": "post", "activation": "gelu"},
    "pre swiglu rotary": {"activation": "swiglu", "rotary": True, "num_kv_heads": 1},
    "post relu rotary": {"norm_position": "post", "rotary": True, "qkv_features": 8},
}
PLACES = np.array([[0, 1, 0, 1, 2], [0, 1, 2, 3, 0], [0, 0, 1, 0, 1]])  # within segments


def np_settings(settings, b):
    return {
        "norm": settings.get("norm_position", "pre"),
        "activation": settings.get("activation", "relu"),
        "turn": PLACES[b] if settings.get("rotary") else None,
    }


@pytest.mark.thorough(quick=3)
@pytest.mark.parametrize("settings", LAYERS.values(), ids=LAYERS)
def test_encoder_layer_equals_float64(settings):
    layer, x = EncoderLayer(2, F, **settings), normal(B, T, D)
    params = parameters(layer, x)
    output = run(layer, params, x, mask=same_segment(IDS), positions=jnp.asarray(PLACES))
    for b in range(B):
        seen = (IDS[b][:, None] == IDS[b]) & (IDS[b] != 0)
        expected = np_layer(float64(params), x[b], seen, **np_settings(settings, b))
        close(output[b], expected, atol=2e-4)


@pytest.mark.parametrize("settings", LAYERS.values(), ids=LAYERS)
def test_decoder_layer_equals_float64(settings):
    layer, x, y = DecoderLayer(2, F, **settings), normal(B, T, D), normal(B, S, D, seed=1)
    params = parameters(layer, x, y)
    masks = {"mask": causal() & same_segment(IDS), "cross_mask": lengths(kv_lengths=PADDED.sum(1))}
    output = run(layer, params, x, y, positions=jnp.asarray(PLACES), **masks)
    for b in range(B):
        given = {"encoded": y[b], "cross": np.repeat(PADDED[b][None], T, axis=0)}
        given |= np_settings(settings, b)
        close(output[b], np_layer(float64(params), x[b], SEEN[b], **given), atol=2e-4)


def test_decoder_layer_is_causal_by_its_gradient():
    layer, x, y = DecoderLayer(2, F, rotary=True), normal(1, T, D), normal(1, S, D, seed=1)
    params = parameters(layer, x, y)

    def sums(x, y):
        return layer.apply({"params": params}, x, y, mask=causal(), deterministic=True).sum((0, 2))

    by_x, by_y = jit(jax.jacrev(sums, (0, 1)))(x, y)  # [T, 1, T, D], [T, 1, S, D]
    np.testing.assert_array_equal((by_x != 0).any((1, 3)), np.tril(np.ones((T, T), bool)))
    assert (by_y != 0).any((1, 3)).all()


def test_sown_weights_of_a_decoder_layer_are_kept_apart():
    layer, x, y = DecoderLayer(2, F), normal(B, T, D), normal(B, S, D, seed=1)
    given = {"sow_weights": True, "mutable": "intermediates", "mask": causal()}
    _, state = run(layer, parameters(layer, x, y), x, y, **given)
    assert jax.tree.map(jnp.shape, state["intermediates"]) == {
        "self_attention": {"attention_weights": ((B, 2, T, T),)},
        "cross_attention": {"attention_weights": ((B, 2, T, S),)},
    }


def drop(layer, params, *inputs):
    return run(layer, params, *inputs, deterministic=False, rngs={"dropout": jax.random.key(0)})


def test_dropout_of_all_sublayers_leaves_the_residual_alone():
    x, y = normal(B, T, D), normal(B, S, D, seed=1)
    for layer, inputs in [(EncoderLayer, (x,)), (DecoderLayer, (x, y))]:
        layer = layer(2, F, dropout_rate=ALMOST_ONE)
        np.testing.assert_array_equal(drop(layer, parameters(layer, *inputs), *inputs), x)


def test_dropout_of_all_weights_equals_seeing_nothing():
    layer = DecoderLayer(2, F, attention_dropout_rate=ALMOST_ONE)
    x, y = normal(B, T, D), normal(B, S, D, seed=1)
    params = parameters(layer, x, y)
    output = drop(layer, params, x, y)
    for b in range(B):
        nothing = {"seen": np.zeros((T, T)), "encoded": y[b], "cross": np.zeros((T, S))}
        close(output[b], np_layer(float64(params), x[b], **nothing), atol=2e-4)


def test_dropout_of_all_hidden_units_leaves_the_bias_of_feed_forward():
    layer, x = EncoderLayer(2, F, activation_dropout_rate=ALMOST_ONE), normal(B, T, D)
    params = parameters(layer, x)
    p = float64(params)
    p["feed_forward"]["down"]["kernel"] = np.zeros((F, D))
    output = drop(layer, params, x)
    for b in range(B):
        close(output[b], np_layer(p, x[b], np.ones((T, T))), atol=2e-4)


def test_layers_start_with_glorot_uniform_kernels_of_flat_heads():
    layer, x = EncoderLayer(2, 100), normal(1, 2, 100)
    params = layer.init(jax.random.key(0), x, deterministic=True)["params"]
    limit = np.sqrt(6 / (100 + 100))
    for name, leaf in flax.traverse_util.flatten_dict(params, sep=" ").items():
        leaf = np.asarray(leaf)
        if name.endswith("kernel"):
            assert 0.99 * limit < np.abs(leaf).max() <= limit * (1 + 1e-6), name
            assert abs(leaf.std() / (limit / np.sqrt(3)) - 1) < 0.03, name
        else:
            assert (leaf == (1 if name.endswith("scale") else 0)).all(), name


# ---- Encoder and Decoder --------------------------------------------------------------------


def encoder(num_layers=3, *, share_layers=False, remat=False, **settings):
    make_layer = functools.partial(EncoderLayer, 2, F, **settings)
    return Encoder(make_layer, num_layers, share_layers=share_layers, remat=remat)


@pytest.mark.parametrize("norm", ["pre", "post"])
@pytest.mark.parametrize("share", [False, True])
def test_encoder_equals_its_layers_in_turn(share, norm):
    stack, x = encoder(share_layers=share, norm_position=norm), normal(B, T, D)
    params = parameters(stack, x)
    layers = ["layer_0"] * 3 if share else ["layer_0", "layer_1", "layer_2"]
    assert set(params) == set(layers) | ({"final_norm"} if norm == "pre" else set())
    output = run(stack, params, x, mask=same_segment(IDS))
    p = float64(params)
    for b in range(B):
        expected, seen = x[b], (IDS[b][:, None] == IDS[b]) & (IDS[b] != 0)
        for name in layers:
            expected = np_layer(p[name], expected, seen, norm=norm)
        expected = np_norm(p["final_norm"], expected) if norm == "pre" else expected
        close(output[b], expected, atol=1e-3)


def test_decoder_gives_every_layer_both_masks_and_the_same_encoded():
    stack = Decoder(functools.partial(DecoderLayer, 2, F, rotary=True), 2)
    x, y = normal(B, T, D), normal(B, S, D, seed=1)
    params = parameters(stack, x, y)
    masks = {"mask": causal() & same_segment(IDS), "cross_mask": lengths(kv_lengths=PADDED.sum(1))}
    output = run(stack, params, x, y, positions=jnp.asarray(PLACES), **masks)
    p = float64(params)
    for b in range(B):
        expected = x[b]
        given = {"encoded": y[b], "cross": np.repeat(PADDED[b][None], T, axis=0)}
        for name in ("layer_0", "layer_1"):
            expected = np_layer(p[name], expected, SEEN[b], turn=PLACES[b], **given)
        close(output[b], np_norm(p["final_norm"], expected), atol=1e-3)


@pytest.mark.thorough
def test_remat_changes_neither_parameters_nor_values_nor_gradients():
    x = normal(B, T, D)
    plain, again = encoder(1), encoder(1, remat=True)
    params = parameters(plain, x)
    chex.assert_trees_all_equal_shapes_and_dtypes(parameters(again, x), params)
    expected, actual = (
        jit(functools.partial(loss_and_gradients, stack, mask=causal()))(params, (x,))
        for stack in (plain, again)
    )
    jax.tree.map(functools.partial(close, atol=1e-3), actual, expected)


def test_remat_computes_layers_anew_in_the_backward_pass():
    x = normal(B, T, D)

    def remats(remat):
        stack = encoder(remat=remat)
        apply = functools.partial(stack.apply, deterministic=True)
        jaxpr = jax.make_jaxpr(apply)({"params": parameters(stack, x)}, x)
        names = [equation.primitive.name for equation in jaxpr.eqns]
        return sum(name in ("checkpoint", "remat", "remat2") for name in names)

    assert (remats(True), remats(False)) == (3, 0)


class DropInput(nn.Module):
    """In place of a layer: output and gradient are the input and 1 times the same 0s and 2s."""

    norm_position: str = "post"

    @nn.compact
    def __call__(self, x, *, mask, positions, sow_weights, deterministic):
        return nn.Dropout(0.5)(x, deterministic=deterministic)


def test_remat_draws_the_same_dropout_forward_and_backward():
    stack, x = Encoder(DropInput, 2, share_layers=True, remat=True), normal(B, T, D)

    def total(x):
        output = stack.apply({}, x, deterministic=False, rngs={"dropout": jax.random.key(3)})
        return output.sum(), output

    gradient, output = jit(jax.grad(total, has_aux=True))(x)
    assert set(np.unique(gradient)) == {0.0, 4.0}
    np.testing.assert_array_equal(gradient * x, output)


class AddNoise(nn.Module):
    """In place of a layer: adds 0 or 2 to every entry."""

    norm_position: str = "post"

    @nn.compact
    def __call__(self, x, *, mask, positions, sow_weights, deterministic):
        return x + nn.Dropout(0.5)(jnp.ones_like(x), deterministic=deterministic)


@pytest.mark.parametrize("remat", [False, True])
@pytest.mark.parametrize("share", [False, True])
def test_every_depth_draws_its_own_dropout(share, remat):
    stack = Encoder(AddNoise, 2, share_layers=share, remat=remat)
    output = drop(stack, {}, jnp.zeros((B, T, D)))
    assert set(np.unique(output)) == {0.0, 2.0, 4.0}


def test_sown_weights_under_remat_and_sharing_come_once_per_depth():
    stack, x = encoder(3, share_layers=True, remat=True), normal(B, T, D)
    params = parameters(stack, x)
    given = {"sow_weights": True, "mutable": "intermediates", "mask": causal()}
    _, state = run(stack, params, x, **given)
    weights = state["intermediates"]["layer_0"]["self_attention"]["attention_weights"]
    assert [w.shape for w in weights] == [(B, 2, T, T)] * 3
    for w in weights:
        close(w.sum(-1), np.ones((B, 2, T)))
    assert np.abs(weights[0] - weights[2]).max() > 1e-3


# ---- flax's transformations -----------------------------------------------------------------


def test_remat_of_a_layer_in_a_function():
    class Again(nn.Module):
        @nn.compact
        def __call__(self, x, mask):
            layer = EncoderLayer(2, F, dropout_rate=0.1, name="layer")
            call = nn.remat(lambda layer, x, mask: layer(x, mask=mask, deterministic=True))
            return call(layer, x, mask)

    x, mask = normal(B, T, D), same_segment(IDS)
    params = parameters(EncoderLayer(2, F), x)
    output = Again().apply({"params": {"layer": params}}, x, mask)
    for b in range(B):
        seen = (IDS[b][:, None] == IDS[b]) & (IDS[b] != 0)
        close(output[b], np_layer(float64(params), x[b], seen), atol=2e-4)


def test_remat_of_the_attention_class_without_dropout_works_as_it_does_in_flax():
    x = normal(B, T, D)
    params = parameters(MultiHeadAttention(2), x)

    def output(attention):
        return nn.remat(attention)(2).apply({"params": params}, x, deterministic=True)

    close(output(MultiHeadAttention), output(nn.MultiHeadDotProductAttention))


class ScanStep(nn.Module):
    @nn.compact
    def __call__(self, x, mask):
        return EncoderLayer(2, F, name="layer")(x, mask=mask, deterministic=True), None


def test_scan_over_layers_with_a_mask_shared_by_all():
    scanned = nn.scan(
        ScanStep,
        variable_axes={"params": 0},
        split_rngs={"params": True},
        in_axes=nn.broadcast,
        length=3,
        metadata_params={nn.PARTITION_NAME: "layers"},
    )()
    x, mask = normal(B, T, D), causal() & same_segment(IDS)
    with nn.logical_axis_rules(RULES):
        boxed = shapes_of(scanned, x, mask)["layer"]
    assert boxed["self_attention"]["query"]["kernel"].names == ("layers", "embed", "heads", "kv")
    assert not unnamed(boxed)
    stacked = random_like(shapes_of(scanned, x, mask)["layer"])
    output, _ = scanned.apply({"params": {"layer": stacked}}, x, mask)
    stacked = float64(stacked)
    for b in range(B):
        expected = x[b]
        for i in range(3):
            layer = jax.tree.map(lambda leaf, i=i: leaf[i], stacked)
            expected = np_layer(layer, expected, SEEN[b])
        close(output[b], expected, atol=2e-4)


# ---- Logical axis names ---------------------------------------------------------------------

NAMED = MODULES | {
    "swiglu": (EncoderLayer(2, F, activation="swiglu", norm_position="post"), 1),
    "grouped": (MultiHeadAttention(4, num_kv_heads=2, use_bias=False), 1),
    "shared": (encoder(share_layers=True, remat=True), 1),
}


@pytest.mark.parametrize(("module", "inputs"), NAMED.values(), ids=NAMED)
def test_every_axis_of_every_parameter_has_a_logical_name(module, inputs):
    boxed = named_shapes(module, *[normal(B, T, D)] * inputs, deterministic=True)
    assert jax.tree.leaves(boxed)
    assert not unnamed(boxed)


def test_learned_positions_have_logical_names():
    boxed = named_shapes(LearnedPositions(4, 6), jnp.arange(3))
    assert boxed["embedding"].names == ("position", "embed")


def test_logical_names_of_an_encoder_layer_become_a_partition():
    layer = EncoderLayer(2, F, activation="swiglu")
    spec = nn.get_partition_spec(named_shapes(layer, normal(B, T, D), deterministic=True))
    p = jax.sharding.PartitionSpec
    head = {"kernel": p("embed", "heads", "kv"), "bias": p("heads", "kv")}
    norm = {"scale": p("embed"), "bias": p("embed")}
    wide = {"kernel": p("embed", "mlp"), "bias": p("mlp")}
    assert spec == {
        "self_attention": {
            "query": head,
            "key": head,
            "value": head,
            "out": {"kernel": p("heads", "kv", "embed"), "bias": p("embed")},
        },
        "feed_forward": {
            "up": wide,
            "gate": wide,
            "down": {"kernel": p("mlp", "embed"), "bias": p("embed")},
        },
        "self_attention_norm": norm,
        "feed_forward_norm": norm,
    }


def test_layers_start_under_a_mesh_with_rules_for_their_axes():
    mesh = jax.make_mesh((1,), ("model",), axis_types=(jax.sharding.AxisType.Auto,))
    layer, x = EncoderLayer(2, F), normal(B, T, D)
    expected = named_shapes(layer, x, deterministic=True)
    with jax.set_mesh(mesh), nn.logical_axis_rules(RULES):
        init = jit(functools.partial(layer.init, deterministic=True))
        actual = init(jax.random.key(0), x)["params"]
    chex.assert_trees_all_equal_shapes_and_dtypes(actual, expected)


# ---- dtypes and compilation -----------------------------------------------------------------


def dtypes(tree):
    return {leaf.dtype.name for leaf in jax.tree.leaves(tree)}


def test_attention_in_bfloat16_has_float32_parameters_and_gradients():
    layer, x = MultiHeadAttention(2, dtype=jnp.bfloat16), normal(B, T, D)
    params = parameters(layer, x)
    loss = functools.partial(loss_and_gradients, layer, mask=causal())
    output, gradients = jax.eval_shape(loss, params, (x,))
    assert (dtypes(output), dtypes(gradients)) == ({"bfloat16"}, {"float32"})
    assert dtypes(params) == {"float32"}


@pytest.mark.usefixtures("standard_promotion")
def test_a_stack_in_bfloat16_has_float32_parameters_and_gradients():
    stack, x = encoder(2, dtype=jnp.bfloat16), jnp.asarray(normal(B, T, D), jnp.bfloat16)
    params = parameters(stack, x)
    loss = functools.partial(loss_and_gradients, stack)
    output, (by_params, by_x) = jax.eval_shape(loss, params, (x,))
    assert (dtypes(output), dtypes(by_x)) == ({"bfloat16"}, {"bfloat16"})
    assert (dtypes(params), dtypes(by_params)) == ({"float32"}, {"float32"})


@pytest.mark.usefixtures("standard_promotion")
def test_a_layer_in_bfloat16_stays_near_float64():
    layer = EncoderLayer(2, F, dtype=jnp.bfloat16, rotary=True)
    x = jnp.asarray(normal(B, T, D), jnp.bfloat16)
    params = parameters(layer, x)
    output = jit(functools.partial(layer.apply, mask=causal(), deterministic=True))(
        {"params": params}, x
    )
    output = np.asarray(output, np.float64)
    for b in range(B):
        seen, example = np.tril(np.ones((T, T))), np.asarray(x[b], np.float64)
        expected = np_layer(float64(params), example, seen, turn=np.arange(T))
        assert np.abs(output[b] - expected).mean() < 0.03


@pytest.mark.usefixtures("standard_promotion")
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_parameters_are_stored_in_param_dtype(dtype):
    assert dtypes(parameters(encoder(param_dtype=dtype), normal(B, T, D))) == {dtype}


def test_new_values_in_masks_and_inputs_do_not_compile_again():
    layer, x = DecoderLayer(2, F), normal(B, T, D)
    params = parameters(layer, x, x)

    @jit
    @chex.assert_max_traces(n=1)
    def apply(params, x, mask):
        variables = {"params": params}
        return layer.apply(variables, x, x, mask=mask, cross_mask=mask, deterministic=True)

    outputs = [
        apply(params, x + i, causal() & same_segment(ids) & lengths(kv_lengths=np.array([i, 1, 2])))
        for i, ids in enumerate([IDS, IDS + 1, np.zeros_like(IDS)])
    ]
    assert np.isfinite(outputs).all()


def test_a_dense_mask_may_differ_between_heads():
    layer, x = MultiHeadAttention(2), normal(B, T, D)
    params = parameters(layer, x)
    mask = np.random.default_rng(0).random((B, 2, T, T)) < 0.5
    mask[..., 0] = True
    close(
        run(layer, params, x, mask=from_dense(mask)),
        run(nn.MultiHeadDotProductAttention(2), params, x, mask=mask),
    )
