"""What masks and scores have in common: values made of arrays, numbers and others of their kind."""

import dataclasses
from collections.abc import Iterator
from typing import Any, ClassVar, Self

import numpy as np

from flaxattn import checks
from flaxattn.masks.leaves import (
    Leaf,
    Span,
    array_leaf,
    check_leaf,
    fields_of,
    index_leaf,
    lead_of,
    parts_of,
)
from flaxattn.masks.values import equal, hash_of, short
from flaxattn.types import Array, Indices

__all__ = ["Composed", "OfPositions", "OfShift"]


class Composed:
    """A value: equal parts make equal ones, and those without arrays can be hashed."""

    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]  # made by `mask_type`
    kind: ClassVar[str]
    """"mask" or "score"."""
    leading: ClassVar[str]
    """What the axes of an array are that stand before those of one example and head."""

    def __eq__(self, other: object) -> bool:
        return equal(self, other) if isinstance(other, Composed) else NotImplemented

    def __hash__(self) -> int:
        return hash_of(self, self.kind, (leaf.name for leaf in self.leaves()))

    @property
    def lead(self) -> tuple[int, ...]:
        """The leading axes of the leaves together: (), (B,) or (B, N), 1 where shared."""
        return lead_of(list(self.leaves()))

    def leaves(self) -> Iterator[Leaf]:
        """Descriptions of the arrays inside, in the order of `jax.tree.leaves`."""
        for part in self.parts_inside():
            if isinstance(part, Leaf):
                yield part
            else:
                yield from part.leaves()

    def parts_inside(self) -> Iterator[Leaf | Self]:
        """The arrays and those of its kind that it is made of, in the order of its fields."""
        return parts_of(self)

    def check_length(self, q_len: int, kv_len: int) -> None:
        """Raises ValueError if an array inside has fewer positions than `q_len`, `kv_len`."""
        self._check_spans(Span(0, q_len), Span(0, kv_len))

    def _check_spans(self, q: Span, kv: Span) -> None:
        """Raises ValueError where an array has fewer positions than the spans ask for."""
        for part in self.parts_inside():
            if isinstance(part, Leaf):
                check_leaf(part, q, kv)
            else:
                part._check_spans(*self._spans_within(q, kv))

    def _spans_within(self, q: Span, kv: Span) -> tuple[Span, Span]:
        """The spans that those inside are asked about."""
        return q, kv

    def __repr__(self) -> str:
        if not dataclasses.is_dataclass(self):  # its use will ask for the decorator
            return object.__repr__(self)
        parts = (f"{f.name}={short(v)}" for f, v in fields_of(self) if v is not f.default)
        return f"{type(self).__name__}({', '.join(parts)})"


class OfShift(Composed):
    """What is read from `q_start` and `kv_start` on."""

    q_start: Indices
    kv_start: Indices

    def __post_init__(self) -> None:
        index_leaf(self, "q_start")
        index_leaf(self, "kv_start")

    def _spans_within(self, q: Span, kv: Span) -> tuple[Span, Span]:
        return q.shifted(self.q_start), kv.shifted(self.kv_start)


class OfPositions(Composed):
    """What is read at positions that are given, or, where they are None, at those that it has."""

    q_positions: Array | None
    kv_positions: Array | None

    def __post_init__(self) -> None:
        for name in ("q_positions", "kv_positions"):
            if getattr(self, name) is not None:
                array = array_leaf(self, name, checks.check_integer, np.int32)
                object.__setattr__(self, name, array)

    def _spans_within(self, q: Span, kv: Span) -> tuple[Span, Span]:
        """Those of positions that are given are not known while tracing."""
        return (
            q if self.q_positions is None else Span(None, q.length),
            kv if self.kv_positions is None else Span(None, kv.length),
        )
