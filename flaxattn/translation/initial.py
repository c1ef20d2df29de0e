"""The encoder-decoder's parameters before anything is learned, and the names of their axes."""

import jax
import jax.numpy as jnp
import numpy as np

from flaxattn.models import EncoderDecoder
from flaxattn.training.parameters.initial import Init, fresh_params
from flaxattn.training.parameters.initial import axes_of as axes_made_by
from flaxattn.training.trees import Params
from flaxattn.types import PyTree

__all__ = ["axes_of", "grown", "init_params"]


def init_params(model: EncoderDecoder, seed: int) -> Params:
    """Fresh parameters: a pure function of model and seed."""
    return fresh_params(_init(model), seed)


def axes_of(model: EncoderDecoder) -> PyTree:
    """For each parameter the logical names of its axes, without making any."""
    return axes_made_by(_init(model))


def grown(params: Params, model: EncoderDecoder, seed: int) -> Params:
    """Parameters of a model that has more tokens than they: new ones fresh, all others kept."""
    shapes = jax.eval_shape(lambda: init_params(model, 0))
    if jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, shapes):
        return params

    def put(fresh: jax.Array, kept: jax.Array) -> np.ndarray:
        whole = np.array(fresh, dtype=kept.dtype)
        whole[tuple(map(slice, kept.shape))] = kept
        return whole

    return jax.tree.map(put, init_params(model, seed), params)


def _init(model: EncoderDecoder) -> Init:
    def init(key: jax.Array) -> Params:
        tokens = jnp.ones((1, 2), jnp.int32)
        return model.init(key, tokens, tokens, deterministic=True)["params"]

    return init
