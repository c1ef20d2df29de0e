"""Tests run with strict promotion of dtypes and ranks, and with four devices on the CPU."""

import os

import hypothesis
import jax
import pytest

# Most of the tests' time would be optimisation of programs that run once: LLVM's, and MLIR's
# of their fusions. To test those that users get:
# XLA_FLAGS=--xla_backend_optimization_level=3 pytest --thorough
QUICK = (
    "--xla_backend_optimization_level=0"
    " --xla_backend_extra_options=xla_cpu_disable_new_fusion_emitters"
)
if "xla_backend_optimization_level" not in (flags := os.environ.get("XLA_FLAGS", "")):
    os.environ["XLA_FLAGS"] = f"{flags} {QUICK}".strip()

hypothesis.settings.register_profile("fuzz", max_examples=2000)  # five tests: 10,000 cases

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_num_cpu_devices", 4)  # before anything touches a device


@pytest.fixture
def standard_promotion():
    """For code of flax or optax that mixes dtypes on purpose, as it does for bfloat16."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """One small run from its first step to its last, to look at; nobody changes its folder."""
    from run_cases import finish  # only here, since most tests need nothing of it

    return finish(tmp_path_factory.mktemp("runs") / "finished")


@pytest.fixture(scope="module")
def browser():
    """Chromium, for one file: its event loop would be in the way of others."""
    from browser import launched

    with launched() as browser:
        yield browser


@pytest.fixture(autouse=True, scope="session")
def without_pages():
    """Runs end without the page on them, whose drawing would be most of it; test_report has one."""
    import flaxattn.training.run as run_module

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_module, "write_page", lambda *_: None)
        yield


@pytest.fixture(autouse=True, scope="module")
def forget_programs():
    """Lets go of a file's compiled programs: those of all files together exhaust a process."""
    yield
    jax.clear_caches()
