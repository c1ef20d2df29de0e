"""Parameters that nothing has been learned by yet."""

import jax
import jax.numpy as jnp

from flaxattn.models import EncoderDecoder
from flaxattn.training.trees import Params

__all__ = ["init_params"]


def init_params(model: EncoderDecoder, seed: int) -> Params:
    """Fresh parameters: a pure function of model and seed."""

    @jax.jit
    def init(key: jax.Array) -> Params:
        tokens = jnp.ones((1, 2), jnp.int32)
        return model.init(key, tokens, tokens, deterministic=True)["params"]

    return init(jax.random.key(seed))
