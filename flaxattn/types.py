"""Names for types that several rooms use."""

from typing import Any, TypeAlias

import jax
import numpy as np

__all__ = ["Array", "Booleans", "Indices", "PyTree"]

Array: TypeAlias = jax.Array | np.ndarray
"""One of jax, perhaps traced, or one of NumPy, which is known while tracing."""

Indices: TypeAlias = int | Array
"""One index, or integers that are broadcast against others."""

Booleans: TypeAlias = bool | Array
"""One answer, or an array of them."""

PyTree: TypeAlias = Any
"""Containers of any kind with arrays as their leaves, as `jax.tree` takes them; Python's types
cannot say that."""
