"""Parameters that nothing has been learned by yet."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from flaxattn.models import EncoderDecoder

__all__ = ["init_params"]


def init_params(model: EncoderDecoder, seed: int) -> Any:
    """Fresh parameters: a pure function of model and seed."""

    @jax.jit
    def init(key: jax.Array) -> Any:
        tokens = jnp.ones((1, 2), jnp.int32)
        return nn.unbox(model.init(key, tokens, tokens, deterministic=True))["params"]

    return init(jax.random.key(seed))
