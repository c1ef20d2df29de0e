"""Shared memory of kernels for Hopper: tiles, and rings of buffers that are filled and used."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from flaxattn.attention.fused.hopper.machine import COMPUTING, Here, Ref

__all__ = ["STAGES", "Own", "Ring", "slot", "tiles"]

STAGES = 2  # steps that a ring has room for


def slot(x: Ref, j: jax.Array) -> Ref:
    """The one of several that step `j` uses."""
    return x.at[lax.rem(j, jnp.int32(x.shape[0]))]


class Ring(NamedTuple):
    """Buffers that one warpgroup fills, step by step, and the others use."""

    buffers: Sequence[Any]  # [stages, ...] each
    ready: Any
    free: Any

    @classmethod
    def of(cls, stages: int, *buffers: Any) -> "Ring":
        """Of memory for so many steps; it may be none."""
        if not buffers:
            return cls((), None, None)
        ready, free = (
            plgpu.Barrier(num_barriers=stages, num_arrivals=n) for n in (len(buffers), COMPUTING)
        )
        return cls(buffers, ready, free)

    def of_step(self, j: jax.Array) -> Ref:
        """What step `j` uses, of a ring with one buffer."""
        return slot(self.buffers[0], j)

    def fill(self, j: jax.Array, *sources: Ref) -> None:
        """Copies what step `j` uses, once there is room."""
        if self.buffers:
            pl.when(j >= self.free.shape[0])(lambda: plgpu.barrier_wait(slot(self.free, j)))
            for source, buffer in zip(sources, self.buffers, strict=True):
                plgpu.copy_gmem_to_smem(source, slot(buffer, j), slot(self.ready, j))

    def wait(self, j: jax.Array) -> None:
        """Waits for what step `j` uses."""
        if self.buffers:
            plgpu.barrier_wait(slot(self.ready, j))

    def release(self, j: jax.Array) -> None:
        """Says that a warpgroup has used that of step `j`."""
        if self.buffers:
            plgpu.barrier_arrive(slot(self.free, j))

    def drain(self, steps: jax.Array) -> None:
        """Waits until that of so many steps is used."""
        if self.buffers:

            @pl.loop(jnp.maximum(steps - self.free.shape[0], 0), steps)
            def _(j: jax.Array) -> None:
                plgpu.barrier_wait(slot(self.free, j))


class Own(NamedTuple):
    """A tile of each warpgroup that computes."""

    buffers: Any  # [COMPUTING, ROWS, width]
    ready: Any

    @classmethod
    def of(cls, buffers: Any) -> "Own":
        """Of memory for all warpgroups."""
        return cls(buffers, plgpu.Barrier(num_barriers=COMPUTING))

    def load(self, at: Here, source: Ref) -> Ref:
        """Begins to copy it; gives where it will be."""
        plgpu.copy_gmem_to_smem(source, self.buffers.at[at.wg], self.ready.at[at.wg])
        return self.buffers.at[at.wg]

    def wait(self, at: Here) -> None:
        """Waits for it."""
        plgpu.barrier_wait(self.ready.at[at.wg])


def tiles(dtype: Any, count: int, rows: int, width: int) -> Any:
    """Shared memory for tiles, as tensor cores read it."""
    transforms = (plgpu.TilingTransform((8, 64)), plgpu.SwizzleTransform(128))
    return plgpu.SMEM((count, rows, width), dtype, transforms=transforms)
