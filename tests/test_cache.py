"""Decoding with a key/value cache against one pass over the whole sequence, which has none."""

import dataclasses
import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_attend import compilations

from flaxattn import (
    CachePosition,
    Decoder,
    DecoderLayer,
    Encoder,
    EncoderDecoder,
    EncoderDecoderConfig,
    EncoderLayer,
    MultiHeadAttention,
    causal,
    chunked,
    dilated,
    from_dense,
    global_tokens,
    lengths,
    prefix,
    same_segment,
    sliding_window,
    valid,
    where,
)
from flaxattn.attention.costs import draw_plan
from flaxattn.layers.cache import write_cells

B, T, S, D, V = 3, 7, 5, 12, 13
QUICK = {"xla_backend_optimization_level": 0}  # compiles faster, and these programs are small

close = functools.partial(np.testing.assert_allclose, rtol=3e-5, atol=3e-5)
jit = functools.partial(jax.jit, compiler_options=QUICK)


# ---- What the tests share -------------------------------------------------------------------


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def parameters(module, *inputs):
    """Random parameters of the right shapes: biases and scales too, so that none hides."""
    init = functools.partial(module.init, deterministic=True)
    shapes = jax.eval_shape(init, jax.random.key(0), *inputs)["params"]
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: (0.4 * rng.normal(size=leaf.shape)).astype(leaf.dtype), shapes)


def cache_at(index, length=None):
    return {"cache_position": CachePosition(index, length)}


def call(module, params, cache, *inputs, **keywords):
    """(output, cache) of one call that may write the cache."""
    variables = {"params": params} | ({} if cache is None else {"cache": cache})
    output, state = module.apply(
        variables, *inputs, **keywords, deterministic=True, mutable=["cache"]
    )
    return output, state["cache"]


def in_chunks(chunks, step, x):
    """The outputs of `step(cache, x of the chunk, index)`, one chunk after another."""
    cache, outputs, start = None, [], 0
    for length in chunks:
        output, cache = step(cache, x[:, start : start + length], jnp.asarray(start))
        outputs.append(output)
        start += length
    assert start == x.shape[1]
    return np.concatenate(outputs, axis=1), cache


def assert_chunks_equal_one_pass(layer, mask, chunks, *, batch=B, cache_length=T, **given):
    x, given = normal(batch, T, D), {"mask": mask, **given}
    params = parameters(layer, x)

    @jit
    def step(cache, x, index):
        return call(layer, params, cache, x, **given, **cache_at(index, cache_length))

    output, cache = in_chunks(chunks, step, x)
    close(output, layer.apply({"params": params}, x, **given, deterministic=True))
    return cache


# ---- One layer ------------------------------------------------------------------------------

IDS = np.array([[1, 1, 2, 2, 2, 3, 0], [1, 1, 1, 1, 1, 1, 1], [2, 2, 2, 1, 1, 1, 1]])  # [B, T]
MASKS = {
    "causal": causal(),
    "window": causal() & sliding_window(2),
    "window of each example": causal() & sliding_window(np.array([1, 2, 5])),
    "window of each head": causal() & sliding_window(np.array([[1, 4]])),
    "dilated or global": causal() & (dilated(2) | global_tokens(1)),
    "chunked": causal() & chunked(3),
    "prefix": causal() | prefix(2),
    "segments": causal() & same_segment(IDS),
    "not the last": causal() & ~lengths(kv_lengths=np.array([0, 1, 2])),
    "dense": from_dense(np.tril(np.random.default_rng(0).random((B, T, T)) < 0.7)),
    "rule": where(lambda q, k, bar: (k <= q) & ((q + k) % 3 != bar), jnp.array([0, 1, 2])),
}


@pytest.mark.thorough(quick=1)
@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_the_mask_of_training_serves_two_uneven_chunks_and_single_tokens(mask):
    assert_chunks_equal_one_pass(MultiHeadAttention(2), mask, [2, 3, 1, 1])


@pytest.mark.thorough(quick=1)
@pytest.mark.parametrize(
    "settings",
    [
        {"rotary": True},
        {"num_kv_heads": 1, "use_bias": False},
        {"num_kv_heads": 2, "rotary": True, "implementation": "blockwise"},
    ],
    ids=str,
)
def test_every_kind_of_attention_token_by_token(settings):
    layer = MultiHeadAttention(4, qkv_features=16, **settings)
    assert_chunks_equal_one_pass(layer, causal() & sliding_window(3), [1] * T, cache_length=11)


def test_a_batch_of_one_and_a_prompt_that_fills_the_cache():
    assert_chunks_equal_one_pass(MultiHeadAttention(2), causal(), [T], batch=1)


def test_without_a_mask_all_that_is_written_is_seen():
    layer, x = MultiHeadAttention(2), normal(B, T, D)
    params = parameters(layer, x)
    _, cache = call(layer, params, None, x[:, :4], **cache_at(0, 11))
    output, _ = call(layer, params, cache, x[:, 4:], **cache_at(4))
    close(output, layer.apply({"params": params}, x, deterministic=True)[:, 4:])


def test_each_example_has_an_index_of_its_own():
    """Rows are handed their tokens at different times; each still sees its own past alone."""
    layer, x, mask = MultiHeadAttention(2, rotary=True), normal(B, T, D), causal()
    params = parameters(layer, x)
    expected = layer.apply({"params": params}, x, mask=mask, deterministic=True)
    step = jit(functools.partial(call, layer, params, mask=mask))
    index, cache = np.array([0, 0, 0]), None
    for advance in ([0, 1, 2], [2, 0, 1], [1, 1, 1], [1, 0, 0], [0, 2, 1]):
        rows = np.arange(B)[:, None]
        cells = index[:, None] + np.arange(2)
        output, cache = step(cache, x[rows, cells], **cache_at(index, 9))
        close(output, expected[rows, cells])
        index = index + advance


@pytest.mark.thorough
def test_ragged_prompts_go_on_from_their_own_lengths():
    """Padding of a prompt fills cells that the next tokens then take; garbage in it is not seen."""
    layer, x = MultiHeadAttention(2, rotary=True), normal(B, T, D)
    prompt_lengths = np.array([4, 1, 3])
    params = parameters(layer, x)
    padded = np.where((np.arange(4) < prompt_lengths[:, None])[..., None], x[:, :4], np.nan)
    expected = layer.apply({"params": params}, x, mask=causal(), deterministic=True)
    step = functools.partial(call, layer, params, mask=causal())
    prefilled, cache = step(None, padded, **cache_at(0, T))
    for b, length in enumerate(prompt_lengths):
        close(prefilled[b, :length], expected[b, :length])
    for t in range(3):
        index = prompt_lengths + t
        output, cache = step(cache, x[np.arange(B), index][:, None], **cache_at(index))
        close(output[:, 0], expected[np.arange(B), index])


@pytest.mark.thorough(quick=1)
@pytest.mark.parametrize("mask", [None, causal(), sliding_window(3, 3)], ids=str)
def test_garbage_in_cells_not_written_yet_changes_no_bit_and_no_gradient(mask):
    layer, x = MultiHeadAttention(2), normal(B, T, D)
    params = parameters(layer, x)
    index = np.array([3, 1, 3])
    _, clean = call(layer, params, None, x[:, :3], **cache_at(0, T))
    unwritten = (np.arange(T) >= index[:, None])[:, :, None, None]
    dirty = jax.tree.map(lambda cells: jnp.where(unwritten, jnp.nan, cells), clean)

    @jax.value_and_grad
    def loss(x, cache):
        output, _ = call(layer, params, cache, x, mask=mask, **cache_at(index))
        return jnp.vdot(output, normal(*output.shape, seed=1))

    expected, actual = loss(x[:, 3:5], clean), loss(x[:, 3:5], dirty)
    assert np.isfinite(expected[0])
    assert (expected[1] != 0).any()
    chex.assert_trees_all_equal(actual, expected)


def test_an_example_without_room_is_nan_and_the_others_are_right():
    layer, x = MultiHeadAttention(2), normal(B, T, D)
    params = parameters(layer, x)
    step = functools.partial(call, layer, params, mask=causal() & sliding_window(0))
    _, cache = step(None, x[:, :3], **cache_at(0, 5))
    index = np.array([4, 3, 9])
    output, _ = step(cache, x[:, 3:5], **cache_at(index))
    expected = layer.apply(
        {"params": params}, x[:, 3:5], mask=sliding_window(0), deterministic=True
    )
    assert np.isnan(output[::2]).all()
    close(output[1], expected[1])


def test_new_indices_do_not_trace_anew():
    layer, x = MultiHeadAttention(2), normal(B, T, D)
    params = parameters(layer, x)
    _, cache = call(layer, params, None, x, mask=causal(), **cache_at(0, 11))

    @jax.jit
    @chex.assert_max_traces(n=2)  # one index for all, and one for each
    def step(cache, x, position):
        return call(layer, params, cache, x, mask=causal(), cache_position=position)

    for start in range(3):
        step(cache, x[:, :1], CachePosition(start, 11))
        step(cache, x[:, :1], CachePosition(np.array([1, 2, 3]) + start, 11))


def test_new_python_integers_do_not_compile_anew_outside_jit(caplog):
    layer, x = MultiHeadAttention(2), normal(B, T, D)
    params = parameters(layer, x)
    _, cache = call(layer, params, None, x, mask=causal(), **cache_at(0, 11))

    def step(index, length=1):
        call(layer, params, cache, x[:, :length], mask=causal(), **cache_at(index))

    step(1)
    assert compilations(caplog, lambda: step(1, length=2)) > 0
    assert compilations(caplog, lambda: step(4)) == 0


def test_weights_are_those_over_all_cells():
    layer, x = MultiHeadAttention(2), normal(B, T, D)
    params = parameters(layer, x)
    _, cache = call(layer, params, None, x[:, :3], mask=causal(), **cache_at(0, 9))
    _, state = layer.apply(
        {"params": params, "cache": cache},
        x[:, 3:5],
        mask=causal(),
        **cache_at(3),
        sow_weights=True,
        deterministic=True,
        mutable=["cache", "intermediates"],
    )
    _, whole = layer.apply(
        {"params": params},
        x[:, :5],
        mask=causal(),
        sow_weights=True,
        deterministic=True,
        mutable=["intermediates"],
    )
    (weights,) = state["intermediates"]["attention_weights"]
    (expected,) = whole["intermediates"]["attention_weights"]
    close(weights[..., :5], expected[:, :, 3:])
    assert (weights[..., 5:] == 0).all()


def test_cells_are_of_the_dtype_of_computation():
    layer = MultiHeadAttention(2, dtype=jnp.bfloat16)
    x = normal(B, T, D)
    params = parameters(layer, x)
    output, cache = call(layer, params, None, x, mask=causal(), **cache_at(0, T))
    chex.assert_type([output, *jax.tree.leaves(cache)], jnp.bfloat16)
    expected = layer.apply({"params": params}, x, mask=causal(), deterministic=True)
    np.testing.assert_array_equal(output, expected)


def test_cells_are_written_from_one_index_or_from_each_examples_own():
    cells, new = np.zeros((2, 4), int), np.array([[1, 2], [3, 4]])
    at = [[0, 1, 2, 0], [0, 3, 4, 0]]
    np.testing.assert_array_equal(write_cells(cells, new, jnp.array(1)), at)
    at = [[0, 0, 1, 2], [3, 4, 0, 0]]
    np.testing.assert_array_equal(write_cells(cells, new, jnp.array([2, 0])), at)


# ---- Cross-attention ------------------------------------------------------------------------


def test_keys_and_values_of_other_inputs_are_computed_once():
    layer, x, y = MultiHeadAttention(2), normal(B, T, D), normal(B, S, D, seed=1)
    params = parameters(layer, x, y)
    mask = same_segment(IDS, IDS[:, :S])
    expected = layer.apply({"params": params}, x, y, mask=mask, deterministic=True)
    output, cache = call(layer, params, None, x[:, :3], y, mask=mask, **cache_at(0))
    close(output, expected[:, :3])
    params |= {name: jax.tree.map(lambda p: p * np.nan, params[name]) for name in ("key", "value")}
    output, after = call(layer, params, cache, x[:, 3:], "cached", mask=mask, **cache_at(3))
    close(output, expected[:, 3:])
    chex.assert_trees_all_equal(after, cache)


def test_other_inputs_given_again_take_the_place_of_those_kept():
    layer, x, y = MultiHeadAttention(2), normal(B, T, D), normal(B, S, D, seed=1)
    params = parameters(layer, x, y)
    _, cache = call(layer, params, None, x, y, **cache_at(0))
    output, cache = call(layer, params, cache, x, y[:, ::-1][:, :3] * 2, **cache_at(0))
    again, _ = call(layer, params, cache, x, "cached", **cache_at(0))
    expected = layer.apply({"params": params}, x, y[:, ::-1][:, :3] * 2, deterministic=True)
    close(output, expected)
    close(again, expected)


# ---- Stacks ---------------------------------------------------------------------------------


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("share_layers", "norm_position", "remat"),
    [(False, "post", False), (False, "pre", True), (True, "pre", False), (True, "post", True)],
)
def test_a_stack_keeps_a_cache_for_every_depth(share_layers, norm_position, remat):
    layer = functools.partial(
        EncoderLayer, 2, ff_features=5, rotary=True, norm_position=norm_position
    )
    stack = Encoder(layer, 3, share_layers=share_layers, remat=remat)
    cache = assert_chunks_equal_one_pass(stack, causal(), [1, 4, 2], cache_length=8)
    chex.assert_tree_shape_prefix(cache, (B, 8, 2, 6))
    assert len(jax.tree.leaves(cache)) == 2 * 3
    kept = {"cached_key": (B, 8, 2, 6), "cached_value": (B, 8, 2, 6)}
    if share_layers:
        kept |= {f"{name}_{i}": kept[name] for name in list(kept) for i in (1, 2)}
    assert jax.tree.map(jnp.shape, cache["layer_0"]["self_attention"]) == kept


@pytest.mark.thorough
@pytest.mark.parametrize("share_layers", [False, True])
def test_a_decoder_needs_what_was_encoded_once(share_layers):
    layer = functools.partial(DecoderLayer, 2, ff_features=5)
    stack, x, y = Decoder(layer, 2, share_layers=share_layers), normal(B, T, D), normal(B, S, D)
    params = parameters(stack, x, y)
    masks = {"mask": causal(), "cross_mask": lengths(kv_lengths=np.array([5, 2, 4]))}
    expected = stack.apply({"params": params}, x, y, **masks, deterministic=True)
    output, cache = call(stack, params, None, x[:, :2], y, **masks, **cache_at(0, T))
    close(output, expected[:, :2])
    output, _ = call(stack, params, cache, x[:, 2:], None, **masks, **cache_at(2))
    close(output, expected[:, 2:])


class LanguageModel(nn.Module):
    """A decoder-only model, as a user would write one."""

    @nn.compact
    def __call__(self, tokens, *, deterministic, **cache):
        embed = nn.Embed(V, D)
        x = embed(tokens)
        for _ in range(2):
            layer = EncoderLayer(4, ff_features=9, num_kv_heads=2, qkv_features=16, rotary=True)
            mask = causal() & sliding_window(3)
            x = layer(x, mask=mask, deterministic=deterministic, **cache)
        return embed.attend(nn.LayerNorm()(x))


@pytest.mark.thorough
def test_a_decoder_only_model_writes_what_one_pass_finds_most_likely():
    model, prompt = LanguageModel(), np.array([[3, 4], [5, 1], [2, 2]])
    params = parameters(model, prompt)

    @jit
    def generate(prompt):
        logits, cache = call(model, params, None, prompt, **cache_at(0, T))

        def extend(carry, index):
            token, cache = carry
            logits, cache = call(model, params, cache, token, **cache_at(index))
            return (logits.argmax(-1), cache), (token[:, 0], logits[:, 0])

        carry = (logits[:, -1:].argmax(-1), cache)
        return jax.lax.scan(extend, carry, jnp.arange(2, T))[1]

    written, logits = generate(prompt)
    tokens = np.concatenate([prompt, written.T], axis=1)
    expected = model.apply({"params": params}, tokens, deterministic=True)
    np.testing.assert_array_equal(tokens[:, 2:], expected[:, 1:-1].argmax(-1))
    close(logits.swapaxes(0, 1), expected[:, 2:])
    assert len(np.unique(tokens)) > 3


# ---- The encoder-decoder --------------------------------------------------------------------

SMALL = EncoderDecoderConfig(
    vocab_size=V, features=D, ff_features=10, num_heads=2, encoder_layers=1, decoder_layers=2
)
CONFIGS = {
    "sinusoidal pre": {},
    "learned post": {"positions": "learned", "norm_position": "post", "max_positions": T},
    "rotary grouped": {"positions": "rotary", "num_kv_heads": 1, "tie_embeddings": "none"},
    "rotary shared": {"positions": "rotary", "share_layers": True, "norm_position": "post"},
    "sinusoidal shared remat": {"share_layers": True, "remat": True, "decoder_layers": 3},
}
SOURCE = np.array([[3, 4, 5, 6, 0], [5, 6, 0, 0, 0], [3, 1, 2, 9, 7]])
SOURCE_IDS = (SOURCE > 0).astype(np.int32)
TARGET = np.random.default_rng(0).integers(1, V, (B, T))


@functools.cache
def translator(**settings):
    """The model, its parameters, what it encodes, and its logits of the whole target."""
    model = EncoderDecoder(dataclasses.replace(SMALL, **settings))
    params = parameters(model, SOURCE, TARGET)
    variables = {"params": params}
    encoded = model.apply(variables, SOURCE, SOURCE_IDS, deterministic=True, method="encode")
    return model, params, encoded, model.apply(variables, SOURCE, TARGET, deterministic=True)


def logits_of_step(model, params, cache, tokens, encoded, source_segment_ids, **at):
    decoded, cache = call(
        model, params, cache, tokens, encoded, source_segment_ids, **at, method="decode_step"
    )
    return model.apply({"params": params}, decoded, method="logits"), cache


@pytest.mark.thorough(quick=1)
@pytest.mark.parametrize("settings", CONFIGS.values(), ids=CONFIGS)
def test_cached_logits_are_those_of_teacher_forcing(settings):
    model, params, encoded, expected = translator(**settings)

    @jit
    def step(cache, tokens, index):
        keys_of = encoded if cache is None else None
        at = cache_at(index, T)
        return logits_of_step(model, params, cache, tokens, keys_of, SOURCE_IDS, **at)

    logits, cache = in_chunks([3, 1, 1, 2], step, TARGET)
    close(logits, expected, rtol=1e-4)
    assert {leaf.shape[:2] for leaf in jax.tree.leaves(cache)} == {(B, T), (B, S)}


@pytest.mark.thorough
def test_rows_of_the_cache_can_be_reordered_and_repeated():
    model, params, encoded, expected = translator()
    step = functools.partial(logits_of_step, model, params)
    _, cache = step(None, TARGET[:, :4], encoded, SOURCE_IDS, **cache_at(0, T))
    parents = np.array([2, 0, 0, 1, 2])
    cache = jax.tree.map(lambda leaf: leaf[parents], cache)
    logits, _ = step(cache, TARGET[parents, 4:], None, SOURCE_IDS[parents], **cache_at(4))
    close(logits, expected[parents, 4:], rtol=1e-4)


@pytest.mark.thorough
def test_targets_of_different_lengths_go_on_from_their_own_ends():
    model, params, encoded, expected = translator()
    step = functools.partial(logits_of_step, model, params)
    done = np.array([2, 4, 1])
    prompts = np.where(np.arange(4) < done[:, None], TARGET[:, :4], 0)
    _, cache = step(None, prompts, encoded, SOURCE_IDS, **cache_at(0, T))
    for t in range(3):
        at = (np.arange(B), done + t)
        logits, cache = step(cache, TARGET[at][:, None], None, SOURCE_IDS, **cache_at(done + t))
        close(logits[:, 0], expected[at], rtol=1e-4)


# ---- Errors ---------------------------------------------------------------------------------


def test_errors_name_what_is_wrong():
    layer, x = MultiHeadAttention(2), normal(B, T, D)
    params = parameters(layer, x)
    _, cache = call(layer, params, None, x, **cache_at(0, 9))
    step = functools.partial(call, layer, params)
    at = cache_at(0)
    for error, message, make in [
        (
            ValueError,
            "no cache yet; give a CachePosition with a length",
            lambda: step(None, x, **at),
        ),
        (ValueError, "7 tokens, but the cache 4", lambda: step(None, x, **cache_at(0, 4))),
        (ValueError, "is 8, but the cache has 9", lambda: step(cache, x, **cache_at(0, 8))),
        (
            ValueError,
            r"the cache has float32 cells of shape \(3, 9",
            lambda: step(cache, x[:2], **at),
        ),
        (ValueError, r"has shape \(2,\)", lambda: step(cache, x, **cache_at(np.array([1, 2])))),
        (
            TypeError,
            "cache_position.index has dtype float32",
            lambda: step(cache, x, **cache_at(1.0)),
        ),
        (ValueError, "no earlier call has kept any", lambda: step(None, x, "cached", **at)),
        (ValueError, "inputs_k is 'other'", lambda: step(cache, x, "other", **at)),
        (ValueError, "'cached' and cache_position None", lambda: step(cache, x, "cached")),
        (ValueError, "in from_dense", lambda: step(cache, x, **at, mask=np.ones((T, T), bool))),
        (
            ValueError,
            "is a BlockPlan",
            lambda: step(cache, x, **at, mask=draw_plan(causal(), T, 9)),
        ),
        (ValueError, "positions 0 to 8 were", lambda: step(cache, x, **at, mask=valid(IDS > 0))),
    ]:
        with pytest.raises(error, match=message):
            make()


def test_a_cache_that_cannot_be_written_is_an_error():
    layer, x = MultiHeadAttention(2), normal(B, T, D)
    variables = {"params": parameters(layer, x)}
    with pytest.raises(ValueError, match=r'mutable=\["cache"\]'):
        layer.apply(variables, x, **cache_at(0, T), deterministic=True)
