"""A rule of a query and a key index, traced once and split by what each of its values depends on.

What depends on one index alone, or on none, is computed for all positions outside of a kernel: all
look-ups in arrays are, as a rule. What depends on both is left to the tiles, in operations that a
kernel does element by element. So a kernel needs to know nothing of masks, scores or dropout.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var
from jax.typing import DTypeLike

__all__ = ["Outside", "Split", "split"]

Rule: TypeAlias = Callable[..., Sequence[jax.Array]]
"""Of values of a tile, a query and a key index, and the arrays of one example and head: scalars."""

_INLINED = ("jit", "pjit", "closed_call", "core_call", "custom_jvp_call", "custom_vjp_call")
_ELEMENTWISE = frozenset(
    "abs add and clamp convert_element_type copy div eq exp exp2 ge gt integer_pow le log logistic "
    "lt max min mul ne neg not or rem round rsqrt select_n shift_left shift_right_arithmetic "
    "shift_right_logical sign sqrt square sub tanh xor".split()
)
"""What kernels of all chips do to the elements of a tile."""


class Outside(NamedTuple):
    """What a kernel reads of a rule; b and n stand for examples and heads, 1 where shared.

    Booleans are int32, other integers are int32 or uint32, and floating numbers float32.
    """

    of_queries: list[jax.Array]  # [b, n, T] each
    of_keys: list[jax.Array]  # [b, n, S] each
    of_heads: list[jax.Array]  # [b, n] each


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """A rule in parts; see `split`."""

    tile_inputs: Sequence[Var]
    q_idx: Var
    kv_idx: Var
    arrays: Sequence[Var]
    consts: Mapping[Var, jax.Array]
    made_by: Mapping[Var, JaxprEqn]
    """What makes each value that is not given."""
    depends: Mapping[Var, frozenset[Var]]
    """On which of those given."""
    of_tile: Sequence[JaxprEqn]
    """What is left to do in a tile."""
    of_queries: Sequence[Var]
    of_keys: Sequence[Var]
    of_heads: Sequence[Var]
    outputs: Sequence[Var | Literal]

    @property
    def why_not(self) -> str | None:
        """Why no kernel can do what is left, in words; None: one can."""
        odd = sorted({e.primitive.name for e in self.of_tile} - _ELEMENTWISE)
        if odd:
            return (
                f"it does {', '.join(odd)} with a query and a key index at once, and a tile of a "
                "kernel is computed element by element; look arrays up by one index at a time"
            )
        rows = [v.aval.shape for v in (*self.of_queries, *self.of_keys, *self.of_heads)]
        if any(rows):
            return (
                f"it joins arrays of shape {next(filter(None, rows))} of a query and of a key; "
                "a kernel joins single numbers"
            )
        return None

    def constant(self, i: int) -> float | None:
        """Output `i` if it is a number known while tracing."""
        out = self.outputs[i]
        return float(out.val) if isinstance(out, Literal) else None

    def outside(self, arrays: Sequence[jax.Array], q_idx: jax.Array, kv_idx: jax.Array) -> Outside:
        """What is computed outside of a kernel, for indices int32 [T] and [S].

        Args:
          arrays: those of the rule, each `[b, n, ...]`, 1 where shared.
        """

        def of(values: Iterable[Var], index: Var | None, at: jax.Array | None) -> list[jax.Array]:
            return [_readable(self._over_heads(v, arrays, index, at)) for v in values]

        return Outside(
            of(self.of_queries, self.q_idx, q_idx),
            of(self.of_keys, self.kv_idx, kv_idx),
            of(self.of_heads, None, None),
        )

    def tile(
        self,
        tile_inputs: Sequence[jax.Array],
        of_queries: Sequence[jax.Array],
        of_keys: Sequence[jax.Array],
        of_heads: Sequence[jax.Array],
        spread: Callable[[jax.Array], jax.Array],
    ) -> list[jax.Array]:
        """The outputs in a tile, inside of a kernel.

        Args:
          tile_inputs: as of the rule, tiles.
          of_queries, of_keys, of_heads: those of `outside` that belong to the tile, spread over it.
          spread: makes a tile of a number.
        """
        env = dict(zip(self.tile_inputs, tile_inputs, strict=True))
        read = ((self.of_queries, of_queries), (self.of_keys, of_keys), (self.of_heads, of_heads))
        for values, tiles in read:
            for value, x in zip(values, tiles, strict=True):
                env[value] = x != 0 if value.aval.dtype == bool else x.astype(value.aval.dtype)

        def find(x: Var | Literal) -> jax.Array:
            return spread(jnp.asarray(x.val, x.aval.dtype)) if isinstance(x, Literal) else env[x]

        for eqn in self.of_tile:
            params = {k: None if k == "sharding" else v for k, v in eqn.params.items()}
            env[eqn.outvars[0]] = eqn.primitive.bind(*map(find, eqn.invars), **params)
        return [find(x) for x in self.outputs]

    def _over_heads(
        self, value: Var, arrays: Sequence[jax.Array], index: Var | None, at: jax.Array | None
    ) -> jax.Array:
        """[b, n], or [b, n, positions]: one value for all examples, heads and positions."""
        own = [i for i, x in enumerate(self.arrays) if x in self.depends[value]]
        leads = [arrays[i].shape[:2] for i in own]

        def one(at: jax.Array | None, *given: jax.Array) -> jax.Array:
            env = {**self.consts, **dict(zip((self.arrays[i] for i in own), given, strict=True))}
            return self._found(value, env if index is None else {**env, index: at})

        call = one if index is None else jax.vmap(one, (0, *(None for _ in own)))
        for axis in (1, 0):
            in_axes = [0 if lead[axis] > 1 else None for lead in leads]
            if any(a == 0 for a in in_axes):
                call = jax.vmap(call, (None, *in_axes))
        squeezed = [
            arrays[i].reshape([n for a, n in enumerate(arrays[i].shape) if a > 1 or n > 1])
            for i in own
        ]
        lead = [max((lead[axis] for lead in leads), default=1) for axis in (0, 1)]
        found = call(at, *squeezed)
        return found.reshape(*lead, *([] if at is None else at.shape))

    def _found(self, value: Var | Literal, env: dict[Var, jax.Array]) -> jax.Array:
        """A value, made from those of `env`, to which all that is found on the way is added."""
        if isinstance(value, Literal):
            return jnp.asarray(value.val, value.aval.dtype)
        if value not in env:
            eqn = self.made_by[value]
            made = _bind(eqn, [self._found(x, env) for x in eqn.invars])
            env.update(zip(eqn.outvars, made, strict=True))
        return env[value]


def split(
    rule: Rule, tile_dtypes: Sequence[DTypeLike], arrays: Sequence[jax.ShapeDtypeStruct]
) -> Split:
    """Splits a rule `rule(*tile_values, q_idx, kv_idx, *arrays)`, which gives scalars.

    Args:
      rule: jax-traceable, of scalars in `tile_dtypes`, two int32 scalars, and arrays.
      arrays: the shapes of the arrays for one example and head.
    """
    index = jax.ShapeDtypeStruct((), jnp.int32)
    given = [jax.ShapeDtypeStruct((), d) for d in tile_dtypes] + [index, index, *arrays]
    closed = _inlined(jax.make_jaxpr(lambda *xs: list(rule(*xs)))(*given))
    jaxpr, n = closed.jaxpr, len(tile_dtypes)
    depends: dict[Var, frozenset[Var]] = {v: frozenset([v]) for v in jaxpr.invars}
    depends |= {v: frozenset() for v in jaxpr.constvars}
    for eqn in jaxpr.eqns:
        of_eqn = frozenset().union(*(depends[x] for x in eqn.invars if isinstance(x, Var)))
        depends |= {v: of_eqn for v in eqn.outvars}
    tile_inputs, (q_idx, kv_idx) = jaxpr.invars[:n], jaxpr.invars[n : n + 2]

    def in_tile(x: Var | Literal) -> bool:
        if isinstance(x, Literal):
            return False
        return {q_idx, kv_idx} <= depends[x] or not depends[x].isdisjoint(tile_inputs)

    of_tile, needed = [], {x for x in jaxpr.outvars if isinstance(x, Var)}
    for eqn in reversed(jaxpr.eqns):
        if needed.intersection(eqn.outvars) and in_tile(eqn.outvars[0]):
            of_tile.append(eqn)
            needed |= {x for x in eqn.invars if isinstance(x, Var)}
    order = {v: i for i, v in enumerate(depends)}
    edge = sorted((x for x in needed if not in_tile(x)), key=order.__getitem__)
    return Split(
        tile_inputs=tile_inputs,
        q_idx=q_idx,
        kv_idx=kv_idx,
        arrays=jaxpr.invars[n + 2 :],
        consts=dict(zip(jaxpr.constvars, closed.consts, strict=True)),
        made_by={v: eqn for eqn in jaxpr.eqns for v in eqn.outvars},
        depends=depends,
        of_tile=of_tile[::-1],
        of_queries=[x for x in edge if q_idx in depends[x]],
        of_keys=[x for x in edge if kv_idx in depends[x]],
        of_heads=[x for x in edge if depends[x].isdisjoint((q_idx, kv_idx))],
        outputs=jaxpr.outvars,
    )


def _inlined(closed: ClosedJaxpr) -> ClosedJaxpr:
    """The same, without functions inside."""
    avals = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in closed.jaxpr.invars]
    return jax.make_jaxpr(lambda *xs: _evaluate(closed.jaxpr, closed.consts, xs))(*avals)


def _evaluate(
    jaxpr: Jaxpr, consts: Sequence[jax.Array], arrays: Sequence[jax.Array]
) -> list[jax.Array]:
    env = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *arrays), strict=True))

    def find(x: Var | Literal) -> jax.Array:
        return x.val if isinstance(x, Literal) else env[x]

    for eqn in jaxpr.eqns:
        env.update(zip(eqn.outvars, _bind(eqn, [*map(find, eqn.invars)]), strict=True))
    return [find(x) for x in jaxpr.outvars]


def _bind(eqn: JaxprEqn, arrays: Sequence[jax.Array]) -> list[jax.Array]:
    if eqn.primitive.name in _INLINED:
        inner = eqn.params.get("jaxpr") or eqn.params["call_jaxpr"]
        return _evaluate(inner.jaxpr, inner.consts, arrays)
    out = eqn.primitive.bind(*arrays, **eqn.params)
    return list(out) if eqn.primitive.multiple_results else [out]


def _readable(x: jax.Array) -> jax.Array:
    """As a kernel reads it, see `Outside`."""
    if jnp.issubdtype(x.dtype, jnp.floating):
        return x.astype(jnp.float32)
    return x if x.dtype == np.uint32 else x.astype(jnp.int32)
