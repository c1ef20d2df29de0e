"""Documents packed into one sequence."""

import numpy as np

__all__ = ["documents"]


def documents(length: int, count: int, spread: float, seed: int = 0) -> np.ndarray:
    """Segment ids [1, T] of `count` documents, their lengths within `spread` of the mean."""
    sizes = np.random.default_rng(seed).uniform(1 - spread, 1 + spread, count)
    ends = np.round(np.cumsum(sizes) / sizes.sum() * length).astype(int)
    return (np.searchsorted(ends, np.arange(length), side="right") + 1)[None]
