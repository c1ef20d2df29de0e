"""The position-wise feed-forward layer."""

import functools
from collections.abc import Callable
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from flaxattn.layers.dropout import Dropout
from flaxattn.layers.names import named

__all__ = ["Activation", "FeedForward"]

Activation = Literal["relu", "gelu", "gelu_exact", "swiglu"]

_ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "relu": nn.relu,
    "gelu": nn.gelu,
    "gelu_exact": functools.partial(nn.gelu, approximate=False),
    "swiglu": nn.silu,
}


class FeedForward(nn.Module):
    """D -> F -> D at each position (Vaswani et al. 2017, equation 2; swiglu: arXiv:2002.05202).

    Attributes:
      features: F, the hidden width.
      activation: "relu", "gelu" by tanh (GPT-2), "gelu_exact" by the error function (BERT), or
        "swiglu", which has a third matrix, `gate`.
      dropout_rate: on the hidden activations.
      use_bias: whether the matrices have biases.
      dtype, param_dtype: of computation and of parameters; `dtype` None: as the inputs.
      kernel_init: of the matrices.
    """

    features: int
    activation: Activation = "relu"
    dropout_rate: float = 0.0
    use_bias: bool = True
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    kernel_init: nn.initializers.Initializer = nn.initializers.xavier_uniform()

    @nn.compact
    def __call__(self, x: jax.Array, *, deterministic: bool) -> jax.Array:
        """[..., D] -> [..., D]. Raises ValueError for an unknown activation."""
        if self.activation not in _ACTIVATIONS:
            raise ValueError(
                f"activation is {self.activation!r}; expected one of {list(_ACTIVATIONS)}."
            )
        hidden = self._dense("up", self.features, ("embed", "mlp"))(x)
        activate = _ACTIVATIONS[self.activation]
        if self.activation == "swiglu":
            hidden *= activate(self._dense("gate", self.features, ("embed", "mlp"))(x))
        else:
            hidden = activate(hidden)
        hidden = Dropout(self.dropout_rate)(hidden, deterministic=deterministic)
        return self._dense("down", x.shape[-1], ("mlp", "embed"))(hidden)

    def _dense(self, name: str, features: int, axes: tuple[str, str]) -> nn.Dense:
        return nn.Dense(
            features,
            use_bias=self.use_bias,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            kernel_init=named(self.kernel_init, axes),
            bias_init=named(nn.initializers.zeros_init(), axes[1:]),
            name=name,
        )
