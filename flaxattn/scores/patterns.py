"""Scores of a number for each head: soft caps, temperatures, linear biases."""

import jax
import jax.numpy as jnp
import numpy as np

from flaxattn import checks
from flaxattn.masks.indices import subtract
from flaxattn.masks.leaves import leaf
from flaxattn.scores.score import Score, number_leaf, score_type
from flaxattn.types import Array, Indices

__all__ = ["alibi", "alibi_slopes", "softcap", "temperature"]


@score_type
class softcap(Score):
    """Logits within (-cap, cap): cap · tanh(logit / cap), as in Gemma 2 (arXiv:2408.00118).

    Args:
      cap: a number above 0, or float `[]`, `[N]`, `[B, N]`.

    >>> softcap(50.0).dense(1, 2, logit=np.array([[0.0, 1000.0]])).tolist()
    [[0.0, 50.0]]
    """

    cap: float | Array = leaf()
    everywhere = True

    def __post_init__(self) -> None:
        number_leaf(self, "cap", positive=True)

    def __call__(self, logit: jax.Array, q_idx: Indices, kv_idx: Indices) -> jax.Array:
        return jnp.tanh(logit * (1.0 / self.cap)) * self.cap


@score_type
class temperature(Score):
    """Logits divided by a temperature: above 1 weights are more even, below 1 less.

    Args:
      value: a number above 0, or float `[]`, `[N]`, `[B, N]`.

    >>> temperature(np.array([1.0, 2.0])).dense(1, 1, logit=3.0).ravel().tolist()
    [3.0, 1.5]
    """

    value: float | Array = leaf()
    everywhere = True

    def __post_init__(self) -> None:
        number_leaf(self, "value", positive=True)

    def __call__(self, logit: jax.Array, q_idx: Indices, kv_idx: Indices) -> jax.Array:
        return logit * (1.0 / self.value)


@score_type
class alibi(Score):
    """Attention with linear biases (arXiv:2108.12409): `logit - slope · |q_idx - kv_idx|`.

    Args:
      slopes: float `[N]`, `[B, N]`, or a number for all heads; None: `alibi_slopes` of as many
        heads as the query has.

    >>> alibi(0.5).dense(1, 3).tolist()
    [[0.0, -0.5, -1.0]]
    """

    slopes: float | Array | None = leaf(default=None)
    everywhere = True

    def __post_init__(self) -> None:
        if self.slopes is not None:
            number_leaf(self, "slopes")

    def __call__(self, logit: jax.Array, q_idx: Indices, kv_idx: Indices) -> jax.Array:
        if self.slopes is None:
            raise ValueError(
                "alibi: slopes is None, and how many heads there are is not known here; give "
                "alibi_slopes(num_heads)."
            )
        distance = jnp.asarray(subtract(jnp.asarray(q_idx), kv_idx)).astype(logit.dtype)
        return logit - self.slopes * jnp.abs(distance)

    def for_heads(self, num_heads: int | None) -> Score:
        if self.slopes is not None or num_heads is None:
            return super().for_heads(num_heads)
        if jax.sharding.get_abstract_mesh().manual_axes:
            raise ValueError(
                "alibi: slopes is None inside jax.shard_map, where a device may see some of the "
                "heads; give those of its own, of alibi_slopes(num_heads)."
            )
        return alibi(alibi_slopes(num_heads)).for_heads(num_heads)


def alibi_slopes(num_heads: int) -> np.ndarray:
    """The slopes of the paper: float32 `[N]`, for any number of heads.

    For N a power of two they are 2^(-8 i / N), i = 1, ..., N; else those of the power below, and
    every second of those of the power above.

    Raises TypeError for what is no integer, ValueError below 1.

    >>> alibi_slopes(4).tolist(), alibi_slopes(3).tolist()
    ([0.25, 0.0625, 0.015625, 0.00390625], [0.0625, 0.00390625, 0.25])
    """
    checks.check_size("num_heads", num_heads, minimum=1)
    below = 2 ** (int(num_heads).bit_length() - 1)
    slopes = np.append(_geometric(below), _geometric(2 * below)[::2])
    return slopes[:num_heads].astype(np.float32)


def _geometric(n: int) -> np.ndarray:
    return 2.0 ** (-8.0 * np.arange(1, n + 1) / n)
