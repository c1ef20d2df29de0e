"""What the tests of attention share: shapes, inputs, masks, garbage, and how answers are compared.

The letters are those of the oracle: B batch · T query length · S key length · N query heads ·
K key heads · H head dim.
"""

import logging
from typing import Any, NamedTuple

import jax
import jax.experimental
import numpy as np
import oracle

enable_x64 = jax.enable_x64 if hasattr(jax, "enable_x64") else jax.experimental.enable_x64


class Shape(NamedTuple):
    """The sizes of a case; H_value is the head dim of the values."""

    B: int
    T: int
    S: int
    N: int
    K: int
    H: int
    H_value: int

    @property
    def logits(self):
        """[B, N, T, S]"""
        return self.B, self.N, self.T, self.S


class Inputs(NamedTuple):
    """What a call needs, and a cotangent of its output."""

    query: Any
    key: Any
    value: Any
    bias: Any
    cotangent: Any


def inputs(shape, seed=0, bias=None, dtype=np.float32):
    """Normal variates; the bias is [B, N, T, S] unless its shape is given."""
    b, t, s, n, k, h, h_value = shape
    rng = np.random.default_rng(seed)
    shapes = (
        (b, t, n, h),
        (b, s, k, h),
        (b, s, k, h_value),
        bias or shape.logits,
        (b, t, n, h_value),
    )
    return Inputs(*(rng.standard_normal(shape).astype(dtype) for shape in shapes))


def random_mask(shape, seed, chance=0.6):
    """bool [B, N, T, S] in which some rows see nothing and some keys of each head are unseen."""
    rng = np.random.default_rng(seed)
    b, n, t, s = shape.logits
    mask = rng.random((b, n, t, s)) < chance
    mask &= rng.random((b, n, t, 1)) < 0.8
    seen_by_group = rng.random((b, shape.K, 1, 1, s)) < 0.7
    return mask & np.repeat(seen_by_group, n // shape.K, axis=1).reshape(b, n, 1, s)


def older(q, k, age):
    """A rule of one's own, for `where`: the query is as old as the key or older."""
    return age[q] >= age[k]


def every(shape, rule):
    """The plain rule of each example and head as [B, N, T, S]."""
    b, n, t, s = shape.logits
    return np.array([[oracle.draw(rule(i, j), t, s) for j in range(n)] for i in range(b)])


GARBAGE = np.array([np.nan, np.inf, -np.inf, 1e38, -3e38], np.float32)


def with_garbage(array, where, seed=0):
    """`array` with one kind of garbage in each of its entries [..., :] that `where` marks."""
    noise = np.random.default_rng(seed).choice(GARBAGE, array.shape)
    return np.where(where[..., None], noise, array)


def unseen_keys(mask, num_kv_heads):
    """bool [B, S, K]: no row of any head of the group sees the key."""
    batch, *_, kv_len = mask.shape
    return ~mask.reshape(batch, num_kv_heads, -1, kv_len).any(2).swapaxes(1, 2)


def blind_rows(mask):
    """bool [B, T, N]: the row sees nothing."""
    return ~mask.any(-1).swapaxes(1, 2)


def assert_close(actual, expected, tolerance=2e-6):
    """Each part within `tolerance` of its largest entry; parts that are None are left out."""
    for name, a, e in zip(expected._fields, actual, expected, strict=True):
        if a is not None and e is not None:
            size = max(np.abs(e).max(initial=0.0), 1.0)
            size *= 10 if name == "scale" else 1  # a sum of much that cancels
            np.testing.assert_allclose(a, e, rtol=0, atol=tolerance * size, err_msg=name)


def assert_same(actual, expected, but=()):
    """Equal to the last bit, but for the parts named in `but`."""
    for name, a, e in zip(expected._fields, actual, expected, strict=True):
        if name not in but:
            np.testing.assert_array_equal(a, e, err_msg=name)


def compilations(caplog, fn):
    """How many programs are compiled while `fn` runs."""
    caplog.clear()
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        fn()
    return sum("Finished XLA compilation" in record.getMessage() for record in caplog.records)
