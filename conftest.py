"""Names that every docstring's example may use without importing them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flaxattn


@pytest.fixture(autouse=True)
def names(doctest_namespace: dict) -> None:
    """Puts the public names, jax, jnp and np into every docstring's example."""
    public = {name: getattr(flaxattn, name) for name in dir(flaxattn) if not name.startswith("_")}
    doctest_namespace.update(public | {"jax": jax, "jnp": jnp, "np": np})
