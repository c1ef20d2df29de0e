"""Names for types that several rooms use."""

from typing import Any, TypeAlias

__all__ = ["PyTree"]

PyTree: TypeAlias = Any
"""Containers of any kind with arrays as their leaves, as `jax.tree` takes them; Python's types
cannot say that."""
