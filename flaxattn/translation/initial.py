"""Parameters that nothing has been learned by yet."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from flaxattn.models import EncoderDecoder
from flaxattn.training.trees import Params
from flaxattn.types import PyTree

__all__ = ["axes_of", "init_params"]


def init_params(model: EncoderDecoder, seed: int) -> Params:
    """Fresh parameters: a pure function of model and seed."""
    return jax.jit(lambda key: _made(model, key))(jax.random.key(seed))


def axes_of(model: EncoderDecoder) -> PyTree:
    """For each parameter the logical names of its axes, without making any."""
    with nn.logical_axis_rules([("embed", None)]):  # any rule: layers then tell the names
        boxed = jax.eval_shape(lambda key: _made(model, key), jax.random.key(0))
    return nn.get_partition_spec(boxed)


def _made(model: EncoderDecoder, key: jax.Array) -> Params:
    tokens = jnp.ones((1, 2), jnp.int32)
    return model.init(key, tokens, tokens, deterministic=True)["params"]
