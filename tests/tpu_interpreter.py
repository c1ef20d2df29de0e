"""Runs the kernels of TPUs on a CPU."""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from flaxattn.attention.fused.chip import PLATFORMS

INTERPRETERS = {
    "plain": True,  # operations of jax
    "memory": pltpu.InterpretParams(),  # copies, semaphores and the order of the grid, too
}


@contextmanager
def interpreted(name: str = "plain") -> Iterator[None]:
    """Inside, kernels for TPUs are made for an interpreter."""
    call: Any = functools.partial(pl.pallas_call, interpret=INTERPRETERS[name])
    on_cpu = mock.patch.dict(PLATFORMS, tpu="cpu")
    with mock.patch.object(pl, "pallas_call", call), on_cpu:
        yield
