"""What `accelerator.py` measures: masks at sizes, in NumPy alone, for libraries of all kinds."""

from typing import NamedTuple

import numpy as np
from documents import documents

__all__ = ["FULL", "MASKS", "QUICK", "TINY", "Case", "Sizes", "cases"]

MASKS = ("causal", "window", "documents", "prefix", "ragged")


class Sizes(NamedTuple):
    """Those of the table."""

    lengths: tuple[int, ...]  # T
    head_dims: tuple[int, ...]  # H
    tokens: int = 16384  # B·T, or T where that is more
    width: int = 2048  # N·H
    window: int = 1024
    documents: int = 16
    product: int = 8192  # rows and columns of the matrix product that is the ceiling


FULL = Sizes((16384, 4096, 1024, 2048, 8192, 32768), (128, 64, 256))
QUICK = Sizes((16384,), (128,))
TINY = Sizes((256, 96), (32,), tokens=256, width=64, window=20, documents=3, product=256)


class Case(NamedTuple):
    """One mask at one size; plain data."""

    mask: str
    length: int
    head_dim: int
    batch: int
    heads: int
    window: int
    documents: int

    @property
    def name(self) -> str:
        """As it stands in tables."""
        return f"{self.mask} H={self.head_dim} T={self.length}"

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """What the mask is made of, for every example: ids [B, T], prompt [B, T], lengths [B]."""
        if self.mask == "ragged":
            shares = np.random.default_rng(2).uniform(0.25, 1.0, self.batch)
            return {"lengths": np.round(shares * self.length).astype(np.int32)}
        if self.mask not in ("documents", "prefix"):
            return {}
        rows = [documents(self.length, self.documents, 0.5, seed) for seed in range(self.batch)]
        ids = np.concatenate(rows).astype(np.int32)
        if self.mask == "documents":
            return {"ids": ids}
        first, last = self._documents(ids)
        return {"ids": ids, "prompt": np.arange(self.length) - first < (last - first) // 4}

    @property
    def live(self) -> int:
        """How many logits are seen, of all examples and heads."""
        q = np.arange(self.length)
        first, last = 0 * q, q + 1  # of the keys that each query sees
        if self.mask == "window":
            first = np.maximum(q - self.window, 0)
        if self.mask in ("documents", "prefix"):
            first, end = self._documents(self.arrays["ids"])
            if self.mask == "prefix":
                last = np.maximum(last, first + (end - first) // 4)
        if self.mask == "ragged":
            lengths = self.arrays["lengths"][:, None]
            last = np.where(q < lengths, lengths, 0)
        cells = np.broadcast_to(last - first, (self.batch, self.length))
        return int(cells.sum(dtype=np.int64)) * self.heads

    def flops(self, backward: bool) -> float:
        """Of the matrix products of what is seen: two forward, five backward."""
        return self.live * self.head_dim * 4 * (3.5 if backward else 1.0)

    @staticmethod
    def _documents(ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where the document of each token begins and ends: [B, T] each."""
        sides = ("left", "right")
        found = [[np.searchsorted(row, row, side) for row in ids] for side in sides]
        return np.array(found[0]), np.array(found[1])


def cases(sizes: Sizes) -> list[Case]:
    """Those of the table, what is asked for first at first."""
    return [
        Case(
            mask,
            length,
            head_dim,
            batch=max(1, sizes.tokens // length),
            heads=sizes.width // head_dim,
            window=sizes.window,
            documents=sizes.documents,
        )
        for head_dim in sizes.head_dims
        for length in sizes.lengths
        for mask in MASKS
    ]
