"""What masks, scores and attention mean, in plain Python and float64 NumPy loops.

Written from the definitions alone: it shares no code with the library, knows nothing of jax, and
is slow on purpose. A rule is the mask of one example and one head, (t, s) -> bool, or its score,
(logit, t, s) -> logit.

The letters: B batch · T query length · S key length · N query heads · K key heads · H head dim.
"""

import collections
from collections.abc import Callable
from fractions import Fraction
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


# Scores. Logits and numbers may be complex: `slope` takes derivatives by an imaginary step.


def softcap(cap):
    return lambda x, t, s: cap * np.tanh(x / cap)


def temperature(value):
    return lambda x, t, s: x / value


def alibi(slope):
    return lambda x, t, s: x - slope * abs(t - s)


def alibi_slopes(num_heads):
    """The paper's: 2^(-8/N), ..., and else those of the power of two below, and of that above."""
    power = 1
    while 2 * power <= num_heads:
        power *= 2
    slopes = [2 ** (-8 * i / power) for i in range(1, power + 1)]
    between = [2 ** (-8 * i / (2 * power)) for i in range(1, 2 * power + 1, 2)]
    return (slopes + between)[:num_heads]


def relative_positions(table):
    most = len(table) // 2
    return lambda x, t, s: x + table[max(-most, min(s - t, most)) + most]


def relative_bias(table, num_buckets, max_distance, bidirectional):
    return lambda x, t, s: x + table[bucket(s - t, num_buckets, max_distance, bidirectional)]


def bucket(distance, num_buckets, max_distance, bidirectional):
    """T5's: half of a direction's n hold one distance each, m; of the others the next begins where

    log(d / m) / log(max / m) = i / (n - m): (d / m)^(n - m) >= (max / m)^i, in fractions.
    """
    first = 0
    if bidirectional:
        num_buckets //= 2
        first = num_buckets if distance > 0 else 0
        distance = abs(distance)
    else:
        distance = max(-distance, 0)
    exact = num_buckets // 2
    if distance < exact:
        return first + distance
    wide, i = num_buckets - exact, 0
    power = Fraction(distance, exact) ** wide
    while i + 1 < wide and power >= Fraction(max_distance, exact) ** (i + 1):
        i += 1
    return first + exact + i


def in_turn(*rules):
    """The first one first."""

    def rule(x, t, s):
        for one in rules:
            x = one(x, t, s)
        return x

    return rule


def moved(rule, q_positions, kv_positions):
    """The rule of the positions that indices stand for: functions of an index."""
    return lambda x, t, s: rule(x, q_positions(t), kv_positions(s))


class Score(NamedTuple):
    """The score of every example and head, and its arrays."""

    rule: Callable  # of (arrays, b, n): (logit, t, s) -> logit
    arrays: tuple[np.ndarray, ...] = ()

    def of(self, b, n):
        return self.rule(self.arrays, b, n)


STEP = 1e-30


def slope(rule, x, t, s):
    """The derivative of a rule by the logit."""
    return rule(complex(x, STEP), t, s).imag / STEP


def slopes_of_arrays(score, b, n, pairs):
    """The derivatives by the score's arrays: of the sum of d · score(x, t, s) over (d, x, t, s)."""
    found = [np.zeros(np.shape(array)) for array in score.arrays]
    for i, array in enumerate(score.arrays):
        for index in np.ndindex(np.shape(array)):
            arrays = [np.array(a, complex) for a in score.arrays]
            arrays[i][index] += STEP * 1j
            rule = score.rule(arrays, b, n)
            found[i][index] = sum(d * np.imag(rule(x, t, s)) for d, x, t, s in pairs) / STEP
    return found


# Attention.


class Gradients(NamedTuple):
    """Those of a sum over rows; the bias's has its shape, axes of 1 summed."""

    query: np.ndarray
    key: np.ndarray
    value: np.ndarray
    bias: np.ndarray
    scale: np.ndarray


class ScoredGradients(NamedTuple):
    """Those, and of the sinks and each array of a score."""

    query: np.ndarray
    key: np.ndarray
    value: np.ndarray
    bias: np.ndarray
    scale: np.ndarray
    sinks: np.ndarray
    arrays: tuple[np.ndarray, ...]


def attend(
    query, key, value, mask, bias=None, scale=None, keep=None, rate=0.0, score=None, sinks=None
):
    """[B, T, N, H'] in float64: softmax over the keys that are seen, zeros where none is.

    Args:
      query: [B, T, N, H]; key: [B, S, K, H]; value: [B, S, K, H'].
      mask: bool, broadcasts to [B, N, T, S].
      bias: broadcasts to [B, N, T, S].
      scale: [] or [N], H**-0.5 by default.
      keep: bool [B, N, T, S], which weights dropout at `rate` keeps.
      score: a `Score`, of logits after scale and bias.
      sinks: [] or [N].
    """
    query, key, value = (np.asarray(x, np.float64) for x in (query, key, value))
    output = np.zeros((*query.shape[:3], value.shape[3]))
    for row in _rows(query, key, mask, bias, scale, keep, rate, score, sinks):
        output[row.b, row.t, row.n] = row.mixed @ value[row.b, row.seen, row.k]
    return output


def log_sum_exp(query, key, mask, bias=None, scale=None, score=None, sinks=None):
    """[B, T, N] in float64: of the logits of the keys that are seen and the sink.

    Where none is seen the sink, or -inf.
    """
    query, key = np.asarray(query, np.float64), np.asarray(key, np.float64)
    total = np.full(query.shape[:3], -np.inf)
    if sinks is not None:
        total[:] = sinks
    for row in _rows(query, key, mask, bias, scale, None, 0.0, score, sinks):
        total[row.b, row.t, row.n] = row.log_sum_exp
    return total


def attention_weights(query, key, mask, bias=None, scale=None, score=None, sinks=None):
    """[B, N, T, S] in float64."""
    query, key = np.asarray(query, np.float64), np.asarray(key, np.float64)
    (b, t, n, _), s = query.shape, key.shape[1]
    weights = np.zeros((b, n, t, s))
    for row in _rows(query, key, mask, bias, scale, None, 0.0, score, sinks):
        weights[row.b, row.n, row.t, row.seen] = row.weights
    return weights


def gradients(cotangent, query, key, value, mask, *options, **named):
    """The gradients of sum(attend(...) * cotangent), derived by hand; see `scored_gradients`."""
    return Gradients(*scored_gradients(cotangent, query, key, value, mask, *options, **named)[:5])


def scored_gradients(
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
    score=None,
    sinks=None,
):
    """Those, and of the sinks and the arrays of the score.

    With `lse_cotangent` [B, T, N] those of sum(log_sum_exp(...) * lse_cotangent) are added, the sum
    being over the rows that see something; in the others it is the sink's.
    """
    cotangent, query, key, value = (
        np.asarray(x, np.float64) for x in (cotangent, query, key, value)
    )
    d_query, d_key, d_value = (np.zeros(x.shape) for x in (query, key, value))
    d_bias = np.zeros(np.shape(bias) if bias is not None else (1, 1, 1, 1))
    d_scale, d_sinks = (np.zeros(np.shape(0.0 if x is None else x)) for x in (scale, sinks))
    d_arrays = tuple(np.zeros(np.shape(x)) for x in (score.arrays if score else ()))
    blind, of_heads = np.full(query.shape[:3], True), collections.defaultdict(list)
    for row in _rows(query, key, mask, bias, scale, keep, rate, score, sinks):
        b, t, n, k, seen = row.b, row.t, row.n, row.k, row.seen
        blind[b, t, n] = False
        d_output = cotangent[b, t, n]
        d_value[b, seen, k] += np.outer(row.mixed, d_output)
        d_weights = row.kept * (value[b, seen, k] @ d_output)
        mean = row.weights @ d_weights
        if lse_cotangent is not None:  # d log sum exp(l) / d l is the weight of l
            mean -= lse_cotangent[b, t, n]
        d_scored = row.weights * (d_weights - mean)
        d_sinks[n if d_sinks.ndim else ()] -= row.sink_weight * mean
        d_logits = d_scored
        if score is not None:
            pairs = [(x, t, s) for x, s in zip(row.logits, seen.tolist(), strict=True)]
            of_heads[b, n] += [(d, *pair) for d, pair in zip(d_scored, pairs, strict=True)]
            d_logits = d_scored * [slope(score.of(b, n), *pair) for pair in pairs]
        d_query[b, t, n] += row.scale * d_logits @ key[b, seen, k]
        d_key[b, seen, k] += row.scale * np.outer(d_logits, query[b, t, n])
        d_scale[n if d_scale.ndim else ()] += d_logits @ (key[b, seen, k] @ query[b, t, n])
        for s, d_logit in zip(seen, d_logits, strict=True):
            index = zip((b, n, t, s), d_bias.shape, strict=True)
            d_bias[tuple(0 if size == 1 else i for i, size in index)] += d_logit
    for (b, n), pairs in of_heads.items():
        for total, own in zip(d_arrays, slopes_of_arrays(score, b, n, pairs), strict=True):
            total += own
    if lse_cotangent is not None:
        d_sinks += np.where(blind, lse_cotangent, 0.0).sum((0, 1) if d_sinks.ndim else None)
    return ScoredGradients(d_query, d_key, d_value, d_bias, d_scale, d_sinks, d_arrays)


class _Row(NamedTuple):
    """One query of one head: what it sees and with which weight."""

    b: int
    t: int
    n: int
    k: int
    seen: np.ndarray  # indices of the keys
    scale: float
    logits: np.ndarray  # of those keys, before the score
    weights: np.ndarray  # before dropout
    sink_weight: float
    kept: np.ndarray  # what dropout multiplies them with
    log_sum_exp: float

    @property
    def mixed(self):
        return self.weights * self.kept


def _rows(query, key, mask, bias, scale, keep, rate, score=None, sinks=None):
    """Every row that sees something."""
    (batch, q_len, num_heads, head_dim), (_, kv_len, num_kv_heads, _) = query.shape, key.shape
    everywhere = (batch, num_heads, q_len, kv_len)
    mask = np.broadcast_to(np.asarray(mask, bool), everywhere)
    bias = np.broadcast_to(np.asarray(0.0 if bias is None else bias, np.float64), everywhere)
    keep = np.broadcast_to(np.asarray(True if keep is None else keep, bool), everywhere)
    scales = np.broadcast_to(head_dim**-0.5 if scale is None else scale, num_heads).astype(float)
    sinks = np.broadcast_to(-np.inf if sinks is None else sinks, num_heads).astype(float)
    for b, n, t in np.ndindex(batch, num_heads, q_len):
        k = n // (num_heads // num_kv_heads)
        seen = np.flatnonzero(mask[b, n, t])
        if not seen.size:
            continue
        logits = scored = key[b, seen, k] @ query[b, t, n] * scales[n] + bias[b, n, t, seen]
        if score is not None:
            pairs = zip(logits, seen.tolist(), strict=True)
            scored = np.array([score.of(b, n)(x, t, s) for x, s in pairs])
        top = max(scored.max(), sinks[n])
        powers, of_sink = np.exp(scored - top), np.exp(sinks[n] - top)
        total = powers.sum() + of_sink
        kept = keep[b, n, t, seen] / (1.0 - rate)
        weights = powers / total, of_sink / total
        yield _Row(b, t, n, k, seen, scales[n], logits, *weights, kept, top + np.log(total))
