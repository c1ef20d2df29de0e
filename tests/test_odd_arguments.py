"""Every argument of `attend` and its kin, given what is odd: refused by name, or right."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attention_cases import Shape, inputs

from flaxattn import (
    alibi,
    attend,
    attend_with_stats,
    attention_weights,
    causal,
    full,
    merge,
    relative_positions,
    score,
    softcap,
    where,
)

SHAPE = Shape(2, 5, 7, 4, 2, 3, 3)
Q, K, V, BIAS, _ = inputs(SHAPE)
KEY = jax.random.key(0)
ONES = np.ones(4, np.float32)


def everything(**changes):
    """Calls of all that take an argument of these names, fitting but for those given."""
    of_weights = {"query": Q, "key": K} | changes
    given = {"value": V} | of_weights
    calls = [lambda: attend(**given), lambda: attend_with_stats(**given)]
    if not changes.keys() & {"value", "dropout_rate", "dropout_key", "implementation"}:
        calls.append(lambda: attention_weights(**of_weights))
    return calls


NO_KEY = r"expected jax\.random\.key\(seed\)"
DROPPING = {"dropout_rate": 0.5}
NOT_NUMBERS = {
    name: [
        *(array.tolist(), None, 1.0, "x", np.ma.masked_array(array)),
        *map(array.astype, (complex, object, bool, np.longdouble, ">f4")),
        jax.ShapeDtypeStruct(array.shape, array.dtype),
    ]
    for name, array in {"query": Q, "key": K, "value": V, "bias": BIAS}.items()
}
NOT_NUMBERS["bias"].remove(None)

REFUSED = [
    *(
        ({name: value}, TypeError, rf"^{name} (is a|has dtype)")
        for name, values in NOT_NUMBERS.items()
        for value in values
    ),
    ({"scale": "1"}, TypeError, "scale is '1'; expected a real number"),
    ({"scale": True}, TypeError, "scale is True"),
    ({"scale": 1j}, TypeError, "scale is 1j"),
    ({"scale": [1.0] * 4}, TypeError, r"scale is \[1.0"),
    ({"scale": np.ones(4, bool)}, TypeError, "scale is array"),
    ({"scale": np.ones(3, np.float32)}, ValueError, r"scale has shape \(3,\).*\[N\] = \[4\]"),
    ({"score": softcap}, TypeError, r"score is softcap; expected a Score.*softcap\(50"),
    ({"score": abs}, TypeError, r"score is builtin_function.*expected a Score.*score\(fn"),
    ({"score": 50.0}, TypeError, "score is float; expected a Score"),
    ({"score": causal()}, TypeError, r"score is .*causal; expected a Score"),
    ({"score": alibi(ONES[:3])}, ValueError, r"score alibi.*\(1, 3\).*N = 3.*N = 4.*of heads"),
    ({"score": alibi(ONES[:2])}, ValueError, r"score alibi.*\(1, 2\).*N = 2.*N = 4.*of heads"),
    ({"score": softcap(ONES[:3, None])}, ValueError, r"score softcap.*\(3, 1\).*B = 2"),
    ({"score": relative_positions(np.eye(5))}, ValueError, r"score relative_pos.*\(1, 5\).*N = 4"),
    ({"score": alibi(1.0).at(np.arange(4), None)}, ValueError, "q_positions has shape.*0 to 4"),
    ({"sinks": "1"}, TypeError, "sinks is '1'; expected a real number"),
    ({"sinks": True}, TypeError, "sinks is True"),
    ({"sinks": 1j}, TypeError, "sinks is 1j"),
    ({"sinks": [1.0] * 4}, TypeError, r"sinks is \[1.0"),
    ({"sinks": np.ones(3, np.float32)}, ValueError, r"sinks has shape \(3,\).*\[N\] = \[4\]"),
    ({"sinks": np.ones((1, 4), np.float32)}, ValueError, r"sinks has shape \(1, 4\)"),
    ({"dropout_rate": "0.1"}, TypeError, "dropout_rate is '0.1'; expected a number"),
    ({"dropout_rate": None}, TypeError, "dropout_rate is None"),
    ({"dropout_rate": True}, TypeError, "dropout_rate is True"),
    ({"dropout_rate": np.full(4, 0.1)}, TypeError, "dropout_rate is array"),
    ({"dropout_rate": jnp.float32(1)}, ValueError, "dropout_rate is 1.0"),
    ({"dropout_rate": -1}, ValueError, "dropout_rate is -1"),
    (DROPPING | {"dropout_key": 0}, TypeError, f"dropout_key is a int; {NO_KEY}"),
    ({"dropout_key": 0}, TypeError, f"dropout_key is a int; {NO_KEY}"),
    (DROPPING | {"dropout_key": [0, 0]}, TypeError, "dropout_key is a list"),
    (DROPPING | {"dropout_key": np.ones(2, np.float32)}, TypeError, r"is float32\[2\]"),
    (DROPPING | {"dropout_key": np.ones(2, np.int32)}, TypeError, r"dropout_key is int32\[2\]"),
    (DROPPING | {"dropout_key": np.ones(3, np.uint32)}, TypeError, r"is uint32\[3\]"),
    (DROPPING | {"dropout_key": np.ones((), np.uint32)}, TypeError, r"is uint32\[\]"),
    (DROPPING | {"dropout_key": jax.random.split(KEY, 3)}, ValueError, r"\[3\].*\[2, 4\]"),
    (DROPPING | {"dropout_key": jax.random.split(KEY, (4, 2))}, ValueError, r"\[4, 2\]"),
    ({"implementation": None}, ValueError, "implementation is None"),
    ({"implementation": ["dense"]}, ValueError, r"implementation is \['dense'\]"),
]


@pytest.mark.parametrize("number", range(len(REFUSED)))
def test_what_is_odd_is_refused_by_name(number):
    changes, error, message = REFUSED[number]
    for call in everything(**changes):
        with pytest.raises(error, match=message):
            call()


@pytest.mark.parametrize("rows", [[[1], [2, 3]], "x", [None], [True], slice(2), [0.5], 3])
def test_so_are_rows_and_heads(rows):
    for name in ("rows", "heads"):
        with pytest.raises((TypeError, ValueError), match=name):
            attention_weights(Q, K, **{name: rows})


def test_a_traced_rate_of_dropout_is_refused_by_name_and_says_what_to_do():
    call = jax.jit(lambda rate: attend(Q, K, V, dropout_rate=rate, dropout_key=KEY))
    with pytest.raises(TypeError, match=r"dropout_rate is traced.*static"):
        call(0.5)


IMPLEMENTATIONS = pytest.mark.parametrize("implementation", ["dense", "blockwise"])


@IMPLEMENTATIONS
@pytest.mark.parametrize("rate", [np.float32(0.5), np.array(0.5), jnp.float32(0.5)], ids=type)
def test_a_rate_that_is_known_may_be_of_any_type(rate, implementation):
    options = {"dropout_key": KEY, "implementation": implementation}
    expected = attend(Q, K, V, dropout_rate=0.5, **options)
    np.testing.assert_array_equal(attend(Q, K, V, dropout_rate=rate, **options), expected)


KEYS = {
    "typed": KEY,
    "raw": jax.random.PRNGKey(0),
    "raw, of NumPy": np.asarray(jax.random.PRNGKey(0)),
}


@IMPLEMENTATIONS
@pytest.mark.parametrize("name", KEYS)
def test_a_key_may_be_typed_or_raw(name, implementation):
    options = {"dropout_rate": 0.5, "implementation": implementation}
    expected = attend(Q, K, V, dropout_key=KEY, **options)
    np.testing.assert_array_equal(attend(Q, K, V, dropout_key=KEYS[name], **options), expected)


@IMPLEMENTATIONS
@pytest.mark.parametrize(
    "scale", [2, np.int32(2), np.float64(2), np.full(4, 2, np.int32)], ids=repr
)
def test_a_scale_may_be_any_real_number(scale, implementation):
    expected = attend(Q, K, V, scale=2.0, implementation=implementation)
    found = attend(Q, K, V, scale=scale, implementation=implementation)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@IMPLEMENTATIONS
@pytest.mark.parametrize("mask", [None, full(), causal()], ids=str)
def test_queries_of_no_features_mix_what_they_see_evenly(mask, implementation):
    """All logits are 0, whatever multiplies them."""

    def call(value, **options):
        return attend(Q[..., :0], K[..., :0], value, mask, **options)

    seen = np.ones((5, 7)) if isinstance(mask, full | None) else np.tri(5, 7)
    even = (seen / seen.sum(axis=-1, keepdims=True)).astype(np.float32)
    expected = np.repeat(np.einsum("ts,bskh->btkh", even, V), 2, axis=2)
    for options in ({}, {"scale": 3.0}):
        found, pull = jax.vjp(lambda v, o=options: call(v, implementation=implementation, **o), V)
        np.testing.assert_allclose(found, expected, atol=1e-6)
        assert np.isfinite(pull(found)[0]).all()
    weights = attention_weights(Q[..., :0], K[..., :0], mask)
    np.testing.assert_allclose(weights, np.broadcast_to(even, weights.shape), atol=1e-6)


def test_a_merged_part_that_jax_cannot_read_is_refused_too():
    with pytest.raises(TypeError, match=r"parts\[0\]\[0\] has dtype >f4"):
        merge([(V.astype(">f4"), V[..., 0])])


@pytest.mark.parametrize("transform", [jax.jit, jax.grad, jax.vmap])
@pytest.mark.parametrize("kind", ["mask", "score"])
def test_rules_that_close_over_what_is_traced_are_told_to_take_it(kind, transform):
    """As they may in FlexAttention; derivatives and devices trace a rule again."""

    def loss(x):
        own = {
            "mask": {"mask": where(lambda q, k: (q - k).astype(x.dtype) < x)},
            "score": {"score": score(lambda logit, q, k: logit * x)},
        }
        return attend(Q, K, V, implementation="blockwise", **own[kind]).sum()

    x = np.ones(2 if transform is jax.vmap else (), np.float32)
    with pytest.raises(ValueError, match=r"closes over float32\[\], which is being traced"):
        transform(loss)(x)
    with pytest.raises(ValueError, match=r"where\(lambda q, k, x: \.\.\., array\)"):
        jax.jit(transform(loss))(x)
    np.asarray(loss(jnp.float32(1)))  # what is known may be closed over
