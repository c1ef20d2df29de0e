"""Rotary positions, and how they are stretched for sequences longer than those of training."""

import dataclasses
import math
from typing import TypeAlias

import jax
import jax.numpy as jnp

from flaxattn import checks
from flaxattn.layers.positions import angles, geometric_frequencies

__all__ = ["LinearScaling", "Llama3Scaling", "Rotary", "Scaling", "YarnScaling", "rotary"]


@dataclasses.dataclass(frozen=True)
class LinearScaling:
    """All frequencies divided by `factor`: position interpolation (arXiv:2306.15595)."""

    factor: float

    @property
    def magnitude(self) -> float:
        """Of rotated queries and keys."""
        return 1.0

    def kept(self, frequencies: jax.Array, base: float) -> jax.Array:
        """How much of each frequency [H/2] is kept undivided, from 0 to 1."""
        return jnp.zeros_like(frequencies)


@dataclasses.dataclass(frozen=True)
class Llama3Scaling:
    """Slow frequencies divided by `factor`, fast ones kept, those between in part (Llama 3.1).

    Attributes:
      factor: by which slow frequencies are divided.
      original_length: the length of training (`original_max_position_embeddings`).
      low_freq_factor, high_freq_factor: of so many rotations over that length and fewer, or more,
        are slow, or fast, frequencies.
    """

    factor: float
    original_length: int
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0

    @property
    def magnitude(self) -> float:
        """Of rotated queries and keys."""
        return 1.0

    def kept(self, frequencies: jax.Array, base: float) -> jax.Array:
        """How much of each frequency [H/2] is kept undivided, from 0 to 1."""
        rotations = self.original_length * frequencies / (2 * math.pi)
        low, high = self.low_freq_factor, self.high_freq_factor
        return jnp.clip((rotations - low) / (high - low), 0.0, 1.0)


@dataclasses.dataclass(frozen=True)
class YarnScaling:
    """As `Llama3Scaling`, with a ramp over the features and larger logits (YaRN, arXiv:2309.00071).

    Attributes:
      factor, original_length: likewise.
      beta_fast, beta_slow: frequencies of so many rotations over that length and more are kept, or
        and fewer divided.
    """

    factor: float
    original_length: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0

    @property
    def magnitude(self) -> float:
        """Of rotated queries and keys (section 3.4)."""
        return 0.1 * math.log(max(self.factor, 1.0)) + 1.0

    def kept(self, frequencies: jax.Array, base: float) -> jax.Array:
        """How much of each frequency [H/2] is kept undivided, from 0 to 1."""
        half = frequencies.size

        def feature(rotations: float) -> float:
            """The number, not whole, of the feature with so many rotations."""
            return half * math.log(self.original_length / (rotations * 2 * math.pi), base)

        first = max(math.floor(feature(self.beta_fast)), 0)
        last = min(math.ceil(feature(self.beta_slow)), 2 * half - 1)
        ramp = (jnp.arange(half, dtype=jnp.float32) - first) / max(last - first, 0.001)
        return 1.0 - jnp.clip(ramp, 0.0, 1.0)


Scaling: TypeAlias = LinearScaling | Llama3Scaling | YarnScaling


@dataclasses.dataclass(frozen=True)
class Rotary:
    """How queries and keys are rotated by their positions.

    >>> Rotary(base=500_000.0, scaling=Llama3Scaling(factor=8.0, original_length=8192)).base
    500000.0
    """

    base: float = 10_000.0
    """Frequencies are its powers: `rope_theta`."""
    scaling: Scaling | None = None
    """For longer sequences than those of training; None: frequencies as they are."""

    def __post_init__(self) -> None:
        if not self.base > 1:
            raise ValueError(f"base is {self.base}; expected more than 1.")
        if self.scaling is not None and not self.scaling.factor >= 1:
            raise ValueError(f"scaling has factor {self.scaling.factor}; expected at least 1.")

    def frequencies(self, head_dim: int) -> jax.Array:
        """Radians from one position to the next, of each pair of features: float32 [H/2]."""
        frequencies = geometric_frequencies(head_dim, self.base)
        if self.scaling is None:
            return frequencies
        kept = self.scaling.kept(frequencies, self.base)
        return frequencies * (kept + (1.0 - kept) / self.scaling.factor)


def rotary(x: jax.Array, positions: jax.Array, how: Rotary = Rotary()) -> jax.Array:
    """Rotates queries or keys by their position (RoFormer, arXiv:2104.09864, equation 34).

    The products of rotated queries and keys depend on the distance of their positions alone.
    Feature i is paired with feature i + H/2, as in GPT-NeoX, Llama and gemma.

    Args:
      x: `[B, T, N, H]`, H even.
      positions: int `[B, T]` or `[1, T]`.
      how: base and scaling of the frequencies.

    Returns:
      `[B, T, N, H]` in the dtype of `x`; computed in float32.

    Raises:
      ValueError if H is odd or the shapes do not fit.
    """
    checks.check_axes("x", x, "B T N H", {})
    if positions.shape not in (x.shape[:2], (1, x.shape[1])):
        raise ValueError(f"positions has shape {positions.shape}; expected [B, T] = {x.shape[:2]}.")
    checks.check_even("the head dimension of x", x.shape[-1])
    turns = angles(positions, how.frequencies(x.shape[-1]))[:, :, None, :]
    sin, cos = jnp.sin(turns), jnp.cos(turns)
    if how.scaling is not None:
        sin, cos = how.scaling.magnitude * sin, how.scaling.magnitude * cos
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = [first * cos - second * sin, second * cos + first * sin]
    return jnp.concatenate(turned, axis=-1).astype(x.dtype)
