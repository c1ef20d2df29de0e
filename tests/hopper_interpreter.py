"""Runs the kernels of Hopper on a CPU: what its interpreter lacks is done by plain products.

It follows barriers and copies, each warpgroup in a thread of its own, and not tensor cores.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
from jax.experimental.pallas import mosaic_gpu as plgpu

from flaxattn.attention.fused import hopper


def _parameters() -> Any:
    if hasattr(plgpu, "InterpretGPUParams"):
        return plgpu.InterpretGPUParams()
    from jax._src.pallas.mosaic_gpu.interpret.params import InterpretGPUParams

    return InterpretGPUParams()


def _dot(a: jax.Array, b: jax.Array, contracting: int) -> jax.Array:
    dims = (((1,), (contracting,)), ((), ()))
    return jax.lax.dot_general(a, b, dims, preferred_element_type=jnp.float32)


def _multiply(
    fresh: Sequence[hopper.Fresh],
    added: Sequence[hopper.Added],
    then: Callable[..., Sequence[jax.Array]],
    like: Sequence[jax.Array],
) -> tuple[list[jax.Array], list[jax.Array]]:
    loads, sums = [], []
    for of in fresh:
        of.ready()
        loads.append(functools.partial(lambda x: x, _dot(of.a[...], of.b[...], 1)))
    for of in added:
        if of.ready is not None:
            of.ready()
        sums.append(of.total + _dot(of.a, of.b[...], 0))
    return sums, list(then(*loads))


@contextmanager
def interpreted() -> Iterator[None]:
    """Inside, kernels for Hopper run here."""
    instead = {
        "multiply": _multiply,
        "add_product": lambda total, a, b: total + _dot(a, b[...], 0),
        "product": lambda a, b, shape: _dot(a[...], b[...], 1),
        "vector": lambda x, at, where, layout: x[(*at.of(x), where)],
        "column": lambda x, j: hopper.slot(x, j)[...],
        "whole": lambda x: x[...],
        "filled": lambda value: jnp.full((hopper.ROWS,), value, jnp.float32),
        "zeros": lambda shape: jnp.zeros(shape, jnp.float32),
    }
    with ExitStack() as stack:
        for name, fn in instead.items():
            stack.enter_context(mock.patch.object(hopper, name, fn))
        kernel = functools.partial(plgpu.kernel, interpret=_parameters())
        stack.enter_context(mock.patch.object(plgpu, "kernel", kernel))
        yield
