"""The steps of a row of blocks, and what is asked of their tiles."""

import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from flaxattn.attention.fused.given import Given, Lists, Returned, Rules
from flaxattn.attention.fused.hopper.buffers import Ring, slot
from flaxattn.attention.fused.hopper.machine import (
    ROW,
    ROWS,
    Here,
    Ref,
    across,
    column,
    everywhere,
    pairs,
    vector,
)
from flaxattn.attention.fused.rules import Answers, TileRule
from flaxattn.attention.fused.split import Outside

__all__ = [
    "COLUMNS",
    "LOG2E",
    "SHAPE",
    "Asked",
    "Reading",
    "Steps",
    "Weights",
    "asked_of",
    "column_ring",
    "key_columns",
    "kv_head",
    "number",
    "query_columns",
    "streamed_keys",
    "weights_of",
    "without_dropped",
]

LOG2E = math.log2(math.e)
COLUMNS = 64  # of a step, where registers are scarce
SHAPE = (ROWS, COLUMNS)


class Steps(NamedTuple):
    """The steps of a row of blocks: parts of its live blocks, first those of full ones."""

    lists: Lists
    at: Here
    parts: int  # of a block
    size: int  # columns of a part

    @property
    def full(self) -> jax.Array:
        """How many steps are of full blocks."""
        return self._count(self.lists.num_full)

    @property
    def live(self) -> jax.Array:
        """How many there are."""
        return self._count(self.lists.num_live)

    def first(self, j: jax.Array) -> jax.Array:
        """The first position that step `j` works on."""
        blocks = self.lists.blocks
        block, part = lax.div(j, jnp.int32(self.parts)), lax.rem(j, jnp.int32(self.parts))
        first = blocks[(*self.at.of(blocks), self.at.row, block)] * self.parts + part
        return first * self.size

    def columns(self, j: jax.Array) -> Any:
        """The positions that step `j` works on."""
        return pl.ds(self.first(j), self.size)

    def _count(self, x: Ref) -> jax.Array:
        count: jax.Array = x[(*self.at.of(x), self.at.row)] * self.parts
        return count


class Reading(NamedTuple):
    """Which steps read columns: the first so many, and all after those that are skipped."""

    first: int
    skipped: jax.Array | None

    @classmethod
    def of(cls, given: Given, num_full: jax.Array, first: int = 0) -> "Reading":
        """Full steps do only if what they ask depends on keys; `first` count as partial ones."""
        return cls(first, None if given.full.of_keys else jnp.maximum(num_full - first, 0))

    def number(self, j: jax.Array) -> jax.Array:
        """The number of step `j` among those that do."""
        return j if self.skipped is None else jnp.where(j < self.first, j, j - self.skipped)

    def fill(self, ring: Ring, j: jax.Array, *sources: Ref) -> None:
        """Copies what step `j` reads, if it does."""
        if self.skipped is None:
            ring.fill(j, *sources)
        else:
            reads = (j < self.first) | (j >= self.first + self.skipped)
            pl.when(reads)(lambda: ring.fill(self.number(j), *sources))


def kv_head(given: Given, at: Here) -> Here:
    """Where the keys of a query head are."""
    group = given.query.shape[2] // given.key.shape[2]
    return at._replace(head=lax.div(at.head, jnp.int32(group)))


def streamed_keys(given: Given) -> int:
    """How many bytes of keys and values a query head has for itself."""
    return (given.key.nbytes + given.value.nbytes) // (given.query.shape[0] * given.query.shape[2])


def key_columns(given: Given) -> list[Any]:
    """What steps over keys read of them besides: of full, then of partial tiles."""
    return [*given.full.of_keys, *given.partial.of_keys]


def query_columns(given: Given, returned: Returned) -> list[Any]:
    """What steps over queries read of them besides."""
    of_rules = (*given.full.of_queries, *given.partial.of_queries)
    return [returned.lse, returned.mean, *of_rules]


def column_ring(arrays: Sequence[Any], stages: int, size: int) -> Ring:
    """Memory for numbers of columns, of arrays [b, n, positions]."""
    return Ring.of(stages, *(plgpu.SMEM((stages, size), x.dtype) for x in arrays))


class Asked(NamedTuple):
    """A rule and what it reads; what is of the rows of a warpgroup is loaded once."""

    rule: TileRule
    of_rows: list[jax.Array]
    of_columns: Sequence[Ref]  # [stages, columns] each
    of_heads: list[jax.Array]
    tables: Sequence[Ref]  # [b, n, positions of rows, and of columns] each
    steps: Steps
    rows: Any
    transposed: bool

    @classmethod
    def of(
        cls,
        rule: TileRule,
        outside: Outside,
        at: Here,
        rows: Any,
        columns: Sequence[Ref],
        tables: Sequence[Ref],
        steps: Steps,
        *,
        transposed: bool,
    ) -> "Asked":
        """The rule for rows of queries, or of keys if it is transposed."""
        of_rows = outside.of_keys if transposed else outside.of_queries
        loaded = [vector(x, at, rows, ROW) for x in of_rows]
        numbers = [x[at.of(x)] for x in outside.of_heads]
        own = tables[: len(rule.tables)]
        return cls(rule, loaded, columns, numbers, own, steps, rows, transposed)

    @property
    def hides(self) -> bool:
        """Whether there may be anything that is not seen."""
        return "seen" in self.rule.names

    @property
    def kinds(self) -> int:
        """How many different tiles `Weights` holds."""
        return 3 if {"kept", "slope"}.intersection(self.rule.names) else 1

    def of_table(self, x: Ref, step: jax.Array) -> jax.Array:
        """The tile of a step."""
        return pairs(x.at[(*self.steps.at.of(x), self.rows, self.steps.columns(step))])

    def __call__(
        self,
        s: jax.Array,
        scale: jax.Array,
        step: jax.Array,
        j: jax.Array,
        ring: Ring | None = None,
    ) -> Answers:
        """What the rule says of a tile of products.

        Args:
          s: they.
          scale: what makes them logits.
          step: which they are of.
          j: which of the columns are theirs.
          ring: where these are waited for; None: they are there.
        """
        if not self.rule.names:
            return Answers()
        tile = (s.shape[0], s.shape[1])
        if ring is not None and self.of_columns:
            ring.wait(j)
        of_columns = [across(column(slot(x, j)), tile, 1) for x in self.of_columns]
        if ring is not None and self.of_columns:
            ring.release(j)
        sides = [[across(x, tile) for x in self.of_rows], of_columns]
        of_queries, of_keys = reversed(sides) if self.transposed else sides
        spread = functools.partial(everywhere, shape=tile)
        tables = [self.of_table(x, step) for x in self.tables]
        of_heads = [spread(x) for x in self.of_heads]
        return self.rule.answers(
            self.rule.split.tile([s * scale, *tables], of_queries, of_keys, of_heads, spread)
        )


def asked_of(
    rules: Rules,
    given: Given,
    at: Here,
    rows: Any,
    columns: Sequence[Ref],
    steps: Steps,
    *,
    transposed: bool = False,
) -> list[Asked]:
    """What full tiles ask, and partial ones; `columns` are those of both."""
    both = ((rules.full, given.full), (rules.partial, given.partial))
    counts = [len(o.of_queries if transposed else o.of_keys) for _, o in both]
    ends = itertools.accumulate(counts, initial=0)
    return [
        Asked.of(rule, outside, at, rows, columns[i:j], given.tables, steps, transposed=transposed)
        for (rule, outside), (i, j) in zip(both, itertools.pairwise(ends), strict=True)
    ]


class Weights(NamedTuple):
    """Of a tile, as the backward passes need them; those that are the same are one."""

    mixing: jax.Array  # those that values were mixed with, after dropout
    up: jax.Array  # times the gradient of the weights,
    off: jax.Array  # less this times the mean, is the gradient of the logits

    def distinct(self) -> Sequence[jax.Array]:
        """The first, or all if there are others."""
        return self[:1] if self.off is self.mixing else self

    @classmethod
    def whole(cls, distinct: Sequence[jax.Array]) -> "Weights":
        """Of what `distinct` gave."""
        mixing, up, off = distinct if len(distinct) == 3 else [distinct[0]] * 3
        return cls(mixing, up, off)

    def d_logits(self, d_weights: jax.Array, mean: jax.Array, asked: "Asked") -> jax.Array:
        """The gradient of the logits; of what is hidden 0, though its value be out of range."""
        if self.up is self.off:
            found = self.up * (d_weights - mean)
        else:
            found = self.up * d_weights - self.off * mean
        return jnp.where(self.off == 0.0, 0.0, found) if asked.hides else found


def weights_of(
    answers: Answers, s: jax.Array, scale: jax.Array, lse: jax.Array, rules: Rules
) -> Weights:
    """The weights of a tile, by its products and the log-sum-exp of its queries in base 2."""
    logits = s * (scale * LOG2E) if answers.logit is None else answers.logit * LOG2E
    off = _where_seen(answers, jnp.exp2(logits - lse))
    mixing = up = without_dropped(off, answers, rules)
    if answers.slope is not None:
        up, off = (_where_seen(answers, x * answers.slope) for x in (up, off))
    return Weights(mixing, up, off)


def _where_seen(answers: Answers, x: jax.Array) -> jax.Array:
    return x if answers.seen is None else jnp.where(answers.seen, x, 0.0)


def without_dropped(weights: jax.Array, answers: Answers, rules: Rules) -> jax.Array:
    """The weights after dropout; NaN stays NaN."""
    if answers.kept is None:
        return weights
    return jnp.where(answers.kept, weights * (1.0 / (1.0 - rules.rate)), weights * 0.0)


def number(x: Ref, at: Here) -> jax.Array:
    """Of the head, of [1, n]."""
    found: jax.Array = x[0, at.head if x.shape[1] > 1 else 0]
    return found
