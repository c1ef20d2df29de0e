"""Scores of every pattern and operator, as the library makes them and as the oracle does.

Numbers are given in each of the shapes that an array in a score may have; see `LEADS`.
"""

import functools
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import oracle

from flaxattn import alibi, relative_bias, relative_positions, score, softcap, temperature

LEADS = {
    "": lambda b, n: (),
    "N": lambda b, n: (n,),
    "1N": lambda b, n: (1, n),
    "B1": lambda b, n: (b, 1),
    "BN": lambda b, n: (b, n),
}


class Piece(NamedTuple):
    """A score, and its rule."""

    make: Callable[[Any], Any]  # of its arrays
    rule: Callable[..., Any]  # of its arrays for one example and head, and which these are
    arrays: tuple[np.ndarray, ...] = ()
    ranks: tuple[int, ...] = ()  # of these for one example and head


def own(array, rank, b, n):
    """The part of an array that is an example's and head's; an axis of 1 is shared."""
    lead = np.ndim(array) - rank
    index = {0: (), 1: (n,), 2: (b, n)}[lead]
    sizes = zip(index, np.shape(array), strict=False)
    return array[tuple(0 if size == 1 else i for i, size in sizes)]


def joined(*pieces):
    """The first one first: the library's score, of all arrays, and the oracle's."""
    ends = np.cumsum([0, *(len(piece.arrays) for piece in pieces)])
    parts = [*zip(pieces, ends[:-1], ends[1:], strict=True)]

    def make(arrays):
        made = (piece.make(arrays[start:stop]) for piece, start, stop in parts)
        return functools.reduce(operator.rshift, made)

    def rule(arrays, b, n):
        def rule_of(piece, arrays):
            given = zip(arrays, piece.ranks, strict=True)
            return piece.rule([own(x, rank, b, n) for x, rank in given], b, n)

        return oracle.in_turn(*(rule_of(p, arrays[start:stop]) for p, start, stop in parts))

    return make, oracle.Score(rule, sum((piece.arrays for piece in pieces), ()))


# ---- The patterns: of random numbers, and the leading axes of their arrays ----------------------


def capped(rng, lead):
    return Piece(
        lambda a: softcap(a[0]),
        lambda a, b, n: oracle.softcap(a[0]),
        (0.5 + rng.random(lead),),
        (0,),
    )


def heated(rng, lead):
    return Piece(
        lambda a: temperature(a[0]),
        lambda a, b, n: oracle.temperature(a[0]),
        (0.5 + rng.random(lead),),
        (0,),
    )


def sloped(rng, lead):
    return Piece(
        lambda a: alibi(a[0]),
        lambda a, b, n: oracle.alibi(a[0]),
        (rng.standard_normal(lead) / 3,),
        (0,),
    )


def clipped(rng, lead):
    table = rng.standard_normal((*lead, 5))
    return Piece(
        lambda a: relative_positions(a[0]),
        lambda a, b, n: oracle.relative_positions(a[0]),
        (table,),
        (1,),
    )


def bucketed(rng, lead):
    kinds = (7, 9, False), (8, 11, True)
    sizes = kinds[rng.integers(2)]
    table = rng.standard_normal((*lead, sizes[0]))
    return Piece(
        lambda a: relative_bias(a[0], *sizes),
        lambda a, b, n: oracle.relative_bias(a[0], *sizes),
        (table,),
        (1,),
    )


def turned(x, q, k, weight, turn):
    """A rule of one's own that needs all that it is given; it is of numbers of jax and NumPy."""
    return x * weight[(q + turn) % 3] + weight[k % 3]


def of_ones_own(rng, lead):
    weight, turn = rng.standard_normal((*lead, 3)), rng.integers(0, 3, lead, np.int32)
    picked = lambda a, b, n: own(turn, 0, b, n)  # noqa: E731
    return Piece(
        lambda a: score(turned, a[0], turn, ranks=(1, 0)),
        lambda a, b, n: lambda x, t, s: turned(x, t, s, a[0], picked(a, b, n)),
        (weight,),
        (1,),
    )


def of_numbers(rng, lead):
    """Static: no arrays."""
    return Piece(
        lambda a: softcap(3) >> alibi(0.25) >> temperature(1.5),
        lambda a, b, n: oracle.in_turn(
            oracle.softcap(3), oracle.alibi(0.25), oracle.temperature(1.5)
        ),
    )


PATTERNS = [capped, heated, sloped, clipped, bucketed, of_ones_own, of_numbers]


# ---- Moved: `shape` is that of the attention ----------------------------------------------------


def shifted(rng, shape, piece):
    """By integers, or arrays of examples, or of heads too; a mask's manner, whose lead is batch."""
    leads = [None, (), (shape.B,), (shape.B, shape.N), (1, shape.N)]
    starts = []
    for _ in range(2):
        lead = leads[rng.integers(len(leads))]
        start = rng.integers(-5, 6, () if lead is None else lead)
        starts.append(int(start) if lead is None else np.asarray(start))

    def rule(arrays, b, n):
        q_start, kv_start = (own_start(x, b, n) for x in starts)
        inner = piece.rule(arrays, b, n)
        return oracle.moved(inner, lambda t: t + q_start, lambda s: s + kv_start)

    return piece._replace(make=lambda a: piece.make(a).shift(*starts), rule=rule)


def own_start(x, b, n):
    """The number of an example and head of an array whose first axis is batch."""
    sizes = zip((b, n), np.shape(x), strict=False)
    return int(np.asarray(x)[tuple(0 if size == 1 else i for i, size in sizes)])


def placed(rng, shape, piece):
    """At positions in any order, one side at least."""
    leads = [(), (shape.B,), (shape.B, shape.N)]
    given = []
    for length in (shape.T, shape.S):
        lead = leads[rng.integers(len(leads))]
        given.append(rng.integers(0, 20, (*lead, length)))
    if rng.random() < 0.5:
        given[rng.integers(2)] = None

    def positions(array, b, n):
        if array is None:
            return lambda i: i
        rank = np.ndim(array) - 1
        mine = array[(b, n)[:rank]] if rank else array
        return lambda i: int(mine[i])

    def rule(arrays, b, n):
        inner = piece.rule(arrays, b, n)
        return oracle.moved(inner, *(positions(x, b, n) for x in given))

    return piece._replace(make=lambda a: piece.make(a).at(*given), rule=rule)


def random_score(seed, shape):
    """One to three scores in turn, moved or not, with arrays in shapes of all kinds."""
    rng = np.random.default_rng(seed)
    pieces = []
    for pattern in rng.choice(len(PATTERNS), rng.integers(1, 4), replace=False):
        lead = list(LEADS.values())[rng.integers(len(LEADS))](shape.B, shape.N)
        piece = PATTERNS[pattern](rng, lead)
        pieces.append(
            [lambda rng, shape, x: x, shifted, placed][rng.integers(3)](rng, shape, piece)
        )
    return joined(*pieces)


def as_floats(arrays, dtype=jnp.float32):
    """Arrays of a score as they are given to it."""
    return tuple(np.asarray(x).astype(dtype) for x in arrays)
