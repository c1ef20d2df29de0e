"""Layers applied one after another: the encoder and the decoder."""

import dataclasses
import functools
from collections.abc import Callable

import flax.linen as nn
import jax

from flaxattn.layers.cache import CachePosition
from flaxattn.layers.transformer import TransformerLayer, make_norm
from flaxattn.masks import BlockPlan, Mask
from flaxattn.scores import Score
from flaxattn.types import PyTree

__all__ = ["Decoder", "Encoder"]


class _Stack(nn.Module):
    layer: Callable[..., TransformerLayer]
    num_layers: int
    share_layers: bool = False
    remat: bool = False

    def apply_layers(
        self,
        x: jax.Array,
        arguments: dict[str, PyTree],
        score: Score | None,
        cache_position: CachePosition | None,
        **static: bool,
    ) -> jax.Array:
        """`x` through all layers, each with the same arguments, and the final norm."""
        count = 1 if self.share_layers else self.num_layers
        layers = [self.layer(name=f"layer_{i}") for i in range(count)]
        if score is not None:  # a custom layer that knows of none need not take it
            arguments = arguments | {"score": score}
        for i in range(self.num_layers):
            if cache_position is not None:  # likewise
                slot = dataclasses.replace(cache_position, slot=i // count)
                arguments = arguments | {"cache_position": slot}
            apply = functools.partial(_apply, static)
            apply = nn.remat(apply) if self.remat else apply
            x = apply(layers[i % count], x, arguments)
        if layers[0].norm_position == "post":  # already normed
            return x
        return make_norm(layers[0], "final_norm")(x)


def _apply(
    static: dict[str, bool], layer: TransformerLayer, x: jax.Array, arguments: dict[str, PyTree]
) -> jax.Array:
    return layer(x, **arguments, **static)


class Encoder(_Stack):
    """A stack of encoder layers.

    Attributes:
      layer: makes a layer, e.g. `functools.partial(EncoderLayer, num_heads=4, ff_features=512)`.
      num_layers: how many times a layer is applied.
      share_layers: whether one layer's parameters serve all depths (ALBERT, arXiv:1909.11942).
      remat: whether each layer is computed anew in the backward pass to save memory.
    """

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        *,
        mask: Mask | BlockPlan | jax.Array | None = None,
        score: Score | None = None,
        positions: jax.Array | None = None,
        cache_position: CachePosition | None = None,
        sow_weights: bool = False,
        deterministic: bool,
    ) -> jax.Array:
        """[B, S, D] -> [B, S, D]; arguments as in `EncoderLayer`."""
        arguments = {"mask": mask, "positions": positions}
        return self.apply_layers(
            x,
            arguments,
            score,
            cache_position,
            sow_weights=sow_weights,
            deterministic=deterministic,
        )


class Decoder(_Stack):
    """A stack of decoder layers; attributes as in `Encoder`, `layer` making decoder layers."""

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        encoded: jax.Array | None,
        *,
        mask: Mask | BlockPlan | jax.Array | None = None,
        cross_mask: Mask | BlockPlan | jax.Array | None = None,
        score: Score | None = None,
        positions: jax.Array | None = None,
        cache_position: CachePosition | None = None,
        sow_weights: bool = False,
        deterministic: bool,
    ) -> jax.Array:
        """[B, T, D] and `encoded` [B, S, D] -> [B, T, D]; arguments as in `DecoderLayer`."""
        arguments = {
            "encoded": encoded,
            "mask": mask,
            "cross_mask": cross_mask,
            "positions": positions,
        }
        return self.apply_layers(
            x,
            arguments,
            score,
            cache_position,
            sow_weights=sow_weights,
            deterministic=deterministic,
        )
