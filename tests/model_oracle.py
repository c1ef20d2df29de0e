"""What layers and stacks of a model compute, of one text without padding, in float64 NumPy loops.

Written from the papers; parameters are trees of NumPy arrays, named as the library names them. The
oracle's masks and scores are those of `oracle.py`: (t, s) -> bool and (logit, t, s) -> logit.
"""

import functools
import math

import jax
import numpy as np


def doubled(params):
    """A tree of parameters in float64."""
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)


def random_like(shapes, seed=0, size=0.4):
    """Random parameters of these shapes: biases and scales too, so that none hides."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: (size * rng.normal(size=leaf.shape)).astype(leaf.dtype), shapes
    )


def laid_out(texts, starts, length):
    """[3, length]: text i from cell `starts[i]` = (row, column) on, and segment ids i + 1."""
    tokens, ids = np.zeros((2, 3, length), np.int32)
    for i, (text, (row, start)) in enumerate(zip(texts, starts, strict=True)):
        tokens[row, start : start + len(text)] = text
        ids[row, start : start + len(text)] = i + 1
    return tokens, ids


def np_rotate(x, base=10_000.0):
    """[T, N, H]: features i and i + H/2 turn by t · base^(-2i/H), one plane at a time."""
    turned, half = np.array(x), x.shape[-1] // 2
    for t in range(len(x)):
        for i in range(half):
            angle = t / base ** (2 * i / x.shape[-1])
            turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
            turned[t][:, [i, i + half]] = x[t][:, [i, i + half]] @ turn.T
    return turned


def np_sinusoidal(t, features):
    """[D] of position t."""
    angles = [t / 10_000 ** (2 * i / features) for i in range(features // 2)]
    return np.concatenate([np.sin(angles), np.cos(angles)])


def np_affine(p, x):
    """[T, D] by a kernel [D, ...] and, where there is one, a bias."""
    return np.tensordot(x, p["kernel"], 1) + p.get("bias", 0.0)


def np_attention(p, x, y, *, seen=None, scores=None, rotary_base=None):
    """`seen` [T, S]; `scores` one a head."""
    query, key, value = (np_affine(p[n], z) for n, z in [("query", x), ("key", y), ("value", y)])
    if rotary_base:
        query, key = np_rotate(query, rotary_base), np_rotate(key, rotary_base)
    group = query.shape[1] // key.shape[1]
    output = np.tile(p["out"].get("bias", np.zeros(p["out"]["kernel"].shape[-1])), (len(x), 1))
    for n in range(query.shape[1]):
        logits = query[:, n] @ key[:, n // group].T / query.shape[2] ** 0.5
        if scores:
            logits = np.array(
                [[scores[n](x, t, s) for s, x in enumerate(row)] for t, row in enumerate(logits)]
            )
        logits = logits if seen is None else np.where(seen, logits, -np.inf)
        weights = np.exp(logits - logits.max(1, keepdims=True))
        weights /= weights.sum(1, keepdims=True)
        output += weights @ value[:, n // group] @ p["out"]["kernel"][n]
    return output


def np_gelu(x, *, exact=False):
    """x times the normal distribution's share below it, or GPT-2's approximation of that."""
    if exact:
        return x * (1 + np.vectorize(math.erf)(x / 2**0.5)) / 2
    return x / (1 + np.exp(-2 * np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def np_feed_forward(p, x, activation):
    """[T, D] -> [T, D]."""
    up = np_affine(p["up"], x)
    if activation == "swiglu":
        gate = np_affine(p["gate"], x)
        return np_affine(p["down"], up * gate / (1 + np.exp(-gate)))
    if activation == "relu":
        return np_affine(p["down"], np.maximum(up, 0))
    return np_affine(p["down"], np_gelu(up, exact=activation == "gelu_exact"))


def np_norm(p, x, epsilon=1e-6, kind="layer"):
    """LayerNorm, with or without a bias, or RMSNorm."""
    if kind == "rms":
        return x / np.sqrt((x**2).mean(1, keepdims=True) + epsilon) * p["scale"]
    deviation = np.sqrt(x.var(1, keepdims=True) + epsilon)
    return (x - x.mean(1, keepdims=True)) / deviation * p["scale"] + p.get("bias", 0.0)


def np_stack(config, p, x, num_layers, sublayers, norm=np_norm):
    """`sublayers`: name -> function of its parameters and input."""
    for i in range(num_layers):
        layer = p["layer_0" if config.share_layers else f"layer_{i}"]
        for name, sublayer in sublayers.items():
            normed = functools.partial(norm, layer[f"{name}_norm"])
            if config.norm_position == "pre":
                x = x + sublayer(layer[name], normed(x))
            else:
                x = normed(x + sublayer(layer[name], x))
    return norm(p["final_norm"], x) if config.norm_position == "pre" else x
