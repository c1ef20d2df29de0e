"""Where a token stands: sinusoidal and learned positions; `rotation` has rotary ones.

Positions are integer arrays, so that packed rows may count each segment from zero and a decoder
may start anywhere; nothing here knows a maximum length, save the learned table.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from flaxattn import checks
from flaxattn.layers.names import named

__all__ = [
    "LearnedPositions",
    "angles",
    "geometric_frequencies",
    "segment_positions",
    "sinusoidal",
]


def sinusoidal(positions: jax.Array, features: int, *, base: float = 10_000.0) -> jax.Array:
    """Sine and cosine position embedding (Vaswani et al. 2017, section 3.5).

    Sines fill the first half of the features and cosines the second, as in tensor2tensor.

    Args:
      positions: int `[..., T]`.
      features: D, even.

    Returns:
      float32 `[..., T, D]`.

    Raises:
      ValueError if `features` is odd.
    """
    checks.check_even("features", features)
    turns = angles(positions, geometric_frequencies(features, base))
    return jnp.concatenate([jnp.sin(turns), jnp.cos(turns)], axis=-1)


def segment_positions(segment_ids: jax.Array) -> jax.Array:
    """Positions that start at zero in each run of equal segment ids: int [B, T] -> int32 [B, T].

    >>> segment_positions(jnp.array([[1, 1, 1, 2, 2, 0]])).tolist()
    [[0, 1, 2, 0, 1, 0]]
    """
    index = jnp.arange(segment_ids.shape[1], dtype=jnp.int32)[None, :]
    starts = jnp.pad(segment_ids[:, 1:] != segment_ids[:, :-1], ((0, 0), (1, 0)))
    return index - jax.lax.cummax(jnp.where(starts, index, 0), axis=1)


def geometric_frequencies(features: int, base: float) -> jax.Array:
    """base^(-2i/D): float32 [D/2]."""
    return base ** -(jnp.arange(0, features, 2, dtype=jnp.float32) / features)


def angles(positions: jax.Array, frequencies: jax.Array) -> jax.Array:
    """int [..., T] and frequencies [D/2] -> float32 [..., T, D/2]."""
    checks.check_integer("positions", positions)
    return positions.astype(jnp.float32)[..., None] * frequencies.reshape(
        (1,) * positions.ndim + (-1,)
    )


class LearnedPositions(nn.Module):
    """A learned vector for each of `length` positions; later positions share the last one.

    Attributes:
      length: how many positions the table holds.
      features: D.
      dtype, param_dtype: of the output and of the table.
    """

    length: int
    features: int
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, positions: jax.Array) -> jax.Array:
        """int [..., T] -> [..., T, D]."""
        checks.check_integer("positions", positions)
        init = named(nn.initializers.normal(0.02), ("position", "embed"))
        table = self.param("embedding", init, (self.length, self.features), self.param_dtype)
        return jnp.take(jnp.asarray(table, self.dtype), positions, axis=0, mode="clip")
