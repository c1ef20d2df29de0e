"""Scores that add a number for each distance between a key and a query, looked up in a table."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from flaxattn.masks.indices import LAST, subtract
from flaxattn.masks.leaves import leaf, static_index
from flaxattn.scores.score import Score, score_type, table_leaf
from flaxattn.types import Array, Indices

__all__ = ["relative_bias", "relative_buckets", "relative_positions"]


FARTHEST = 2**20  # the buckets of so many distances are known while tracing


class OfDistance(Score):
    """Adds `of_distance(kv_idx - q_idx)` to the logit."""

    everywhere = True

    def of_distance(self, distance: jax.Array) -> jax.Array:
        """What is added, for int32 distances of any shape, in that shape."""
        raise TypeError(f"{type(self).__name__} adds nothing; define of_distance(distance).")

    def __call__(self, logit: jax.Array, q_idx: Indices, kv_idx: Indices) -> jax.Array:
        return logit + self.of_distance(jnp.asarray(subtract(jnp.asarray(kv_idx), q_idx)))

    def tile(self, logits: jax.Array, q_idx: jax.Array, kv_idx: jax.Array, run: int) -> jax.Array:
        """Looks up each distance of a run once: t + run - 1, not t · run."""
        u, t, _ = logits.shape
        first = jnp.asarray(subtract(kv_idx.reshape(u, -1, run)[:, :, 0], q_idx[:, -1]))
        first = jnp.minimum(first, LAST - (t + run))  # at the end of int32 all are the farthest
        added = self.of_distance(
            first[..., None] + jnp.arange(t + run - 1, dtype=jnp.int32)[None, None]
        )
        return logits + jnp.moveaxis(_diagonals(added, t), 1, 2).reshape(logits.shape)


def _diagonals(x: jax.Array, rows: int) -> jax.Array:
    """[..., t + s - 1] -> [..., t, s]: each row is the one below, moved by one.

    Slices, and not numbers looked up one by one: so are their gradients added up, too.
    """
    size = x.shape[-1] - rows + 1

    def row(start: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice_in_dim(x, start, size, axis=-1)

    return jax.vmap(row, out_axes=-2)(jnp.arange(rows - 1, -1, -1, dtype=jnp.int32))


@score_type
class relative_positions(OfDistance):
    """Adds a learned number for each distance up to a largest one, beyond which it stays the same.

    Distances are clipped as by Shaw et al. (arXiv:1803.02155), equation 3; what is looked up is a
    number for each head, and not a vector to be multiplied with the query.

    Args:
      table: float `[N, 2 m + 1]` or `[B, N, 2 m + 1]`, or `[2 m + 1]` for all heads: for keys m or
        more before the query, ..., at it, ..., m or more after it.

    Raises TypeError unless the table is floating, ValueError for an even number of distances.

    >>> relative_positions(np.array([1.0, 0.0, 5.0])).dense(3, 3).tolist()
    [[0.0, 5.0, 5.0], [1.0, 0.0, 5.0], [1.0, 1.0, 0.0]]
    """

    table: Array = leaf("distance")

    def __post_init__(self) -> None:
        table_leaf(self, "table")
        shape = np.shape(self.table)
        if shape[-1] % 2 == 0:
            raise ValueError(
                f"relative_positions: table has shape {tuple(shape)}, {shape[-1]} distances; "
                "expected an odd number, -m, ..., 0, ..., m."
            )

    def of_distance(self, distance: jax.Array) -> jax.Array:
        most = self.table.shape[-1] // 2
        return jnp.asarray(self.table)[jnp.clip(distance, -most, most) + most]


@score_type
class relative_bias(OfDistance):
    """T5's relative position bias (arXiv:1910.10683, section 2.1): a number for each bucket.

    Of the buckets of one direction the first half hold a distance each, the others more and more,
    up to `max_distance`, whose bucket holds all beyond. See `relative_buckets`.

    Args:
      table: float `[N, num_buckets]`, `[B, N, num_buckets]` or `[num_buckets]`.
      num_buckets: how many there are.
      max_distance: from it on all distances are in the last bucket.
      bidirectional: True, as in an encoder: half of the buckets are for keys after the query.
        False, as in a decoder: all such keys are in the bucket of distance 0.

    Raises TypeError and ValueError for a table of another shape or dtype, or for numbers that make
    no buckets.

    >>> table = np.arange(8.0)
    >>> relative_bias(table, num_buckets=8, max_distance=16).dense(1, 5).tolist()
    [[0.0, 5.0, 6.0, 6.0, 6.0]]
    """

    table: Array = leaf("bucket")
    num_buckets: int = 32
    max_distance: int = 128
    bidirectional: bool = True

    def __post_init__(self) -> None:
        table_leaf(self, "table")
        static_index(self, "num_buckets", minimum=1)
        static_index(self, "max_distance", minimum=1)
        if self.table.shape[-1] != self.num_buckets:
            raise ValueError(
                f"relative_bias: table has shape {tuple(self.table.shape)}; expected "
                f"[N, num_buckets] = [N, {self.num_buckets}]. One [num_buckets, N] is transposed."
            )
        if not isinstance(self.bidirectional, bool | np.bool_):
            raise TypeError(
                f"relative_bias: bidirectional is {self.bidirectional!r}; expected True or False."
            )
        object.__setattr__(self, "bidirectional", bool(self.bidirectional))
        if self.max_distance > FARTHEST:
            raise ValueError(
                f"relative_bias: max_distance is {self.max_distance}; expected at most {FARTHEST}."
            )
        self._buckets(np.zeros(1, np.int32))  # which may make no sense

    def of_distance(self, distance: jax.Array) -> jax.Array:
        most = self.max_distance
        by_distance = jnp.asarray(self.table)[self._buckets(np.arange(-most, most + 1))]
        return by_distance[jnp.clip(distance, -most, most) + most]

    def _buckets(self, distances: np.ndarray) -> np.ndarray:
        return relative_buckets(
            distances, self.num_buckets, self.max_distance, bidirectional=self.bidirectional
        )


def relative_buckets(
    distances: np.ndarray, num_buckets: int, max_distance: int, *, bidirectional: bool
) -> np.ndarray:
    """T5's bucket of each distance from a query to a key: int32, of any shape.

    Of the n buckets of a direction the first m = n / 2 hold distances 0 to m - 1; from there on
    m + floor((n - m) · log(distance / m) / log(max_distance / m)) is the bucket, the last one that
    of all beyond. The ends of buckets are found with integers: no rounding moves one.

    Raises ValueError unless each direction has at least 2 buckets and `max_distance` is above m.

    >>> relative_buckets(np.array([-200, -9, -1, 0, 1]), 32, 128, bidirectional=False).tolist()
    [31, 9, 1, 0, 0]
    """
    per_side = num_buckets // 2 if bidirectional else num_buckets
    before = np.maximum(-distances, 0)
    buckets = _buckets_of(before, per_side, max_distance)
    if bidirectional:
        after = per_side + _buckets_of(np.maximum(distances, 0), per_side, max_distance)
        buckets = np.where(distances > 0, after, buckets)
    return buckets.astype(np.int32)


def _buckets_of(distances: np.ndarray, num_buckets: int, max_distance: int) -> np.ndarray:
    """Those of distances from 0 on, in one direction."""
    exact = num_buckets // 2
    if exact < 1 or max_distance <= exact:
        raise ValueError(
            f"relative_bias: num_buckets gives {num_buckets} buckets to a direction, and "
            f"max_distance is {max_distance}; expected at least 2, and more than {max(exact, 1)}."
        )
    wide = num_buckets - exact
    # distance^wide >= exact^(wide - i) max_distance^i, solved for the least distance.
    first = [_root(exact ** (wide - i) * max_distance**i, wide) for i in range(1, wide)]
    further: np.ndarray = np.searchsorted(np.array(first, np.int64), distances, side="right")
    return np.where(distances < exact, distances, exact + further)


def _root(power: int, degree: int) -> int:
    """The least integer x with x^degree >= power."""
    x: int = round(2.0 ** (math.log2(power) / degree))
    while x**degree >= power:
        x -= 1
    while x**degree < power:
        x += 1
    return x
