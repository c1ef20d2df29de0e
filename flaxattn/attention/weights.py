"""The weights of attention themselves: all of them, or those of chosen rows and heads."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flaxattn.attention.arguments import (
    check_indices,
    check_mask,
    check_query_key,
    make_options,
)
from flaxattn.attention.axes import QKV_AXES, mask_axes, option_axes
from flaxattn.attention.dense import (
    OfKey,
    OfQuery,
    four_axes,
    logits_of_head,
    repaired,
    softmax_dtype,
    weights_of_head,
)
from flaxattn.attention.heads import over_batch_and_heads
from flaxattn.attention.options import OfHeads, Options
from flaxattn.attention.placement import on_explicit_mesh
from flaxattn.attention.scoring import Pairs
from flaxattn.masks import BlockPlan, Mask
from flaxattn.scores import Score
from flaxattn.types import Array

__all__ = ["attention_weights"]


def attention_weights(
    query: jax.Array,
    key: jax.Array,
    mask: Mask | BlockPlan | Array | None = None,
    *,
    bias: jax.Array | None = None,
    scale: float | jax.Array | None = None,
    score: Score | None = None,
    sinks: float | jax.Array | None = None,
    rows: Array | None = None,
    heads: Array | None = None,
) -> jax.Array:
    """The attention weights `attend` mixes values with, all of them or chosen rows and heads.

    Args:
      query, key, mask, bias, scale, score, sinks: as in `attend`.
      rows: int `[R]`, the query positions wanted, so that memory is R·S; None: all T. Negative
        ones count from the end. Traced ones must be in range: they are not checked.
      heads: int `[M]`, the query heads wanted, likewise; None: all N.

    Returns:
      `[B, M, R, S]` in float32; each row sums to one, less the weight of a sink, or to zero where
      nothing is seen.

    Raises:
      TypeError and ValueError as `attend`, and for rows or heads that are no integers or not
      there.

    >>> q = k = jnp.ones((1, 3, 2, 8))
    >>> attention_weights(q, k, causal(), rows=np.array([1]), heads=np.array([0])).tolist()
    [[[[0.5, 0.5, 0.0]]]]
    """
    sizes = check_query_key(query, key)
    mask = check_mask(mask, sizes)
    mask = mask.mask if isinstance(mask, BlockPlan) else mask
    options = make_options(query, key, bias=bias, scale=scale, score=score, sinks=sinks)
    rows = _chosen("rows", rows, "T", query.shape[1])
    heads = _chosen("heads", heads, "N", query.shape[2])
    weights: jax.Array = _run(Wanted(query, key, mask, options, rows, heads))
    return weights


class Wanted(NamedTuple):
    """The weights of a call, checked: of all rows and heads where those are None."""

    query: jax.Array
    key: jax.Array
    mask: Mask | None
    options: Options
    rows: jax.Array | None
    heads: jax.Array | None


@jax.jit
def _run(wanted: Wanted) -> jax.Array:
    """`_weights`, by each device for what it holds where the mesh has Explicit axes."""
    wanted = wanted._replace(options=wanted.options.for_heads(wanted.query.shape[2]))
    arrays, tree = jax.tree.flatten(wanted)
    axes = [*QKV_AXES[:2], *mask_axes(wanted.mask), *option_axes(wanted.options)]
    axes += [(None,)] * (len(arrays) - len(axes))  # rows, heads
    if wanted.heads is not None:  # chosen from all
        axes = [tuple(None if letter == "n" else letter for letter in a) for a in axes]

    def flat(*arrays: jax.Array) -> tuple[jax.Array]:
        return (_weights(jax.tree.unflatten(tree, arrays)),)

    out_axes = ("b", "n" if wanted.heads is None else None, None, None)
    return on_explicit_mesh(flat, axes, [out_axes])(*arrays)[0]


def _weights(wanted: Wanted) -> jax.Array:
    """`weights_of_head` of the rows and heads -> [B, M, R, S]."""
    query, key, mask, options, rows, heads = wanted
    of_heads = options.of_heads(query.shape[-1], softmax_dtype(query.dtype))
    pairs = Pairs.all(query.shape[1], key.shape[1])
    if rows is not None:
        pairs = Pairs.of(rows, pairs.kv_idx)

    def head(
        of_query: OfQuery, of_key: OfKey, mask: jax.Array | None, of_head: OfHeads
    ) -> jax.Array:
        logits = logits_of_head(of_query, of_key, mask, of_head, pairs)
        return weights_of_head(logits, mask, of_head.sinks)

    dense = None
    if mask is not None:
        q_idx, kv_idx = pairs.q_idx.ravel(), pairs.kv_idx.ravel()
        dense = _pick(four_axes(mask.outer(q_idx, kv_idx)), heads, axis=1)
    of_heads = jax.tree.map(lambda x: _pick(x, heads, axis=1), of_heads)
    if of_heads.bias is not None:
        of_heads = of_heads._replace(bias=_pick(of_heads.bias, rows, axis=2))
    if rows is not None:
        query = query[:, rows]
    if heads is not None:
        key = key[:, :, heads // (query.shape[2] // key.shape[2])]
        query = query[:, :, heads]
    of_query, of_key = repaired(query, key, key, mask)
    return over_batch_and_heads(head, of_query, of_key, dense, of_heads).swapaxes(1, 2)


def _chosen(name: str, indices: Array | None, letter: str, size: int) -> jax.Array | None:
    """The checked indices along an axis; negative ones count from its end."""
    if indices is None:
        return None
    if not isinstance(indices, jax.Array):
        try:
            indices = np.asarray(indices)
        except ValueError as error:  # lists of lists of other lengths
            raise ValueError(f"{name} is {indices!r}; expected integers on one axis.") from error
    check_indices(name, indices, letter, size)
    indices = jnp.asarray(indices, jnp.int32)
    return jnp.where(indices < 0, indices + size, indices)


def _pick(array: jax.Array, indices: jax.Array | None, axis: int) -> jax.Array:
    """`array` at `indices` of `axis`, unless all are wanted or that axis is shared."""
    if indices is None or array.shape[axis] == 1:
        return array
    return jnp.take(array, indices, axis=axis)
