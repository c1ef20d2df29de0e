"""What kernels for Hopper are made of: products, numbers in registers, buffers and warpgroups.

All that depends on the version of Mosaic GPU is here.
"""

import functools
import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

__all__ = [
    "COLUMN",
    "COMPUTING",
    "ROW",
    "ROWS",
    "Added",
    "Fresh",
    "Here",
    "Load",
    "Order",
    "Ref",
    "Shape",
    "across",
    "add_product",
    "column",
    "everywhere",
    "filled",
    "launch",
    "multiply",
    "pairs",
    "product",
    "vector",
    "whole",
    "zeros",
]

COMPUTING, ROWS = 2, 64  # warpgroups that compute, and rows of each
CACHED = 32 * 2**20  # bytes of the 50 MiB of second-level cache that stay there, with all else
REGISTERS, COPYING_REGISTERS = 232, 40  # of a thread that computes, and of one that copies
ROW, COLUMN, TILE = plgpu.Layout.WGMMA.reduce(1), plgpu.Layout.WGMMA.reduce(0), plgpu.Layout.WGMMA

Ref: TypeAlias = Any  # of an array, or barriers, inside of a kernel
Load: TypeAlias = Callable[[], jax.Array]
Shape: TypeAlias = tuple[int, int]


class Here(NamedTuple):
    """Where a warpgroup is."""

    row: jax.Array  # of blocks
    head: jax.Array
    batch: jax.Array
    wg: jax.Array

    def of(self, x: Ref) -> tuple[Any, Any]:
        """The example and head of `x` [b, n, ...], 1 where shared."""
        batch, head = x.shape[:2]
        return self.batch if batch > 1 else 0, self.head if head > 1 else 0

    def rows(self, block: int) -> Any:
        """The positions of the warpgroup's rows, in blocks of so many."""
        return pl.ds(self.row * block + self.wg * ROWS, ROWS)


class Fresh(NamedTuple):
    """A product a bᵀ of two tiles in shared memory."""

    a: Ref
    b: Ref
    shape: Shape
    ready: Callable[[], None]
    """Waits for b."""


class Added(NamedTuple):
    """A product of a tile of weights and one in shared memory, added to a sum."""

    total: jax.Array
    a: jax.Array
    b: Ref
    ready: Callable[[], None] = lambda: None
    """Waits for b."""


def multiply(
    fresh: Sequence[Fresh],
    added: Sequence[Added],
    then: Callable[..., Sequence[jax.Array]],
    like: Sequence[jax.Array],
) -> tuple[list[jax.Array], list[jax.Array]]:
    """Products, and what is computed from the fresh ones while the others go on.

    Args:
      fresh: come first.
      added: to sums. Their weights must not be made inside, or ptxas does one after the other.
      then: what is computed, of functions that wait for the fresh products.
      like: arrays as those that it gives.

    Returns:
      The sums, and what `then` gave.
    """

    def run(refs: Sequence[Ref]) -> None:
        sums, outs = refs[: len(added)], refs[len(added) :]

        def scoped(*products: Ref) -> None:
            for new, ref in zip(fresh, products, strict=True):
                new.ready()
                plgpu.wgmma(ref, new.a, _transposed(new.b))
            for more, ref in zip(added, sums, strict=True):
                more.ready()
                plgpu.wgmma(ref, more.a, more.b)
            last = len(fresh) + len(added) - 1
            loads = (functools.partial(_load, ref, last - i) for i, ref in enumerate(products))
            for out, x in zip(outs, then(*loads), strict=True):
                out[...] = x

        pl.run_scoped(scoped, *(plgpu.ACC(new.shape, jnp.float32) for new in fresh))

    results = pl.run_state(run)((*(plgpu.ACC.init(more.total) for more in added), *like))
    return list(results[: len(added)]), list(results[len(added) :])


def _load(product: Ref, after: int) -> jax.Array:
    """A product, once no more than `after` that were begun after it go on."""
    load = getattr(plgpu, "wgmma_accumulator_load", None)
    # jax 0.7 waits for all: that is right, and slower.
    loaded: jax.Array = product[...] if load is None else load(product, wait_n=after)
    return loaded


def add_product(total: jax.Array, a: jax.Array, b: Ref) -> jax.Array:
    """total + a b."""
    found: jax.Array = pl.run_state(lambda ref: plgpu.wgmma(ref, a, b))(plgpu.ACC.init(total))
    return found


def product(a: Ref, b: Ref, shape: Shape) -> jax.Array:
    """a bᵀ."""

    def of(ref: Ref) -> jax.Array:
        plgpu.wgmma(ref, a, _transposed(b))
        loaded: jax.Array = ref[...]
        return loaded

    found: jax.Array = pl.run_scoped(of, plgpu.ACC(shape, jnp.float32))
    return found


def _transposed(ref: Ref) -> Ref:
    if hasattr(ref, "transpose"):
        return ref.transpose((1, 0))
    return plgpu.transpose_ref(ref, (1, 0))  # jax 0.7


def _in_registers(ref: Ref, layout: Any, **options: Any) -> jax.Array:
    named = inspect.signature(plgpu.load).parameters.get("idx")  # to jax 0.10 it is needed
    index = ((),) if named is not None and named.default is inspect.Parameter.empty else ()
    loaded: jax.Array = plgpu.load(ref, *index, layout=layout, **options)
    return loaded


def vector(x: Ref, at: Here, where: Any, layout: Any) -> jax.Array:
    """Numbers of rows or columns, of [b, n, positions], in registers."""
    return _in_registers(x.at[(*at.of(x), where)], layout, optimized=False)


def column(x: Ref) -> jax.Array:
    """Numbers of columns, of shared memory, in registers."""
    return _in_registers(x, COLUMN)


def whole(x: Ref) -> jax.Array:
    """A tile of shared memory in registers."""
    return _in_registers(x, TILE)


def pairs(x: Ref) -> jax.Array:
    """A tile of a table in registers."""
    return _in_registers(x, TILE, optimized=False)


def filled(value: float) -> jax.Array:
    """A number for each row of a warpgroup."""
    found: jax.Array = plgpu.layout_cast(jnp.full((ROWS,), value, jnp.float32), ROW)
    return found


def zeros(shape: Shape) -> jax.Array:
    """A tile of them."""
    found: jax.Array = plgpu.layout_cast(jnp.zeros(shape, jnp.float32), TILE)
    return found


def across(x: jax.Array, shape: Shape, axis: int = 0) -> jax.Array:
    """Numbers of rows, or of columns, as a tile."""
    return lax.broadcast_in_dim(x, shape, [axis])


def everywhere(x: jax.Array, shape: Shape) -> jax.Array:
    """A number as a tile."""
    return lax.broadcast_in_dim(x, shape, [])


class Order(NamedTuple):
    """Which row of blocks, head and example a program does: they begin in order of their numbers.

    A few heads come together, so that what all their rows stream stays in the second-level cache,
    and of these the rows first that have, as a rule, most work.
    """

    grid: tuple[int, int, int]  # rows, heads, examples
    together: int  # heads
    last_first: bool

    @classmethod
    def of(cls, grid: tuple[int, int, int], streamed: int, *, last_first: bool = True) -> "Order":
        """Of heads that stream so many bytes each."""
        return cls(grid, min(max(1, CACHED // streamed), grid[1] * grid[2]), last_first)

    def here(self, number: jax.Array, wg: jax.Array) -> Here:
        """Where a warpgroup of a program is."""
        rows, heads, batch = self.grid
        size = rows * self.together
        first, rest = lax.div(number, size) * self.together, lax.rem(number, size)
        together = jnp.minimum(self.together, heads * batch - first)
        row, head = lax.div(rest, together), first + lax.rem(rest, together)
        row = rows - 1 - row if self.last_first else row
        return Here(row, lax.rem(head, heads), lax.div(head, heads), wg)


class Kernel(Protocol):
    """What the warpgroups do."""

    def memory(self) -> Any:
        """The shared memory that they need."""

    def compute(self, at: Here, arrays: Any, outputs: Sequence[Ref], memory: Any) -> None:
        """What those do that compute."""

    def copy(self, at: Here, arrays: Any, memory: Any) -> None:
        """What the one does that copies."""


def launch(
    name: str,
    kernel: Kernel,
    order: Order,
    outputs: Sequence[jax.ShapeDtypeStruct],
    arrays: Any,
) -> list[jax.Array]:
    """Runs a kernel over rows of blocks, heads and examples."""
    leaves, tree = jax.tree.flatten(arrays)
    memory = kernel.memory()

    def body(*refs: Ref) -> None:
        given, outs = jax.tree.unflatten(tree, refs[: len(leaves)]), refs[len(leaves) :]

        def scoped(*memory_refs: Any) -> None:
            own = type(memory)(*memory_refs)
            wg = lax.axis_index("wg")
            at = order.here(lax.axis_index("program"), wg)

            @pl.when(wg < COMPUTING)
            def _() -> None:
                plgpu.set_max_registers(REGISTERS, action="increase")
                kernel.compute(at, given, outs, own)

            @pl.when(wg == COMPUTING)
            def _() -> None:
                plgpu.set_max_registers(COPYING_REGISTERS, action="decrease")
                kernel.copy(at, given, own)

        pl.run_scoped(scoped, *memory, collective_axes="wg")

    named = inspect.signature(plgpu.kernel).parameters
    options: dict[str, Any] = {"out_type" if "out_type" in named else "out_shape": list(outputs)}
    call = plgpu.kernel(
        body,
        grid=(math.prod(order.grid),),
        grid_names=("program",),
        num_threads=COMPUTING + 1,
        thread_name="wg",
        kernel_name=f"attention_{name}",
        compiler_params=plgpu.CompilerParams(approx_math=True),
        **options,
    )
    return list(call(*leaves))
