"""What is asked of the translations of a batch beside what the configuration says, as arrays."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from jax.sharding import PartitionSpec

from flaxattn.search import Beginning, Constraint, NoRepeats, Terms
from flaxattn.types import Array

__all__ = ["NOTHING", "Asked", "constraints_of", "specs_of"]


class Asked(NamedTuple):
    """None: nothing of its kind is asked of any row."""

    beginnings: tuple[Array, Array] | None = None
    """int32 [B, P] and [B], tokens and how many of them; those of rows without one: 0."""
    terms: tuple[Array, Array] | None = None
    """int32 [B, C, L] and [B, C]."""
    follow: Array | None = None
    """bool [V]: which tokens begin a word or are no part of one, so that words end before them."""


NOTHING = Asked()


def specs_of(rows: PartitionSpec) -> Asked:
    """How the arrays are spread over devices."""
    specs: Any = (rows, rows, PartitionSpec())
    return Asked(*specs)


def constraints_of(asked: Asked, no_repeat_ngram: int, most_terms: int) -> Sequence[Constraint]:
    """The constraints of a search; none if nothing is asked."""
    found: list[Constraint] = []
    if no_repeat_ngram:
        found.append(NoRepeats(no_repeat_ngram))
    if asked.terms is not None:
        found.append(Terms(*asked.terms, asked.follow, most_terms))
    if asked.beginnings is not None:
        found.append(Beginning(*asked.beginnings, asked.follow))
    return found
