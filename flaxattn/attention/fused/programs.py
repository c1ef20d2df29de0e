"""Programs of jax, jaxprs, as data: without functions inside, traced anew, and what is in them."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var

from flaxattn.varying import varying_like

__all__ = ["Operand", "Program", "bound", "dtype_of", "found", "inlined", "read", "shape_of"]

Operand: TypeAlias = Var | Literal
_FUNCTIONS = ("jit", "pjit", "closed_call", "core_call", "custom_jvp_call", "custom_vjp_call")


class Program:
    """A jaxpr without functions inside, and what each of its values depends on."""

    def __init__(self, closed: ClosedJaxpr) -> None:
        self.jaxpr, self.consts = closed.jaxpr, closed.consts
        self.eqns = _live(closed.jaxpr)
        self.made_by = {v: eqn for eqn in self.eqns for v in eqn.outvars}
        self.uses = Counter(x for x in _read_in(self.eqns) if isinstance(x, Var))
        self.uses.update(x for x in self.jaxpr.outvars if isinstance(x, Var))
        self.depends: dict[Operand, frozenset[Var]] = {v: frozenset([v]) for v in self.jaxpr.invars}
        self.depends |= {v: frozenset() for v in self.jaxpr.constvars}
        for eqn in self.eqns:
            of_eqn = frozenset().union(*(self.on(x) for x in eqn.invars))
            self.depends |= {v: of_eqn for v in eqn.outvars}

    def on(self, x: Operand) -> frozenset[Var]:
        """The arguments that a value depends on."""
        return frozenset() if isinstance(x, Literal) else self.depends[x]

    def traced(self, run: Callable[[Sequence[Any]], Sequence[Any]]) -> "Program":
        """What `run` does with arguments such as those of this program."""
        avals = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in self.jaxpr.invars]
        return Program(jax.make_jaxpr(lambda *xs: list(run(xs)))(*avals))

    def given(self, xs: Sequence[Any]) -> dict[Var, Any]:
        """The values that are there before anything is done."""
        return self.constants() | dict(zip(self.jaxpr.invars, xs, strict=True))

    def constants(self) -> dict[Var, Any]:
        """Arrays that were closed over."""
        return dict(zip(self.jaxpr.constvars, self.consts, strict=True))


def shape_of(x: Operand) -> tuple[int, ...]:
    """Of an operand."""
    aval: Any = x.aval
    shape: tuple[int, ...] = aval.shape
    return shape


def dtype_of(x: Operand) -> np.dtype:
    """Of an operand."""
    aval: Any = x.aval
    dtype: np.dtype = np.dtype(aval.dtype)
    return dtype


def inlined(rule: Callable[..., Sequence[jax.Array]], *avals: jax.ShapeDtypeStruct) -> Program:
    """The program of a rule."""
    closed = jax.make_jaxpr(lambda *xs: list(rule(*xs)))(*avals)
    return Program(closed).traced(lambda xs: _evaluated(closed.jaxpr, closed.consts, xs))


def read(x: Operand, env: Mapping[Var, Any]) -> Any:
    """The value of an operand; that of a literal is NumPy's, of its dtype."""
    return np.asarray(x.val, dtype_of(x))[()] if isinstance(x, Literal) else env[x]


def found(program: Program, values: Sequence[Operand], env: dict[Var, Any]) -> list[Any]:
    """Values of a program by those of `env`; nothing else of it is done."""
    needed, todo = {x for x in values if isinstance(x, Var)}, []
    for eqn in reversed(program.eqns):
        if not needed.isdisjoint(eqn.outvars) and env.keys().isdisjoint(eqn.outvars):
            todo.append(eqn)
            needed |= {x for x in eqn.invars if isinstance(x, Var)}
    vary = _varying_as([*env.values()])
    env = {v: vary(x) for v, x in env.items()}
    for eqn in reversed(todo):
        made = bound(eqn, [vary(read(x, env)) for x in eqn.invars])
        env.update(zip(eqn.outvars, made, strict=True))
    return [jnp.asarray(vary(read(x, env))) for x in values]


def _varying_as(arrays: Sequence[Any]) -> Callable[[Any], Any]:
    """Makes values vary over devices as all of the arrays do: operations do not, in `shard_map`."""
    if not jax.sharding.get_abstract_mesh().manual_axes:
        return lambda x: x
    given = [jnp.asarray(x) for x in arrays]
    return lambda x: varying_like(jnp.asarray(x), given)


def bound(eqn: JaxprEqn, operands: Sequence[Any]) -> list[Any]:
    """What an operation makes of its operands."""
    inner = _function_in(eqn)
    if inner is not None:
        return _evaluated(inner.jaxpr, inner.consts, operands)
    if eqn.primitive.name == "add_any":  # of derivatives; kernels know it as the other
        return [lax.add(*operands)]
    if eqn.primitive.name == "convert_element_type" and dtype_of(eqn.outvars[0]) == "bool":
        (x,) = operands
        return [x if x.dtype == bool else lax.ne(x, x.dtype.type(0))]  # as kernels know it
    out = eqn.primitive.bind(*operands, **eqn.params)
    return list(out) if eqn.primitive.multiple_results else [out]


def _function_in(eqn: JaxprEqn) -> ClosedJaxpr | None:
    if eqn.primitive.name not in _FUNCTIONS:
        return None
    names = ("jaxpr", "call_jaxpr", "fun_jaxpr")
    inner: ClosedJaxpr = next(eqn.params[name] for name in names if name in eqn.params)
    return inner


def _evaluated(jaxpr: Jaxpr, consts: Sequence[Any], xs: Sequence[Any]) -> list[Any]:
    env = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *xs), strict=True))
    for eqn in jaxpr.eqns:
        env.update(zip(eqn.outvars, bound(eqn, [read(x, env) for x in eqn.invars]), strict=True))
    return [read(x, env) for x in jaxpr.outvars]


def _live(jaxpr: Jaxpr) -> list[JaxprEqn]:
    """The operations whose results are used."""
    needed, kept = {x for x in jaxpr.outvars if isinstance(x, Var)}, []
    for eqn in reversed(jaxpr.eqns):
        if not needed.isdisjoint(eqn.outvars):
            kept.append(eqn)
            needed |= {x for x in eqn.invars if isinstance(x, Var)}
    return kept[::-1]


def _read_in(eqns: Sequence[JaxprEqn]) -> list[Operand]:
    return [x for eqn in eqns for x in eqn.invars]
