"""A rule of a query and a key index, traced once and split by what each of its values depends on.

What depends on one index alone, or on none, is computed for all positions outside of a kernel: all
look-ups in arrays are, as a rule. What depends on both is left to the tiles, in operations that a
kernel does element by element. So a kernel needs to know nothing of masks, scores or dropout.
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import JaxprEqn, Literal, Var
from jax.typing import DTypeLike

from flaxattn.attention.fused.programs import (
    Operand,
    Program,
    dtype_of,
    found,
    inlined,
    shape_of,
)
from flaxattn.attention.fused.simplify import simplified

__all__ = ["Outside", "Split", "split"]

Rule: TypeAlias = Callable[..., Sequence[jax.Array]]
"""Of values of a tile, a query and a key index, and the arrays of one example and head: scalars."""

_ELEMENTWISE = frozenset(
    "abs add and clamp convert_element_type copy div eq exp exp2 ge gt integer_pow le log logistic "
    "lt max min mul ne neg not one_minus_square or rem round rsqrt select_n shift_left "
    "shift_right_arithmetic shift_right_logical sign square sub tanh xor".split()
)
"""What kernels of all chips do to the elements of a tile."""


def _is_odd(eqn: JaxprEqn) -> bool:
    """Whether an operation is one that kernels do, and yet not of these operands."""
    negative = eqn.primitive.name == "integer_pow" and eqn.params["y"] < 0
    return negative or (eqn.primitive.name == "rem" and dtype_of(eqn.outvars[0]).kind == "f")


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

    program: Program
    tile_inputs: Sequence[Var]
    q_idx: Var
    kv_idx: Var
    arrays: Sequence[Var]
    names: Sequence[str]
    """Of the arrays, for words."""
    of_tile: Sequence[JaxprEqn]
    """What is left to do in a tile."""
    of_queries: Sequence[Var]
    of_keys: Sequence[Var]
    of_heads: Sequence[Var]
    outputs: Sequence[Var | Literal]

    @property
    def why_not(self) -> str | None:
        """Why no kernel can do what is left, in words; None: one can."""
        for eqn in self.of_tile:
            if eqn.primitive.name in ("gather", "dynamic_slice"):
                return (
                    f"{self._whose(eqn.invars[0])} is looked up by a query and a key index at "
                    "once, and a kernel can look up by one of them alone"
                )
        values = (*self.of_queries, *self.of_keys, *self.of_heads)
        for x in values:
            if shape_of(x):
                return (
                    f"{self._whose(x)} gives an array of shape {shape_of(x)} for an index, and a "
                    "kernel joins a single number of a query with one of a key"
                )
        for eqn in self.of_tile:
            name = eqn.primitive.name
            if name not in _ELEMENTWISE or shape_of(eqn.outvars[0]) or _is_odd(eqn):
                return f"it asks for {name} of a query and a key together, which no kernel does"
        for x in (*values, *(eqn.outvars[0] for eqn in self.of_tile)):
            if dtype_of(x).name not in ("bool", "int32", "uint32", "float32"):
                return f"it computes in {dtype_of(x)} for pairs, and a kernel does in 32 bits"
        return None

    def _whose(self, x: Operand) -> str:
        """The names of the arrays that a value is made of."""
        on = self.program.on(x)
        own = [name for v, name in zip(self.arrays, self.names, strict=True) if v in on]
        return " with ".join(own) or "an array of its own"

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
          tile_inputs: as of the rule, tiles; any integers for booleans.
          of_queries, of_keys, of_heads: those of `outside` that belong to the tile, spread over it.
          spread: makes a tile of a number.
        """
        env: dict[Var, jax.Array] = {}
        read = (
            (self.tile_inputs, tile_inputs),
            (self.of_queries, of_queries),
            (self.of_keys, of_keys),
            (self.of_heads, of_heads),
        )
        for values, tiles in read:
            for value, x in zip(values, tiles, strict=True):
                dtype = dtype_of(value)
                env[value] = x.astype(jnp.int32) != 0 if dtype.kind == "b" else x.astype(dtype)

        def find(x: Var | Literal) -> jax.Array:
            return spread(jnp.asarray(x.val, dtype_of(x))) if isinstance(x, Literal) else env[x]

        for eqn in self.of_tile:
            params = {k: None if k == "sharding" else v for k, v in eqn.params.items()}
            env[eqn.outvars[0]] = eqn.primitive.bind(*map(find, eqn.invars), **params)
        return [find(x) for x in self.outputs]

    def _over_heads(
        self, value: Var, arrays: Sequence[jax.Array], index: Var | None, at: jax.Array | None
    ) -> jax.Array:
        """[b, n], or [b, n, positions]: one value for all examples, heads and positions."""
        own = [i for i, x in enumerate(self.arrays) if x in self.program.on(value)]
        leads = [arrays[i].shape[:2] for i in own]

        def one(at: jax.Array | None, *given: jax.Array) -> jax.Array:
            names = (self.arrays[i] for i in own)
            env = self.program.constants() | dict(zip(names, given, strict=True))
            values: list[jax.Array] = found(
                self.program, [value], env if index is None else {**env, index: at}
            )
            return values[0]

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
        result: jax.Array = call(at, *squeezed)
        return result.reshape(*lead, *([] if at is None else at.shape))


def split(
    rule: Rule,
    tile_dtypes: Sequence[DTypeLike],
    arrays: Sequence[jax.ShapeDtypeStruct],
    names: Sequence[str] | None = None,
) -> Split:
    """Splits a rule `rule(*tile_values, q_idx, kv_idx, *arrays)`, which gives scalars.

    Args:
      rule: jax-traceable, of scalars in `tile_dtypes`, two int32 scalars, and arrays.
      arrays: the shapes of the arrays for one example and head.
      names: what they are called where no kernel can do it; None: by their numbers.
    """
    index, n = jax.ShapeDtypeStruct((), jnp.int32), len(tile_dtypes)
    given = [jax.ShapeDtypeStruct((), d) for d in tile_dtypes] + [index, index, *arrays]
    program = simplified(inlined(rule, *given), n, n + 1)
    tile_inputs, (q_idx, kv_idx) = program.jaxpr.invars[:n], program.jaxpr.invars[n : n + 2]

    def in_tile(x: Operand) -> bool:
        on = program.on(x)
        return {q_idx, kv_idx} <= on or not on.isdisjoint(tile_inputs)

    of_tile = [eqn for eqn in program.eqns if in_tile(eqn.outvars[0])]
    read = [*program.jaxpr.outvars, *(x for eqn in of_tile for x in eqn.invars)]
    edge = [x for x in dict.fromkeys(x for x in read if isinstance(x, Var)) if not in_tile(x)]
    return Split(
        program=program,
        tile_inputs=tile_inputs,
        q_idx=q_idx,
        kv_idx=kv_idx,
        arrays=program.jaxpr.invars[n + 2 :],
        names=[f"array {i}" for i in range(len(arrays))] if names is None else names,
        of_tile=of_tile,
        of_queries=[x for x in edge if q_idx in program.on(x)],
        of_keys=[x for x in edge if kv_idx in program.on(x)],
        of_heads=[x for x in edge if program.on(x).isdisjoint((q_idx, kv_idx))],
        outputs=program.jaxpr.outvars,
    )


def _readable(x: jax.Array) -> jax.Array:
    """As a kernel reads it, see `Outside`."""
    if jnp.issubdtype(x.dtype, jnp.floating):
        return x.astype(jnp.float32)
    return x if x.dtype == np.uint32 else x.astype(jnp.int32)
