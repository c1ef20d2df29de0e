"""What travels round a ring of devices, and what each makes of it: attention by parts.

Its derivative is its own (Liu et al., arXiv:2310.01889): keys and values travel once more, with the
gradients that they gather, and nothing that has passed by is kept.
"""

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias, TypeVar

import jax
import jax.numpy as jnp

from flaxattn.attention.merge import Part, merge
from flaxattn.types import PyTree
from flaxattn.varying import varying_like, zero_varying_like

__all__ = ["Ring", "attend_round"]

Carry = TypeVar("Carry")
Like: TypeAlias = tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]
"""What these look like."""


class Ring(NamedTuple):
    """Of devices along an axis of a mesh; known while tracing."""

    axis: str | tuple[str, ...]
    size: int
    hops: tuple[int, ...]
    """At hop h a device has what device d - h began with; the others are left out."""
    attend: Callable[[PyTree, PyTree, PyTree, jax.Array], Part]
    """Of what a device has of its own, what travels, what no gradient flows to, and whose it is."""
    share: Callable[[Part, PyTree, PyTree, PyTree, jax.Array], Part]
    """Of a total and these: what has the derivatives of the total as far as they are the part's."""
    is_live: Callable[[PyTree, jax.Array], jax.Array] | None
    """Of the last two: whether a device has anything to do there. None: always."""

    def owner(self, hop: jax.Array) -> jax.Array:
        """Whose things a device has at a hop: int32 []."""
        return (jax.lax.axis_index(self.axis) - hop) % self.size

    def sent(self, things: PyTree, by: int) -> PyTree:
        """Things of the device `by` places before."""
        pairs = [(d, (d + by) % self.size) for d in range(self.size)]
        return jax.tree.map(lambda x: jax.lax.ppermute(x, self.axis, pairs), things)

    def travel(
        self,
        visit: Callable[[Carry, PyTree, jax.Array], tuple[Carry, PyTree]],
        carry: Carry,
        things: PyTree,
    ) -> tuple[Carry, PyTree]:
        """What is carried on, and the things after the last hop.

        `visit` takes what it carries, the things of a hop and whose they are, and gives both back.
        What it leaves as it is can be sent on while it works.
        """
        first, *_, last = (*self.hops, self.hops[-1])
        steps = [b - a for a, b in itertools.pairwise(self.hops)]
        things = self.sent(things, first) if first else things
        state = (carry, things, jnp.int32(first))
        for by, run in itertools.groupby(steps):

            def step(state: PyTree, _: None, by: int = by) -> tuple[PyTree, None]:
                carry, things, hop = state
                carry, things = visit(carry, things, self.owner(hop))
                return (carry, self.sent(things, by), hop + by), None

            state = jax.lax.scan(step, state, length=len(list(run)))[0]
        return visit(*state[:2], self.owner(jnp.int32(last)))

    def when_live(
        self,
        fixed: PyTree,
        shard: jax.Array,
        fn: Callable[..., Carry],
        otherwise: Callable[..., Carry],
        *arrays: PyTree,
    ) -> Carry:
        """`fn` of the arrays where there is anything to do, else `otherwise`."""
        if self.is_live is None:
            return fn(*arrays)
        live: Carry = jax.lax.cond(self.is_live(fixed, shard), fn, otherwise, *arrays)
        return live


def attend_round(ring: Ring, own: PyTree, things: PyTree, fixed: PyTree, like: Like) -> Part:
    """Attention to the things of all devices.

    Args:
      own: floating arrays that stay where they are; things: that travel; gradients flow to both.
      fixed: arrays of any dtype, to which none flow.
      like: what a part looks like.
    """
    alike = (own, things, fixed, jax.lax.axis_index(ring.axis))
    own, things = jax.tree.map(lambda x: varying_like(x, alike), (own, things))
    part: Part = _made(ring, like)(own, things, fixed)
    return part


def _made(ring: Ring, like: Like) -> Callable[[PyTree, PyTree, PyTree], Part]:
    """The function with its derivative."""

    @jax.custom_vjp
    def attended(own: PyTree, things: PyTree, fixed: PyTree) -> Part:
        return _forward(ring, like, own, things, fixed)

    def ahead(own: PyTree, things: PyTree, fixed: PyTree) -> tuple[Part, PyTree]:
        total = _forward(ring, like, own, things, fixed)
        return total, (own, things, fixed, total)

    def back(kept: tuple[Any, ...], d_total: Part) -> tuple[PyTree, ...]:
        own, things, fixed, total = kept
        return (*_backward(ring, own, things, fixed, total, d_total), None)

    attended.defvjp(ahead, back)
    return attended


def _forward(ring: Ring, like: Like, own: PyTree, things: PyTree, fixed: PyTree) -> Part:
    def visit(so_far: Part, things: PyTree, shard: jax.Array) -> tuple[Part, PyTree]:
        def merged(so_far: Part, things: PyTree) -> Part:
            return merge([so_far, ring.attend(own, things, fixed, shard)])

        return ring.when_live(fixed, shard, merged, lambda x, _: x, so_far, things), things

    dtype = like[1].dtype
    zero = zero_varying_like((own, things), dtype)
    of_output, of_lse = like
    output, lse = jnp.zeros(of_output.shape, dtype), jnp.full(of_lse.shape, -jnp.inf, dtype)
    nothing = output + zero, lse + zero
    return ring.travel(visit, nothing, things)[0]


def _backward(
    ring: Ring, own: PyTree, things: PyTree, fixed: PyTree, total: Part, d_total: Part
) -> tuple[PyTree, PyTree]:
    """Gradients of what stays and of what travels."""

    def visit(
        d_own: PyTree, travelling: tuple[PyTree, PyTree], shard: jax.Array
    ) -> tuple[PyTree, tuple[PyTree, PyTree]]:
        things, d_things = travelling

        def added(d_own: PyTree, d_things: PyTree) -> tuple[PyTree, PyTree]:
            def shared(own: PyTree, things: PyTree) -> Part:
                return ring.share(total, own, things, fixed, shard)

            found = jax.vjp(shared, own, things)[1](d_total)
            both: tuple[PyTree, PyTree] = jax.tree.map(_add, (d_own, d_things), found)
            return both

        def as_they_are(d_own: PyTree, d_things: PyTree) -> tuple[PyTree, PyTree]:
            return d_own, d_things

        d_own, d_things = ring.when_live(fixed, shard, added, as_they_are, d_own, d_things)
        return d_own, (things, d_things)

    nothing = jax.tree.map(lambda x: _zeros(x, total[1].dtype), (own, things))
    d_own, (_, d_things) = ring.travel(visit, nothing[0], (things, nothing[1]))
    if ring.hops[-1]:  # home
        d_things = ring.sent(d_things, ring.size - ring.hops[-1])
    cast: tuple[PyTree, PyTree] = jax.tree.map(
        lambda d, x: d.astype(x.dtype), (d_own, d_things), (own, things)
    )
    return cast


def _zeros(x: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """Where sums of gradients of `x` begin, varying over devices as it does."""
    wide = dtype if x.dtype.itemsize < dtype.itemsize else x.dtype
    return jnp.zeros(x.shape, wide) + zero_varying_like(x, wide)


def _add(total: jax.Array, x: jax.Array) -> jax.Array:
    return total + x.astype(total.dtype)
