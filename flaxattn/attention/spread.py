"""Attention to a sequence that is spread over devices: by a ring, gathered, or by exchanged heads.

All say where the queries and keys of a device stand, and ask the same mask and score.
"""

import dataclasses
from typing import NamedTuple, TypeAlias, TypeVar

import jax
import jax.numpy as jnp

from flaxattn.attention.axes import mask_axes, option_axes
from flaxattn.attention.dense import softmax_dtype
from flaxattn.attention.layout import Layout
from flaxattn.attention.merge import Part, merge, share
from flaxattn.attention.options import Options
from flaxattn.attention.placement import in_place
from flaxattn.attention.ring import Ring, attend_round
from flaxattn.attention.table import IMPLEMENTATIONS, Implementation, choose
from flaxattn.masks import Mask
from flaxattn.scores import Score
from flaxattn.types import Array, Indices, PyTree

__all__ = ["METHODS", "AxisName", "LocalCall", "Spread"]

AxisName: TypeAlias = str | tuple[str, ...]
LocalCall: TypeAlias = tuple[jax.Array, jax.Array, jax.Array, Mask | None, Options]
"""Query, key and value that a device holds; mask and options of the whole sequence."""

Seen = TypeVar("Seen", Mask, Score)


@dataclasses.dataclass(frozen=True)
class Spread:
    """How a sequence is spread, and who attends; known while tracing."""

    axis: AxisName
    q: Layout
    kv: Layout
    implementation: str
    hops: tuple[int, ...] | None = None
    """Of a ring: those at which any device may see anything. None: not known, all."""
    always: bool = False
    """Whether at these all may."""


class Stand(NamedTuple):
    """Where queries or keys stand in the whole sequence: from `start` on, or at given positions."""

    length: int
    start: Indices = 0
    positions: Array | None = None

    @classmethod
    def of_shard(cls, layout: Layout, shard: jax.Array) -> "Stand":
        """Those of one device."""
        starts = jnp.asarray(layout.starts, jnp.int32)[shard]
        length = layout.chunk * layout.chunks
        if layout.chunks == 1:
            return cls(length, starts[0])
        within = jnp.arange(layout.chunk, dtype=jnp.int32)
        return cls(length, 0, (starts[:, None] + within[None]).reshape(-1))

    @classmethod
    def of_all(cls, layout: Layout) -> "Stand":
        """Those of all devices, one after another."""
        return cls(layout.length, 0, None if layout.in_order else layout.order)

    @property
    def in_order(self) -> bool:
        """Whether these are 0, 1, 2, ..., as far as is known."""
        return self.positions is None and isinstance(self.start, int)

    @property
    def indices(self) -> Array:
        """int32 [length]."""
        if self.positions is not None:
            return self.positions
        return jnp.arange(self.length, dtype=jnp.int32) + self.start


class Placed(NamedTuple):
    """A call, and the implementation that does it."""

    by: Implementation
    call: LocalCall


def _attend_by_ring(spread: Spread, live: jax.Array | None, *call: *LocalCall) -> jax.Array:
    """Keys and values go round; sinks take part once, in the end."""
    query, key, value, mask, options = call
    sinks, options = options.sinks, dataclasses.replace(options, sinks=None, wide=True)
    leaves, tree = jax.tree.flatten((query, options))
    floating = [jnp.issubdtype(x.dtype, jnp.floating) for x in leaves]
    kinds = [*zip(leaves, floating, strict=True)]
    own, others = [x for x, flows in kinds if flows], [x for x, flows in kinds if not flows]

    def placed(own: PyTree, things: PyTree, fixed: PyTree, shard: jax.Array) -> Placed:
        both = {True: iter(own), False: iter(fixed[0])}
        query, options = jax.tree.unflatten(tree, [next(both[f]) for f in floating])
        q = Stand.of_shard(spread.q, jax.lax.axis_index(spread.axis))
        kv = Stand.of_shard(spread.kv, shard)
        return _placed(spread.implementation, (query, *things, fixed[1], options), q, kv)

    def part(*where: PyTree) -> Part:
        return _attended(placed(*where))

    def shared(total: Part, *where: PyTree) -> Part:
        return _shared(total, placed(*where))

    def is_live(fixed: PyTree, shard: jax.Array) -> jax.Array:
        answer: jax.Array = fixed[2][jax.lax.axis_index(spread.axis), shard]
        return answer

    size, dtype = spread.q.shards, softmax_dtype(query.dtype)
    hops = spread.hops or tuple(range(size))
    ring = Ring(spread.axis, size, hops, part, shared, None if spread.always else is_live)
    shapes = (*query.shape[:3], value.shape[3]), query.shape[:3]
    of_output, of_lse = (jax.ShapeDtypeStruct(shape, dtype) for shape in shapes)
    fixed = (others, mask, live)
    total = attend_round(ring, own, (key, value), fixed, (of_output, of_lse))
    return merge([total], sinks=sinks)[0].astype(query.dtype)


def _attend_by_gather(spread: Spread, live: jax.Array | None, *call: *LocalCall) -> jax.Array:
    """Each device gathers all keys and values."""
    query, key, value, mask, options = call
    key, value = (jax.lax.all_gather(x, spread.axis, axis=1, tiled=True) for x in (key, value))
    q = Stand.of_shard(spread.q, jax.lax.axis_index(spread.axis))
    kv = Stand.of_all(spread.kv)
    return _attended(_placed(spread.implementation, (query, key, value, mask, options), q, kv))[0]


def _attend_by_heads(spread: Spread, live: jax.Array | None, *call: *LocalCall) -> jax.Array:
    """Devices exchange heads for positions, attend for their heads, and exchange them back."""
    *qkv, mask, options = call
    size, axis = spread.q.shards, spread.axis

    def exchanged(x: jax.Array) -> jax.Array:
        of_heads: jax.Array = jax.lax.all_to_all(x, axis, split_axis=2, concat_axis=1, tiled=True)
        return of_heads

    query, key, value = map(exchanged, qkv)
    bias, options = options.bias, dataclasses.replace(options, bias=None)
    arrays, tree = jax.tree.flatten((mask, options))
    of_device = jax.lax.axis_index(axis)
    axes = (*mask_axes(mask), *option_axes(options))
    own = [_own_heads(x, a, of_device, size) for x, a in zip(arrays, axes, strict=True)]
    mask, options = jax.tree.unflatten(tree, own)
    if bias is not None:
        options = dataclasses.replace(options, bias=_own_bias(bias, axis, of_device, size))
    stands = Stand.of_all(spread.q), Stand.of_all(spread.kv)
    placed = _placed(spread.implementation, (query, key, value, mask, options), *stands)
    output = _attended(placed)[0]
    back: jax.Array = jax.lax.all_to_all(output, axis, split_axis=1, concat_axis=2, tiled=True)
    return back


METHODS = {"ring": _attend_by_ring, "gather": _attend_by_gather, "heads": _attend_by_heads}


def _own_heads(x: jax.Array, axes: tuple[str | None, ...], d: jax.Array, size: int) -> jax.Array:
    """What an array has of the heads of device `d`."""
    if "n" not in axes:
        return x
    axis = axes.index("n")
    count = x.shape[axis] // size
    own: jax.Array = jax.lax.dynamic_slice_in_dim(x, d * count, count, axis)
    return own


def _own_bias(bias: jax.Array, axis: AxisName, d: jax.Array, size: int) -> jax.Array:
    """[B, N, T, S] of a device's queries and all heads -> of its heads and all queries."""
    if bias.shape[2] == 1:
        return bias if bias.shape[1] == 1 else _own_heads(bias, (None, "n"), d, size)
    if bias.shape[1] == 1:
        whole: jax.Array = jax.lax.all_gather(bias, axis, axis=2, tiled=True)
        return whole
    own: jax.Array = jax.lax.all_to_all(bias, axis, split_axis=1, concat_axis=2, tiled=True)
    return own


def _placed(implementation: str, call: LocalCall, q: Stand, kv: Stand) -> Placed:
    """A call of queries and keys that stand somewhere in the sequence, and what does it."""
    query, key, value, mask, options = call
    score, bias = options.score, options.bias
    if score is not None:
        score = _seen_from(score, q, kv).for_heads(query.shape[2])
    if bias is not None and bias.shape[3] > 1 and not kv.in_order:
        bias = jnp.take(bias, kv.indices, axis=3)
    places = None if options.seeds is None else (q.indices, kv.indices)
    options = dataclasses.replace(options, score=score, bias=bias, places=places)
    mask = None if mask is None else _seen_from(mask, q, kv)
    call = query, key, value, mask, options
    return Placed(IMPLEMENTATIONS[choose(implementation, *call)], call)


def _attended(placed: Placed) -> Part:
    """`attend_with_stats`."""
    part: Part = in_place(placed.by.attend)(*placed.call)
    return part


def _shared(total: Part, placed: Placed) -> Part:
    """`merge.share` of what a call gives."""
    by, call = placed
    return share(_attended(placed), total) if by.share is None else by.share(total, *call)


def _seen_from(given: Seen, q: Stand, kv: Stand) -> Seen:
    """A mask or score of the whole sequence, as queries and keys of a device see it."""
    if q.in_order and kv.in_order:
        return given
    moved: Seen = given.shift(q.start, kv.start)
    if q.positions is None and kv.positions is None:
        return moved
    if kv.positions is not None and q.positions is not None:
        return given.at(q.positions, kv.positions)
    return moved.at(q.positions, kv.positions)
