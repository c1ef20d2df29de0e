"""The score algebra: a score is a pure function of a logit, a query index and a key index.

A mask says whether a query sees a key, a score how much: it changes the logit, after scale and
bias, before the softmax. Scores are joined by `>>`, the first one first. Arrays inside are leaves
of a pytree, with gradients; Python numbers are static. No score knows a shape.
"""

import math
from collections.abc import Iterator
from typing import Any, ClassVar, Self, TypeVar, dataclass_transform

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from flaxattn import checks
from flaxattn.masks.composed import Composed, OfPositions, OfShift
from flaxattn.masks.indices import add, lookup
from flaxattn.masks.leaves import (
    Leaf,
    array_leaf,
    child,
    lead_of,
    leaf,
    mask_type,
    over_heads,
)
from flaxattn.types import Array, Indices

__all__ = ["Score", "dtype_beside", "number_leaf", "score_type", "table_leaf"]

SomeScore = TypeVar("SomeScore", bound="Score")


@dataclass_transform(frozen_default=True, eq_default=False)
def score_type(cls: type[SomeScore]) -> type[SomeScore]:
    """Makes `cls` a frozen dataclass and a pytree: arrays are leaves, all else is static."""
    return mask_type(cls)


class Score(Composed):
    """What becomes of a logit, for each query and key.

    Called with logits and integer index arrays, a score gives the rule for one example and head:

    >>> score = alibi(0.5) >> softcap(2.0)
    >>> np.asarray(score(jnp.ones(3), 5, np.array([5, 3, 1]))).round(2)
    array([ 0.92,  0.  , -0.92], dtype=float32)

    An array inside carries in front of the axes of one example and head that of heads, `[N, ...]`,
    or those of examples and heads, `[B, N, ...]`, either being 1 where shared.
    """

    kind, leading = "score", "head, or batch and head,"
    everywhere: ClassVar[bool] = False
    """Whether any two positions, also those of a hidden pair, and the logit 0 give something
    finite, with finite derivatives. Other scores are not asked about hidden pairs, at some cost."""

    def __call__(self, logit: jax.Array, q_idx: Indices, kv_idx: Indices) -> jax.Array:
        """The rule: three arrays in, broadcast against each other, new logits out."""
        name = type(self).__name__
        raise TypeError(f"{name} gives no rule; define __call__(logit, q_idx, kv_idx).")

    def tile(self, logits: jax.Array, q_idx: jax.Array, kv_idx: jax.Array, run: int) -> jax.Array:
        """The rule for queries that follow each other and runs of keys that do: for speed alone.

        Args:
          logits: `[u, t, W·run]`.
          q_idx: int32 `[u, t, 1]`, of t queries that follow each other.
          kv_idx: int32 `[u, 1, W·run]`, of W runs of keys that follow each other.
          run: keys of a run.
        """
        return self(logits, q_idx, kv_idx)

    @property
    def defined(self) -> bool:
        """Whether it is, and all scores inside are, defined `everywhere`."""
        inside = (part for part in self.parts_inside() if isinstance(part, Score))
        return self.everywhere and all(score.defined for score in inside)

    def parts_inside(self) -> Iterator[Leaf | Self]:
        """The arrays and scores that it is made of; raises TypeError for a mask.

        The leading axes of a mask are others: it would be misread.
        """
        for part in super().parts_inside():
            if isinstance(part, Composed) and not isinstance(part, Score):
                name, kind = type(self).__name__, type(part).__name__
                raise TypeError(f"{name} holds {kind}, a {part.kind}; a score holds scores alone.")
            yield part

    def __rshift__(self, other: "Score") -> "Score":
        if not isinstance(other, Score):
            raise TypeError(
                f">> joins scores with scores, not with {type(other).__name__}; a function becomes "
                "one by score(fn)."
            )
        return Chain(_links(self) + _links(other))

    def shift(self, q_start: Indices = 0, kv_start: Indices = 0) -> "Score":
        """The same score seen from later positions, as `Mask.shift`.

        Starts are integers, or, as those of a mask, integer arrays `[]`, `[B]` or `[B, N]`.
        """
        starts = (x if checks.is_static(x) else _with_head_axis(x, 0) for x in (q_start, kv_start))
        return Shifted(self, *starts)

    def at(self, q_positions: Array | None, kv_positions: Array | None) -> "Score":
        """The same score of queries and keys that stand at given positions, as `Mask.at`.

        Positions are, as those of a mask, int `[T]`, `[B, T]` or `[B, N, T]`, likewise of S.
        """
        given = (x if x is None else _with_head_axis(x, 1) for x in (q_positions, kv_positions))
        return Positioned(self, *given)

    def dense(self, q_len: int, kv_len: int, *, logit: float | jax.Array = 0.0) -> jax.Array:
        """What becomes of a logit, or of `[T, S]` of them: `[T, S]`, with leading axes if any.

        Raises ValueError if an array inside is shorter than the positions asked for.

        >>> alibi(np.array([0.5, 1.0])).dense(1, 3, logit=1.0)[0, 1].tolist()  # of the second head
        [[1.0, 0.0, -1.0]]
        """
        checks.check_length("q_len", q_len)
        checks.check_length("kv_len", kv_len)
        self.check_length(q_len, kv_len)
        given = jnp.asarray(logit, jnp.float32)
        if given.ndim not in (0, 2):
            raise ValueError(f"logit has shape {given.shape}; expected one number, or [T, S].")
        logits = jnp.broadcast_to(given, (q_len, kv_len))
        q_idx, kv_idx = (jnp.arange(n, dtype=jnp.int32) for n in (q_len, kv_len))

        def one_head(score: Score) -> jax.Array:
            return score(logits, q_idx[:, None], kv_idx[None, :])

        score, lead = self.astype(logits.dtype), self.lead
        num_heads = lead[1] if lead and lead[1] > 1 else None  # 1: shared
        return over_heads(one_head, score.for_heads(num_heads) if lead else score)

    def astype(self, dtype: DTypeLike) -> "Score":
        """The same score, its floating arrays in `dtype`: that of the logits."""

        score: Score = jax.tree.map(lambda x: jnp.asarray(x, dtype_beside(x, dtype)), self)
        return score

    def for_heads(self, num_heads: int | None) -> "Score":
        """The same score, all of whose arrays are `[B, N, ...]`, 1 where shared.

        None: how many is not known, and what asks for it, `alibi()`, stays as it is.
        """

        def for_heads(x: "Score | Array") -> "Score | Array":
            return x.for_heads(num_heads) if isinstance(x, Score) else x

        inside = jax.tree.map(for_heads, self, is_leaf=lambda x: _is_inside(x, self))
        arrays, treedef = jax.tree.flatten(inside)
        aligned = [
            x.reshape(_four(x.shape, len(leaf.axes)))
            for x, leaf in zip(arrays, inside.leaves(), strict=True)
        ]
        score: Score = jax.tree.unflatten(treedef, aligned)
        return score

    @property
    def lead(self) -> tuple[int, ...]:
        """The leading axes of the leaves together: () or (B, N), 1 where shared."""
        leaves = [leaf for leaf in self.leaves() if leaf.lead]
        return lead_of([leaf._replace(array=_aligned(leaf)) for leaf in leaves])


def dtype_beside(array: Array, dtype: DTypeLike) -> DTypeLike:
    """That of an array of a score beside logits of `dtype`: the same if it is floating."""
    return dtype if jnp.issubdtype(array.dtype, jnp.floating) else array.dtype


def _is_inside(x: object, score: Score) -> bool:
    return isinstance(x, Score) and x is not score


def _four(shape: tuple[int, ...], rank: int) -> tuple[int, ...]:
    """The shape `[..., *own]` of an array, as `[B, N, *own]`."""
    lead = len(shape) - rank
    return (*(1,) * (2 - lead), *shape)


def _aligned(leaf: Leaf) -> Any:
    """What has the shape of the leaf's array with both leading axes, sizes being any."""
    return jax.ShapeDtypeStruct(_four(leaf.array.shape, len(leaf.axes)), leaf.array.dtype)


def _with_head_axis(given: Indices, rank: int) -> Array:
    """An array whose leading axes are those of a mask, as a leaf of a score: [B] -> [B, 1]."""
    array = checks.as_array("positions", given)
    return array.reshape(len(array), 1, *array.shape[1:]) if array.ndim == rank + 1 else array


def _links(score: Score) -> tuple[Score, ...]:
    return score.links if isinstance(score, Chain) else (score,)


@score_type
class Chain(Score):
    """Scores one after another, the first one first."""

    links: tuple[Score, ...] = child()
    everywhere = True  # if they are

    def __call__(self, logit: jax.Array, q_idx: Indices, kv_idx: Indices) -> jax.Array:
        for link in self.links:
            logit = link(logit, q_idx, kv_idx)
        return logit

    def tile(self, logits: jax.Array, q_idx: jax.Array, kv_idx: jax.Array, run: int) -> jax.Array:
        for link in self.links:
            logits = link.tile(logits, q_idx, kv_idx, run)
        return logits

    def __repr__(self) -> str:
        return f"({' >> '.join(map(repr, self.links))})"


@score_type
class Shifted(OfShift, Score):
    """A score read from `q_start` and `kv_start` on; see `Score.shift`."""

    leading = "batch, or batch and head,"
    everywhere = True  # if that is
    score: Score = child()
    q_start: Indices = leaf(default=0)
    kv_start: Indices = leaf(default=0)

    def __call__(self, logit: jax.Array, q_idx: Indices, kv_idx: Indices) -> jax.Array:
        return self.score(logit, add(q_idx, self.q_start), add(kv_idx, self.kv_start))

    def tile(self, logits: jax.Array, q_idx: jax.Array, kv_idx: jax.Array, run: int) -> jax.Array:
        q_idx, kv_idx = map(jnp.asarray, (add(q_idx, self.q_start), add(kv_idx, self.kv_start)))
        return self.score.tile(logits, q_idx, kv_idx, run)


@score_type
class Positioned(OfPositions, Score):
    """A score of positions that are given; see `Score.at`."""

    leading = "batch, or batch and head,"
    everywhere = True  # if that is
    score: Score = child()
    q_positions: Array | None = leaf("q")
    kv_positions: Array | None = leaf("kv")

    def __call__(self, logit: jax.Array, q_idx: Indices, kv_idx: Indices) -> jax.Array:
        q_idx, _ = lookup(self.q_positions, q_idx)
        kv_idx, _ = lookup(self.kv_positions, kv_idx)
        return self.score(logit, q_idx, kv_idx)


_MOST = 1e37  # float32 holds it, and its inverse


def number_leaf(score: Score, name: str, *, positive: bool = False) -> None:
    """Checks and stores field `name`: a number stays static, an array must be floating.

    Raises TypeError for what is no real number, ValueError for one that float32 cannot hold, or
    where `positive` is asked for not above 0; of an array where its values are known.
    """
    value, owner = getattr(score, name), f"{type(score).__name__}: {name}"
    if isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool):
        try:
            value = np.float64(value)
        except OverflowError:  # of an integer beyond float64
            value = np.float64(math.inf)
        object.__setattr__(score, name, float(value))
    else:
        table_leaf(score, name)
        value = getattr(score, name)
    if not checks.is_known(value):
        return
    known = np.asarray(value)
    fine = np.abs(known.astype(np.float64)) <= _MOST  # of NaN it is not so
    fine &= (known >= 1 / _MOST) | (not positive)
    if not fine.all():
        wanted = f"from {1 / _MOST:.0e} to" if positive else "of at most"
        raise ValueError(f"{owner} is {known[~fine].flat[0]}; expected a number {wanted} {_MOST}.")


def table_leaf(score: Score, name: str) -> None:
    """Checks and stores field `name`, a floating array.

    Raises TypeError unless it is one, ValueError for a rank that does not fit.
    """
    object.__setattr__(score, name, array_leaf(score, name, checks.check_floating, None))
