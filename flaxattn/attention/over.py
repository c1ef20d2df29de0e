"""Attention over a sequence that is spread over devices: the front door, inside `jax.shard_map`."""

import dataclasses
import functools
from typing import Literal, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from flaxattn.attention.arguments import (
    check_bias,
    check_dropout,
    check_mask,
    check_qkv,
    make_options,
)
from flaxattn.attention.balance import all_live, live_hops
from flaxattn.attention.dropout import seeds_for
from flaxattn.attention.layout import Layout
from flaxattn.attention.options import Options
from flaxattn.attention.spread import METHODS, AxisName, Spread
from flaxattn.checks import Sizes
from flaxattn.masks import BlockPlan, Mask
from flaxattn.scores import Score
from flaxattn.types import Array

__all__ = ["LayoutLike", "Method", "attend_over"]

Method: TypeAlias = Literal["ring", "gather", "heads"]
LayoutLike: TypeAlias = Layout | Literal["contiguous", "zigzag"]

LAYOUTS = {"contiguous": Layout.contiguous, "zigzag": Layout.zigzag}


def attend_over(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: Mask | BlockPlan | Array | None = None,
    *,
    axis: AxisName,
    method: Method = "ring",
    layout: LayoutLike = "contiguous",
    kv_layout: LayoutLike | None = None,
    bias: jax.Array | None = None,
    scale: float | jax.Array | None = None,
    score: Score | None = None,
    sinks: float | jax.Array | None = None,
    dropout_rate: float = 0.0,
    dropout_key: jax.Array | None = None,
    implementation: str = "auto",
) -> jax.Array:
    """`attend` to a sequence that is spread over devices; for use inside `jax.shard_map`.

    Each device holds its part of queries, keys and values, and gets the outputs of its queries.
    Everything else is whole, the same on the devices of the axis, and speaks of positions in the
    whole sequence: the answer is that of `attend` on one device, dropout included.

    Args:
      query, key, value: as in `attend`; T and S are what each device holds.
      mask, score: as in `attend`, of the whole sequence. A plan stands for its mask.
      axis: the axis of the mesh, or axes, that the sequence is spread over.
      method: how queries meet keys. "ring": keys and values go from device to device, and none has
        more than those of two; of hops that the mask's bounds prove empty nothing is computed, and,
        where they are known while tracing, nothing sent. "gather": each device gathers all keys and
        values. "heads": devices exchange heads for positions, and each attends for some heads
        (Ulysses, arXiv:2309.14509); they divide N and K.
      layout: which positions each device holds: "contiguous", "zigzag", or a `Layout`.
      kv_layout: likewise of keys; None: the same.
      bias: as in `attend`, `[B, N, T, S]`, 1 where shared: T as in `query`, S of all keys in order.
      scale, sinks, dropout_rate, implementation: as in `attend`; "auto" goes by what a device
        computes at once.
      dropout_key: as in `attend`; the same on all devices of the axis.

    Returns:
      `[B, T, N, H']` in the dtype of `query`. "ring" has first derivatives in reverse mode alone,
      whose memory does not grow with the number of devices; the others have all.

    Raises:
      ValueError outside of a `shard_map` over the axis, for a layout that does not fit, for heads
      that do not divide, and as `attend`.

    >>> local = functools.partial(attend_over, mask=causal(), axis="context")
    >>> mesh = jax.make_mesh((1,), ("context",), axis_types=(jax.sharding.AxisType.Auto,))
    >>> spread = jax.sharding.PartitionSpec(None, "context")
    >>> over = jax.shard_map(local, mesh=mesh, in_specs=spread, out_specs=spread)
    >>> q = k = v = jnp.ones((2, 8, 4, 8))
    >>> bool(jnp.allclose(over(q, k, v), attend(q, k, v, causal()), atol=1e-6))
    True
    """
    sizes, shards = check_qkv(query, key, value), _shards(axis)
    spread = Spread(
        axis,
        _layout("layout", layout, "query", sizes["T"][0], shards),
        _layout("kv_layout", kv_layout or layout, "key", sizes["S"][0], shards),
        implementation,
    )
    _check_method(method, sizes, shards)
    whole = sizes | {"T": (spread.q.length, "the query"), "S": (spread.kv.length, "the key")}
    check_bias(bias, whole | {"T": sizes["T"]})
    mask = check_mask(mask.mask if isinstance(mask, BlockPlan) else mask, whole)
    assert not isinstance(mask, BlockPlan)
    options = make_options(
        query,
        key,
        bias=None,
        scale=scale,
        score=score,
        sinks=sinks,
        dropout_rate=dropout_rate,
        sizes=whole,
    )
    keys = check_dropout(query, dropout_rate, dropout_key, jax.lax.axis_index(axis))
    known = np.ones((shards, shards), bool)
    live = known if mask is None else spread.q.live(mask, spread.kv)
    if isinstance(live, np.ndarray):
        spread = dataclasses.replace(spread, hops=live_hops(live), always=all_live(live))
    options = dataclasses.replace(options, bias=bias)
    arrays = query, key, value, mask, options, keys, jnp.asarray(live)
    output: jax.Array = _run(*arrays, spread=spread, method=method)
    return output


@functools.partial(jax.jit, static_argnames=("spread", "method"))
def _run(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: Mask | None,
    options: Options,
    dropout_key: jax.Array | None,
    live: jax.Array,
    *,
    spread: Spread,
    method: Method,
) -> jax.Array:
    options = options.for_heads(query.shape[2])
    if dropout_key is not None:
        seeds = seeds_for(dropout_key, query.shape[0], query.shape[2])
        options = dataclasses.replace(options, seeds=seeds)
    return METHODS[method](spread, live, query, key, value, mask, options)


def _shards(axis: AxisName) -> int:
    """How many devices the axis has; ValueError where it is none of a `shard_map` around."""
    try:
        return int(jax.lax.axis_size(axis))
    except NameError as error:
        raise ValueError(
            f"axis is {axis!r}, which no jax.shard_map around has; expected the name of an axis of "
            "its mesh, in its axis_names if it has some."
        ) from error


def _layout(name: str, given: LayoutLike, whose: str, held: int, shards: int) -> Layout:
    """The layout of a sequence of which each device holds so much; ValueError unless it fits."""
    if isinstance(given, str) and given in LAYOUTS:
        return LAYOUTS[given](held * shards, shards)
    if not isinstance(given, Layout):
        raise ValueError(f"{name} is {given!r}; expected a Layout or one of {tuple(LAYOUTS)}.")
    if (given.shards, given.length) != (shards, held * shards):
        raise ValueError(
            f"{name} is of {given.length} positions on {given.shards} devices; but {whose} has "
            f"{held} on each of {shards}, that is {held * shards}."
        )
    return given


def _check_method(method: str, sizes: Sizes, shards: int) -> None:
    """Raises ValueError unless there is such a method, and heads divide that are exchanged."""
    if method not in METHODS:
        raise ValueError(f"method is {method!r}; expected one of {tuple(METHODS)}.")
    for letter in "NK":
        size, whose = sizes[letter]
        if method == "heads" and size % shards:
            raise ValueError(
                f'method is "heads", which are exchanged over {shards} devices, but {whose} has '
                f'{letter} = {size}; expected a multiple. "ring" and "gather" serve any.'
            )
