"""What holds for all tests: which are run, shared compiled programs, names for the examples.

`pytest` runs those that together touch every subject in a few minutes, `pytest --thorough` all,
`pytest --rest` those alone that the first leaves out, and `pytest --each` each test at least once.
"""

import collections
import gc
import os
import shutil
import tempfile

# A program that one test has compiled is there for the others, and for processes that tests start.
# Set before jax is imported, and by the first process of pytest for all of them.
PROGRAMS = "JAX_COMPILATION_CACHE_DIR"
FEW = 1  # cases, of `--few`
MADE_HERE = PROGRAMS not in os.environ
if MADE_HERE:
    os.environ[PROGRAMS] = tempfile.mkdtemp(prefix="flaxattn-tests-")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.3"

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402

import flaxattn  # noqa: E402


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds the options that say which tests are run."""
    parser.addoption(
        "--thorough", action="store_true", help="run all tests, those marked thorough, too"
    )
    parser.addoption(
        "--rest", action="store_true", help="run those alone that are left out without --thorough"
    )
    parser.addoption(
        "--each", action="store_true", help="run all tests, but few cases of those marked thorough"
    )
    parser.addoption(
        "--few", action="store_true", help=f"of those that are run {FEW} cases of each at most"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Tells pytest of the mark."""
    config.addinivalue_line(
        "markers",
        "thorough(quick=0): long, and run with --thorough alone, but for its first `quick` cases",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out the thorough tests that nobody has asked for, by the option or by name."""
    if config.getoption("--thorough") or any("::" in word for word in config.args):
        return
    least = 1 if config.getoption("--each") else 0
    most = FEW if config.getoption("--few") else len(items)
    cases: collections.Counter[str] = collections.Counter()
    kept, left_out = [], []
    for item in items:
        mark = item.get_closest_marker("thorough")
        test = item.nodeid.partition("[")[0]
        quick = mark is None or cases[test] < max(least, mark.kwargs.get("quick", 0))
        quick = quick and cases[test] < most
        cases[test] += 1
        (kept if quick else left_out).append(item)
    if config.getoption("--rest"):
        kept, left_out = left_out, kept
    config.hook.pytest_deselected(items=left_out)
    items[:] = kept


def pytest_collection_finish() -> None:
    """Looks for garbage seldom, and never among what all imports have made: a fifth of the time."""
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


def pytest_unconfigure() -> None:
    """Deletes the programs at the very end."""
    if MADE_HERE:
        shutil.rmtree(os.environ[PROGRAMS], ignore_errors=True)


@pytest.fixture(autouse=True)
def names(doctest_namespace: dict) -> None:
    """Puts the public names, jax, jnp and np into every docstring's example."""
    public = {name: getattr(flaxattn, name) for name in dir(flaxattn) if not name.startswith("_")}
    doctest_namespace.update(public | {"jax": jax, "jnp": jnp, "np": np})
