"""A linear map of the last axes of an array, with a logical name for every axis of its kernel."""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from flaxattn.layers.names import named

__all__ = ["DenseGeneral"]


class DenseGeneral(nn.Module):
    """A linear map of the last axes of an array to new ones: `flax.linen.DenseGeneral`.

    It has that layer's parameters and initial values. Linen's cannot name the logical axes of a
    kernel of rank 3 under a mesh, since it makes the kernel as a matrix first.

    Attributes:
      features: the new axes.
      axes: the logical names of the kernel's axes.
      num_in_axes: how many of the last axes are mapped.
      use_bias, dtype, param_dtype, precision, kernel_init, bias_init: as in `MultiHeadAttention`.
    """

    features: tuple[int, ...]
    axes: tuple[str, ...]
    num_in_axes: int
    use_bias: bool
    dtype: DTypeLike | None
    param_dtype: DTypeLike
    precision: jax.lax.Precision | str | None
    kernel_init: nn.initializers.Initializer
    bias_init: nn.initializers.Initializer

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., *inputs] -> [..., *features]."""
        inputs = x.shape[x.ndim - self.num_in_axes :]
        kernel = self._param("kernel", self.kernel_init, inputs, self.axes)
        bias = None
        if self.use_bias:
            bias = self._param("bias", self.bias_init, (), self.axes[self.num_in_axes :])
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        y = jnp.tensordot(x, kernel, axes=self.num_in_axes, precision=self.precision)
        return y if bias is None else y + jnp.expand_dims(bias, tuple(range(y.ndim - bias.ndim)))

    def _param(
        self,
        name: str,
        init: nn.initializers.Initializer,
        inputs: tuple[int, ...],
        axes: tuple[str, ...],
    ) -> jax.Array:
        """A parameter initialised as a matrix (or vector), so that fan-in and fan-out are right."""
        flat = (math.prod(inputs),) * bool(inputs) + (math.prod(self.features),)

        def shaped(key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike) -> Any:
            value: Any = init(key, flat, dtype)  # perhaps in a box with names of its axes
            return jax.tree.map(lambda x: jnp.reshape(x, shape), value)

        init_shaped = named(shaped, axes)
        param: Any = self.param(name, init_shaped, (*inputs, *self.features), self.param_dtype)
        return param  # linen has taken it out of its box
