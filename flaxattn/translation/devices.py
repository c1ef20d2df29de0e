"""Which device computes: said first and loudly."""

import os
import platform
from pathlib import Path

import jax

__all__ = ["describe_devices", "idle_accelerator"]

INSTALL_HINTS = {"NVIDIA GPU": "jax[cuda13] or jax[cuda12]", "TPU": "jax[tpu]"}


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
