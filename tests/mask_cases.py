"""Masks of every pattern and operator, as the library makes them and as the oracle does.

Their arrays have every shape that one in a mask may have; see `LEADS`.
"""

from typing import Any, NamedTuple

import numpy as np
import oracle
from attention_cases import older

import flaxattn
from flaxattn import Mask, where

B, N, LONGEST = 2, 3, 40
LEADS = [(), (B,), (1,), (B, N), (1, N), (B, 1)]


class Pair(NamedTuple):
    """A mask of the library, and the plain rule of each example and head."""

    mask: Mask
    rule: Any  # (b, n) -> (t, s) -> bool


def one_of_many(array, rank, b, n):
    """What `array` holds for example b and head n; an axis of 1 is shared."""
    if array is None:
        return None
    array = np.asarray(array)
    lead = array.shape[: array.ndim - rank]
    return array[tuple(i if size > 1 else 0 for i, size in zip((b, n), lead, strict=False))]


def pair(name, *arguments):
    """Arguments are (array, rank for one example and head)."""
    arrays, ranks = zip(*arguments, strict=True) if arguments else ((), ())

    def rule(b, n):
        own = [one_of_many(a, r, b, n) for a, r in zip(arrays, ranks, strict=True)]
        return getattr(oracle, name)(*own)

    return Pair(getattr(flaxattn, name)(*arrays), rule)


def where_older(ages):
    """A rule of one's own takes any position; what its array holds there, JAX's indexing says."""

    def rule(b, n):
        age = one_of_many(ages, 1, b, n)

        def at(i):
            return age[min(max(i + LONGEST if i < 0 else i, 0), LONGEST - 1)]

        return lambda t, s: at(t) >= at(s)

    return Pair(where(older, ages), rule)


def integer(rng, lead, low, high):
    """A static integer now and then, an array otherwise."""
    array = rng.integers(low, high, lead)
    return (int(array) if array.ndim == 0 and rng.random() < 0.7 else array), 0


def booleans(rng, lead, *axes, chance=0.7):
    return rng.random((*lead, *axes)) < chance, len(axes)


def segments(rng, lead):
    return rng.integers(0, 3, (*lead, LONGEST)), 1


PATTERNS = {
    "full": lambda rng, a, b: pair("full"),
    "causal": lambda rng, a, b: pair("causal"),
    "window": lambda rng, a, b: pair(
        "sliding_window", integer(rng, a, 0, 5), integer(rng, b, 0, 5)
    ),
    "window without end back": lambda rng, a, b: pair(
        "sliding_window", (None, 0), integer(rng, b, 0, 5)
    ),
    "window without end ahead": lambda rng, a, b: pair(
        "sliding_window", integer(rng, a, 0, 5), (None, 0)
    ),
    "even window": lambda rng, a, b: pair("sliding_window", integer(rng, a, 0, 5)),
    "prefix": lambda rng, a, b: pair("prefix", integer(rng, a, 0, 8)),
    "chunked": lambda rng, a, b: pair("chunked", integer(rng, a, 1, 6)),
    "dilated": lambda rng, a, b: pair("dilated", integer(rng, a, 1, 4)),
    "lengths": lambda rng, a, b: pair("lengths", integer(rng, a, 0, 9), integer(rng, b, 0, 9)),
    "key lengths": lambda rng, a, b: pair("lengths", (None, 0), integer(rng, b, 0, 9)),
    "valid": lambda rng, a, b: pair("valid", booleans(rng, a, LONGEST)),
    "segments": lambda rng, a, b: pair("same_segment", segments(rng, a)),
    "two segments": lambda rng, a, b: pair("same_segment", segments(rng, a), segments(rng, b)),
    "segments, none of padding": lambda rng, a, b: pair(
        "same_segment", segments(rng, a), segments(rng, b), (None, 0)
    ),
    "segments, padding of 2": lambda rng, a, b: pair(
        "same_segment", segments(rng, a), segments(rng, b), (2, 0)
    ),
    "first global": lambda rng, a, b: pair("global_tokens", (int(rng.integers(0, 4)), 0)),
    "flagged global": lambda rng, a, b: pair(
        "global_tokens", booleans(rng, a, LONGEST, chance=0.2)
    ),
    "dense": lambda rng, a, b: pair("from_dense", booleans(rng, a, LONGEST, LONGEST)),
    "dense row": lambda rng, a, b: pair("from_dense", booleans(rng, a, 1, LONGEST)),
    "dense column": lambda rng, a, b: pair("from_dense", booleans(rng, a, LONGEST, 1)),
    "where": lambda rng, a, b: where_older(rng.integers(0, 50, (*a, LONGEST))),
}


def both(a, b):
    return Pair(a.mask & b.mask, lambda *i: oracle.both(a.rule(*i), b.rule(*i)))


def either(a, b):
    return Pair(a.mask | b.mask, lambda *i: oracle.either(a.rule(*i), b.rule(*i)))


def opposite(a):
    return Pair(~a.mask, lambda *i: oracle.opposite(a.rule(*i)))


def positioned(a, q_positions, kv_positions):
    def rule(*i):
        return oracle.at(a.rule(*i), *(one_of_many(x, 1, *i) for x in (q_positions, kv_positions)))

    return Pair(a.mask.at(q_positions, kv_positions), rule)


def shifted(a, q_start, kv_start):
    def rule(*i):
        return oracle.shifted(a.rule(*i), *(one_of_many(x, 0, *i) for x in (q_start, kv_start)))

    return Pair(a.mask.shift(q_start, kv_start), rule)


def random_positions(rng):
    """None now and then, else any order of positions, some of which no array has."""
    if rng.random() < 0.2:
        return None
    return rng.integers(-2, LONGEST + 2, (*LEADS[rng.integers(len(LEADS))], LONGEST))


def random_mask(rng, depth=3, names=tuple(PATTERNS)):
    """An expression of at most `depth` operators above each pattern."""
    if depth == 0 or rng.random() < 0.1:
        leads = (LEADS[i] for i in rng.integers(len(LEADS), size=2))
        return PATTERNS[names[rng.integers(len(names))]](rng, *leads)
    kind, inner = rng.integers(6), random_mask(rng, depth - 1, names)
    if kind < 3:
        return (both, both, either)[kind](inner, random_mask(rng, depth - 1, names))
    if kind == 3:
        return opposite(inner)
    if kind == 4:
        return positioned(inner, random_positions(rng), random_positions(rng))
    starts = (integer(rng, LEADS[i], 0, 8)[0] for i in rng.integers(len(LEADS), size=2))
    return shifted(inner, *starts)
