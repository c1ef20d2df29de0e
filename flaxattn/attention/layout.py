"""Which positions of a sequence each of several devices holds: chunks of equal length."""

import dataclasses
import itertools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from flaxattn import checks
from flaxattn.attention.balance import blocks_of, cells_of, live_of, slowest
from flaxattn.masks import Mask
from flaxattn.types import Array

__all__ = ["Layout"]

EVEN = 1.1  # the slowest over the mean: a layout that is as even as that is not cut further
CHUNKS = (2, 4, 8, 16)  # of a device, tried in turn
FINE, MOST = 64, 2048  # positions of a block that work is counted in; how many blocks
NEAR = 0.02  # of the mean: shards that differ by less are taken as equally loaded


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where chunks of positions are: those of device d begin at `starts[d]`.

    It is a value, known while tracing. A sequence may lie in any, as long as `attend_over` is told.

    >>> layout = Layout.zigzag(8, 2)
    >>> layout.order.tolist()
    [0, 1, 6, 7, 2, 3, 4, 5]
    >>> layout.join(layout.split(jnp.arange(8), axis=0), axis=0).tolist()
    [0, 1, 2, 3, 4, 5, 6, 7]
    """

    starts: tuple[tuple[int, ...], ...]
    """`[shards, chunks]`: the first position of each chunk of each device."""
    chunk: int
    """How many positions a chunk has."""

    def __post_init__(self) -> None:
        starts = tuple(tuple(int(i) for i in row) for row in self.starts)
        object.__setattr__(self, "starts", starts)
        chunk = checks.check_size("chunk", self.chunk, minimum=1)
        whole = list(range(0, sum(map(len, starts)) * chunk, chunk))
        if len({len(row) for row in starts}) != 1 or sorted(sum(starts, ())) != whole:
            raise ValueError(
                f"starts are {starts}; expected those of all chunks of {chunk} positions, 0, "
                f"{chunk}, ..., each once, and as many for each device."
            )

    @classmethod
    def contiguous(cls, length: int, shards: int) -> "Layout":
        """Device d holds the d-th part of the sequence, as a `PartitionSpec` of the axis means."""
        chunk = _chunk(length, shards, 1)
        return cls(tuple((d * chunk,) for d in range(shards)), chunk)

    @classmethod
    def zigzag(cls, length: int, shards: int) -> "Layout":
        """Device d holds the d-th chunk and the d-th from the end, which is even for `causal()`."""
        chunk = _chunk(length, shards, 2)
        return cls(tuple((d * chunk, (2 * shards - 1 - d) * chunk) for d in range(shards)), chunk)

    @classmethod
    def balanced(cls, mask: Mask, length: int, shards: int) -> "Layout":
        """One in which each device has about the same work, as far as the bounds of `mask` tell.

        Of contiguous, zigzag and up to 16 chunks for each device, given to whom has least to do,
        the first in which the slowest has at most 1.1 times the mean, else the best. All examples
        of a mask count alike.

        Raises TypeError for what is no `Mask`, ValueError for a length that does not divide, or
        arrays that are traced: a layout is known while tracing.

        >>> Layout.balanced(causal(), 64, 4) == Layout.zigzag(64, 4)
        True
        """
        if not isinstance(mask, Mask):
            raise TypeError(f"mask is a {type(mask).__name__}; expected a Mask.")
        found = list[tuple[float, Layout]]()
        for layout in cls._candidates(mask, length, shards):
            found.append((layout.slowest(mask), layout))
            if found[-1][0] <= EVEN:
                return layout
        return min(found, key=lambda pair: pair[0])[1]

    @classmethod
    def _candidates(cls, mask: Mask, length: int, shards: int) -> Iterator["Layout"]:
        """The least cut first."""
        yield cls.contiguous(length, shards)
        if length % (2 * shards) == 0:
            yield cls.zigzag(length, shards)
        for chunks in CHUNKS:
            if length % (shards * chunks) == 0:
                yield cls._dealt(mask, length, shards, chunks)

    @classmethod
    def _dealt(cls, mask: Mask, length: int, shards: int, chunks: int) -> "Layout":
        """Chunks, those with most work first, each to the device with least that has room."""
        each = cls.contiguous(length, shards * chunks)
        work = each.cells(mask, each).sum(axis=1)
        load, held = np.zeros(shards), [list[int]() for _ in range(shards)]
        step = max(NEAR * work.sum() / shards, 1e-9)
        for chunk in np.argsort(-work, kind="stable"):
            _, _, d = min(
                (load[d] // step, not {chunk - 1, chunk + 1}.intersection(own), d)
                for d, own in enumerate(held)
                if len(own) < chunks
            )
            held[d].append(int(chunk))
            load[d] += work[chunk]
        return cls(tuple(tuple(i * each.chunk for i in sorted(own)) for own in held), each.chunk)

    @property
    def shards(self) -> int:
        """How many devices there are."""
        return len(self.starts)

    @property
    def chunks(self) -> int:
        """How many chunks each has."""
        return len(self.starts[0])

    @property
    def length(self) -> int:
        """Positions of the sequence."""
        return self.shards * self.chunks * self.chunk

    @property
    def order(self) -> np.ndarray:
        """int32 `[length]`: the positions that the devices hold, one device after another."""
        starts = np.asarray(self.starts, np.int32).reshape(-1, 1)
        return (starts + np.arange(self.chunk, dtype=np.int32)[None]).reshape(-1)

    @property
    def in_order(self) -> bool:
        """Whether they hold them in order."""
        return all(a < b for a, b in itertools.pairwise(sum(self.starts, ())))

    def split(self, array: Array, axis: int = 1) -> jax.Array:
        """An array in order of positions -> in that of the devices, to be spread over them."""
        return self._moved(array, self.order, axis)

    def join(self, array: Array, axis: int = 1) -> jax.Array:
        """What `split` does, undone."""
        return self._moved(array, np.argsort(self.order), axis)

    def _moved(self, array: Array, order: np.ndarray, axis: int) -> jax.Array:
        if array.shape[axis] != self.length:
            raise ValueError(
                f"array has shape {tuple(array.shape)}; expected {self.length} positions on axis "
                f"{axis}, as the layout has."
            )
        return jnp.asarray(array) if self.in_order else jnp.take(array, order, axis=axis)

    def cells(self, mask: Mask, of_keys: "Layout | None" = None) -> np.ndarray:
        """float64 `[D, D]`: logits that each device computes of the keys that each holds."""
        of_keys = of_keys or self
        size = max(FINE, max(self.length, of_keys.length) // MOST)
        q, kv = (blocks_of(np.asarray(x.starts), x.chunk, size) for x in (self, of_keys))
        return cells_of(mask, q, kv, self.shards, of_keys.shards)

    def live(self, mask: Mask, of_keys: "Layout | None" = None) -> Array:
        """bool `[D, D]`: whose queries may see any of whose keys; NumPy's where that is known."""
        of_keys = of_keys or self
        q, kv = (blocks_of(np.asarray(x.starts), x.chunk, x.chunk) for x in (self, of_keys))
        return live_of(mask, q, kv, self.shards, of_keys.shards)

    def slowest(self, mask: Mask, of_keys: "Layout | None" = None) -> float:
        """The work of the device that has most, over the mean: what all wait for."""
        return slowest(self.cells(mask, of_keys))


def _chunk(length: int, shards: int, chunks: int) -> int:
    """Positions of a chunk; ValueError where they do not divide."""
    length = checks.check_size("length", length, minimum=1)
    shards = checks.check_size("shards", shards, minimum=1)
    if length % (shards * chunks):
        raise ValueError(
            f"length is {length} and shards {shards}; expected a multiple of {shards * chunks}: "
            f"{chunks} chunk{'s' * (chunks > 1)} for each device. Pad the sequence."
        )
    return length // (shards * chunks)
