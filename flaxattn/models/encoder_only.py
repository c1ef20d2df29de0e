"""The encoder-only Transformer, where each token sees all of its text, and its heads."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from flaxattn.attention import prepare
from flaxattn.layers.names import named
from flaxattn.models.one_stack import (
    Embedding,
    in_window,
    make_stack,
    norm_of,
    score_of,
    segments_of,
)
from flaxattn.models.stack_config import TransformerConfig

__all__ = ["EncoderOnly", "MaskedTokens", "TextLabels", "TokenLabels"]


class EncoderOnly(nn.Module):
    """Texts in packed or padded rows to a vector for each token (BERT, arXiv:1810.04805).

    Attributes:
      config: the architecture.
      pad_id: the id of cells that hold no token; read only where no segment ids are given.

    >>> config = TransformerConfig(vocab_size=11, features=8, ff_features=16, num_heads=2)
    >>> model, tokens = EncoderOnly(config), jnp.ones((2, 5), int)
    >>> variables = model.init(jax.random.key(0), tokens, deterministic=True)
    >>> model.apply(variables, tokens, deterministic=True).shape
    (2, 5, 8)
    """

    config: TransformerConfig
    pad_id: int = 0

    def setup(self) -> None:
        self.embedding = Embedding(self.config)
        self.encoder = make_stack(self.config)

    def __call__(
        self,
        tokens: jax.Array,
        *,
        segment_ids: jax.Array | None = None,
        token_types: jax.Array | None = None,
        sow_weights: bool = False,
        deterministic: bool,
    ) -> jax.Array:
        """int [B, T] -> [B, T, D].

        Args:
          tokens: int `[B, T]`.
          segment_ids: int `[B, T]`, texts of a row, none of which sees another; 0 is padding.
            None: one a row, padding where the token is `pad_id`.
          token_types: int `[B, T]`, below `config.token_types`. None: 0.
          sow_weights: as in `MultiHeadAttention`.
          deterministic: True switches dropout off.

        Raises:
          TypeError or ValueError that names the argument.
        """
        _, positions, same = segments_of(tokens, segment_ids, self.pad_id)
        return self.encoder(
            self.embedding(tokens, positions, token_types, deterministic=deterministic),
            mask=prepare(in_window(same, self.config), tokens.shape[1], tokens.shape[1]),
            score=score_of(self.config),
            positions=positions,
            sow_weights=sow_weights,
            deterministic=deterministic,
        )

    def logits(self, x: jax.Array) -> jax.Array:
        """By the token embeddings: [..., D] -> float32 [..., V]."""
        return self.embedding.logits(x)


class _Headed(nn.Module):
    """A text's vectors, and what a head makes of them."""

    config: TransformerConfig
    pad_id: int = 0

    def setup(self) -> None:
        self.text = EncoderOnly(self.config, self.pad_id)

    def _dense(self, features: int) -> nn.Dense:
        """A matrix of a head, named by the attribute that it becomes."""
        config = self.config
        return nn.Dense(
            features,
            dtype=jnp.dtype(config.dtype),
            param_dtype=jnp.dtype(config.param_dtype),
            kernel_init=named(nn.initializers.xavier_uniform(), ("embed", "label")),
        )


class MaskedTokens(_Headed):
    """Tells which tokens are hidden in a text: BERT's head of pre-training.

    Attributes: those of `EncoderOnly`, which is its part `text`.

    >>> config = TransformerConfig(vocab_size=11, features=8, ff_features=16, num_heads=2)
    >>> model, tokens = MaskedTokens(config), jnp.ones((2, 5), int)
    >>> variables = model.init(jax.random.key(0), tokens, deterministic=True)
    >>> model.apply(variables, tokens, deterministic=True).shape
    (2, 5, 11)
    """

    def setup(self) -> None:
        super().setup()
        self.transform = self._dense(self.config.features)
        self.norm = norm_of(self.config)
        self.bias = self.param(
            "bias",
            named(nn.initializers.zeros_init(), ("vocab",)),
            (self.config.vocab_size,),
            jnp.dtype(self.config.param_dtype),
        )

    def __call__(self, tokens: jax.Array, *, deterministic: bool, **given: Any) -> jax.Array:
        """int [B, T] -> float32 [B, T, V]; arguments as in `EncoderOnly`."""
        x = self.text(tokens, deterministic=deterministic, **given)
        exact = self.config.activation == "gelu_exact"
        x = self.norm(nn.gelu(self.transform(x), approximate=not exact))
        logits = self.text.logits(x)
        return logits + jnp.broadcast_to(self.bias.astype(jnp.float32), logits.shape)


class TokenLabels(_Headed):
    """A label for each token.

    Attributes: those of `EncoderOnly`, which is its part `text`, and
      num_labels: C.

    >>> config = TransformerConfig(vocab_size=11, features=8, ff_features=16, num_heads=2)
    >>> model, tokens = TokenLabels(config, num_labels=3), jnp.ones((2, 5), int)
    >>> variables = model.init(jax.random.key(0), tokens, deterministic=True)
    >>> model.apply(variables, tokens, deterministic=True).shape
    (2, 5, 3)
    """

    num_labels: int = 2

    def setup(self) -> None:
        super().setup()
        self.labels = self._dense(self.num_labels)

    def __call__(self, tokens: jax.Array, *, deterministic: bool, **given: Any) -> jax.Array:
        """int [B, T] -> float32 [B, T, C]; arguments as in `EncoderOnly`."""
        x = self.text(tokens, deterministic=deterministic, **given)
        return self.labels(x).astype(jnp.float32)


class TextLabels(_Headed):
    """A label for each text, told at its first token: BERT's pooler and a matrix.

    Attributes: as in `TokenLabels`.

    >>> config = TransformerConfig(vocab_size=11, features=8, ff_features=16, num_heads=2)
    >>> model, tokens = TextLabels(config, num_labels=3), jnp.ones((2, 5), int)
    >>> variables = model.init(jax.random.key(0), tokens, deterministic=True)
    >>> model.apply(variables, tokens, deterministic=True)[:, 0].shape
    (2, 3)
    """

    num_labels: int = 2

    def setup(self) -> None:
        super().setup()
        self.pooler = self._dense(self.config.features)
        self.labels = self._dense(self.num_labels)

    def __call__(self, tokens: jax.Array, *, deterministic: bool, **given: Any) -> jax.Array:
        """int [B, T] -> float32 [B, T, C]: where a text begins, the logits of its labels.

        So texts may be packed. Arguments as in `EncoderOnly`.
        """
        x = self.text(tokens, deterministic=deterministic, **given)
        return self.labels(jnp.tanh(self.pooler(x))).astype(jnp.float32)
