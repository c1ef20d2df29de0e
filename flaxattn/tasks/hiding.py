"""Tokens hidden at random, to be told from the others: single ones, or spans of them."""

import numpy as np

__all__ = ["hide_spans", "hide_tokens"]

MASKED, REPLACED = 0.8, 0.1  # of the tokens that are hidden (BERT, arXiv:1810.04805, section 3.1)
SPAN = 3.0  # tokens, the mean of a Poisson distribution (BART, arXiv:1910.13461, section 2.2)


def hide_tokens(
    ids: np.ndarray,
    rate: float,
    rng: np.random.Generator,
    *,
    first_id: int,
    mask_id: int,
    vocab_size: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Hides tokens as BERT does: most by the mask, some by any token, some by themselves.

    Args:
      ids: int of any shape; those below `first_id` and the mask are never hidden.
      rate: the share that is.

    Returns:
      int32 as `ids` each: what is read, and 1 + the id where one is hidden, else 0.
    """
    draw, how = rng.random(ids.shape), rng.random(ids.shape)
    hidden = (draw < rate) & (ids >= first_id) & (ids != mask_id)
    others = rng.integers(mask_id + 1, vocab_size, ids.shape)
    read = np.where(how < MASKED, mask_id, np.where(how < MASKED + REPLACED, others, ids))
    return (
        np.where(hidden, read, ids).astype(np.int32),
        np.where(hidden, ids + 1, 0).astype(np.int32),
    )


def hide_spans(
    ids: np.ndarray, rate: float, rng: np.random.Generator, *, mask_id: int
) -> np.ndarray:
    """Puts one mask in the place of each of some spans, of so many tokens together.

    Args:
      ids: int32 [n], the last of which, the end, is not hidden.
      rate: the share of the tokens that is hidden, on average.
    """
    count = len(ids) - 1
    wanted = int(count * rate + rng.random())
    hidden = np.zeros(len(ids) + 1, bool)
    while hidden.sum() < wanted:
        length = min(max(int(rng.poisson(SPAN)), 1), wanted - int(hidden.sum()))
        start = int(rng.integers(0, max(count - length, 0) + 1))
        hidden[start : start + length] = True
    begins = hidden[:-1] & ~np.concatenate([[False], hidden[:-2]])
    kept = np.where(begins, mask_id, ids)
    return kept[~hidden[:-1] | begins].astype(np.int32)
