"""Trees of arrays, by the names that tell what is in them."""

from typing import TypeAlias, TypeVar

from flaxattn.types import PyTree

__all__ = ["Params", "Tree"]

Params: TypeAlias = PyTree
"""The parameters of a model."""

Tree = TypeVar("Tree")
"""A tree of arrays whose structure is that of another one."""
