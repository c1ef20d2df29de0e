"""What the pages for those who come from other libraries say of masks is so."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as splash

from flaxattn import (
    causal,
    chunked,
    from_dense,
    full,
    lengths,
    same_segment,
    sliding_window,
    valid,
)

T, S = 12, 10
RNG = np.random.default_rng(0)
CELLS = RNG.random((T, S)) < 0.5
IDS = np.sort(RNG.integers(0, 3, (2, T)), axis=1)
REAL = np.arange(T) < np.array([[7], [12]])

SPLASH = {
    "causal": (splash.CausalMask((T, S)), causal()),
    "causal, offset": (splash.CausalMask((T, S), offset=2), causal().shift(q_start=2)),
    "chunks": (splash.ChunkedCausalMask((T, S), 4), causal() & chunked(4)),
    "full": (splash.FullMask((T, S)), full()),
    "array": (splash.NumpyMask(CELLS), from_dense(CELLS)),
    **{
        f"window {left}, {right}, offset {n}": (
            splash.LocalMask((T, S), window_size=(left, right), offset=n),
            sliding_window(left, right).shift(q_start=n),
        )
        for left in (0, 3, None)
        for right in (0, 2, None)
        for n in (0, 2)
    },
}


@pytest.mark.parametrize("name", SPLASH)
def test_masks_of_splash_are_ours(name):
    theirs, ours = SPLASH[name]
    np.testing.assert_array_equal(ours.dense(T, S), theirs[:, :])


def test_combinations_of_masks_of_splash_are_ours():
    (a, ours), (b, other) = SPLASH["causal"], SPLASH["array"]
    np.testing.assert_array_equal((ours & other).dense(T, S), (a & b)[:, :])
    np.testing.assert_array_equal((ours | other).dense(T, S), (a | b)[:, :])
    windows = [splash.LocalMask((T, S), (left, None), 0) for left in (1, 4)]
    heads = sliding_window(jnp.array([[1, 4]]), None)
    np.testing.assert_array_equal(heads.dense(T, S)[0], splash.MultiHeadMask(windows)[:, :, :])


FLAX = {
    "causal": (nn.make_causal_mask(IDS), causal()),
    "keys": (nn.make_attention_mask(np.ones((2, T), bool), REAL), valid(REAL)),
    "both": (nn.make_attention_mask(REAL, REAL), lengths(REAL.sum(1), REAL.sum(1))),
    "ids": (nn.make_attention_mask(IDS, IDS, jnp.equal), same_segment(IDS, padding=None)),
    "combined": (
        nn.combine_masks(nn.make_causal_mask(IDS), nn.make_attention_mask(REAL, REAL)),
        causal() & lengths(REAL.sum(1), REAL.sum(1)),
    ),
}


@pytest.mark.parametrize("name", FLAX)
def test_masks_of_flax_are_ours(name):
    theirs, ours = FLAX[name]
    dense = ours.dense(T, T)
    np.testing.assert_array_equal(np.broadcast_to(dense, (2, T, T)), theirs[:, 0].astype(bool))
