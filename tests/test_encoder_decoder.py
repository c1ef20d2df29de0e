"""The encoder-decoder against an independent float64 forward of one sentence pair in NumPy."""

import dataclasses
import functools
import inspect
import json

import chex
import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from model_oracle import (
    doubled,
    laid_out,
    np_attention,
    np_feed_forward,
    np_sinusoidal,
    np_stack,
    random_like,
)

from flaxattn import EncoderDecoder, EncoderDecoderConfig, build_masks, shift_right

V, D, F, BOS = 13, 12, 10, 1
SMALL = EncoderDecoderConfig(
    vocab_size=V,
    features=D,
    ff_features=F,
    num_heads=2,
    encoder_layers=2,
    decoder_layers=1,
    dropout_rate=0.0,
)
CONFIGS = {
    "sinusoidal all pre": {},
    "learned target post": {
        "positions": "learned",
        "tie_embeddings": "target",
        "norm_position": "post",
        "activation": "gelu",
    },
    "rotary none pre shared": {
        "positions": "rotary",
        "tie_embeddings": "none",
        "activation": "swiglu",
        "num_kv_heads": 1,
        "share_layers": True,
    },
    "sinusoidal none post": {"tie_embeddings": "none", "norm_position": "post"},
    "learned all pre, short table": {"positions": "learned", "max_positions": 3},
    "rotary target post": {
        "positions": "rotary",
        "tie_embeddings": "target",
        "norm_position": "post",
    },
}
all_configs = pytest.mark.parametrize("settings", CONFIGS.values(), ids=CONFIGS)
close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=3e-4)


# ---- The oracle: one pair of unpadded sentences ---------------------------------------------


def np_embed(config, p, side, tokens):
    table = "source" if side == "source" or config.tie_embeddings == "all" else "target"
    x = p[f"{table}_embedding"]["embedding"][tokens] * D**0.5
    for t in range(len(tokens)):
        if config.positions == "sinusoidal":
            x[t] += np_sinusoidal(t, D)
        elif config.positions == "learned":
            x[t] += p[f"{side}_positions"]["embedding"][min(t, config.max_positions - 1)]
    return x


def np_logits(config, params, source, target_inputs):
    """[S], [T] -> [T, V]."""
    p, seen = doubled(params), np.tri(len(target_inputs))
    base = 10_000.0 if config.positions == "rotary" else None
    attend_self = functools.partial(np_attention, rotary_base=base)
    feed_forward = functools.partial(np_feed_forward, activation=config.activation)
    encoded = np_stack(
        config,
        p["encoder"],
        np_embed(config, p, "source", source),
        config.encoder_layers,
        {"self_attention": lambda p, x: attend_self(p, x, x), "feed_forward": feed_forward},
    )
    decoded = np_stack(
        config,
        p["decoder"],
        np_embed(config, p, "target", target_inputs),
        config.decoder_layers,
        {
            "self_attention": lambda p, x: attend_self(p, x, x, seen=seen),
            "cross_attention": lambda p, x: np_attention(p, x, encoded),
            "feed_forward": feed_forward,
        },
    )
    table = {"all": "source", "target": "target", "none": "output"}[config.tie_embeddings]
    return decoded @ p[f"{table}_embedding"]["embedding"].T


# ---- What the tests share -------------------------------------------------------------------


QUICK = {"xla_backend_optimization_level": 0}  # compiles faster, and these programs are small


def model_with(**settings):
    return EncoderDecoder(dataclasses.replace(SMALL, **settings))


def shapes_of(model):
    tokens = jnp.ones((1, 2), jnp.int32)
    init = functools.partial(model.init, deterministic=True)
    return jax.eval_shape(init, jax.random.key(0), tokens, tokens)["params"]


@functools.cache
def parameters(model, seed=0):
    """Random parameters of the right shapes."""
    return random_like(shapes_of(model), seed)


@functools.cache
def jitted(model, deterministic=True):
    apply = functools.partial(model.apply, deterministic=deterministic)
    return jax.jit(apply, compiler_options=QUICK)


def run(model, params, source, target_inputs, **keywords):
    """The logits in NumPy."""
    return np.asarray(jitted(model)({"params": params}, source, target_inputs, **keywords))


SOURCES = [[3, 4, 5, 6, 7, 8, 9], [10, 3, 3], [12, 11, 10, 9]]
TARGETS = [[2, 5, 8], [6, 6, 7, 4, 11], [9, 12, 2, 3]]
PAIRS = list(zip(SOURCES, TARGETS, strict=True))


class Batch:
    """The three pairs in [3, S] and [3, T] cells."""

    def __init__(self, source_starts, target_starts, source_length=17, target_length=16):
        self.source, source_ids = laid_out(SOURCES, source_starts, source_length)
        self.target, self.ids = laid_out(TARGETS, target_starts, target_length)
        self.inputs = np.asarray(shift_right(jnp.asarray(self.target), jnp.asarray(self.ids), BOS))
        self.segments = {"source_segment_ids": source_ids, "target_segment_ids": self.ids}

    def run(self, model, params):
        return run(model, params, self.source, self.inputs, **self.segments)


ONE_A_ROW = Batch([(0, 0), (1, 0), (2, 0)], [(0, 0), (1, 0), (2, 0)])
# With padding between, before and after them, and a row of nothing but padding:
PACKED = Batch([(0, 0), (0, 8), (0, 11)], [(0, 0), (0, 3), (0, 10)])
SPREAD = Batch([(2, 1), (0, 2), (0, 9)], [(2, 4), (0, 0), (0, 5)])


def assert_equals_each_pair_alone(logits, batch, config, params):
    for i, (source, target) in enumerate(PAIRS):
        expected = np_logits(config, params, source, [BOS, *target[:-1]])
        close(logits[batch.ids == i + 1], expected)


# ---- Values ---------------------------------------------------------------------------------


@pytest.mark.thorough(quick=1)
@all_configs
@pytest.mark.parametrize(
    "batch", [ONE_A_ROW, PACKED, SPREAD], ids=["one a row", "packed", "spread"]
)
def test_logits_equal_float64_of_each_pair_alone(batch, settings):
    model = model_with(**settings)
    params = parameters(model)
    logits = batch.run(model, params)
    chex.assert_shape(logits, (3, 16, V))
    assert logits.dtype == np.float32
    assert_equals_each_pair_alone(logits, batch, model.config, params)


def summed_cross_entropy(model, params, batch):
    """Summed over tokens, as a loss that does not mind how the tokens are laid out."""
    source, inputs, target, segments = batch
    logits = model.apply({"params": params}, source, inputs, deterministic=True, **segments)
    chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), target[..., None], axis=-1)[..., 0]
    return -jnp.sum(jnp.where(segments["target_segment_ids"] != 0, chosen, 0.0))


def arrays(batch):
    return batch.source, batch.inputs, batch.target, batch.segments


@functools.cache
def gradients_of(**settings):
    """The model, its parameters, and the gradient by them of a batch's arrays, jitted once."""
    model = model_with(**settings)
    slope = jax.grad(functools.partial(summed_cross_entropy, model))
    return model, parameters(model), jax.jit(slope, compiler_options=QUICK)


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["learned target post", "rotary none pre shared"])
def test_packing_changes_no_gradient_of_a_token_sum(name):
    _, params, slope = gradients_of(**CONFIGS[name])
    alone, packed, spread = (slope(params, arrays(b)) for b in (ONE_A_ROW, PACKED, SPREAD))
    jax.tree.map(functools.partial(close, atol=2e-3), packed, alone)
    jax.tree.map(functools.partial(close, atol=2e-3), spread, alone)


def test_gradients_equal_differences_in_float64():
    model, params, slope = gradients_of(**CONFIGS["learned target post"])
    direction = parameters(model, seed=1)
    products = jax.tree.map(np.vdot, slope(params, arrays(PACKED)), direction)

    def loss(step):
        moved = jax.tree.map(lambda p, d: p + step * d, params, direction)
        total = 0.0
        for source, target in PAIRS:
            logits = np_logits(model.config, moved, source, [BOS, *target[:-1]])
            log_sum = np.log(np.exp(logits).sum(1))
            total += (log_sum - logits[np.arange(len(target)), target]).sum()
        return total

    measured = (loss(1e-4) - loss(-1e-4)) / 2e-4
    np.testing.assert_allclose(sum(jax.tree.leaves(products)), measured, rtol=1e-3)


# ---- Padding --------------------------------------------------------------------------------


@pytest.mark.thorough
def test_rows_without_common_padding_equal_each_pair_alone():
    starts = [(0, 0), (1, 0), (2, 0)]
    model, batch = model_with(encoder_layers=1), Batch(starts, starts, 7, 5)
    params = parameters(model)
    logits = batch.run(model, params)
    assert np.isfinite(logits).all()
    assert_equals_each_pair_alone(logits, batch, model.config, params)


@pytest.mark.thorough(quick=2)
@all_configs
def test_tokens_under_padding_change_nothing(settings):
    model, batch = model_with(**settings), SPREAD
    params, ids = parameters(model), batch.segments
    clean = batch.run(model, params)
    source = np.where(ids["source_segment_ids"] == 0, 11, batch.source)
    inputs = np.where(batch.ids == 0, 7, batch.inputs)
    dirty = run(model, params, source, inputs, **ids)
    np.testing.assert_array_equal(dirty[batch.ids != 0], clean[batch.ids != 0])
    assert (dirty[batch.ids == 0] != clean[batch.ids == 0]).any()


def test_tokens_of_other_segments_change_nothing():
    model, batch = model_with(), PACKED
    params, mine, ids = parameters(model), batch.ids == 2, batch.segments
    source = np.where(ids["source_segment_ids"] == 2, batch.source, 12)
    inputs = np.where(mine, batch.inputs, 12)
    others = run(model, params, source, inputs, **ids)
    np.testing.assert_array_equal(others[mine], batch.run(model, params)[mine])


def test_a_batch_of_padding_alone_gives_no_gradient():
    _, params, slope = gradients_of(**CONFIGS["learned target post"])
    by_params = slope(params, jax.tree.map(np.zeros_like, arrays(PACKED)))
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(by_params))


@pytest.mark.thorough(quick=1)
@pytest.mark.parametrize("pad_id", [0, 2])
def test_segment_ids_left_out_are_told_from_the_padding(pad_id):
    model, batch = EncoderDecoder(SMALL, pad_id=pad_id), ONE_A_ROW
    params, swap = parameters(model), np.array([pad_id, 1, 0, *range(3, V)])
    swap = np.arange(V) if pad_id == 0 else swap  # tokens 0 and 2 change places
    logits = run(model, params, swap[batch.source], swap[batch.inputs])
    for i, (source, target) in enumerate(PAIRS):
        expected = np_logits(model.config, params, swap[source], swap[[BOS, *target[:-1]]])
        close(logits[batch.ids == i + 1], expected)


# ---- Causality ------------------------------------------------------------------------------


@pytest.mark.thorough(quick=1)
@pytest.mark.parametrize("t", range(5))
def test_a_target_token_changes_no_logits_before_it_and_all_from_it_on(t):
    model, batch = model_with(positions="rotary"), ONE_A_ROW
    params = parameters(model)
    inputs = batch.inputs.copy()
    inputs[1, t] = 12
    before, after = (
        run(model, params, batch.source, x, **batch.segments)[1, :5] for x in (batch.inputs, inputs)
    )
    np.testing.assert_array_equal(after[:t], before[:t])
    assert (np.abs(after[t:] - before[t:]) > 1e-4).any(axis=1).all()


@pytest.mark.thorough
def test_causality_by_the_gradient_of_the_embeddings():
    """Five distinct tokens, so that row t of the table is the embedding at position t."""
    model = model_with(tie_embeddings="none", encoder_layers=1)
    params = parameters(model)
    inputs, source = np.arange(5)[None] + 1, np.arange(7)[None] + 1

    def sums(tables):
        ours = params | {
            f"{side}_embedding": {"embedding": table} for side, table in tables.items()
        }
        return model.apply({"params": ours}, source, inputs, deterministic=True)[0].sum(-1)

    tables = {side: params[f"{side}_embedding"]["embedding"] for side in ("source", "target")}
    slopes = jax.jit(jax.jacrev(sums), compiler_options=QUICK)(tables)  # [T, V, D]
    seen = np.zeros((5, V), bool)
    seen[:, 1:6] = np.tri(5)
    np.testing.assert_array_equal((slopes["target"] != 0).any(-1), seen)
    seen = np.zeros((5, V), bool)
    seen[:, 1:8] = True
    np.testing.assert_array_equal((slopes["source"] != 0).any(-1), seen)


# ---- shift_right and build_masks ------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "ids", "expected"),
    [
        ([5, 6, 7, 8], [1, 1, 1, 1], [1, 5, 6, 7]),
        ([5, 6, 7, 8], [1, 1, 2, 2], [1, 5, 1, 7]),
        ([5, 6, 7, 8], [1, 2, 3, 4], [1, 1, 1, 1]),
        ([5, 6, 0, 0], [1, 1, 0, 0], [1, 5, 1, 0]),
        ([0, 0, 7, 8], [0, 0, 1, 1], [1, 0, 1, 7]),
        ([5, 0, 7, 8], [1, 0, 1, 1], [1, 1, 1, 7]),
    ],
)
def test_shift_right_starts_every_segment_with_bos(target, ids, expected):
    shifted = shift_right(jnp.array([target]), jnp.array([ids]), bos_id=1)
    assert shifted.tolist() == [expected]
    assert shifted.dtype == jnp.int32


def test_shift_right_equals_a_loop_on_many_rows():
    rng = np.random.default_rng(0)
    target, ids = rng.integers(0, 50, (11, 7)), rng.integers(0, 3, (11, 7))
    expected = np.full_like(target, 99)
    for b in range(11):
        for t in range(1, 7):
            if ids[b, t] == ids[b, t - 1]:
                expected[b, t] = target[b, t - 1]
    shifted = shift_right(jnp.asarray(target), jnp.asarray(ids), bos_id=99)
    np.testing.assert_array_equal(shifted, expected)


def test_masks_drawn():
    source_ids, target_ids = (
        jnp.array([[1, 1, 2, 0], [3, 0, 0, 1]]),
        jnp.array([[1, 2, 2], [0, 1, 3]]),
    )

    @jax.jit
    def draw():
        masks = build_masks(source_ids, target_ids)
        return masks.encoder.dense(4, 4), masks.decoder.dense(3, 3), masks.cross.dense(3, 4)

    encoder, decoder, cross = (mask.astype(int).tolist() for mask in draw())
    assert encoder == [
        [
            [1, 1, 0, 0],
            [1, 1, 0, 0],
            [0, 0, 1, 0],
            [0, 0, 0, 0],
        ],
        [
            [1, 0, 0, 0],
            [0, 0, 0, 0],
            [0, 0, 0, 0],
            [0, 0, 0, 1],
        ],
    ]
    assert decoder == [
        [
            [1, 0, 0],
            [0, 1, 0],
            [0, 1, 1],
        ],
        [
            [0, 0, 0],
            [0, 1, 0],
            [0, 0, 1],
        ],
    ]
    assert cross == [
        [
            [1, 1, 0, 0],
            [0, 0, 1, 0],
            [0, 0, 1, 0],
        ],
        [
            [0, 0, 0, 0],
            [0, 0, 0, 1],
            [1, 0, 0, 0],
        ],
    ]


# ---- Dropout, weights, dtypes ---------------------------------------------------------------


@pytest.mark.thorough
def test_dropout_differs_by_its_key_alone_and_is_off_when_deterministic():
    rates = {"dropout_rate": 0.3, "attention_dropout_rate": 0.1, "activation_dropout_rate": 0.1}
    model = model_with(encoder_layers=1, **rates)
    params, batch = parameters(model), ONE_A_ROW
    assert_equals_each_pair_alone(batch.run(model, params), batch, model.config, params)
    given = ({"params": params}, batch.source, batch.inputs)
    forward = jitted(model, deterministic=False)
    one, again, two = (forward(*given, rngs={"dropout": jax.random.key(i)}) for i in (1, 1, 2))
    np.testing.assert_array_equal(one, again)
    assert (one != two).any(-1).all()
    with pytest.raises(flax.errors.InvalidRngError):
        forward(*given)


@pytest.mark.thorough
def test_dropout_of_all_leaves_the_bias_of_the_final_norm():
    model, batch = model_with(dropout_rate=1 - 1e-7, encoder_layers=1), ONE_A_ROW
    params = parameters(model)
    forward, rngs = jitted(model, deterministic=False), {"dropout": jax.random.key(0)}
    logits = forward({"params": params}, batch.source, batch.inputs, rngs=rngs)
    bias, table = params["decoder"]["final_norm"]["bias"], params["source_embedding"]["embedding"]
    close(logits, np.broadcast_to(table @ bias, logits.shape))


@pytest.mark.parametrize("method", ["__call__", "encode", "decode"])
def test_deterministic_is_keyword_only_and_has_no_default(method):
    parameter = inspect.signature(getattr(EncoderDecoder, method)).parameters["deterministic"]
    assert parameter.kind == parameter.KEYWORD_ONLY
    assert parameter.default is parameter.empty


def test_deterministic_may_not_be_left_out():
    model = model_with()
    with pytest.raises(TypeError, match="deterministic"):
        model.apply({"params": parameters(model)}, ONE_A_ROW.source, ONE_A_ROW.inputs)


@pytest.mark.thorough
def test_sown_weights_of_all_attentions():
    model, batch = model_with(), PACKED
    given = {"deterministic": True, "sow_weights": True, "mutable": "intermediates"}
    apply = jax.jit(functools.partial(model.apply, **given), compiler_options=QUICK)
    _, state = apply({"params": parameters(model)}, batch.source, batch.inputs, **batch.segments)
    weights = flax.traverse_util.flatten_dict(state["intermediates"], sep="/")
    assert {name: w.shape for name, (w,) in weights.items()} == {
        "encoder/layer_0/self_attention/attention_weights": (3, 2, 17, 17),
        "encoder/layer_1/self_attention/attention_weights": (3, 2, 17, 17),
        "decoder/layer_0/self_attention/attention_weights": (3, 2, 16, 16),
        "decoder/layer_0/cross_attention/attention_weights": (3, 2, 16, 17),
    }
    for name, (w,) in weights.items():
        ids = batch.segments[f"{'source' if name.startswith('encoder') else 'target'}_segment_ids"]
        close(w.sum(-1), np.repeat((ids != 0)[:, None], 2, axis=1))


@pytest.mark.thorough(quick=1)
@pytest.mark.usefixtures("standard_promotion")
@pytest.mark.parametrize("positions", ["sinusoidal", "learned", "rotary"])
def test_bfloat16_models_have_float32_logits_parameters_and_gradients(positions):
    model = model_with(dtype="bfloat16", positions=positions)
    params = parameters(model)
    loss = functools.partial(summed_cross_entropy, model)
    by_params = jax.eval_shape(jax.grad(loss), params, arrays(PACKED))
    dtypes = {leaf.dtype.name for leaf in jax.tree.leaves((params, by_params))}
    assert dtypes == {"float32"}
    apply = functools.partial(model.apply, {"params": params}, deterministic=True)
    assert jax.eval_shape(apply, PACKED.source, PACKED.inputs).dtype == jnp.float32
    encode = functools.partial(apply, method="encode")
    assert jax.eval_shape(encode, PACKED.source, PACKED.source).dtype == jnp.bfloat16


@pytest.mark.usefixtures("standard_promotion")
def test_bfloat16_logits_stay_near_float64_and_are_not_rounded_to_bfloat16():
    model, batch = model_with(dtype="bfloat16"), PACKED
    params = parameters(model)
    logits = batch.run(model, params)
    for i, (source, target) in enumerate(PAIRS):
        expected = np_logits(model.config, params, source, [BOS, *target[:-1]])
        assert np.abs(logits[batch.ids == i + 1] - expected).mean() < 0.05
    rounded = np.asarray(jnp.asarray(logits, jnp.bfloat16), np.float32)
    assert (rounded != logits).mean() > 0.9


@pytest.mark.usefixtures("standard_promotion")
def test_parameters_are_stored_in_param_dtype():
    model = model_with(param_dtype="bfloat16", dtype="bfloat16", positions="learned")
    assert {leaf.dtype.name for leaf in jax.tree.leaves(parameters(model))} == {"bfloat16"}


@pytest.mark.parametrize("remat", [False, True])
def test_remat_computes_every_layer_anew(remat):
    model = model_with(remat=remat)
    apply = functools.partial(model.apply, deterministic=True)
    jaxpr = jax.make_jaxpr(apply)({"params": parameters(model)}, PACKED.source, PACKED.inputs)
    names = [equation.primitive.name for equation in jaxpr.eqns]
    assert sum(name in ("checkpoint", "remat", "remat2") for name in names) == 3 * remat


@pytest.mark.thorough
def test_new_tokens_and_segments_do_not_compile_again():
    model = model_with()
    params = parameters(model)

    @functools.partial(jax.jit, compiler_options=QUICK)
    @chex.assert_max_traces(n=1)
    def forward(params, source, inputs, segments):
        return model.apply({"params": params}, source, inputs, deterministic=True, **segments)

    for batch in (ONE_A_ROW, PACKED, SPREAD):
        logits = forward(params, batch.source, batch.inputs, batch.segments)
        assert_equals_each_pair_alone(logits, batch, model.config, params)


# ---- Parameters and config ------------------------------------------------------------------


def count(config):
    """The number of parameters, written out."""
    d, f, h = config.features, config.ff_features, config.features // config.num_heads
    kv_heads = config.num_kv_heads or config.num_heads
    attention = 2 * (d * d + d) + 2 * (d + 1) * kv_heads * h
    feed_forward = (d + 1) * f * (2 if config.activation == "swiglu" else 1) + (f + 1) * d
    encoder_layer = attention + feed_forward + 2 * 2 * d
    decoder_layer = 2 * attention + feed_forward + 3 * 2 * d
    shared = config.share_layers
    layers = (1 if shared else config.encoder_layers) * encoder_layer
    layers += (1 if shared else config.decoder_layers) * decoder_layer
    final_norms = 2 * 2 * d if config.norm_position == "pre" else 0
    tables = {"all": 1, "target": 2, "none": 3}[config.tie_embeddings] * config.vocab_size
    tables += 2 * config.max_positions if config.positions == "learned" else 0
    return layers + final_norms + tables * d


@all_configs
def test_number_of_parameters(settings):
    model = model_with(**settings)
    assert sum(leaf.size for leaf in jax.tree.leaves(parameters(model))) == count(model.config)


@all_configs
def test_every_axis_of_every_parameter_has_a_logical_name(settings):
    def is_box(leaf):
        return isinstance(leaf, nn.meta.AxisMetadata)

    with nn.logical_axis_rules([("embed", None)]):
        boxed = shapes_of(model_with(**settings))
    for leaf in jax.tree.leaves(boxed, is_leaf=is_box):
        assert is_box(leaf)
        assert len(leaf.names) == leaf.value.ndim
        assert None not in leaf.names


@pytest.mark.parametrize("tied", ["all", "none"])
def test_embeddings_start_with_unit_variance_after_scaling(tied):
    model = model_with(vocab_size=4000, tie_embeddings=tied)
    params = model.init(jax.random.key(0), jnp.ones((1, D)), method="logits")["params"]
    (table,) = (leaf["embedding"] for leaf in params.values())
    np.testing.assert_allclose(np.std(table), D**-0.5, rtol=0.03)


@all_configs
def test_config_survives_json(settings):
    config = dataclasses.replace(SMALL, **settings)
    text = json.dumps(dataclasses.asdict(config))
    assert EncoderDecoderConfig(**json.loads(text)) == config
    assert hash(EncoderDecoderConfig(**json.loads(text))) == hash(config)


def test_config_is_frozen_and_every_field_but_the_vocabulary_has_a_default():
    with pytest.raises(dataclasses.FrozenInstanceError):
        SMALL.features = 3
    required = [
        field.name
        for field in dataclasses.fields(EncoderDecoderConfig)
        if field.default is dataclasses.MISSING
    ]
    assert required == ["vocab_size"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("positions", "Rotary"),
        ("tie_embeddings", "some"),
        ("norm_position", "middle"),
        ("activation", "tanh"),
    ],
)
def test_unknown_names_in_the_config_raise_naming_the_argument(name, value):
    with pytest.raises(ValueError, match=f"{name} is '{value}'"):
        shapes_of(model_with(**{name: value}))


@pytest.mark.parametrize("side", [0, 1], ids=["source", "target"])
def test_tokens_that_are_not_integers_raise_naming_the_side(side):
    model, tokens = model_with(), [PACKED.source, PACKED.inputs]
    tokens[side] = tokens[side].astype(np.float32)
    with pytest.raises(TypeError, match=["source", "target"][side]):
        run(model, parameters(model), *tokens, **PACKED.segments)
