"""The decoder-only Transformer: each token is told by those before it."""

import flax.linen as nn
import jax

from flaxattn import checks
from flaxattn.attention import prepare
from flaxattn.layers import CachePosition
from flaxattn.layers.cache import check_index, index_positions
from flaxattn.masks import causal
from flaxattn.models.one_stack import Embedding, in_window, make_stack, score_of, segments_of
from flaxattn.models.stack_config import TransformerConfig

__all__ = ["DecoderOnly"]


class DecoderOnly(nn.Module):
    """A language model over packed or padded rows of tokens (Radford et al. 2019; LLaMA).

    Attributes:
      config: the architecture.
      pad_id: the id of cells that hold no token; read only where no segment ids are given.

    >>> config = TransformerConfig(vocab_size=11, features=8, ff_features=16, num_heads=2)
    >>> model, tokens = DecoderOnly(config), jnp.ones((2, 5), int)
    >>> variables = model.init(jax.random.key(0), tokens, deterministic=True)
    >>> model.apply(variables, tokens, deterministic=True).shape
    (2, 5, 11)
    """

    config: TransformerConfig
    pad_id: int = 0

    def setup(self) -> None:
        self.embedding = Embedding(self.config)
        self.decoder = make_stack(self.config)

    def __call__(
        self,
        tokens: jax.Array,
        *,
        segment_ids: jax.Array | None = None,
        sow_weights: bool = False,
        deterministic: bool,
    ) -> jax.Array:
        """The logits of the token after each of `tokens`.

        Args:
          tokens: int `[B, T]`.
          segment_ids: int `[B, T]`, documents of a row, none of which sees another; 0 is padding.
            None: one a row, padding where the token is `pad_id`.
          sow_weights: as in `MultiHeadAttention`.
          deterministic: True switches dropout off.

        Returns:
          float32 `[B, T, V]`.

        Raises:
          TypeError or ValueError that names the argument.
        """
        _, positions, same = segments_of(tokens, segment_ids, self.pad_id)
        mask = in_window(causal() & same, self.config)
        x = self.decoder(
            self.embedding(tokens, positions, deterministic=deterministic),
            mask=prepare(mask, tokens.shape[1], tokens.shape[1]),
            score=score_of(self.config),
            positions=positions,
            sow_weights=sow_weights,
            deterministic=deterministic,
        )
        return self.embedding.logits(x)

    def decode_step(
        self,
        tokens: jax.Array,
        *,
        cache_position: CachePosition,
        sow_weights: bool = False,
        deterministic: bool,
    ) -> jax.Array:
        """The same of the next tokens, with all before them kept in the "cache" collection.

        Args:
          tokens: int `[B, T]`, those from the index of `cache_position` on, one or many.
          cache_position: where in the cache they stand; its length is the most tokens of a row.
            With a window, a ring of that many cells and one more serves rows of any length.
          sow_weights: as in `MultiHeadAttention`.
          deterministic: True switches dropout off.

        Returns:
          float32 `[B, T, V]`.

        >>> config = TransformerConfig(vocab_size=11, features=8, ff_features=16, num_heads=2)
        >>> model, prompt = DecoderOnly(config), jnp.array([[3, 7, 4]])
        >>> variables = model.init(jax.random.key(0), prompt, deterministic=True)
        >>> position = CachePosition(0, length=8)
        >>> logits, cache = model.apply(variables, prompt, cache_position=position,
        ...     deterministic=True, method="decode_step", mutable=["cache"])
        >>> logits, cache = model.apply(variables | cache, logits[:, -1:].argmax(-1),
        ...     cache_position=CachePosition(3), deterministic=True, method="decode_step",
        ...     mutable=["cache"])
        >>> logits.shape
        (1, 1, 11)
        """
        checks.check_axes("tokens", tokens, "B T", {})
        index = check_index(cache_position, tokens.shape[:1])
        positions = index_positions(index, tokens.shape[1])
        x = self.decoder(
            self.embedding(tokens, positions, deterministic=deterministic),
            mask=in_window(causal(), self.config),
            score=score_of(self.config),
            positions=positions,
            cache_position=cache_position,
            sow_weights=sow_weights,
            deterministic=deterministic,
        )
        return self.embedding.logits(x)
