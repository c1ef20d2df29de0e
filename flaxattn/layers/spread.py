"""Attention of a layer in a mesh that spreads the sequence over devices; elsewhere `attend`."""

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
from jax.sharding import AbstractMesh
from jax.sharding import PartitionSpec as P

from flaxattn.attention import attend, attend_over
from flaxattn.attention.arguments import check_arrays
from flaxattn.attention.axes import Axes, head_axes, lead_axes, mask_axes, tree_axes
from flaxattn.attention.dropout import each_key
from flaxattn.logical import spec_of
from flaxattn.masks import BlockPlan, Mask
from flaxattn.scores import Score
from flaxattn.types import PyTree

__all__ = ["attend_in_mesh"]


class Places(NamedTuple):
    """The axes of a mesh that examples, positions and heads are spread over."""

    mesh: AbstractMesh
    batch: tuple[str, ...]
    length: tuple[str, ...]
    heads: tuple[str, ...]

    def spec(self, axes: Axes) -> P:
        """Where an array with these axes is; "t" is that of positions."""
        names = {"b": self.batch, "t": self.length, "n": self.heads, "k": self.heads}
        return P(*(names.get(letter or "") or None for letter in axes))


class Given(NamedTuple):
    """What a call is given besides queries, keys and values."""

    mask: Mask | BlockPlan | jax.Array | None
    bias: jax.Array | None
    score: Score | None
    sinks: jax.Array | None
    dropout_key: jax.Array | None

    def specs(self, places: Places) -> PyTree:
        """Where its arrays are, in trees like them."""
        mask, bias, score, sinks, keys = self
        assert isinstance(mask, Mask | None)
        specs: tuple[PyTree, ...] = (
            None if mask is None else _like(mask, map(places.spec, mask_axes(mask))),
            None if bias is None else places.spec(_bias_axes(bias)),
            None if score is None else _like(score, map(places.spec, tree_axes(score))),
            None if sinks is None else places.spec(head_axes(sinks)),
            None if keys is None else places.spec(lead_axes(keys, 2)),
        )
        return Given(*specs)


def attend_in_mesh(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: Mask | BlockPlan | jax.Array | None,
    *,
    bias: jax.Array | None,
    score: Score | None,
    sinks: jax.Array | None,
    dropout_rate: float,
    dropout_key: jax.Array | None,
    implementation: str,
) -> jax.Array:
    """`attend`, by a ring of devices where flax's rules spread the axis "length".

    That is within `flax.linen.logical_axis_rules`, on the mesh of `jax.set_mesh`, where all its
    axes are Auto, and divide T and S. "batch" and "heads" are spread as the rules say, as far as
    they divide.
    """
    shared: dict[str, Any] = {"dropout_rate": dropout_rate, "implementation": implementation}
    places = _places(query, key)
    if places is None:
        given = Given(mask, bias, score, sinks, dropout_key)
        return attend(query, key, value, **given._asdict(), **shared)
    known = check_arrays(query, key, value, mask)
    num_heads = query.shape[2]
    given = Given(
        known.mask if isinstance(known, BlockPlan) else known,
        bias,
        None if score is None else score.for_heads(num_heads),
        sinks,
        None if dropout_key is None else each_key(dropout_key, query.shape[0], num_heads),
    )
    axis = places.length[0] if len(places.length) == 1 else places.length

    def local(query: jax.Array, key: jax.Array, value: jax.Array, given: Given) -> jax.Array:
        return attend_over(query, key, value, **given._asdict(), axis=axis, **shared)

    of_query = places.spec(("b", "t", "n"))
    in_specs = (*[of_query] * 3, given.specs(places))
    over = jax.shard_map(local, mesh=places.mesh, in_specs=in_specs, out_specs=of_query)
    output: jax.Array = over(query, key, value, given)
    return output


def _places(query: jax.Array, key: jax.Array) -> Places | None:
    """Where the rules and the mesh around put the axes; None: positions are not spread."""
    rules, mesh = nn.get_logical_axis_rules(), jax.sharding.get_abstract_mesh()
    if not rules or mesh.empty or {*mesh.auto_axes} != {*mesh.axis_names}:
        return None
    axes = ("batch", "length", "heads")
    of_both = zip(*(spec_of(axes, x.shape[:3], rules, mesh) for x in (query, key)), strict=True)
    batch, length, heads = (_names(own) if own == other else () for own, other in of_both)
    if math.prod(mesh.shape[name] for name in length) == 1:
        return None
    return Places(mesh, batch, length, heads)


def _names(entry: str | tuple[str, ...] | None) -> tuple[str, ...]:
    """The mesh axes of an entry of a `PartitionSpec`."""
    return () if entry is None else (entry,) if isinstance(entry, str) else entry


def _bias_axes(bias: jax.Array) -> Axes:
    """[B, N, T, S]: the keys are whole."""
    return (*lead_axes(bias, 2)[:2], "t" if bias.shape[2] > 1 else None)


def _like(tree: PyTree, leaves: Iterable[P]) -> PyTree:
    return jax.tree.unflatten(jax.tree.structure(tree), leaves)
