"""How long kernels of a GPU take by themselves, as jax's profiler sees them."""

import pathlib
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import jax

__all__ = ["added_up", "kernel_times"]

CALLS = 5


def kernel_times(call: Callable[[], Any]) -> dict[str, float]:
    """Microseconds of a call in each kernel, the longest first, the mean of five; none on a CPU."""
    if jax.default_backend() != "gpu" or not hasattr(jax.profiler, "ProfileData"):
        return {}
    jax.block_until_ready(call())
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(CALLS):
                last = call()
            jax.block_until_ready(last)
        files = pathlib.Path(folder).rglob("*.xplane.pb")
        return added_up(plane for file in files for plane in _planes(file))


def added_up(planes: Iterable[Any]) -> dict[str, float]:
    """Of what a profile has of GPUs, by the names of kernels."""
    found: dict[str, float] = defaultdict(float)
    for plane in planes:
        for line in plane.lines if "GPU" in plane.name else ():
            if "Stream" in line.name:
                for event in line.events:
                    found[event.name] += event.duration_ns / 1e3 / CALLS
    return {
        name: round(found[name], 1) for name in sorted(found, key=found.__getitem__, reverse=True)
    }


def _planes(file: pathlib.Path) -> Iterable[Any]:
    return jax.profiler.ProfileData.from_file(str(file)).planes
