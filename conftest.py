"""What holds for all tests: shared compiled programs, and names for the docstrings' examples."""

import os
import shutil
import tempfile

# A program that one test has compiled is there for the others, and for processes that tests start.
# Set before jax is imported, and by the first process of pytest for all of them.
PROGRAMS = "JAX_COMPILATION_CACHE_DIR"
MADE_HERE = PROGRAMS not in os.environ
if MADE_HERE:
    os.environ[PROGRAMS] = tempfile.mkdtemp(prefix="flaxattn-tests-")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.3"

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402

import flaxattn  # noqa: E402


def pytest_unconfigure() -> None:
    """Deletes the programs at the very end."""
    if MADE_HERE:
        shutil.rmtree(os.environ[PROGRAMS], ignore_errors=True)


@pytest.fixture(autouse=True)
def names(doctest_namespace: dict) -> None:
    """Puts the public names, jax, jnp and np into every docstring's example."""
    public = {name: getattr(flaxattn, name) for name in dir(flaxattn) if not name.startswith("_")}
    doctest_namespace.update(public | {"jax": jax, "jnp": jnp, "np": np})
