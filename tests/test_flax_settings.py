"""What flax's attention takes, and what modern decoders ask for: inputs, norms, positions."""

import functools
import math

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_layers import close, jit, loss_and_gradients, normal, parameters, run, shapes_of

from flaxattn import (
    CachePosition,
    Encoder,
    EncoderLayer,
    LinearScaling,
    Llama3Scaling,
    MultiHeadAttention,
    Rotary,
    YarnScaling,
    causal,
    lengths,
    rotary,
    sliding_window,
)

T, S, D, F = 5, 7, 12, 11


def both(**settings):
    return nn.MultiHeadDotProductAttention(2, **settings), MultiHeadAttention(2, **settings)


def booleans(*shape, seed=0):
    mask = np.random.default_rng(seed).random(shape) < 0.6
    mask[..., 0] = True
    return mask


# ---- As flax --------------------------------------------------------------------------------

CALLS = {
    "normed queries and keys": ({"normalize_qk": True}, [(2, T, D)], None),
    "values of their own": ({}, [(2, T, D), (2, S, D - 1), (2, S, D + 1)], (2, 2, T, S)),
    "no leading axis": ({}, [(T, D)], (2, T, T)),
    "two leading axes": ({"normalize_qk": True}, [(2, 3, T, D)], (2, 3, 2, T, T)),
    "no leading axis, one mask for all heads": ({}, [(T, D), (S, D)], (1, T, S)),
    "two leading axes, shared masks": ({}, [(2, 3, T, D), (2, 3, S, D)], (1, 3, 1, T, S)),
    "three leading axes, no mask": ({}, [(2, 1, 3, T, D)], None),
    "normed, without biases": ({"normalize_qk": True, "use_bias": False}, [(2, T, D)], None),
    "precision": ({"precision": jax.lax.Precision.HIGHEST}, [(2, T, D)], None),
}


@pytest.mark.thorough(quick=4)
@pytest.mark.parametrize(("settings", "shapes", "mask"), CALLS.values(), ids=CALLS)
def test_values_and_gradients_are_those_of_flax(settings, shapes, mask):
    theirs, ours = both(**settings)
    inputs = tuple(normal(*shape, seed=i) for i, shape in enumerate(shapes))
    params = parameters(theirs, *inputs)
    given = {} if mask is None else {"mask": booleans(*mask)}
    expected, actual = (
        jit(functools.partial(loss_and_gradients, module, **given))(params, inputs)
        for module in (theirs, ours)
    )
    chex.assert_trees_all_equal_structs(actual, expected)
    jax.tree.map(functools.partial(close, atol=1e-4), actual, expected)


@pytest.mark.thorough
def test_initial_values_of_the_last_projection_may_be_others():
    ones, halves = nn.initializers.ones_init(), nn.initializers.constant(0.5)
    for settings in (
        {"out_kernel_init": ones},
        {"out_bias_init": halves},
        {"kernel_init": halves, "bias_init": ones, "out_kernel_init": ones},
        {"normalize_qk": True, "bias_init": halves},
    ):
        theirs, ours = (
            module.init(jax.random.key(3), normal(2, T, D), deterministic=True)
            for module in both(**settings)
        )
        chex.assert_trees_all_equal(ours, theirs)


def test_a_key_of_dropout_takes_the_place_of_the_stream():
    layer, x = MultiHeadAttention(2, dropout_rate=0.5), normal(2, T, D)
    drop = functools.partial(run, layer, parameters(layer, x), x, deterministic=False)
    one, two = jax.random.key(1), jax.random.key(2)
    found = drop(dropout_rng=one)
    np.testing.assert_array_equal(found, drop(dropout_rng=one, rngs={"dropout": two}))
    assert (found != drop(dropout_rng=two)).any()
    assert (found != drop(rngs={"dropout": one})).any()  # which folds in the layer's name


@pytest.mark.parametrize("precision", ["highest", jax.lax.Precision.HIGHEST])
@pytest.mark.parametrize("implementation", ["dense", "blockwise"])
def test_precision_is_that_of_every_matrix_product_forward_and_backward(precision, implementation):
    layer = MultiHeadAttention(2, precision=precision, implementation=implementation)
    x = normal(2, T, D)
    variables = {"params": parameters(layer, x)}

    def loss(x):
        return layer.apply(variables, x, mask=causal(), deterministic=True).sum()

    text = jax.jit(jax.grad(loss)).lower(x).as_text()
    products = [line for line in text.splitlines() if "dot_general" in line]
    assert len(products) >= 12
    assert all("HIGHEST" in line for line in products)


# ---- Leading axes ---------------------------------------------------------------------------


@pytest.mark.thorough
@pytest.mark.parametrize("lead", [(2, 3), ()], ids=str)
def test_leading_axes_are_one_batch_to_layers_masks_positions_and_caches(lead):
    layer = EncoderLayer(2, F, rotary=True)
    batch = math.prod(lead)
    x, positions = normal(*lead, T, D), np.random.default_rng(0).integers(0, 9, (*lead, T))
    params = parameters(layer, x)
    mask = causal() & lengths(kv_lengths=np.arange(batch) % T + 1)
    flat, flat_positions = x.reshape(batch, T, D), positions.reshape(batch, T)
    expected = run(layer, params, flat, mask=mask, positions=flat_positions).reshape(x.shape)
    close(run(layer, params, x, mask=mask, positions=positions), expected)
    index, outputs, variables = np.zeros(lead, int), [], {"params": params}
    for size in (3, 1, 1):
        part = slice(int(index.max()), int(index.max()) + size)
        output, cache = layer.apply(
            variables,
            x[..., part, :],
            mask=mask,
            positions=positions[..., part],
            cache_position=CachePosition(index, T),
            deterministic=True,
            mutable=["cache"],
        )
        variables, index, outputs = variables | cache, index + size, [*outputs, output]
    close(np.concatenate(outputs, axis=-2), expected)


def test_sown_weights_and_biases_have_all_leading_axes():
    layer, x = MultiHeadAttention(2), normal(2, 3, T, D)
    params, bias = parameters(layer, x), normal(2, 1, 2, T, T, seed=1)
    given = {"bias": bias, "sow_weights": True, "mutable": "intermediates"}
    output, state = run(layer, params, x, **given)
    (weights,) = state["intermediates"]["attention_weights"]
    assert weights.shape == (2, 3, 2, T, T)
    for i in range(2):
        close(output[i], run(layer, params, x[i], bias=bias[i]))


@pytest.mark.parametrize(
    ("inputs", "given", "match"),
    [
        ([(2, 3, T, D), (3, 2, S, D)], {}, r"inputs_k has shape .*expected \[2, 3, T, D\]"),
        ([(2, 3, T, D), (2, 3, S, D), (2, S, D)], {}, "inputs_v has shape"),
        ([(2, T, D), (2, S, D), (2, S - 1, D)], {}, "inputs_v .* S = 6; but inputs_k has S = 7"),
        ([(2, T, D), None, (2, S, D)], {}, "inputs_v is given without inputs_k"),
        ([(2, 3, T, D)], {"mask": booleans(2, 2, T, T)}, r"expected \[2, 3, N, T, S\]"),
        ([(T, D)], {"mask": booleans(1, 1, T, T)}, r"mask has .*expected \[N, T, S\]"),
        ([(2, 3, T, D)], {"bias": normal(3, 2, T, T)}, "bias has shape"),
        ([(2, 3, T, D)], {"q_positions": np.ones((6, T), int)}, r"q_positions .* \[2, 3, T\]"),
        ([(2, T, D)], {"cache_position": CachePosition(np.zeros((1, 2), int), T)}, "index has"),
    ],
    ids=str,
)
def test_inputs_that_do_not_fit_are_named(inputs, given, match):
    layer = MultiHeadAttention(2, rotary="q_positions" in given)
    inputs = [None if shape is None else normal(*shape) for shape in inputs]
    with pytest.raises(ValueError, match=match):
        shapes_of(layer, *inputs, deterministic=True, **given)


# ---- Norms and biases -----------------------------------------------------------------------


def np_rms_norm(p, x):
    return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + 1e-6) * p["scale"]


def test_norms_without_mean_and_layers_without_biases():
    stack = Encoder(functools.partial(EncoderLayer, 2, F, norm="rms", use_bias=False), 1)
    x = normal(2, T, D)
    params = parameters(stack, x)
    names = {path[-1].key for path, _ in jax.tree_util.tree_leaves_with_path(params)}
    assert names == {"kernel", "scale"}
    p = params["layer_0"]
    attention = MultiHeadAttention(2, use_bias=False)
    attended = run(attention, p["self_attention"], np_rms_norm(p["self_attention_norm"], x))
    x = x + attended
    up = np.maximum(np_rms_norm(p["feed_forward_norm"], x) @ p["feed_forward"]["up"]["kernel"], 0)
    x = x + up @ p["feed_forward"]["down"]["kernel"]
    expected = np_rms_norm(params["final_norm"], x)
    close(run(stack, params, normal(2, T, D)), expected, atol=2e-4)


def test_without_biases_the_usual_norm_has_none_either():
    layer, x = EncoderLayer(2, F, use_bias=False, normalize_qk=True), normal(2, T, D)
    shapes = shapes_of(layer, x, deterministic=True)
    assert set(shapes["self_attention_norm"]) == {"scale"}
    assert set(shapes["self_attention"]["query_ln"]) == {"scale"}
    with pytest.raises(ValueError, match="norm is 'batch'"):
        shapes_of(EncoderLayer(2, F, norm="batch"), x, deterministic=True)


# ---- Rotary positions -----------------------------------------------------------------------


def np_frequencies(head_dim, base, scaling):
    """In plain loops, as the papers and the published configurations have them."""
    found = []
    for i in range(head_dim // 2):
        frequency = base ** (-2 * i / head_dim)
        slow = frequency / scaling.factor
        if isinstance(scaling, LinearScaling):
            found.append(slow)
            continue
        if isinstance(scaling, Llama3Scaling):
            wavelength = 2 * math.pi / frequency
            if wavelength < scaling.original_length / scaling.high_freq_factor:
                found.append(frequency)
            elif wavelength > scaling.original_length / scaling.low_freq_factor:
                found.append(slow)
            else:
                share = scaling.original_length / wavelength - scaling.low_freq_factor
                share /= scaling.high_freq_factor - scaling.low_freq_factor
                found.append((1 - share) * slow + share * frequency)
            continue
        first, last = (
            head_dim
            * math.log(scaling.original_length / (turns * 2 * math.pi))
            / (2 * math.log(base))
            for turns in (scaling.beta_fast, scaling.beta_slow)
        )
        first, last = max(math.floor(first), 0), min(math.ceil(last), head_dim - 1)
        share = min(max((i - first) / (last - first), 0), 1)
        found.append(slow * share + frequency * (1 - share))
    return np.array(found)


SCALINGS = [
    LinearScaling(4.0),
    Llama3Scaling(8.0, 8192),
    Llama3Scaling(32.0, 512, low_freq_factor=2.0, high_freq_factor=16.0),
    YarnScaling(4.0, 4096),
    YarnScaling(16.0, 300, beta_fast=8.0, beta_slow=2.0),
]


@pytest.mark.parametrize("scaling", SCALINGS, ids=str)
@pytest.mark.parametrize("base", [10_000.0, 500_000.0])
def test_frequencies_are_those_of_the_papers(scaling, base):
    found = Rotary(base, scaling).frequencies(128)
    np.testing.assert_allclose(found, np_frequencies(128, base, scaling), rtol=2e-4)


def test_positions_are_interpolated_by_linear_scaling():
    x, positions = normal(1, T, 2, 8), jnp.arange(T)[None]
    close(rotary(x, 4 * positions, Rotary(scaling=LinearScaling(4.0))), rotary(x, positions))


def test_yarn_makes_logits_larger_and_other_scalings_do_not():
    x, positions = normal(1, T, 2, 8), jnp.arange(T)[None]
    for scaling in SCALINGS:
        turned = rotary(x, positions, Rotary(scaling=scaling))
        yarn = isinstance(scaling, YarnScaling)
        factor = 0.1 * math.log(scaling.factor) + 1 if yarn else 1
        close(np.linalg.norm(turned, axis=-1), factor * np.linalg.norm(x, axis=-1))


@pytest.mark.thorough
def test_a_base_is_that_of_the_layer_and_of_its_cache():
    how, x, mask = (
        Rotary(500.0, YarnScaling(4.0, 16)),
        normal(2, 9, D),
        causal() & sliding_window(3),
    )
    layer = MultiHeadAttention(2, rotary=how)
    params = parameters(layer, x)
    expected = run(layer, params, x, mask=mask)
    assert (
        np.abs(expected - run(MultiHeadAttention(2, rotary=True), params, x, mask=mask)).max()
        > 1e-2
    )
    variables, outputs = {"params": params}, []
    for start, end in ((0, 6), (6, 7), (7, 9)):
        at = CachePosition(start, 4, ring=True)
        how = {"mask": mask, "cache_position": at, "deterministic": True, "mutable": ["cache"]}
        output, cache = layer.apply(variables, x[:, start:end], **how)
        variables, outputs = variables | cache, [*outputs, output]
    close(np.concatenate(outputs, axis=1), expected)


def test_a_base_or_factor_out_of_range_is_named():
    with pytest.raises(ValueError, match=r"base is .*; expected more than 1"):
        Rotary(1.0)
    with pytest.raises(ValueError, match=r"scaling has factor .*; expected at least 1"):
        Rotary(scaling=LinearScaling(0.5))
