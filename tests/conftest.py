"""Tests run with strict promotion of dtypes and ranks; doctests see the public names."""

import jax
import pytest


jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture
def standard_promotion():
    """For code of flax or optax that mixes dtypes on purpose, as it does for bfloat16."""
    with jax.numpy_dtype_promotion("standard"):
        yield
