"""Runs the kernels of Hopper on a CPU: what its interpreter lacks is done by plain products.

It follows barriers and copies, each warpgroup in a thread of its own, and not tensor cores.
"""

import functools
import importlib
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
from jax.experimental.pallas import mosaic_gpu as plgpu

from flaxattn.attention.fused.chip import PLATFORMS
from flaxattn.attention.fused.hopper import buffers, machine, steps

# By name: those of the package are the functions.
forward, queries, keys, repair = (
    importlib.import_module(f"flaxattn.attention.fused.hopper.{name}")
    for name in ("forward", "queries", "keys", "repair")
)


def _parameters() -> Any:
    """Those of the interpreter; None: jax has none yet."""
    if hasattr(plgpu, "InterpretGPUParams"):
        return plgpu.InterpretGPUParams()
    with suppress(ModuleNotFoundError):
        params = importlib.import_module("jax._src.pallas.mosaic_gpu.interpret.params")
        return params.InterpretGPUParams()
    return None


INTERPRETER = _parameters()


def _thread_map() -> Any:
    """What gives a warpgroup its thread; None: this jax has it elsewhere."""
    with suppress(ModuleNotFoundError):
        return importlib.import_module("jax._src.pallas.mosaic.interpret.thread_map")
    return None


def _compiled_once() -> Callable[..., None]:
    """Runs all warpgroups of a kernel by one program; jax 0.10 compiles it anew at each block."""
    programs: dict[Any, Any] = {}
    lock = threading.Lock()

    def run(jaxpr: Any, consts: Any, *args: Any) -> None:
        with lock:
            if jaxpr not in programs:
                body = functools.partial(jax.core.eval_jaxpr, jaxpr)
                programs[jaxpr] = jax.jit(body).lower(consts, *args).compile()
        programs[jaxpr](consts, *args)

    return run


def _dot(a: jax.Array, b: jax.Array, contracting: int) -> jax.Array:
    dims = (((1,), (contracting,)), ((), ()))
    return jax.lax.dot_general(a, b, dims, preferred_element_type=jnp.float32)


def _multiply(
    fresh: Sequence[machine.Fresh],
    added: Sequence[machine.Added],
    then: Callable[..., Sequence[jax.Array]],
    like: Sequence[jax.Array],
) -> tuple[list[jax.Array], list[jax.Array]]:
    products, sums = [], []
    for new in fresh:
        new.ready()
        products.append(_dot(new.a[...], new.b[...], 1))
    for more in added:
        more.ready()
        sums.append(more.total + _dot(more.a, more.b[...], 0))
    return sums, list(then(*(functools.partial(jnp.asarray, x) for x in products)))


_INSTEAD: dict[str, Any] = {
    "multiply": _multiply,
    "add_product": lambda total, a, b: total + _dot(a, b[...], 0),
    "product": lambda a, b, shape: _dot(a[...], b[...], 1),
    "vector": lambda x, at, where, layout: x[(*at.of(x), where)],
    "column": lambda x: x[...],
    "whole": lambda x: x[...],
    "pairs": lambda x: x[...],
    "filled": lambda value: jnp.full((machine.ROWS,), value, jnp.float32),
    "tiles": lambda dtype, *shape: plgpu.SMEM(shape, dtype),  # of any dtype
    "zeros": lambda shape: jnp.zeros(shape, jnp.float32),
}


@contextmanager
def interpreted() -> Iterator[None]:
    """Inside, kernels for Hopper run here."""
    with ExitStack() as stack:
        for module in (machine, buffers, steps, forward, queries, keys, repair):
            for name, fn in _INSTEAD.items():
                if hasattr(module, name):
                    stack.enter_context(mock.patch.object(module, name, fn))
        if hasattr(threads := _thread_map(), "_run_jaxpr"):
            stack.enter_context(mock.patch.object(threads, "_run_jaxpr", _compiled_once()))
        kernel = functools.partial(plgpu.kernel, interpret=INTERPRETER)
        stack.enter_context(mock.patch.object(plgpu, "kernel", kernel))
        stack.enter_context(mock.patch.dict(PLATFORMS, hopper="cpu"))
        yield
