"""Between which integers the values of a program lie, and what comparing them must give.

`Pass` is what all have in common that make a program anew with that knowledge.
"""

import abc
import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import JaxprEqn, Literal, Var

from flaxattn.attention.fused.programs import Operand, Program, dtype_of, read, shape_of

__all__ = ["FLIPPED", "INDEX", "NEGATED", "Interval", "Pass", "compare", "compared", "interval_of"]


class Interval(NamedTuple):
    """All integers from `low` to `high`, both included."""

    low: int
    high: int

    def with_(self, other: "Interval") -> "Interval":
        """The least one that holds both."""
        return Interval(min(self.low, other.low), max(self.high, other.high))


INDEX = Interval(0, 2**31 - 2)  # of a query or a key
FLIPPED = {"lt": "gt", "le": "ge", "gt": "lt", "ge": "le", "eq": "eq", "ne": "ne"}
"""Of each comparison the one that gives the same of its operands in turn."""
NEGATED = {"lt": "ge", "le": "gt", "gt": "le", "ge": "lt", "eq": "ne", "ne": "eq"}


def compared(name: str, a: Interval, b: Interval) -> bool | None:
    """What comparing any of `a` with any of `b` gives; None: one or the other."""
    if name in ("gt", "ge"):
        return compared(FLIPPED[name], b, a)
    if name == "ne":
        equal = compared("eq", a, b)
        return None if equal is None else not equal
    if name == "eq":
        if a.high < b.low or b.high < a.low:
            return False
        return True if a.low == a.high == b.low == b.high else None
    below: Callable[[int, int], bool] = operator.lt if name == "lt" else operator.le
    if below(a.high, b.low):
        return True
    return None if below(a.low, b.high) else False


def interval_of(dtype: np.dtype) -> Interval | None:
    """All that a dtype holds; None: not only integers."""
    if not np.issubdtype(dtype, np.integer):
        return None
    return Interval(int(np.iinfo(dtype).min), int(np.iinfo(dtype).max))


def _outcome(eqn: JaxprEqn, given: list[Interval]) -> Interval | None:
    """Of an operation on integers; None: not known, anything that its dtype holds."""
    whole = interval_of(dtype_of(eqn.outvars[0]))
    known = _KNOWN.get(eqn.primitive.name)
    if whole is None or known is None:
        return None
    found = known(*given)
    inside = whole.low <= found.low and found.high <= whole.high
    return found if inside else None  # else it may have wrapped


def _extremes(of: Callable[[int, int], int]) -> Callable[[Interval, Interval], Interval]:
    def found(a: Interval, b: Interval) -> Interval:
        ends = [of(x, y) for x in a for y in b]
        return Interval(min(ends), max(ends))

    return found


_KNOWN: dict[str, Callable[..., Interval]] = {
    "add": _extremes(operator.add),
    "sub": _extremes(operator.sub),
    "mul": _extremes(operator.mul),
    "max": _extremes(max),
    "min": _extremes(min),
    "neg": lambda a: Interval(-a.high, -a.low),
    "clamp": lambda low, x, high: _KNOWN["min"](_KNOWN["max"](low, x), high),
    "convert_element_type": lambda a: a,
    "copy": lambda a: a,
}


def compare(name: str, a: Any, b: Any) -> jax.Array:
    """Of numbers of less than 32 bits as such of 32: that changes no outcome."""
    if a.dtype.itemsize < 4:
        dtype = np.float32 if jnp.issubdtype(a.dtype, jnp.floating) else np.int32
        a, b = (lax.convert_element_type(x, dtype) for x in (a, b))
    of: Callable[[Any, Any], jax.Array] = getattr(lax, name)
    return of(a, b)


class Pass(abc.ABC):
    """A program, and what is known of its values."""

    def __init__(self, program: Program, q: int, kv: int) -> None:
        self._program = program
        self._tile = program.jaxpr.invars[:q]  # values of a tile are given before the indices
        self._q, self._kv = (program.jaxpr.invars[i] for i in (q, kv))
        self._intervals: dict[Var, Interval | None] = {self._q: INDEX, self._kv: INDEX}
        for eqn in program.eqns:
            given = [i for i in map(self._interval, eqn.invars) if i is not None]
            if len(given) == len(eqn.invars):
                self._intervals[eqn.outvars[0]] = _outcome(eqn, given)

    def run(self, xs: Sequence[Any]) -> list[Any]:
        """What the program gives."""
        env = self._program.given(xs)
        for eqn in self._program.eqns:
            env.update(zip(eqn.outvars, self._done(eqn, env), strict=True))
        return [read(x, env) for x in self._program.jaxpr.outvars]

    @abc.abstractmethod
    def _done(self, eqn: JaxprEqn, env: dict[Var, Any]) -> list[Any]:
        """What is made of an operation, by the values so far."""

    def _interval(self, x: Operand) -> Interval | None:
        if shape_of(x):
            return None
        if isinstance(x, Literal) and np.issubdtype(dtype_of(x), np.integer):
            return Interval(int(x.val), int(x.val))
        known = None if isinstance(x, Literal) else self._intervals.get(x)
        return interval_of(dtype_of(x)) if known is None else known

    def _source(self, x: Operand) -> JaxprEqn | None:
        """The operation that an operand comes of; None: it is given."""
        return None if isinstance(x, Literal) else self._program.made_by.get(x)

    def _pair(self, eqn: JaxprEqn) -> tuple[Interval, Interval] | None:
        """Of two integers that are compared, or of which one is chosen."""
        if len(eqn.invars) != 2:
            return None
        a, b = map(self._interval, eqn.invars)
        return None if a is None or b is None else (a, b)
