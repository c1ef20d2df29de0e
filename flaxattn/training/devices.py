"""The devices that compute: said first and loudly, and split."""

import os
import platform
from pathlib import Path

import jax

__all__ = [
    "describe_devices",
    "device_memory",
    "idle_accelerator",
    "split_cpu",
]

MIN_ROWS = 4  # for each CPU device, below which spreading rows gains nothing
HOST_DEVICES = "--xla_force_host_platform_device_count"
CGROUP_LIMITS = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)
UNLIMITED = 2**62
INSTALL_HINTS = {"NVIDIA GPU": "jax[cuda13] or jax[cuda12]", "TPU": "jax[tpu]"}


def split_cpu(rows: int, times: int = 1) -> None:
    """Makes each CPU core a device of its own, over which the `rows` of a batch can be spread.

    Cores that work side by side on different rows are faster than cores that share every single
    matrix product. Where there are more cores than that serves, each device has several. Does
    nothing if the number of devices has been chosen already, or jax has begun to compute; nothing
    is lost where there is an accelerator.

    Args:
      times: make so many times as many, of what would be made of the cores shared by so many.
    """
    cores, flags = _cores(), os.environ.get("XLA_FLAGS", "")
    if getattr(jax.config, "jax_num_cpu_devices", -1) >= 0 or HOST_DEVICES in flags:
        return
    most = min(cores // times, max(rows // MIN_ROWS, 1))
    devices = times * max((n for n in range(1, most + 1) if rows % n == 0), default=1)
    try:
        jax.config.update("jax_num_cpu_devices", devices)
    except RuntimeError:  # jax has begun
        return
    if devices == cores and "multi_thread_eigen" not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} --xla_cpu_multi_thread_eigen=false".strip()


def describe_devices() -> str:
    """One line: how many devices of what kind, e.g. `2 × NVIDIA H200 (gpu)`."""
    devices = jax.devices()
    kind, platform_name = devices[0].device_kind, devices[0].platform
    if platform_name == "cpu":
        return f"CPU ({_cpu_name()}, {_cores()} cores), jax {jax.__version__}"
    return f"{len(devices)} × {kind} ({platform_name}), jax {jax.__version__}"


def device_memory() -> int:
    """The bytes of memory of all local devices together; CPU devices share the machine's."""
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    if all("bytes_limit" in each for each in stats):
        return sum(each["bytes_limit"] for each in stats)
    return min(_machine_memory(), *map(_limit, CGROUP_LIMITS))


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


def _machine_memory() -> int:
    """The machine's memory, where the system tells; else more than any has."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # not on Windows
        return UNLIMITED


def _limit(path: Path) -> int:
    """What the control group of a container allows it."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # "max", or no such group
        return UNLIMITED


def _cores() -> int:
    """The CPU cores that this process may use, where the system tells; else all."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS and Windows
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration, IndexError):
        return platform.processor() or platform.machine()
