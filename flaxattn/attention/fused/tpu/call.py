"""The calls of TPU kernels: what each step reads, and what a line of steps keeps meanwhile."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.typing import DTypeLike

from flaxattn.attention.fused.given import Given, Returned
from flaxattn.attention.fused.split import Outside
from flaxattn.attention.fused.tpu.grid import (
    FULL,
    PARTIAL,
    Grid,
    Place,
    along_key,
    along_query,
    of_key,
    of_pairs,
    of_query,
)
from flaxattn.varying import shape_varying_like

__all__ = ["COLUMN", "Out", "Pass", "Ref", "Sum", "Work", "call"]

Ref: TypeAlias = Any
"""Of a block of an array, in the memory of a kernel."""

Spec: TypeAlias = Callable[[Grid, Sequence[int]], pl.BlockSpec]
"""The block of an array of some shape that each step has."""

VMEM = 64 * 2**20  # half of what newer chips have; without asking they lend 16 MB
COLUMN = 128  # how often a number of a row of a tile is kept, side by side


class Read(NamedTuple):
    """What a kernel reads, as arrays, operands, or refs of blocks; see `Given` and `Returned`.

    Positions stand before features, and numbers of positions in rows: [b, n, 1, T].
    """

    query: Any
    key: Any
    value: Any
    scale: Any
    sinks: Any
    full: Outside
    partial: Outside
    tables: Sequence[Any]
    d_output: Any = None
    lse: Any = None
    mean: Any = None


class Columns(NamedTuple):
    """What of that belongs to the rows of a line's tiles: [rows, COLUMN] each."""

    full: Sequence[Any]
    partial: Sequence[Any]
    lse: Any
    mean: Any


class Work(NamedTuple):
    """What a step has at hand."""

    place: Place
    read: Read
    columns: Columns
    sums: Sequence[Ref]


class Sum(NamedTuple):
    """What a line adds up: for each row so many numbers, which begin with one."""

    width: int
    start: float = 0.0


class Out(NamedTuple):
    """An array that a kernel makes, and where its blocks are."""

    shape: tuple[int, ...]
    spec: Spec
    dtype: DTypeLike = jnp.float32


class Pass(NamedTuple):
    """What a kernel does."""

    name: str
    step: Callable[[int, Work], None]
    """Of the kind of a step: adds to the sums of its line."""
    end: Callable[..., None]
    """Of the last work of a line and blocks of all outputs: fills these."""
    sums: Sequence[Sum]
    outs: Sequence[Out]


class Operand(NamedTuple):
    """An array as kernels read it, and the block of it that each step has."""

    array: jax.Array
    spec: pl.BlockSpec


def call(grid: Grid, given: Given, returned: Returned | None, does: Pass) -> list[jax.Array]:
    """The outputs of a pass."""
    operands = _operands(grid, given, returned)
    leaves = jax.tree.leaves(operands, is_leaf=_is_operand)
    arrays = jax.tree.map(lambda x: x.array, operands, is_leaf=_is_operand)
    columns, rows = _of_rows(grid, arrays), grid.tile[0]
    tree = jax.tree.structure((arrays, [0 for _ in does.outs], [0 for _ in does.sums], columns))
    # What heads have of their own changes within a line that is of many.
    changing = [grid.heads > 1 and x.shape[1] > 1 for x in jax.tree.leaves(columns)]
    found: list[jax.Array] = pl.pallas_call(
        functools.partial(_kernel, grid, does, tree, changing),
        out_shape=[shape_varying_like(arrays, x.shape, x.dtype) for x in does.outs],
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=grid.sizes,
            in_specs=[x.spec for x in leaves],
            out_specs=[x.spec(grid, x.shape) for x in does.outs],
            scratch_shapes=[
                *(pltpu.VMEM((rows, x.width), jnp.float32) for x in does.sums),
                *(pltpu.VMEM((rows, COLUMN), x.dtype) for x in jax.tree.leaves(columns)),
            ],
        ),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary", "arbitrary"),
            vmem_limit_bytes=VMEM,
        ),
        name=f"attention_{does.name}",
    )(grid.steps, *(x.array for x in leaves))
    return found


def _kernel(
    grid: Grid,
    does: Pass,
    tree: jax.tree_util.PyTreeDef,
    changing: Sequence[bool],
    steps: Ref,
    *refs: Ref,
) -> None:
    read, outputs, sums, columns = jax.tree.unflatten(tree, refs)
    place = grid.place(*map(pl.program_id, range(4)), steps)
    work = Work(place, read, columns, sums)

    def fill(chosen: bool) -> None:
        kept, rows = map(jax.tree.leaves, (columns, _of_rows(grid, read)))
        for column, row, changes in zip(kept, rows, changing, strict=True):
            if changes == chosen:
                column[...] = jnp.broadcast_to(row[0, 0], column.shape[::-1]).T

    @pl.when(place.first)
    def _() -> None:
        fill(False)
        for total, (_, start) in zip(sums, does.sums, strict=True):
            total[...] = jnp.full_like(total, start)

    fill(True)
    for kind in (PARTIAL, FULL):
        pl.when(place.kind == kind)(functools.partial(does.step, kind, work))
    pl.when(place.last)(lambda: does.end(work, *outputs))


def _operands(grid: Grid, given: Given, returned: Returned | None) -> Read:
    def features(spec: Spec, x: jax.Array) -> Any:
        x = x.swapaxes(1, 2)
        return Operand(x, spec(grid, x.shape))

    def numbers(spec: Spec, x: jax.Array) -> Any:
        x = (x.astype(jnp.int32) if x.dtype == jnp.uint32 else x)[:, :, None]
        return Operand(x, spec(grid, x.shape))

    def of_heads(x: jax.Array) -> Any:
        return Operand(x, pl.BlockSpec(memory_space=pltpu.SMEM))

    def outside(x: Outside) -> Outside:
        of_queries = [numbers(along_query, y) for y in x.of_queries]
        of_keys = [numbers(along_key, y) for y in x.of_keys]
        return Outside(of_queries, of_keys, [of_heads(y) for y in x.of_heads])

    read = Read(
        query=features(of_query, given.query),
        key=features(of_key, given.key),
        value=features(of_key, given.value),
        scale=of_heads(given.scale),
        sinks=None if given.sinks is None else of_heads(given.sinks),
        full=outside(given.full),
        partial=outside(given.partial),
        tables=[Operand(x, of_pairs(grid, x.shape)) for x in given.tables],
    )
    if returned is None:
        return read
    d_output, lse, mean = returned
    return read._replace(
        d_output=features(of_query, d_output),
        lse=numbers(along_query, lse),
        mean=numbers(along_query, mean),
    )


def _is_operand(x: object) -> bool:
    return isinstance(x, Operand)


def _of_rows(grid: Grid, read: Read) -> Columns:
    """What belongs to rows of tiles."""
    if grid.by_keys:
        return Columns(read.full.of_keys, read.partial.of_keys, None, None)
    return Columns(read.full.of_queries, read.partial.of_queries, read.lse, read.mean)
