"""Models of one stack against an independent float64 forward of one text in NumPy."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from flax import nnx
from model_oracle import (
    doubled,
    laid_out,
    np_affine,
    np_attention,
    np_feed_forward,
    np_gelu,
    np_norm,
    np_sinusoidal,
    np_stack,
    random_like,
)

from flaxattn import (
    CachePosition,
    DecoderOnly,
    EncoderOnly,
    MaskedTokens,
    TextLabels,
    TokenLabels,
    TransformerConfig,
)

V, D, F = 13, 12, 10
SMALL = TransformerConfig(vocab_size=V, features=D, ff_features=F, num_heads=2, num_layers=2)
CONFIGS = {
    "as GPT-2": {
        "positions": "learned",
        "max_positions": 5,  # and the last one serves those beyond
        "activation": "gelu",
        "norm": "layer",
        "norm_epsilon": 0.3,
        "use_bias": True,
        "scale_embeddings": False,
    },
    "as LLaMA": {"rotary_base": 100.0, "num_kv_heads": 1, "window": 2, "softcap": 0.7},
    "ALiBi": {"positions": "alibi", "window": 3, "softcap": 0.5, "norm": "layer"},
    "low rank": {
        "positions": "sinusoidal",
        "embedding_features": 5,
        "share_layers": True,
        "num_layers": 3,
        "tie_embeddings": False,
        "norm_position": "post",
        "activation": "relu",
    },
    "as BERT": {
        "positions": "learned",
        "activation": "gelu_exact",
        "norm": "layer",
        "norm_position": "post",
        "norm_epsilon": 0.2,
        "use_bias": True,
        "scale_embeddings": False,
        "embedding_norm": True,
        "token_types": 3,
    },
    "rotary low rank": {"embedding_features": 4, "norm_epsilon": 0.4, "token_types": 3},
}
KINDS = {"decoder": DecoderOnly, "encoder": EncoderOnly, "masked": MaskedTokens}
KINDS |= {
    "tokens": functools.partial(TokenLabels, num_labels=4),
    "texts": functools.partial(TextLabels, num_labels=4),
}
CASES = [("decoder", "as GPT-2"), ("decoder", "as LLaMA"), ("masked", "as BERT")]
CASES += [("texts", "low rank"), ("decoder", "low rank"), ("encoder", "ALiBi")]
CASES += [("masked", "rotary low rank"), ("tokens", "as LLaMA"), ("texts", "as BERT")]
CASES += [("decoder", "ALiBi"), ("masked", "low rank")]
TEXTS = [[3, 4, 5, 6, 7, 8, 9, 3], [10, 3, 3], [12, 11, 10, 9, 2]]
TYPES = [[1, 1, 1, 0, 0, 2, 2, 2], [2, 0, 1], [0, 0, 1, 1, 2]]
QUICK = {"xla_backend_optimization_level": 0}  # compiles faster, and these programs are small
close = functools.partial(np.testing.assert_allclose, rtol=3e-5, atol=1e-4)


# ---- The oracle -----------------------------------------------------------------------------


def np_embed(config, p, tokens, types):
    x = p["tokens"]["embedding"][tokens] @ p.get("factor", np.eye(D))
    x = x * D**0.5 if config.scale_embeddings else x
    for t in range(len(tokens)):
        if config.positions == "sinusoidal":
            x[t] += np_sinusoidal(t, D)
        if config.positions == "learned":
            x[t] += p["positions"]["embedding"][min(t, config.max_positions - 1)]
        if config.token_types:
            x[t] += p["types"]["embedding"][types[t]]
    return np_norm_of(config)(p["norm"], x) if config.embedding_norm else x


def np_norm_of(config):
    return functools.partial(np_norm, epsilon=config.norm_epsilon, kind=config.norm)


def np_vectors(config, p, stack, tokens, types):
    """[T, D] after the last layer."""
    rule = oracle.causal() if stack == "decoder" else oracle.full()
    if config.window:
        rule = oracle.both(rule, oracle.sliding_window(config.window))
    scores = []
    for slope in oracle.alibi_slopes(config.num_heads):
        rules = [oracle.alibi(slope)] if config.positions == "alibi" else []
        rules += [oracle.softcap(config.softcap)] if config.softcap else []
        scores.append(oracle.in_turn(*rules))
    attention = functools.partial(
        np_attention,
        seen=oracle.draw(rule, len(tokens), len(tokens)),
        scores=scores,
        rotary_base=config.rotary_base if config.positions == "rotary" else None,
    )
    sublayers = {
        "self_attention": lambda p, x: attention(p, x, x),
        "feed_forward": functools.partial(np_feed_forward, activation=config.activation),
    }
    x = np_embed(config, p["embedding"], tokens, types)
    return np_stack(config, p[stack], x, config.num_layers, sublayers, np_norm_of(config))


def np_logits(config, p, x):
    table = p["tokens"] if config.tie_embeddings else p["output"]
    return x @ p.get("factor", np.eye(D)).T @ table["embedding"].T


def np_output(kind, config, params, tokens, types):
    """What a model of the kind makes of one text: [T, ...]."""
    p = doubled(params)
    if kind == "decoder":
        return np_logits(config, p["embedding"], np_vectors(config, p, kind, tokens, types))
    text = p if kind == "encoder" else p["text"]
    x = np_vectors(config, text, "encoder", tokens, types)
    if kind == "masked":
        x = np_gelu(np_affine(p["transform"], x), exact=config.activation == "gelu_exact")
        x = np_norm_of(config)(p["norm"], x)
        return np_logits(config, text["embedding"], x) + p["bias"]
    x = np.tanh(np_affine(p["pooler"], x)) if kind == "texts" else x
    return x if kind == "encoder" else np_affine(p["labels"], x)


# ---- What the tests share -------------------------------------------------------------------


@functools.cache
def made(kind, name, **settings):
    """A model, and random parameters of it."""
    model = KINDS[kind](dataclasses.replace(SMALL, **(CONFIGS[name] | settings)))
    tokens = jnp.ones((1, 2), jnp.int32)
    init = functools.partial(model.init, deterministic=True)
    shapes = jax.eval_shape(init, jax.random.key(0), tokens)["params"]
    return model, random_like(shapes, size=0.7)  # so that activations are not all but linear


@functools.cache
def jitted(model):
    apply = functools.partial(model.apply, deterministic=True)
    return jax.jit(apply, compiler_options=QUICK)


def run(model, params, tokens, **given):
    return np.asarray(jitted(model)({"params": params}, tokens, **given))


PACKED = [(0, 0), (0, 8), (2, 3)]  # and a row of nothing but padding
SPREAD = [(1, 3), (2, 0), (2, 4)]
LENGTH = 13


def batch(config, starts):
    """Tokens, and segments and types by name."""
    tokens, ids = laid_out(TEXTS, starts, LENGTH)
    given = {"token_types": laid_out(TYPES, starts, LENGTH)[0]} if config.token_types else {}
    return tokens, {"segment_ids": ids} | given


# ---- Values ---------------------------------------------------------------------------------


@pytest.mark.thorough(quick=4)
@pytest.mark.parametrize(("kind", "name"), CASES)
def test_outputs_equal_float64_of_each_text_alone_wherever_it_lies(kind, name):
    model, params = made(kind, name)
    if kind == "decoder":  # which knows no types
        model, params = made(kind, name, token_types=0)
    for starts in (PACKED, SPREAD):
        tokens, given = batch(model.config, starts)
        found = run(model, params, tokens, **given)
        assert found.dtype == np.float32
        for i, (text, types) in enumerate(zip(TEXTS, TYPES, strict=True)):
            expected = np_output(kind, model.config, params, np.array(text), types)
            close(found[given["segment_ids"] == i + 1], expected)


def test_segments_left_out_are_told_from_the_padding_and_types_left_out_are_0():
    model, params = made("masked", "as BERT")
    tokens, ids = laid_out(TEXTS, [(0, 0), (1, 0), (2, 0)], LENGTH)
    found = run(model, params, tokens)
    swap = np.array([2, 1, 0, *range(3, V)])  # tokens 0 and 2 change places
    other = run(MaskedTokens(model.config, pad_id=2), params, swap[tokens])
    for i, text in enumerate(np.array(text) for text in TEXTS):
        expected = [
            np_output("masked", model.config, params, t, [0] * 8) for t in (text, swap[text])
        ]
        close(found[ids == i + 1], expected[0])
        close(other[ids == i + 1], expected[1])


# ---- What is seen ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["decoder", "encoder"])
def test_a_token_has_a_gradient_by_those_that_it_may_see_alone(kind):
    """Distinct tokens, so that row t of the table is the embedding at position t."""
    model, params = made(kind, "as LLaMA", tie_embeddings=False)
    tokens, ids = jnp.arange(10)[None], jnp.array([[1] * 7 + [2] * 3])

    def sums(table):
        ours = params | {"embedding": params["embedding"] | {"tokens": {"embedding": table}}}
        given = {"segment_ids": ids, "deterministic": True}
        return model.apply({"params": ours}, tokens, **given)[0].sum(-1)

    table = params["embedding"]["tokens"]["embedding"]
    slopes = jax.jit(jax.jacrev(sums), compiler_options=QUICK)(table)  # [T, V, D]
    step = oracle.both(oracle.sliding_window(2), oracle.same_segment(ids[0].tolist()))
    step = oracle.both(step, oracle.causal()) if kind == "decoder" else step
    reach = np.linalg.matrix_power(oracle.draw(step, 10, 10).astype(int), 2)  # by two layers
    np.testing.assert_array_equal((slopes != 0).any(-1)[:, :10], reach > 0)


@pytest.mark.parametrize("kind", ["decoder", "encoder"])
def test_nan_in_another_text_changes_nothing(kind):
    model, params = made(kind, "low rank")
    tokens, given = batch(model.config, PACKED)
    tokens = np.where(given["segment_ids"] == 1, tokens, 1)  # the others and padding: token 1
    clean = run(model, params, tokens, **given)
    table = params["embedding"]["tokens"]["embedding"].copy()
    table[1] = np.nan
    broken = params | {"embedding": params["embedding"] | {"tokens": {"embedding": table}}}
    found = run(model, broken, tokens, **given)
    mine = given["segment_ids"] == 1
    np.testing.assert_array_equal(found[mine], clean[mine])
    assert np.isnan(found[~mine]).all()


# ---- Token by token -------------------------------------------------------------------------


@pytest.mark.thorough(quick=1)
@pytest.mark.parametrize(
    ("name", "length", "ring"),
    [("as LLaMA", 3, True), ("as GPT-2", 11, False), ("ALiBi", 4, True), ("low rank", 12, False)],
)
def test_steps_with_a_cache_give_what_the_whole_gives(name, length, ring):
    model, params = made("decoder", name)
    tokens = jax.random.randint(jax.random.key(0), (2, 11), 1, V)
    whole, cache, start, found = run(model, params, tokens), {}, 0, []
    step = functools.partial(
        model.apply, deterministic=True, method="decode_step", mutable=["cache"]
    )
    step = jax.jit(step, compiler_options=QUICK)
    for size in (5, 3, 1, 1, 1):
        logits, cache = step(
            {"params": params} | cache,
            tokens[:, start : start + size],
            cache_position=CachePosition(start, length=length, ring=ring),
        )
        found.append(logits)
        start += size
    close(np.concatenate(found, axis=1), whole)


# ---- NNX ------------------------------------------------------------------------------------


@pytest.mark.thorough(quick=1)
@pytest.mark.parametrize("kind", ["decoder", "encoder"])
def test_the_same_model_in_nnx(kind):
    linen, _ = made(kind, "as LLaMA", num_layers=1)
    tokens = jnp.array([[3, 4, 5, 6, 7, 0]])
    bridge = nnx.bridge.ToNNX(linen, rngs=nnx.Rngs(0))
    model = nnx.bridge.lazy_init(bridge, tokens, deterministic=True)
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    chex.assert_trees_all_equal_shapes(params, made(kind, "as LLaMA", num_layers=1)[1])
    close(model(tokens, deterministic=True), run(linen, params, tokens))


# ---- Errors and start -----------------------------------------------------------------------


IDS = np.ones((1, 4), np.int32)
WRONG = {
    "tokens has dtype float": (IDS.astype(np.float32), {}),
    r"tokens has shape \(4,\)": (IDS[0], {}),
    r"segment_ids has shape \(1, 3\).*tokens has T = 4": (IDS, {"segment_ids": IDS[:, 1:]}),
    "segment_ids has dtype float": (IDS, {"segment_ids": IDS.astype(np.float32)}),
    r"token_types has shape \(1, 3\).*tokens has T = 4": (IDS, {"token_types": IDS[:, 1:]}),
    "token_types has dtype float": (IDS, {"token_types": IDS.astype(np.float32)}),
}


@pytest.mark.parametrize("told", WRONG)
def test_wrong_arguments_raise_naming_them(told):
    model, params = made("encoder", "as BERT")
    tokens, given = WRONG[told]
    with pytest.raises((TypeError, ValueError), match=told):
        model.apply({"params": params}, tokens, **given, deterministic=True)


def test_types_that_a_model_does_not_know_raise():
    model, params = made("encoder", "as LLaMA")
    with pytest.raises(ValueError, match="token_types are given"):
        model.apply({"params": params}, IDS, token_types=IDS, deterministic=True)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"num_heads": 5}, "features is 12; expected a multiple of num_heads, 5"),
        ({"num_kv_heads": 3}, "num_heads is 2; expected a multiple of num_kv_heads, 3"),
        ({"num_heads": 4}, "features is 12; expected a multiple of 8 with rotary positions"),
        ({"positions": "relative"}, "positions is 'relative'"),
        ({"window": 0}, "window is 0"),
    ],
)
def test_an_architecture_that_cannot_be_raises_naming_the_field(settings, told):
    with pytest.raises(ValueError, match=told):
        dataclasses.replace(SMALL, **settings)
