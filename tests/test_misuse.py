"""Misuse of the library: each call gives the right result, or an error that names the argument."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxattn import (
    CachePosition,
    EncoderDecoder,
    EncoderDecoderConfig,
    MultiHeadAttention,
    attend,
    attention_weights,
    causal,
    from_dense,
    lengths,
    prefix,
    same_segment,
    sliding_window,
    valid,
    where,
)
from flaxattn.layers import Dropout, FeedForward, rotary, sinusoidal
from flaxattn.search import Lengths, SpecialTokens, beam_search, greedy, sample

B, T, S, N, K, H = 2, 5, 7, 4, 2, 6
SIZES = {"q": (B, T, N, H), "k": (B, S, K, H), "v": (B, S, K, H)}


class Foreign:
    """An array on a device of another library, as a tensor on a GPU."""

    dtype, shape, ndim = "torch.bool", (T, S), 2

    def __array__(self, dtype=None, copy=None):
        raise RuntimeError("can't convert cuda:0 device type tensor to numpy")


def arrays(dtype=np.float32, **shapes):
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.normal(size=s), dtype) for s in (SIZES | shapes).values()]


def call(mask=None, dtype=np.float32, q=SIZES["q"], k=SIZES["k"], v=SIZES["v"], **options):
    return attend(*arrays(dtype, q=q, k=k, v=v), mask, **options)


def layer(x=(B, T, 8), inputs_k=None, num_heads=2, options=None, **arguments):
    module = MultiHeadAttention(num_heads=num_heads, **(options or {}))
    kv = None if inputs_k is None else jnp.ones(inputs_k)
    return module.init_with_output(
        jax.random.key(0), jnp.ones(x), kv, **{"deterministic": True} | arguments
    )


def search(find, *, logits=(B, 9), dtype=jnp.float32, **options):
    def decode_step(tokens, index, state):
        return jnp.zeros(logits, dtype), state

    ids = SpecialTokens(bos_id=1, eos_id=2, pad_id=0)
    given = {"batch_size": B, "special_tokens": ids, "lengths": Lengths(3)} | options
    return find(decode_step, jnp.zeros((B, 1)), **given)


def model(**changes):
    config = EncoderDecoderConfig(
        **{"vocab_size": 9, "features": 8, "ff_features": 8, "num_heads": 2} | changes
    )
    return EncoderDecoder(config)


def run_model(source=(B, T), target=(B, S), dtype=np.int32, **changes):
    tokens = [jnp.ones(shape, dtype) for shape in (source, target)]
    return model(**changes).init_with_output(jax.random.key(0), *tokens, deterministic=True)


FLOAT_MASK = jnp.zeros((T, S))
MISUSES = {
    # ---- attend: masks
    "a float mask": (lambda: call(FLOAT_MASK), TypeError, r"mask has dtype float32.*bool.*`bias`"),
    "an additive mask": (lambda: call(jnp.full((T, S), -1e9)), TypeError, r"x > -1e8"),
    "an integer mask": (lambda: call(jnp.ones((T, S), int)), TypeError, r"mask has dtype int"),
    "a mask as a list": (lambda: call([[True] * S] * T), TypeError, r"mask is a list"),
    "a mask's class": (lambda: call(causal), TypeError, r"mask is a type"),
    "a mask as text": (lambda: call("causal"), TypeError, r"mask is a str"),
    "a mask of rank 1": (lambda: call(jnp.ones(S, bool)), ValueError, r"mask has shape \(7,\)"),
    "a mask of rank 5": (
        lambda: call(jnp.ones((1, B, N, T, S), bool)),
        ValueError,
        r"mask has shape \(1, 2, 4, 5, 7\)",
    ),
    "a mask turned round": (
        lambda: call(jnp.ones((S, T), bool)),
        ValueError,
        r"mask has shape \(7, 5\).*\[5, 7\]",
    ),
    "a mask of another batch": (
        lambda: call(jnp.ones((3, 1, T, S), bool)),
        ValueError,
        r"mask has shape \(3, 1, 5, 7\)",
    ),
    "a mask of rank 3, of examples or of heads": (
        lambda: call(jnp.ones((B, T, S), bool)),
        ValueError,
        r"mask has shape \(2, 5, 7\).*mask\[:, None\] for .*example, mask\[None\] for .*head",
    ),
    "a mask of another library": (
        lambda: call(Foreign()),
        TypeError,
        r"mask is a test_misuse.Foreign; expected a Mask or a boolean array.*np.asarray",
    ),
    "flags of another library": (
        lambda: valid(Foreign()),
        TypeError,
        r"valid: kv_valid is a test_misuse.Foreign that NumPy makes no array of",
    ),
    "lists of different lengths": (
        lambda: same_segment([[1, 1], [2]]),
        TypeError,
        r"same_segment: q_ids is a list that NumPy makes no array of",
    ),
    "a window as jax.nn takes it": (
        lambda: sliding_window((2, 0)),
        TypeError,
        r"sliding_window: left is a tuple; .*sliding_window\(left, right\)",
    ),
    "a mask of other heads": (
        lambda: call(jnp.ones((B, 3, T, S), bool)),
        ValueError,
        r"mask has shape \(2, 3, 5, 7\)",
    ),
    "lengths of another batch": (
        lambda: call(lengths(kv_lengths=np.array([1, 2, 3]))),
        ValueError,
        r"B = 3.*query has B = 2",
    ),
    "segments that are too short": (
        lambda: call(same_segment(np.ones((B, T), int), np.ones((B, 3), int))),
        ValueError,
        r"same_segment: kv_ids has shape \(2, 3\), that is 3 positions",
    ),
    "a plan for other lengths": (
        lambda: call(causal().plan(8, 8, block_q=4, block_kv=4)),
        ValueError,
        r"mask is a plan for T = 8.*T = 5",
    ),
    # ---- attend: shapes and dtypes
    "no head axis": (
        lambda: call(q=(B, T, H)),
        ValueError,
        r"query has shape \(2, 5, 6\) of rank 3",
    ),
    "an axis too many": (lambda: call(k=(1, B, S, K, H)), ValueError, r"key has shape .* rank 5"),
    "heads that do not divide": (
        lambda: call(k=(B, S, 3, H), v=(B, S, 3, H)),
        ValueError,
        r"query has 4 heads and key 3",
    ),
    "no key heads": (lambda: call(k=(B, S, 0, H), v=(B, S, 0, H)), ValueError, r"heads and key 0"),
    "another head_dim": (lambda: call(k=(B, S, K, 5)), ValueError, r"key .*H = 5.*query has H = 6"),
    "another batch": (lambda: call(k=(3, S, K, H)), ValueError, r"key .*B = 3.*query has B = 2"),
    "values of another length": (lambda: call(v=(B, 6, K, H)), ValueError, r"value .*S = 6.*key"),
    "values of other heads": (lambda: call(v=(B, S, 1, H)), ValueError, r"value .*K = 1.*key"),
    "integers": (lambda: call(dtype=np.int32), TypeError, r"query has dtype int32"),
    "keys of another dtype": (
        lambda: attend(arrays()[0], *arrays(np.float16)[1:]),
        TypeError,
        r"key has dtype float16",
    ),
    "values of another dtype": (
        lambda: attend(*arrays()[:2], arrays(np.float16)[2]),
        TypeError,
        r"value has dtype float16",
    ),
    # ---- attend: options
    "dropout without a key": (
        lambda: call(dropout_rate=0.5),
        ValueError,
        r"dropout_rate is 0.5 but dropout_key is None",
    ),
    "all dropped": (lambda: call(dropout_rate=1.0), ValueError, r"dropout_rate is 1.0"),
    "a negative rate": (lambda: call(dropout_rate=-0.1), ValueError, r"dropout_rate is -0.1"),
    "a rate that is no number": (
        lambda: call(dropout_rate=np.nan),
        ValueError,
        r"dropout_rate is nan",
    ),
    "an implementation misspelt": (
        lambda: call(implementation="flash"),
        ValueError,
        r"implementation is 'flash'.*blockwise",
    ),
    "a boolean bias": (
        lambda: call(bias=jnp.ones((1, 1, T, S), bool)),
        TypeError,
        r"bias has dtype bool",
    ),
    "a bias of rank 2": (
        lambda: call(bias=jnp.ones((T, S))),
        ValueError,
        r"bias has shape \(5, 7\)",
    ),
    "a scale for each key head": (
        lambda: call(scale=jnp.ones(2)),
        ValueError,
        r"scale has shape \(2,\).*single number or \[N\] = \[4\]",
    ),
    "weights of a row that is not there": (
        lambda: attention_weights(*arrays()[:2], rows=jnp.array([5])),
        ValueError,
        r"rows holds 5.*4",
    ),
    "weights of a head that is not there": (
        lambda: attention_weights(*arrays()[:2], heads=jnp.array([-5])),
        ValueError,
        r"heads holds -5",
    ),
    "weights of fractional rows": (
        lambda: attention_weights(*arrays()[:2], rows=jnp.array([0.5])),
        TypeError,
        r"rows has dtype",
    ),
    # ---- masks
    "a window of less than nothing": (
        lambda: sliding_window(-1),
        ValueError,
        r"sliding_window.*-1.*at least 0",
    ),
    "a fractional window": (lambda: sliding_window(2.5), TypeError, r"sliding_window.*integer"),
    "a negative prefix": (lambda: prefix(-1), ValueError, r"prefix.*-1.*at least 0"),
    "segments that are floats": (
        lambda: same_segment(np.ones(T)),
        TypeError,
        r"same_segment.* dtype float64",
    ),
    "lengths that are floats": (
        lambda: lengths(kv_lengths=np.ones(B)),
        TypeError,
        r"lengths.*kv_lengths.*float64",
    ),
    "validity that is not boolean": (
        lambda: valid(np.ones((B, S))),
        TypeError,
        r"valid.* dtype float64",
    ),
    "a dense mask of floats": (
        lambda: from_dense(np.ones((T, S))),
        TypeError,
        r"from_dense.*float64",
    ),
    "a mask and a number": (lambda: causal() & 1, TypeError, r"&.*int"),
    "a mask or an array": (lambda: causal() | np.ones((T, S), bool), TypeError, r"\|.*from_dense"),
    "the truth of a mask": (lambda: bool(causal()), TypeError, r"no single truth value"),
    "a rule that gives numbers": (
        lambda: where(lambda q, kv: q + kv).dense(T, S),
        TypeError,
        r"where.*must give one boolean",
    ),
    "ranks for other arrays": (
        lambda: where(lambda q, kv, x: x > 0, np.ones(B), ranks=(0, 0)),
        ValueError,
        r"ranks has 2",
    ),
    "blocks of nothing": (
        lambda: causal().plan(T, S, block_q=0, block_kv=2),
        ValueError,
        r"block_q is 0",
    ),
    # ---- layers
    "inputs without features": (
        lambda: layer(x=(T,), options={"qkv_features": 4}),
        ValueError,
        r"inputs_q has shape \(5,\)",
    ),
    "features that heads do not divide": (
        lambda: layer(num_heads=3),
        ValueError,
        r"qkv_features is 8 and num_heads 3",
    ),
    "heads in groups that do not divide": (
        lambda: layer(num_heads=4, options={"num_kv_heads": 3}),
        ValueError,
        r"num_kv_heads",
    ),
    "keys of another batch": (
        lambda: layer(inputs_k=(3, S, 8)),
        ValueError,
        r"B = 3.*inputs_q has B = 2",
    ),
    "cached keys that nobody kept": (
        lambda: MultiHeadAttention(num_heads=2).init(
            jax.random.key(0),
            jnp.ones((B, T, 8)),
            "cached",
            cache_position=CachePosition(0),
            deterministic=True,
        ),
        ValueError,
        r'inputs_k is "cached"',
    ),
    "a cache index alone": (
        lambda: layer(cache_position=3),
        TypeError,
        r"cache_position is a int; expected CachePosition",
    ),
    "a cache index of floats": (
        lambda: layer(cache_position=CachePosition(0.5, 9)),
        TypeError,
        r"cache_position",
    ),
    "a cache index for others": (
        lambda: layer(cache_position=CachePosition(np.zeros(3, int), 9)),
        ValueError,
        r"cache_position.*\(3,\)",
    ),
    "a cache without a length": (
        lambda: layer(cache_position=CachePosition(0)),
        ValueError,
        r"with a length",
    ),
    "a cache that is too short": (
        lambda: layer(cache_position=CachePosition(0, 4)),
        ValueError,
        r"cache 4 cells",
    ),
    "a dense mask for a cache": (
        lambda: layer(cache_position=CachePosition(0, 9), mask=jnp.ones((T, 9), bool)),
        ValueError,
        r"with cache_position expected a Mask",
    ),
    "rotary over odd features": (
        lambda: rotary(jnp.ones((B, T, 2, 5)), jnp.ones((B, T), int)),
        ValueError,
        r"5.*even",
    ),
    "sinusoids of odd features": (
        lambda: sinusoidal(jnp.arange(T), 5),
        ValueError,
        r"features is 5",
    ),
    "an activation misspelt": (
        lambda: FeedForward(8, activation="rellu").init(
            jax.random.key(0), jnp.ones((B, T, 8)), deterministic=True
        ),
        ValueError,
        r"activation is 'rellu'",
    ),
    "a dropout layer that drops all": (
        lambda: Dropout(1.0).apply({}, jnp.ones(3), deterministic=True),
        ValueError,
        r"rate is 1.0",
    ),
    "a dropout layer that drops all but one in 10**12": (
        lambda: Dropout(1 - 1e-12).apply({}, jnp.ones(3), deterministic=True),
        ValueError,
        r"rate is 0.999999999999; expected at most 1 - 2",
    ),
    # ---- the model
    "features that have no sines": (
        lambda: model(features=9, num_heads=3),
        ValueError,
        r"features is 9; expected a multiple of 2 with sinusoidal",
    ),
    "heads that cannot be rotated": (
        lambda: model(features=6, num_heads=2, positions="rotary"),
        ValueError,
        r"features is 6; expected a multiple of 4 with rotary",
    ),
    "positions misspelt": (lambda: model(positions="rope"), ValueError, r"positions is 'rope'"),
    "tokens that are floats": (lambda: run_model(dtype=np.float32), TypeError, r"source.*float32"),
    "tokens of rank 1": (lambda: run_model(source=(T,)), ValueError, r"source.*\(5,\)"),
    "targets of another batch": (lambda: run_model(target=(3, S)), ValueError, r"target.*B = 3"),
    # ---- search
    "no beam": (lambda: search(beam_search, beam_size=0), ValueError, r"beam_size is 0"),
    "more answers than beams": (
        lambda: search(beam_search, beam_size=2, n_best=3),
        ValueError,
        r"n_best is 3.*2",
    ),
    "an end token out of the vocabulary": (
        lambda: search(greedy, special_tokens=SpecialTokens(1, 9, 0)),
        ValueError,
        r"eos_id.*9",
    ),
    "logits of another batch": (
        lambda: search(greedy, logits=(3, 9)),
        ValueError,
        r"decode_step gave logits.*\(3, 9\)",
    ),
    "logits that are integers": (
        lambda: search(greedy, dtype=jnp.int32),
        TypeError,
        r"decode_step gave logits of dtype int32",
    ),
    "no temperature": (
        lambda: search(sample, keys=jax.random.split(jax.random.key(0), B), temperature=0.0),
        ValueError,
        r"temperature is 0",
    ),
    "more than all probability": (
        lambda: search(sample, keys=jax.random.split(jax.random.key(0), B), top_p=1.5),
        ValueError,
        r"top_p is 1.5",
    ),
    "one key for two examples": (
        lambda: search(sample, keys=jax.random.split(jax.random.key(0), 3)),
        ValueError,
        r"keys has shape \(3,\) as \[B\]",
    ),
}


@pytest.mark.thorough(quick=58)
@pytest.mark.parametrize("name", MISUSES)
def test_misuse_is_an_error_that_names_the_argument(name):
    misuse, kind, expected = MISUSES[name]
    with pytest.raises(kind, match=rf"(?s){expected}"):
        misuse()


def test_there_are_at_least_sixty_misuses():
    assert len(MISUSES) >= 60


# ---- What looks like misuse and is none ------------------------------------------------------


@pytest.mark.parametrize("implementation", ["dense", "blockwise"])
@pytest.mark.parametrize(
    "shapes, expected",
    [
        ({"q": (0, T, N, H), "k": (0, S, K, H), "v": (0, S, K, H)}, (0, T, N, H)),
        ({"q": (B, 0, N, H)}, (B, 0, N, H)),
        ({"k": (B, 0, K, H), "v": (B, 0, K, H)}, (B, T, N, H)),
        ({"q": (B, T, 0, H)}, (B, T, 0, H)),
        ({"v": (B, S, K, 0)}, (B, T, N, 0)),
    ],
    ids=["B=0", "T=0", "S=0", "N=0", "H'=0"],
)
def test_axes_of_nothing_give_what_they_must(shapes, expected, implementation):
    output = call(causal(), implementation=implementation, **shapes)
    assert output.shape == expected and not np.any(output)


@pytest.mark.parametrize("implementation", ["dense", "blockwise"])
@pytest.mark.parametrize("sign", [1, -1])
def test_logits_of_ten_thousand_in_float16_are_exact(implementation, sign):
    """Far beyond what exp can hold: the highest logit takes all, wherever it is."""
    query = jnp.full((1, 3, 1, 1), 100 * sign, jnp.float16)
    key = jnp.array([-100, 100, 0, 100], jnp.float16).reshape(1, 4, 1, 1)
    value = jnp.array([1, 2, 3, 4], jnp.float16).reshape(1, 4, 1, 1)
    mask = jnp.array([[1, 1, 1, 1], [1, 0, 1, 0], [0, 0, 0, 0]], bool)
    output = attend(query, key, value, mask, scale=1.0, implementation=implementation)
    expected = [3, 3, 0] if sign == 1 else [1, 1, 0]
    assert output.ravel().tolist() == expected
