"""A rule's program with as little as may be to do for a query and a key at once.

Whatever is left out is provably of no effect: operations whose outcome is told by the intervals of
their operands, and all but one of those that are equal. Then `joined.py` does its part. So
`causal() & same_segment(ids)` is two comparisons and an `and`, of two numbers of each side.
"""

from typing import Any

import numpy as np
from jax.extend.core import JaxprEqn, Var

from flaxattn.attention.fused.intervals import FLIPPED, NEGATED, Pass, compare, compared
from flaxattn.attention.fused.joined import Joined
from flaxattn.attention.fused.programs import Program, bound, dtype_of, read

__all__ = ["simplified"]


def simplified(program: Program, q: int, kv: int) -> Program:
    """The same program of scalars; its arguments of numbers `q` and `kv` are indices, from 0 on."""
    shorter = program.traced(_Shorter(program, q, kv).run)
    return shorter.traced(Joined(shorter, q, kv).run)


class _Shorter(Pass):
    """Leaves out what has no effect, and does nothing twice."""

    def __init__(self, program: Program, q: int, kv: int) -> None:
        super().__init__(program, q, kv)
        self._made: dict[Any, list[Any]] = {}

    def _done(self, eqn: JaxprEqn, env: dict[Var, Any]) -> list[Any]:
        values = [read(x, env) for x in eqn.invars]
        known = self._known(eqn, values)
        if known is not None:
            return [known]
        negated = self._negated(eqn, values)
        if negated is not None:
            a, b = (read(x, env) for x in negated.invars)
            return [compare(NEGATED[negated.primitive.name], a, b)]
        if eqn.primitive.name in FLIPPED:  # never shared: each may take a boolean in
            return [compare(eqn.primitive.name, *values)]
        of = [(x.dtype, x.tobytes()) if isinstance(x, np.generic) else id(x) for x in values]
        key = (eqn.primitive, *of, *sorted(eqn.params.items()))
        try:
            hash(key)
        except TypeError:  # there are parameters that have none
            return bound(eqn, values)
        if key not in self._made:
            self._made[key] = bound(eqn, values)
        return self._made[key]

    def _known(self, eqn: JaxprEqn, values: list[Any]) -> Any | None:
        """What comes out, if that is one of the operands, or true, or false; None: it is not."""
        name, interval = eqn.primitive.name, self._intervals.get(eqn.outvars[0])
        if interval is not None and interval.low == interval.high:
            return dtype_of(eqn.outvars[0]).type(interval.low)
        if name in ("and", "or") and values[0].dtype == bool:
            return _joined_with_known(name, *values)
        if name == "select_n" and isinstance(values[0], np.bool_):
            return values[1 + int(values[0])]
        pair = self._pair(eqn)
        if pair is None:
            return None
        if name in FLIPPED:
            same = values[0] is values[1]
            known = name in ("eq", "le", "ge") if same else compared(name, *pair)
            return None if known is None else np.bool_(known)
        if name in ("max", "min"):
            first = compared("ge" if name == "max" else "le", *pair)
            second = compared("le" if name == "max" else "ge", *pair)
            return values[0] if first else values[1] if second else None
        return None

    def _negated(self, eqn: JaxprEqn, values: list[Any]) -> JaxprEqn | None:
        """The comparison of integers of which `eqn` is the opposite."""
        is_not = eqn.primitive.name == "not" or (
            eqn.primitive.name == "xor" and isinstance(values[1], np.bool_) and values[1]
        )
        made = self._source(eqn.invars[0]) if is_not else None
        if made is None or made.primitive.name not in FLIPPED or self._pair(made) is None:
            return None
        return made


def _joined_with_known(name: str, a: Any, b: Any) -> Any | None:
    """`a and b`, or `a or b`, where one of them is true or false, or they are the same."""
    for x, other in ((a, b), (b, a)):
        if isinstance(x, np.bool_):
            return other if bool(x) == (name == "and") else x
    return a if a is b else None
