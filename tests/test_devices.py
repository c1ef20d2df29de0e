"""A device for each CPU core: how many, what stands in the environment, and memory that is kept."""

import json
import os
import platform
import subprocess
import sys
import types

import pytest

from flaxattn import memory
from flaxattn.training import devices


@pytest.fixture
def machine(monkeypatch):
    """Splits a machine with so many cores; gives the number of devices (or None) and the flags."""

    def split(cores, rows, *, flags=None, chosen=-1, begun=False, affinity=True):
        updates = []

        def update(name, value):
            if begun:
                raise RuntimeError(f"{name} must be set before jax begins.")
            updates.append((name, value))

        config = types.SimpleNamespace(jax_num_cpu_devices=chosen, update=update)
        monkeypatch.setattr(devices, "jax", types.SimpleNamespace(config=config))
        monkeypatch.setattr(os, "cpu_count", lambda: 64 if affinity else cores)
        cpus = set(range(cores or 1))
        if affinity:
            monkeypatch.setattr(os, "sched_getaffinity", lambda pid: cpus, raising=False)
        else:
            monkeypatch.delattr(os, "sched_getaffinity", raising=False)
        monkeypatch.setattr(os, "environ", {} if flags is None else {"XLA_FLAGS": flags})
        devices.split_cpu(rows)
        assert [name for name, _ in updates] in ([], ["jax_num_cpu_devices"])
        return (updates[0][1] if updates else None), os.environ.get("XLA_FLAGS")

    return split


@pytest.mark.parametrize(
    "cores, rows, count",
    [
        (1, 32, 1),
        (2, 32, 2),
        (3, 32, 2),  # 3 does not divide 32
        (3, 36, 3),
        (8, 32, 8),
        (16, 32, 8),  # four rows or more for each
        (12, 30, 6),
        (2, 7, 1),
        (4, 3, 1),
        (4, 4, 1),
        (4, 1, 1),
        (96, 64, 16),
    ],
)
def test_as_many_devices_as_cores_that_share_the_rows_evenly(machine, cores, rows, count):
    assert machine(cores, rows)[0] == count
    assert machine(cores, rows, affinity=False)[0] == count


SINGLE = "--xla_cpu_multi_thread_eigen=false"


def test_devices_of_one_core_each_compute_in_one_thread(machine):
    assert machine(4, 32) == (4, SINGLE)
    assert machine(4, 32, flags="--xla_foo=1") == (4, f"--xla_foo=1 {SINGLE}")


def test_devices_of_several_cores_keep_their_threads(machine):
    assert machine(4, 8) == (2, None)
    assert machine(4, 8, flags="--xla_foo=1") == (2, "--xla_foo=1")


def test_what_was_said_about_threads_stands(machine):
    flags = "--xla_cpu_multi_thread_eigen=true"
    assert machine(4, 32, flags=flags) == (4, flags)


def test_a_number_of_devices_chosen_already_stands(machine):
    assert machine(4, 32, chosen=2) == (None, None)
    flags = "--xla_force_host_platform_device_count=8"
    assert machine(4, 32, flags=flags) == (None, flags)


def test_nothing_happens_where_jax_has_begun(machine):
    assert machine(4, 32, begun=True) == (None, None)


def test_a_machine_that_does_not_tell_its_cores_has_one_device(machine):
    assert machine(None, 32, affinity=False)[0] == 1


@pytest.mark.thorough
def test_jax_really_has_so_many_devices():
    code = (
        "import json, os\n"
        "os.sched_getaffinity = lambda pid: {0, 1, 2}\n"
        "from flaxattn.training.devices import split_cpu\n"
        "split_cpu(12); split_cpu(8)\n"
        "import jax\n"
        "print(json.dumps([jax.local_device_count(), float(jax.numpy.ones(3).sum())]))\n"
    )
    assert printed(code) == [3, 3.0]


def printed(code, **environment):
    """What a process of its own prints, as JSON."""
    dropped = ("XLA_FLAGS", "JAX_NUM_CPU_DEVICES")
    kept = {k: v for k, v in os.environ.items() if k not in dropped and "MALLOC" not in k}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=kept | {"JAX_PLATFORMS": "cpu"} | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


FRESH_PAGES = """
import json
import resource
import jax
import jax.numpy as jnp
from flaxattn import keep_freed_memory

told = {call}
step = jax.jit(lambda x: jnp.roll(x, 1) * 2 + jnp.flip(x, 0))
found = []
for megabytes in (16, 48):  # what the arenas of threads can hold, and what they cannot
    x = jnp.ones((4000, 63 * megabytes))
    for _ in range(60):
        step(x).block_until_ready()
        found.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
print(json.dumps([told, [(found[-1] - found[-21]) // 20, (found[59] - found[39]) // 20]]))
"""


@pytest.mark.thorough
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_memory_that_is_kept_need_not_be_cleared_again():
    calls = ("keep_freed_memory()", "None")
    (told, kept), (_, given_back) = (printed(FRESH_PAGES.format(call=call)) for call in calls)
    assert told is True
    assert 4 * max(kept) < max(given_back) > 1000


@pytest.mark.thorough
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_memory_is_managed_as_the_environment_says():
    told, given_back = printed(FRESH_PAGES.format(call="keep_freed_memory()"), MALLOC_TOP_PAD_="0")
    assert told is False
    assert max(given_back) > 1000


def no_library(name):
    raise OSError(f"{name}: cannot open shared object file")


def places(*numbers):
    left = iter(numbers)
    return lambda library: next(left)


@pytest.mark.parametrize(
    "where, name, value",
    [
        (os.environ, "MALLOC_ARENA_MAX", "1"),
        (os.environ, "GLIBC_TUNABLES", "glibc.rtld.nns=3:glibc.malloc.mmap_max=0"),
        (sys, "platform", "darwin"),
        (memory.ctypes, "CDLL", no_library),  # musl
        (memory.ctypes, "CDLL", lambda name: types.SimpleNamespace()),  # nobody's libc.so.6
        (memory, "_place", places(1, 2)),  # an allocator that was loaded before
    ],
)
def test_where_memory_is_managed_otherwise_nothing_is_done(monkeypatch, where, name, value):
    for variable in [x for x in os.environ if "MALLOC" in x or x == "GLIBC_TUNABLES"]:
        monkeypatch.delenv(variable)
    asked = []
    glibc = types.SimpleNamespace(malloc=None, mallopt=lambda *setting: asked.append(setting) or 1)
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: glibc)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(memory, "_place", lambda library: 1)
    assert memory.keep_freed_memory() is True
    assert {(-1, -1), (-4, 0), (-8, 1)} == {*asked}
    asked.clear()
    set_to = monkeypatch.setitem if where is os.environ else monkeypatch.setattr
    set_to(where, name, value)
    assert memory.keep_freed_memory() is False
    assert not asked
