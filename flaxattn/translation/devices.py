"""Which device computes: said first and loudly."""

import contextlib
import os
import platform
from pathlib import Path

import jax

__all__ = ["describe_devices", "idle_accelerator", "split_cpu"]

MIN_ROWS = 4  # for each CPU device, below which spreading rows gains nothing
INSTALL_HINTS = {"NVIDIA GPU": "jax[cuda13] or jax[cuda12]", "TPU": "jax[tpu]"}


def split_cpu(rows: int) -> None:
    """Makes each CPU core a device of its own, over which the `rows` of a batch can be spread.

    Cores that work side by side on different rows are faster than cores that share every single
    matrix product. Where there are more cores than that serves, each device has several. Does
    nothing if jax has already begun to compute; nothing is lost where there is an accelerator.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    devices = max(
        n
        for n in range(1, (cores or 1) + 1)
        if rows % n == 0 and n * MIN_ROWS <= max(rows, MIN_ROWS)
    )
    if devices == cores:
        flags = os.environ.get("XLA_FLAGS", "")
        if "multi_thread_eigen" not in flags:
            os.environ["XLA_FLAGS"] = f"{flags} --xla_cpu_multi_thread_eigen=false".strip()
    with contextlib.suppress(RuntimeError):  # jax has begun
        jax.config.update("jax_num_cpu_devices", devices)


def describe_devices() -> str:
    """One line: how many devices of what kind, e.g. `2 × NVIDIA H200 (gpu)`."""
    devices = jax.local_devices()
    kind, platform_name = devices[0].device_kind, devices[0].platform
    if platform_name == "cpu":
        return f"CPU ({_cpu_name()}, {os.cpu_count()} cores), jax {jax.__version__}"
    return f"{len(devices)} × {kind} ({platform_name}), jax {jax.__version__}"


def idle_accelerator() -> str | None:
    """A warning if this machine has an accelerator that jax does not use, else None."""
    if jax.default_backend() != "cpu":
        return None
    found = {
        "NVIDIA GPU": Path("/dev/nvidia0").exists() or Path("/proc/driver/nvidia/gpus").exists(),
        "TPU": Path("/dev/accel0").exists() or Path("/dev/vfio/0").exists(),
    }
    for name, present in found.items():
        if present:
            return (
                f"this machine has a {name}, but jax computes on the CPU. "
                f"Install {INSTALL_HINTS[name]} to use it."
            )
    return None


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration, IndexError):
        return platform.processor() or platform.machine()
