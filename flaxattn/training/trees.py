"""Trees of arrays, by the names that tell what is in them."""

from typing import Any, TypeAlias, TypeVar

__all__ = ["ArrayTree", "Params", "Tree"]

ArrayTree: TypeAlias = Any
"""A tree of arrays, as `jax.tree` knows it: of any structure, so that no type can say more."""

Params: TypeAlias = ArrayTree
"""The parameters of a model."""

Tree = TypeVar("Tree")
"""A tree of arrays whose structure is that of another one."""
