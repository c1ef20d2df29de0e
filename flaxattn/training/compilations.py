"""How often XLA has compiled: a number that should stop growing soon after a run begins."""

import functools

import jax

__all__ = ["count_compilations"]

EVENT = "/jax/core/compile/backend_compile_duration"


def count_compilations() -> int:
    """Compilations in this process since this function was first called."""
    return len(_durations())


@functools.cache
def _durations() -> list[float]:
    durations: list[float] = []

    def listen(event: str, duration_secs: float, **_: str | int) -> None:
        if event == EVENT:
            durations.append(duration_secs)

    jax.monitoring.register_event_duration_secs_listener(listen)
    return durations
