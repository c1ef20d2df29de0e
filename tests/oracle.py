"""What masks and masked attention mean, in plain Python and float64 NumPy loops.

Written from the definitions alone: it shares no code with the library, knows nothing of jax, and
is slow on purpose. A rule is the mask of one example and one head: (t, s) -> bool.

The letters: B batch · T query length · S key length · N query heads · K key heads · H head dim.
"""

from typing import NamedTuple

import numpy as np

# The patterns.


def full():
    return lambda t, s: True


def causal():
    return lambda t, s: s <= t


def sliding_window(left, right="same"):
    right = left if isinstance(right, str) else right

    def rule(t, s):
        return (left is None or t - left <= s) and (right is None or s <= t + right)

    return rule


def prefix(length):
    return lambda t, s: s < length


def chunked(size):
    """Chunk c is the run of positions c * size, ..., c * size + size - 1."""
    return lambda t, s: t - t % size == s - s % size


def dilated(step):
    return lambda t, s: abs(t - s) % step == 0


def lengths(q_lengths=None, kv_lengths=None):
    def rule(t, s):
        return (q_lengths is None or t < q_lengths) and (kv_lengths is None or s < kv_lengths)

    return rule


def valid(kv_valid):
    return lambda t, s: 0 <= s < len(kv_valid) and bool(kv_valid[s])


def same_segment(q_ids, kv_ids=None, padding=0):
    kv_ids = q_ids if kv_ids is None else kv_ids

    def rule(t, s):
        if not (0 <= t < len(q_ids) and 0 <= s < len(kv_ids)):
            return False
        return q_ids[t] != padding and q_ids[t] == kv_ids[s]  # None is no id

    return rule


def global_tokens(which):
    count = np.ndim(which) == 0

    def is_global(i):
        return 0 <= i < which if count else 0 <= i < len(which) and bool(which[i])

    return lambda t, s: is_global(t) or is_global(s)


def from_dense(array):
    q_size, kv_size = np.shape(array)

    def rule(t, s):
        t, s = 0 if q_size == 1 else t, 0 if kv_size == 1 else s
        return 0 <= t < q_size and 0 <= s < kv_size and bool(array[t][s])

    return rule


# The algebra.


def both(a, b):
    return lambda t, s: a(t, s) and b(t, s)


def either(a, b):
    return lambda t, s: a(t, s) or b(t, s)


def opposite(a):
    return lambda t, s: not a(t, s)


def shifted(a, q_start=0, kv_start=0):
    """Positions are int32: one that would lie beyond is the last, or the first, there is."""

    def later(i, start):
        return min(max(int(i) + int(start), -(2**31)), 2**31 - 1)

    return lambda t, s: a(later(t, q_start), later(s, kv_start))


def at(a, q_positions=None, kv_positions=None):
    """An index that has no position sees nothing and is not seen."""

    def rule(t, s):
        sides = (t, q_positions), (s, kv_positions)
        if not all(given is None or 0 <= i < len(given) for i, given in sides):
            return False
        return a(*(i if given is None else given[i] for i, given in sides))

    return rule


def draw(rule, q_len, kv_len):
    """The rule as a boolean array [T, S]."""
    seen = [[bool(rule(t, s)) for s in range(kv_len)] for t in range(q_len)]
    return np.array(seen, dtype=bool).reshape(q_len, kv_len)


# Attention.


class Gradients(NamedTuple):
    """Those of a sum over rows; the bias's has its shape, axes of 1 summed."""

    query: np.ndarray
    key: np.ndarray
    value: np.ndarray
    bias: np.ndarray
    scale: float


def attend(query, key, value, mask, bias=None, scale=None, keep=None, rate=0.0):
    """[B, T, N, H'] in float64: softmax over the keys that are seen, zeros where none is.

    Args:
      query: [B, T, N, H]; key: [B, S, K, H]; value: [B, S, K, H'].
      mask: bool, broadcasts to [B, N, T, S].
      bias: broadcasts to [B, N, T, S].
      scale: H**-0.5 by default.
      keep: bool [B, N, T, S], which weights dropout at `rate` keeps.
    """
    query, key, value = (np.asarray(x, np.float64) for x in (query, key, value))
    output = np.zeros((*query.shape[:3], value.shape[3]))
    for row in _rows(query, key, mask, bias, scale, keep, rate):
        output[row.b, row.t, row.n] = row.mixed @ value[row.b, row.seen, row.k]
    return output


def log_sum_exp(query, key, mask, bias=None, scale=None):
    """[B, T, N] in float64: that of the logits of the keys that are seen, -inf where none is."""
    query, key = np.asarray(query, np.float64), np.asarray(key, np.float64)
    total = np.full(query.shape[:3], -np.inf)
    for row in _rows(query, key, mask, bias, scale, None, 0.0):
        total[row.b, row.t, row.n] = row.log_sum_exp
    return total


def attention_weights(query, key, mask, bias=None, scale=None):
    """[B, N, T, S] in float64."""
    query, key = np.asarray(query, np.float64), np.asarray(key, np.float64)
    (b, t, n, _), s = query.shape, key.shape[1]
    weights = np.zeros((b, n, t, s))
    for row in _rows(query, key, mask, bias, scale, None, 0.0):
        weights[row.b, row.n, row.t, row.seen] = row.weights
    return weights


def gradients(
    cotangent,
    query,
    key,
    value,
    mask,
    bias=None,
    scale=None,
    keep=None,
    rate=0.0,
    lse_cotangent=None,
):
    """The gradients of sum(attend(...) * cotangent), derived by hand.

    With `lse_cotangent` [B, T, N] those of sum(log_sum_exp(...) * lse_cotangent) are added, the sum
    being over the rows that see something.
    """
    cotangent, query, key, value = (
        np.asarray(x, np.float64) for x in (cotangent, query, key, value)
    )
    factor = query.shape[-1] ** -0.5 if scale is None else float(scale)
    d_query, d_key, d_value = (np.zeros(x.shape) for x in (query, key, value))
    d_bias = np.zeros(np.shape(bias) if bias is not None else (1, 1, 1, 1))
    d_scale = 0.0
    for row in _rows(query, key, mask, bias, scale, keep, rate):
        b, t, n, k, seen = row.b, row.t, row.n, row.k, row.seen
        d_output = cotangent[b, t, n]
        d_value[b, seen, k] += np.outer(row.mixed, d_output)
        d_weights = row.kept * (value[b, seen, k] @ d_output)
        d_logits = row.weights * (d_weights - row.weights @ d_weights)
        if lse_cotangent is not None:  # d log sum exp(l) / d l is the weight of l
            d_logits += row.weights * lse_cotangent[b, t, n]
        d_query[b, t, n] += factor * d_logits @ key[b, seen, k]
        d_key[b, seen, k] += factor * np.outer(d_logits, query[b, t, n])
        d_scale += d_logits @ (key[b, seen, k] @ query[b, t, n])
        for s, d_logit in zip(seen, d_logits, strict=True):
            index = zip((b, n, t, s), d_bias.shape, strict=True)
            d_bias[tuple(0 if size == 1 else i for i, size in index)] += d_logit
    return Gradients(d_query, d_key, d_value, d_bias, d_scale)


class _Row(NamedTuple):
    """One query of one head: what it sees and with which weight."""

    b: int
    t: int
    n: int
    k: int
    seen: np.ndarray  # indices of the keys
    weights: np.ndarray  # of those keys, before dropout
    kept: np.ndarray  # what dropout multiplies them with
    log_sum_exp: float

    @property
    def mixed(self):
        return self.weights * self.kept


def _rows(query, key, mask, bias, scale, keep, rate):
    """Every row that sees something."""
    (batch, q_len, num_heads, head_dim), (_, kv_len, num_kv_heads, _) = query.shape, key.shape
    everywhere = (batch, num_heads, q_len, kv_len)
    mask = np.broadcast_to(np.asarray(mask, bool), everywhere)
    bias = np.broadcast_to(np.asarray(0.0 if bias is None else bias, np.float64), everywhere)
    keep = np.broadcast_to(np.asarray(True if keep is None else keep, bool), everywhere)
    scale = head_dim**-0.5 if scale is None else float(scale)
    for b, n, t in np.ndindex(batch, num_heads, q_len):
        k = n // (num_heads // num_kv_heads)
        seen = np.flatnonzero(mask[b, n, t])
        if seen.size:
            logits = key[b, seen, k] @ query[b, t, n] * scale + bias[b, n, t, seen]
            powers = np.exp(logits - logits.max())
            kept = keep[b, n, t, seen] / (1.0 - rate)
            total = logits.max() + np.log(powers.sum())
            yield _Row(b, t, n, k, seen, powers / powers.sum(), kept, total)
