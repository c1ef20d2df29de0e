"""What the translations of a batch must have, text by text, as arrays for the device."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from jax.sharding import PartitionSpec

from flaxattn.search import Beginning, Constraint, NoRepeats, Terms
from flaxattn.types import Array

__all__ = ["UNCONSTRAINED", "ConstraintArrays", "constraints_of", "specs_of"]


class ConstraintArrays(NamedTuple):
    """None: no row has one of its kind."""

    beginnings: tuple[Array, Array] | None = None
    """int32 [B, P] and [B], tokens and how many of them; those of rows without one: 0."""
    terms: tuple[Array, Array] | None = None
    """int32 [B, C, L] and [B, C]."""
    follow: Array | None = None
    """bool [V]: which tokens begin a word or are no part of one, so that words end before them."""


UNCONSTRAINED = ConstraintArrays()


def specs_of(rows: PartitionSpec) -> ConstraintArrays:
    """How the arrays are spread over devices."""
    specs: Any = (rows, rows, PartitionSpec())
    return ConstraintArrays(*specs)


def constraints_of(
    arrays: ConstraintArrays, no_repeat_ngram: int, most_terms: int
) -> Sequence[Constraint]:
    """The constraints of a search; none if nothing is asked."""
    found: list[Constraint] = []
    if no_repeat_ngram:
        found.append(NoRepeats(no_repeat_ngram))
    if arrays.terms is not None:
        found.append(Terms(*arrays.terms, arrays.follow, most_terms))
    if arrays.beginnings is not None:
        found.append(Beginning(*arrays.beginnings, arrays.follow))
    return found
