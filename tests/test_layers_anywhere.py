"""Layers under flax's and jax's transformations: the same numbers as without them."""

import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attention_cases import enable_x64
from flax import nnx

from flaxattn import (
    CachePosition,
    Decoder,
    DecoderLayer,
    Encoder,
    EncoderDecoder,
    EncoderDecoderConfig,
    EncoderLayer,
    FeedForward,
    MultiHeadAttention,
    causal,
    lengths,
)

B, T, D, F = 2, 5, 8, 11

close = functools.partial(np.testing.assert_allclose, rtol=3e-5, atol=3e-5)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


X, TOKENS = normal(B, T, D), np.arange(1, 1 + B * T).reshape(B, T)
MODULES = {
    "attention": (MultiHeadAttention(2), (X,)),
    "feed-forward": (FeedForward(F), (X,)),
    "encoder layer": (EncoderLayer(2, F), (X,)),
    "decoder layer": (DecoderLayer(2, F), (X, X)),
    "encoder": (Encoder(functools.partial(EncoderLayer, 2, F), 2), (X,)),
    "decoder": (Decoder(functools.partial(DecoderLayer, 2, F), 2, share_layers=True), (X, X)),
    "encoder-decoder": (
        EncoderDecoder(EncoderDecoderConfig(17, 8, F, 2, positions="learned")),
        (TOKENS, TOKENS),
    ),
}
all_modules = pytest.mark.parametrize(("module", "inputs"), MODULES.values(), ids=MODULES)


def variables_of(module, *inputs, seed=0):
    return module.init(jax.random.key(seed), *inputs, deterministic=True)


# ---- NNX ------------------------------------------------------------------------------------


def in_nnx(module, *inputs):
    """The module in NNX, with parameters."""
    return nnx.bridge.lazy_init(
        nnx.bridge.ToNNX(module, rngs=nnx.Rngs(0)), *inputs, deterministic=True
    )


@all_modules
def test_every_module_starts_and_runs_in_nnx_without_a_mesh(module, inputs):
    model = in_nnx(module, *inputs)
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    chex.assert_trees_all_equal_shapes(params, variables_of(module, *inputs)["params"])
    expected = module.apply({"params": params}, *inputs, deterministic=True)
    close(model(*inputs, deterministic=True), expected)


@all_modules
def test_no_method_of_a_module_hides_one_of_its_parts_from_nnx(module, inputs):
    """`ToNNX` takes a class's methods before the parameters of the same name."""
    params = jax.eval_shape(functools.partial(variables_of, module), *inputs)["params"]
    methods = {name for name in dir(type(module)) if callable(getattr(type(module), name, None))}
    assert not methods & set(params)


@pytest.mark.thorough
def test_a_cache_is_kept_by_a_module_of_nnx():
    model = in_nnx(EncoderLayer(2, F, rotary=True), X)
    call = functools.partial(model, mask=causal(), deterministic=True)
    expected = call(X)
    first = call(X[:, :3], cache_position=CachePosition(0, T), mutable=["cache"])
    later = call(X[:, 3:], cache_position=CachePosition(3), mutable=["cache"])
    close(jnp.concatenate([first, later], axis=1), expected)


# ---- flax's transformations -----------------------------------------------------------------


class Ensemble(nn.Module):
    """Several modules, each with its own inputs and parameters."""

    member: nn.Module

    @nn.compact
    def __call__(self, *inputs, deterministic):
        def apply(member, *inputs):
            return member(*inputs, deterministic=deterministic)

        return nn.vmap(apply, variable_axes={"params": 0}, split_rngs={"params": True})(
            self.member, *inputs
        )


@pytest.mark.thorough(quick=3)
@all_modules
def test_vmap_makes_an_ensemble(module, inputs):
    inputs = [np.stack([x, x[::-1]]) for x in inputs]
    ensemble = Ensemble(module)
    variables = variables_of(ensemble, *inputs)
    output = ensemble.apply(variables, *inputs, deterministic=True)
    for i in range(2):
        params = jax.tree.map(lambda leaf, i=i: leaf[i], variables["params"]["member"])
        expected = module.apply({"params": params}, *(x[i] for x in inputs), deterministic=True)
        close(output[i], expected)


class Deep(nn.Module):
    """One layer's program, applied three times with different parameters."""

    layer: nn.Module
    remat: bool = False

    @nn.compact
    def __call__(self, x, *, deterministic, **keywords):
        def apply(layer, x, _):
            return layer(x, deterministic=deterministic, **keywords), None

        scan = nn.scan(
            nn.remat(apply) if self.remat else apply,
            variable_axes={"params": 0, "cache": 0},
            split_rngs={"params": True, "dropout": True},
            length=3,
        )
        return scan(self.layer, x, None)[0]


@pytest.mark.thorough(quick=1)
@pytest.mark.parametrize("remat", [True, False])
def test_scan_over_layers_equals_the_layers_in_turn(remat):
    layer = EncoderLayer(2, F, rotary=True)
    deep = Deep(layer, remat)
    variables = variables_of(deep, X)

    @jax.jit
    @jax.value_and_grad
    def scanned(params):
        output = deep.apply({"params": params}, X, mask=causal(), deterministic=True)
        return jnp.vdot(output, normal(*X.shape, seed=1))

    @jax.jit
    @jax.value_and_grad
    def in_turn(params):
        x = X
        for i in range(3):
            one = jax.tree.map(lambda leaf, i=i: leaf[i], params["layer"])
            x = layer.apply({"params": one}, x, mask=causal(), deterministic=True)
        return jnp.vdot(x, normal(*X.shape, seed=1))

    jax.tree.map(close, scanned(variables["params"]), in_turn(variables["params"]))


@pytest.mark.thorough
def test_a_cache_is_scanned_with_the_layers_that_it_belongs_to():
    deep = Deep(EncoderLayer(2, F, rotary=True))
    variables = variables_of(deep, X)
    call = functools.partial(deep.apply, mask=causal(), deterministic=True)
    expected = call(variables, X)
    call = functools.partial(call, mutable=["cache"])
    first, cache = call(variables, X[:, :3], cache_position=CachePosition(0, T))
    later, _ = call(variables | cache, X[:, 3:], cache_position=CachePosition(3))
    close(jnp.concatenate([first, later], axis=1), expected)


# ---- jax's transformations, over implementations, on both sides of what "auto" tells apart -------

SHORT, LONG = 23, 389  # on a CPU attention by blocks pays from some 360 x 360 logits on
IMPLEMENTATIONS = ["auto", "dense", "blockwise"]


def layer_of(implementation):
    return EncoderLayer(2, F, num_kv_heads=1, rotary=True, implementation=implementation)


@functools.cache
def problem(length, dtype=np.float32):
    """Inputs, a mask with rows that see nothing, parameters, a cotangent."""
    x, cotangent = (normal(B, length, D, seed=i).astype(dtype) for i in (0, 1))
    mask = causal() & lengths(q_lengths=np.array([length, 9]), kv_lengths=np.array([length - 3, 0]))
    params = jax.tree.map(
        lambda leaf: (0.3 * np.random.default_rng(2).normal(size=leaf.shape)).astype(dtype),
        jax.eval_shape(functools.partial(variables_of, layer_of("dense")), x)["params"],
    )
    return x, mask, params, cotangent


def loss(layer, mask, params, x, cotangent):
    output = layer.apply({"params": params}, x, mask=mask, deterministic=True)
    return jnp.vdot(output, cotangent)


def value_and_gradients(implementation, length, around=lambda fn: fn, dtype=np.float32):
    """The loss and its gradients by parameters and inputs, of the layer transformed by `around`."""
    x, mask, params, cotangent = problem(length, dtype)
    fn = around(functools.partial(loss, layer_of(implementation), mask))
    return jax.value_and_grad(fn, (0, 1))(params, x, cotangent)


@functools.cache
def plain(length):
    """The definition, without any transformation."""
    return jax.jit(lambda: value_and_gradients("dense", length))()


def mapped(fn):
    """Over examples: each with a batch of its own, of two that are the same."""
    twice = functools.partial(jax.tree.map, lambda leaf: jnp.stack([leaf, leaf]))
    return lambda params, x, c: jax.vmap(fn, (None, 0, 0))(params, twice(x), twice(c)).mean()


def scanned(fn):
    def twice(params, x, c):
        return jax.lax.scan(lambda total, _: (total + fn(params, x, c) / 2, None), 0.0, None, 2)[0]

    return twice


AROUND = {
    "nothing": lambda fn: fn,
    "jax.checkpoint": jax.checkpoint,
    "jax.vmap": mapped,
    "jax.lax.scan": scanned,
    "jax.checkpoint of jax.vmap": lambda fn: jax.checkpoint(mapped(fn)),
}
everywhere = pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
both_sides = pytest.mark.parametrize("length", [SHORT, LONG])


@pytest.mark.thorough(quick=2)
@both_sides
@everywhere
@pytest.mark.parametrize("around", AROUND)
def test_values_and_gradients_are_the_same_under(around, implementation, length):
    found = jax.jit(lambda: value_and_gradients(implementation, length, AROUND[around]))()
    jax.tree.map(functools.partial(close, atol=3e-4), found, plain(length))


@pytest.mark.thorough(quick=1)
@both_sides
@everywhere
@pytest.mark.parametrize("what", ["debug_nans", "debug_infs"])
def test_nothing_on_the_way_is_not_finite_to_a_debugger(what, implementation, length):
    """Though rows see nothing, and what is hidden is not finite."""
    x, mask, params, cotangent = problem(length)
    with getattr(jax, what)(True):
        fn = functools.partial(loss, layer_of(implementation), mask)
        found = jax.jit(jax.value_and_grad(fn, (0, 1)))(params, x, cotangent)
    jax.tree.map(functools.partial(close, atol=3e-4), found, plain(length))


@pytest.mark.thorough(quick=1)
@pytest.mark.usefixtures("standard_promotion")  # flax's norms mix dtypes
@both_sides
@everywhere
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_in_x64(dtype, implementation, length):
    with enable_x64(True):
        found = jax.jit(lambda: value_and_gradients(implementation, length, dtype=dtype))()
        expected = plain_in_x64(length)
        assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {np.dtype(dtype)}
    rtol = 3e-4 if dtype == np.float32 else 1e-5  # rotary positions are float32 always
    jax.tree.map(functools.partial(close, rtol=rtol, atol=rtol), found, expected)


@functools.cache
def plain_in_x64(length):
    return jax.jit(lambda: value_and_gradients("dense", length, dtype=np.float64))()


@pytest.mark.thorough(quick=2)
@everywhere
@pytest.mark.parametrize("shape", ["b, 23, 8", "b, 389, 8", "2, t, 8", "b, t, 8"])
def test_exports_with_symbolic_shapes(shape, implementation):
    layer = layer_of(implementation)
    params = problem(SHORT)[2]

    def apply(params, x):
        return layer.apply({"params": params}, x, mask=causal(), deterministic=True)

    symbolic = jax.ShapeDtypeStruct(jax.export.symbolic_shape(shape), np.float32)
    if implementation == "blockwise" and "t" in shape:
        with pytest.raises(ValueError, match=r'T = t, a symbolic size.*"dense"'):
            jax.export.export(jax.jit(apply))(params, symbolic)
        return
    exported = jax.export.export(jax.jit(apply))(params, symbolic)
    again = jax.export.deserialize(exported.serialize())
    for length in (SHORT, LONG):
        if str(length) in shape or "t" in shape:
            x = problem(length)[0]
            close(again.call(params, x), jax.jit(apply)(params, x), atol=1e-4)


# ---- Initial values in boxes ----------------------------------------------------------------


@all_modules
def test_parameters_are_plain_arrays_unless_flax_has_rules_for_names(module, inputs):
    init = functools.partial(variables_of, module)
    plain = jax.eval_shape(init, *inputs)
    chex.assert_trees_all_equal_structs(plain, nn.meta.unbox(plain))
    with nn.logical_axis_rules([("embed", None)]):
        boxed = jax.eval_shape(lambda *inputs: init(*inputs), *inputs)
    chex.assert_trees_all_equal_shapes(nn.meta.unbox(boxed), plain)
    assert jax.tree.structure(boxed) != jax.tree.structure(plain)
    chex.assert_trees_all_equal_structs(jax.eval_shape(lambda *i: init(*i), *inputs), plain)


@pytest.mark.parametrize("rules", [(), [("embed", None)]], ids=["no rules", "rules"])
def test_names_given_with_an_initializer_are_kept_as_by_flax(rules):
    init = nn.with_partitioning(nn.initializers.lecun_normal(), ("embed", "head", "one"))
    layers = (
        MultiHeadAttention(2, kernel_init=init),
        nn.MultiHeadDotProductAttention(2, kernel_init=init),
    )
    with nn.logical_axis_rules(rules):
        ours, theirs = (
            nn.get_partition_spec(jax.eval_shape(functools.partial(variables_of, layer), X))
            for layer in layers
        )
    assert ours["params"]["query"]["kernel"] == theirs["params"]["query"]["kernel"]
