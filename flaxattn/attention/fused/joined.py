"""In a tree of `and`, or of `or`, what depends on one index alone is made one boolean of each side.

That is then hidden in a comparison that is there anyway, in the number of its side: the least or
the largest one, with which the comparison decides the tree whatever it is compared with. What is
compared with one number of a key by the same operation is made one comparison, too.
"""

import functools
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.extend.core import JaxprEqn, Var

from flaxattn.attention.fused.intervals import (
    FLIPPED,
    Interval,
    Pass,
    compare,
    compared,
    interval_of,
)
from flaxattn.attention.fused.programs import Operand, Program, bound, dtype_of, read, shape_of

__all__ = ["Joined"]


class Joined(Pass):
    """Joins what depends on one index in trees of `and`, or of `or`."""

    def __init__(self, program: Program, q: int, kv: int) -> None:
        super().__init__(program, q, kv)
        trees = {eqn.outvars[0]: eqn for eqn in program.eqns if self._is_tree(eqn)}
        self._inner = {  # of a larger tree
            x
            for eqn in trees.values()
            for x in eqn.invars
            if isinstance(x, Var) and program.uses[x] == 1 and x in trees
            if trees[x].primitive is eqn.primitive
        }

    def _done(self, eqn: JaxprEqn, env: dict[Var, Any]) -> list[Any]:
        if eqn.outvars[0] in self._inner:
            return [None]  # which is not asked for
        if self._is_tree(eqn):
            return [self._tree(eqn.primitive.name, self._leaves(eqn), env)]
        return bound(eqn, [read(x, env) for x in eqn.invars])

    def _is_tree(self, eqn: JaxprEqn) -> bool:
        out = eqn.outvars[0]
        boolean = eqn.primitive.name in ("and", "or") and dtype_of(out).kind == "b"
        return boolean and not shape_of(out) and self._side(out) == "both"

    def _leaves(self, root: JaxprEqn) -> list[Operand]:
        """What is joined by an operation and those of its kind that it alone uses."""
        leaves, todo = [], list(reversed(root.invars))
        while todo:
            x = todo.pop()
            if isinstance(x, Var) and x in self._inner:
                todo += reversed(self._program.made_by[x].invars)
            else:
                leaves.append(x)
        return leaves

    def _tree(self, name: str, leaves: list[Operand], env: dict[Var, Any]) -> jax.Array:
        join = lax.bitwise_and if name == "and" else lax.bitwise_or
        sides: dict[str, list[Any]] = {"q": [], "kv": [], "none": [], "both": []}
        comparisons: list[_Comparison] = []
        for x in leaves:
            comparison = self._comparison(x, env)
            if comparison is None:
                sides[self._side(x)].append(read(x, env))
            elif not any(c.merged(comparison, name) for c in comparisons):
                comparisons.append(comparison)
        single = {k: functools.reduce(join, sides[k]) for k in ("q", "kv", "none") if sides[k]}
        if "none" in single and "q" in single:
            single["q"] = join(single["q"], single.pop("none"))
        for kind in list(single):
            if _hidden("kv" if kind == "kv" else "q", single[kind], comparisons, name):
                del single[kind]
        if "q" in single and "kv" in single:
            single["q"] = _one_comparison(name, single["q"], single.pop("kv"))
        values = [*(c.value() for c in comparisons), *sides["both"], *single.values()]
        joined: jax.Array = functools.reduce(join, values)
        return joined

    def _side(self, x: Operand) -> str:
        """By which indices a value is told: "q", "kv", "none" or "both", which is more, too."""
        on = self._program.on(x)
        if not on.isdisjoint(self._tile):
            return "both"
        if self._q in on:
            return "both" if self._kv in on else "q"
        return "kv" if self._kv in on else "none"

    def _comparison(self, x: Operand, env: dict[Var, Any]) -> "_Comparison | None":
        """Of an integer of a key with one of a query."""
        made = self._source(x)
        if made is None or made.primitive.name not in FLIPPED:
            return None
        pair = self._pair(made)
        sides = [self._side(y) for y in made.invars]
        if pair is None or sorted(sides) != ["kv", "q"]:
            return None
        name = made.primitive.name
        values = (read(y, env) for y in made.invars)
        return _Comparison(
            name if sides[0] == "kv" else FLIPPED[name],
            dict(zip(sides, values, strict=True)),
            dict(zip(sides, pair, strict=True)),
        )


def _hidden(side: str, flag: jax.Array, comparisons: list["_Comparison"], join: str) -> bool:
    """Whether one could take the boolean in; its number then stands in the others, too.

    There it may: where the boolean decides, nothing else does.
    """
    for c in comparisons:
        number = c.number(side)
        if c.hides(side, flag, join):
            for other in comparisons:
                if other.number(side) is number:
                    other.takes(side, c)
            return True
    return False


class _Comparison:
    """Of an integer of a key with one of a query."""

    def __init__(self, name: str, values: dict[str, Any], intervals: dict[str, Interval]) -> None:
        self._name, self._values, self._intervals = name, values, intervals

    def value(self) -> jax.Array:
        """Its outcome."""
        return compare(self._name, self._values["kv"], self._values["q"])

    def number(self, side: str) -> Any:
        """That of a side."""
        return self._values[side]

    def takes(self, side: str, other: "_Comparison") -> None:
        """The number of a side of another one in place of its own."""
        self._values[side], self._intervals[side] = other._values[side], other._intervals[side]

    def merged(self, other: "_Comparison", join: str) -> bool:
        """Makes it the two joined, if it is of the same key with more of queries."""
        least = (self._name in ("le", "lt")) == (join == "and")
        same = self._name == other._name and self._values["kv"] is other._values["kv"]
        if not same or self._name in ("eq", "ne"):
            return False
        ends = zip(self._intervals["q"], other._intervals["q"], strict=True)
        self._intervals["q"] = Interval(*map(min if least else max, *zip(*ends, strict=True)))
        of = lax.min if least else lax.max
        self._values["q"] = of(self._values["q"], other._values["q"])
        return True

    def hides(self, side: str, flag: jax.Array, join: str) -> bool:
        """Takes a boolean of one side in: where it decides alone, its number does.

        Of `and` that is where the boolean is false, of `or` where it is true.
        """
        decides = join == "or"
        other = "q" if side == "kv" else "kv"
        dtype = self._values[side].dtype
        for end in interval_of(dtype) or ():
            at_end = Interval(end, end)
            intervals = {side: at_end, other: self._intervals[other]}
            if compared(self._name, intervals["kv"], intervals["q"]) is decides:
                pair = (self._values[side], dtype.type(end))
                self._values[side] = lax.select_n(flag, *(pair if decides else pair[::-1]))
                self._intervals[side] = self._intervals[side].with_(at_end)
                return True
        return False


def _one_comparison(join: str, q: jax.Array, kv: jax.Array) -> jax.Array:
    """`q and kv`, or `q or kv`, by one comparison: a boolean costs one, to be read."""
    true = 1 if join == "and" else 2
    of_q = lax.select_n(q, np.int32(1), np.int32(0))
    return lax.lt(of_q, lax.select_n(kv, np.int32(true - 1), np.int32(true)))
