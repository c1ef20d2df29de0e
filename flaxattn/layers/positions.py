"""Where a token stands: sinusoidal, learned and rotary positions.

Positions are integer arrays, so that packed rows may count each segment from zero and a decoder
may start anywhere; nothing here knows a maximum length, save the learned table.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from flaxattn import checks
from flaxattn.layers.names import named

__all__ = ["LearnedPositions", "rotary", "segment_positions", "sinusoidal"]


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
    angles = _angles(positions, features, base, "features")
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


def rotary(x: jax.Array, positions: jax.Array, *, base: float = 10_000.0) -> jax.Array:
    """Rotates queries or keys by their position (RoFormer, arXiv:2104.09864, equation 34).

    The products of rotated queries and keys depend on the distance of their positions alone.
    Feature i is paired with feature i + H/2, as in GPT-NeoX, Llama and gemma.

    Args:
      x: `[B, T, N, H]`, H even.
      positions: int `[B, T]` or `[1, T]`.

    Returns:
      `[B, T, N, H]` in the dtype of `x`; computed in float32.

    Raises:
      ValueError if H is odd or the shapes do not fit.
    """
    sizes: dict[str, tuple[int, str]] = {}
    checks.check_axes("x", x, "B T N H", sizes)
    if positions.shape not in (x.shape[:2], (1, x.shape[1])):
        raise ValueError(f"positions has shape {positions.shape}; expected [B, T] = {x.shape[:2]}.")
    angles = _angles(positions, x.shape[-1], base, "the head dimension of x")[:, :, None, :]
    sin, cos = jnp.sin(angles), jnp.cos(angles)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = [first * cos - second * sin, second * cos + first * sin]
    return jnp.concatenate(turned, axis=-1).astype(x.dtype)


def segment_positions(segment_ids: jax.Array) -> jax.Array:
    """Positions that start at zero in each run of equal segment ids: int [B, T] -> int32 [B, T].

    >>> segment_positions(jnp.array([[1, 1, 1, 2, 2, 0]])).tolist()
    [[0, 1, 2, 0, 1, 0]]
    """
    index = jnp.arange(segment_ids.shape[1], dtype=jnp.int32)[None, :]
    starts = jnp.pad(segment_ids[:, 1:] != segment_ids[:, :-1], ((0, 0), (1, 0)))
    return index - jax.lax.cummax(jnp.where(starts, index, 0), axis=1)


def _angles(positions: jax.Array, features: int, base: float, name: str) -> jax.Array:
    """Angles at the geometric frequencies base^(-2i/D): int [..., T] -> float32 [..., T, D/2]."""
    if features % 2:
        raise ValueError(f"{name} is {features}; expected an even number.")
    checks.check_integer("positions", positions)
    exponent = jnp.arange(0, features, 2, dtype=jnp.float32) / features
    frequency = base**-exponent
    return positions.astype(jnp.float32)[..., None] * frequency.reshape(
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
