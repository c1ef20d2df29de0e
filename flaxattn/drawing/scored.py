"""What a score makes of logits, as numbers to be drawn."""

import jax.numpy as jnp
import numpy as np

from flaxattn.attention.dense import four_axes
from flaxattn.masks import Mask
from flaxattn.scores import Score

__all__ = ["LOGITS", "curves", "differs", "heat"]

LOGITS = np.linspace(-10.0, 10.0, 41)


def heat(score: Score, mask: Mask, q_len: int, kv_len: int) -> np.ndarray:
    """What becomes of a logit of 0, `[B, N, T, S]`; NaN where it is hidden, or not finite.

    >>> heat(alibi(0.5), causal(), 2, 2)[0, 0].tolist()
    [[0.0, nan], [-0.5, 0.0]]
    """
    seen, added = four_axes(mask.dense(q_len, kv_len)), four_axes(score.dense(q_len, kv_len))
    return np.where(seen & np.isfinite(added), added, np.nan)


def differs(cells: np.ndarray) -> bool:
    """Whether a logit of 0 becomes one thing here and another there."""
    seen = cells[~np.isnan(cells)]
    return bool(seen.size) and np.ptp(seen) > 0


def curves(
    score: Score, cells: np.ndarray, place: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """What becomes of `LOGITS` between the last query that sees something and some of its keys.

    Args:
      cells: those of an example and head, of `heat`, `[T, S]`.
      place: which example and head that is.

    Returns:
      How far the keys are before the query, `[D]`: the last, middle and first that it sees; and
      the new logits `[D, len(LOGITS)]`.
    """
    seen = ~np.isnan(cells)
    if not seen.any():
        return np.zeros(0, int), np.zeros((0, len(LOGITS)))
    query = np.flatnonzero(seen.any(axis=1))[-1]
    keys = np.flatnonzero(seen[query])
    keys = np.unique(keys[[0, len(keys) // 2, -1]])[::-1]
    moved = score.at(np.full(len(LOGITS), query), keys)
    new = four_axes(moved.dense(len(LOGITS), len(keys), logit=jnp.asarray(LOGITS[:, None])))
    example, head = (i % size for i, size in zip(place, new.shape, strict=False))  # 1 where shared
    return query - keys, np.asarray(new[example, head]).T
