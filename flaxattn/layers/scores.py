"""Scores whose numbers are parameters."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from flaxattn.layers.names import named
from flaxattn.scores import Score, relative_bias

__all__ = ["RelativeBias"]


class RelativeBias(nn.Module):
    """T5's relative position bias (arXiv:1910.10683, section 2.1) with a table that is learned.

    The parameter is that of T5X, `rel_embedding` `[N, num_buckets]`; that of Hugging Face is its
    transpose, `relative_attention_bias.embedding` `[num_buckets, N]`, or `.weight` in PyTorch. One
    table serves all layers of a stack, as in T5. T5 does not scale its logits, as layers here do:
    `temperature(head_dim**-0.5) >> bias()` undoes it.

    Attributes:
      num_heads: N.
      num_buckets, max_distance: as in `relative_bias`.
      bidirectional: True for an encoder, False for a decoder.
      param_dtype: of the table.

    >>> bias = RelativeBias(num_heads=2)
    >>> variables = bias.init(jax.random.key(0))
    >>> x, layer = jnp.ones((1, 5, 8)), MultiHeadAttention(num_heads=2)
    >>> layer.init_with_output(
    ...     jax.random.key(0), x, score=bias.apply(variables), deterministic=True
    ... )[0].shape
    (1, 5, 8)
    """

    num_heads: int
    num_buckets: int = 32
    max_distance: int = 128
    bidirectional: bool = True
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self) -> Score:
        """The score, for as many positions as there are."""
        init = nn.initializers.variance_scaling(1.0, "fan_avg", "uniform")
        table: jax.Array = self.param(
            "rel_embedding",
            named(init, ("heads", "relpos_buckets")),
            (self.num_heads, self.num_buckets),
            self.param_dtype,
        )
        return relative_bias(table, self.num_buckets, self.max_distance, self.bidirectional)
