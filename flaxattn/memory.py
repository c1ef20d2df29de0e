"""What the C library does with memory that is freed."""

import ctypes
import os
import sys

__all__ = ["keep_freed_memory"]

KEEPING = {-1: -1, -4: 0, -8: 1}  # glibc's M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX: malloc.h
SETTINGS = ("MALLOC_", "glibc.malloc.")  # the names of variables, and what stands in GLIBC_TUNABLES


def keep_freed_memory() -> bool:
    """Makes the C library keep memory that was freed for what is computed next, on a Linux CPU.

    Else glibc returns large arrays to the system at once, which clears every page anew when the
    next call asks for it: a quarter of the time of a training step on two CPU cores and more.
    It holds for all of the process, which then has to its end as much memory as it once needed,
    and cannot be undone. Call it before jax computes anything: threads that have begun keep their
    own ways. Memory of accelerators is not concerned.

    Returns:
      Whether it has done so. False, with nothing changed, under other C libraries, where another
      allocator stands in for glibc's, and where the environment says how memory is managed
      (`MALLOC_ARENA_MAX` and the like, `GLIBC_TUNABLES`).
    """
    if not sys.platform.startswith("linux") or _is_chosen():
        return False
    try:
        glibc = ctypes.CDLL("libc.so.6")
    except OSError:  # musl, bionic
        return False
    if not hasattr(glibc, "mallopt") or _place(glibc) != _place(ctypes.CDLL(None)):
        return False
    return all([glibc.mallopt(parameter, value) for parameter, value in KEEPING.items()])


def _is_chosen() -> bool:
    """Whether the environment says how memory is managed."""
    variable, tunable = SETTINGS
    named = any(name.startswith(variable) for name in os.environ)
    return named or tunable in os.environ.get("GLIBC_TUNABLES", "")


def _place(library: ctypes.CDLL) -> int | None:
    """Where the function is by which a library allocates."""
    return ctypes.cast(library.malloc, ctypes.c_void_p).value
