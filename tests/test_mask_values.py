"""A mask is a value: compared, hashed, given as a static argument, written down and read back."""

import copy
import dataclasses
import functools
import operator
import pickle

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from flaxattn import (
    Mask,
    attend,
    causal,
    chunked,
    dilated,
    explain,
    from_dense,
    full,
    global_tokens,
    lengths,
    mask_type,
    prefix,
    prepare,
    same_segment,
    score,
    sliding_window,
    softcap,
    valid,
    where,
)


def near(q, k):
    return abs(q - k) < 3


STATIC = [
    full,
    causal,
    lambda: sliding_window(2),
    lambda: sliding_window(2, 0),
    lambda: prefix(2),
    lambda: chunked(2),
    lambda: dilated(2),
    lambda: lengths(3),
    lambda: lengths(kv_lengths=3),
    lambda: global_tokens(2),
    lambda: where(near),
    lambda: ~causal(),
    lambda: causal() & prefix(2),
    lambda: prefix(2) & causal(),
    lambda: causal() | prefix(2),
    lambda: causal().shift(2),
    lambda: causal().shift(0, 2),
    lambda: causal().at(None, None),
]
WITH_ARRAYS = [
    lambda: lengths(kv_lengths=np.array([1, 2])),
    lambda: lengths(kv_lengths=np.array([1, 3])),
    lambda: sliding_window(np.array(2)),
    lambda: valid(np.array([True, False])),
    lambda: same_segment(np.array([1, 2])),
    lambda: from_dense(np.eye(2, dtype=bool)),
    lambda: causal().at(np.array([1, 0]), None),
    lambda: causal().at(None, np.array([1, 0])),
    lambda: where(lambda q, k, a: a[q] < k, np.arange(3)),
    lambda: causal() & lengths(kv_lengths=np.array([1, 2])),
]


def test_masks_are_equal_just_where_they_are_made_alike():
    made, again = ([make() for make in STATIC + WITH_ARRAYS[:-2]] for _ in range(2))
    equal = np.array([[a == b for b in again] for a in made])
    np.testing.assert_array_equal(equal, np.eye(len(made), dtype=bool))
    assert [a != b for a, b in zip(made, again, strict=True)] == [False] * len(made)
    assert made[0] != 1 and made[0] != "full()"


def test_masks_without_arrays_hash_alike_where_they_are_equal():
    hashes = [[hash(make()) for make in STATIC] for _ in range(2)]
    assert hashes[0] == hashes[1] and len(set(hashes[0])) > len(STATIC) / 2
    assert len({make() for make in STATIC * 3}) == len(STATIC)


@pytest.mark.parametrize("make", WITH_ARRAYS)
def test_masks_with_arrays_say_why_they_have_no_hash(make):
    with pytest.raises(TypeError, match=r"a mask with arrays has no hash \(.*static"):
        hash(make())


def test_arrays_are_compared_by_value_and_what_is_traced_by_identity():
    ours = lengths(kv_lengths=np.array([1, 2]))
    assert ours == lengths(kv_lengths=jnp.array([1, 2])) == copy.deepcopy(ours)
    assert ours != lengths(kv_lengths=np.array([[1, 2]]))

    @jax.jit
    def compared(mask, other):
        assert mask == mask and mask != other and mask != ours
        return mask.lead

    compared(ours, ours)


@pytest.mark.parametrize("join", [operator.and_, operator.or_])
def test_five_thousand_masks_may_be_combined(join):
    left = functools.reduce(join, [causal(), *map(prefix, range(5000))])
    right = functools.reduce(lambda a, b: join(b, a), [*map(prefix, range(5000))][::-1], full())
    for mask in (left, right):
        assert repr(mask).count("prefix(") == 5000
        assert hash(mask) == hash(copy.deepcopy(mask)) and pickle.loads(pickle.dumps(mask)) == mask
        assert mask.plan(4, 4, block_q=2, block_kv=2).mask is mask and mask.lead == ()


def test_operators_combine_alike_whatever_stands_in_brackets():
    a, b, c = causal(), prefix(2), chunked(2)
    assert (a & b) & c == a & (b & c) != a & (b | c) and (a | b) | c == a | (b | c)
    assert ~~a == a and repr(a & (b & c)) == "(causal() & prefix(length=2) & chunked(size=2))"


@pytest.mark.thorough
def test_a_mask_made_anew_is_the_same_static_argument():
    @functools.partial(jax.jit, static_argnums=1)
    @chex.assert_max_traces(len(STATIC))
    def seen(x, mask):
        return mask.dense(5, 5).sum() + x

    for _ in range(3):
        for make in STATIC:
            assert seen(0, make()) == make().dense(5, 5).sum()


class Bare(Mask):
    def __call__(self, q_idx, kv_idx):
        return kv_idx <= q_idx


@dataclasses.dataclass(frozen=True)
class Plain(Mask):
    width: int = 1

    def __call__(self, q_idx, kv_idx):
        return kv_idx <= q_idx + self.width


class Inherited(causal):
    pass


X = jnp.ones((1, 3, 1, 2))
USES = {
    "dense": lambda mask: mask.dense(3, 3),
    "plan": lambda mask: mask.plan(3, 3, block_q=2, block_kv=2),
    "prepared": lambda mask: prepare(mask, 512, 512),
    "explained": lambda mask: explain(mask, 3, 3),
    "lead": lambda mask: mask.lead,
    "attend": lambda mask: attend(X, X, X, mask),
    "combined": lambda mask: (causal() & ~mask).dense(3, 3),
    "shifted": lambda mask: mask.shift(1).dense(3, 3),
}


def test_arrays_and_functions_inside_are_named_and_not_written_out():
    def within(q, k, reach, other):
        return jnp.abs(q - k) <= reach[q] + other

    mask = where(within, np.arange(50), np.int32(1))
    assert repr(mask) == "where(fn=within, arrays=(int32[50], int32[]), ranks=(1, 0))"
    rule = score(lambda logit, q, k, weight: logit * weight, np.ones(3, np.float32))
    assert repr(rule >> softcap(2.0)) == (
        "(score(fn=<lambda>, arrays=(float32[3],), ranks=(0,)) >> softcap(cap=2.0))"
    )


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("kind", [Bare, Plain, Inherited])
def test_a_class_that_is_not_registered_is_told_of_mask_type(kind, use):
    with pytest.raises(TypeError, match=rf"@mask_type above `class {kind.__name__}`"):
        USES[use](kind())
    assert kind.__name__ in repr(kind())


def test_a_class_may_be_defined_again_as_in_a_notebook():
    for _ in range(3):
        again = mask_type(type("again", (causal,), {}))
        assert again().dense(2, 2).tolist() == [[1, 0], [1, 1]]


def test_a_registered_class_may_be_derived_from():
    assert mask_type(type("later", (causal,), {}))().dense(2, 2).tolist() == [[1, 0], [1, 1]]


@pytest.mark.thorough(quick=32)
@pytest.mark.parametrize("join", [operator.and_, operator.or_])
@pytest.mark.parametrize("make", [m for m in STATIC + WITH_ARRAYS if "where" not in repr(m())])
def test_masks_are_written_down_by_jax_export(make, join):
    mask = join(make(), causal())
    exported = export.export(jax.jit(lambda mask: ~mask))(mask)
    again = export.deserialize(exported.serialize()).call(mask)
    assert again == ~mask


def test_plans_are_written_down_by_jax_export():
    plan = (causal() & lengths(kv_lengths=np.array([2]))).plan(3, 3, block_q=2, block_kv=2)
    exported = export.export(jax.jit(lambda x, plan: attend(x, x, x, plan)))(X, plan)
    again = export.deserialize(exported.serialize()).call(X, plan)
    np.testing.assert_array_equal(again, attend(X, X, X, plan))


def test_a_rule_of_ones_own_cannot_be_written_down_and_says_so():
    exported = export.export(jax.jit(lambda mask: mask.dense(3, 3)))(where(near))
    with pytest.raises(TypeError, match="where holds what cannot be written down"):
        exported.serialize()
