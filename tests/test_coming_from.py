"""What the pages for those who come from other libraries say of masks and scores is so."""

import ast
import math
import pathlib

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as splash
from pages import blocks_of

from flaxattn import (
    alibi,
    attend_with_stats,
    causal,
    chunked,
    from_dense,
    full,
    lengths,
    relative_positions,
    same_segment,
    score,
    sliding_window,
    softcap,
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


# ---- Scores ----------------------------------------------------------------------------------

PAGE = pathlib.Path(__file__).parents[1] / "docs" / "coming_from_flexattention.md"
B, N, BUCKETS, PATH, EDGES = 2, 3, 5, 2, 4
LOGITS = RNG.normal(size=(T, S)).astype(np.float32)
DISTANCES, COUNTS = RNG.integers(0, BUCKETS, (B, T, S)), RNG.integers(0, PATH + 1, (B, T, S))
TYPES = RNG.integers(0, EDGES, (B, T, S, PATH))
OF_DISTANCE, OF_EDGE = RNG.normal(size=(N, BUCKETS)), RNG.normal(size=(N, PATH, EDGES))
SLOPES = 2.0 ** (-8.0 * np.arange(1, N + 1) / N)


@pytest.fixture(scope="module")
def rules():
    """What the page for those who come from FlexAttention imports and defines."""
    names = {}
    for block in blocks_of(PAGE.read_text(encoding="utf-8")):
        if block.info == "python":
            tree = ast.parse(block.text)
            kept = (ast.Import, ast.ImportFrom, ast.FunctionDef)
            tree.body = [node for node in tree.body if isinstance(node, kept)]
            exec(compile(tree, str(PAGE), "exec"), names)
    return names


def along_path(x, b, h, q, k):
    known = [OF_EDGE[h, n, TYPES[b, q, k, n]] for n in range(COUNTS[b, q, k])]
    return x + sum(known) / max(len(known), 1)


def sandwiched(x, b, h, q, k):
    waves = (math.cos((q - k) / 10000 ** (2 * i / 128)) for i in range(64))
    return x + sum(waves) * N / (8 * (h + 1))


def gelu(x):
    return x * (1 + math.erf(x / math.sqrt(2))) / 2


GYM = {  # ours, with the page's rules; and what attention-gym's gives for a logit, b, h, q and k
    "alibi": (
        lambda page: alibi(SLOPES),
        lambda x, b, h, q, k: x + (k - q) * 2 ** (-8 * (h + 1) / N) if k <= q else x * np.nan,
    ),
    "softcap": (lambda page: softcap(2.0), lambda x, b, h, q, k: 2 * math.tanh(x / 2)),
    "sandwich": (lambda page: relative_positions(page["sandwich"](N, T)), sandwiched),
    "graphormer, distances": (
        lambda page: score(page["spatial"], OF_DISTANCE, DISTANCES[:, None]),
        lambda x, b, h, q, k: x + OF_DISTANCE[h, DISTANCES[b, q, k]],
    ),
    "graphormer, edges": (
        lambda page: score(page["edge"], OF_EDGE, TYPES[:, None], COUNTS[:, None], ranks=(2, 3, 2)),
        along_path,
    ),
    "activation": (
        lambda page: score(page["logarithm_of_gelu"]),
        lambda x, b, h, q, k: math.log(gelu(x) + 1),
    ),
    "checkerboard": (
        lambda page: score(page["checkerboard"]),
        lambda x, b, h, q, k: x / 2 if (k - q) % 2 else x * 2,
    ),
    "anti window": (
        lambda page: score(page["anti_window"]),
        lambda x, b, h, q, k: x - 1 if abs(q - k) <= 4 else x + abs(q - k),
    ),
    "relative": (lambda page: score(page["relative_bias"]), lambda x, b, h, q, k: x + q - k),
    "head": (
        lambda page: score(page["head_bias"], jnp.arange(N, dtype=float)),
        lambda x, b, h, q, k: x + 2 * h,
    ),
}


@pytest.mark.parametrize("name", GYM)
def test_scores_of_attention_gym_are_ours(name, rules):
    make, theirs = GYM[name]
    places = np.ndindex(B, N, T, S)
    expected = np.array([theirs(LOGITS[q, k], b, h, q, k) for b, h, q, k in places])
    expected = expected.reshape(B, N, T, S)
    ours = np.broadcast_to(make(rules).dense(T, S, logit=LOGITS), expected.shape)
    known = ~np.isnan(expected)
    np.testing.assert_allclose(ours[known], expected[known], rtol=2e-5, atol=2e-5)


def test_the_soft_cap_and_sinks_of_splash_are_ours():
    reference = splash_attention_kernel.attention_reference  # of one head
    query, key, value = jnp.asarray(RNG.normal(size=(3, 1, T, N, 8)), jnp.float32)
    seen, sinks = causal().dense(T, T), jnp.array([-1.0, 0.0, 2.0])
    output, lse = attend_with_stats(
        query, key, value, causal(), scale=1.0, score=softcap(2.0), sinks=sinks
    )
    for h in range(N):
        expected, (its_lse,) = reference(
            seen, query[0, :, h], key[0, :, h], value[0, :, h], None, sinks[h],
            attn_logits_soft_cap=2.0, save_residuals=True,
        )  # fmt: skip
        np.testing.assert_allclose(output[0, :, h], expected, atol=1e-5)
        np.testing.assert_allclose(lse[0, :, h], its_lse, atol=1e-5)
