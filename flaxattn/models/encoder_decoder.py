"""The encoder-decoder Transformer, assembled from layers; here the masks are built."""

import functools
import math
from typing import Literal, NamedTuple, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from flaxattn import checks
from flaxattn.attention import prepare
from flaxattn.einsum import wide_einsum
from flaxattn.layers import (
    CachePosition,
    Decoder,
    DecoderLayer,
    Dropout,
    Encoder,
    EncoderLayer,
    LearnedPositions,
    segment_positions,
    sinusoidal,
)
from flaxattn.layers.cache import check_index, index_positions
from flaxattn.layers.names import constrained, named
from flaxattn.layers.transformer import TransformerLayer
from flaxattn.masks import Mask, causal, same_segment, valid
from flaxattn.models.config import EncoderDecoderConfig

__all__ = ["EncoderDecoder", "Masks", "build_masks", "shift_right"]

Stack = TypeVar("Stack", Encoder, Decoder)


class Masks(NamedTuple):
    """What the three attentions of an encoder-decoder may see."""

    encoder: Mask
    decoder: Mask
    cross: Mask


def build_masks(source_segment_ids: jax.Array, target_segment_ids: jax.Array) -> Masks:
    """Each segment sees itself and its translation alone; the target looks back only.

    Args:
      source_segment_ids: int `[B, S]`; target_segment_ids: int `[B, T]`; 0 is padding.
    """
    return Masks(
        encoder=same_segment(source_segment_ids),
        decoder=causal() & same_segment(target_segment_ids),
        cross=same_segment(target_segment_ids, source_segment_ids),
    )


def shift_right(target: jax.Array, segment_ids: jax.Array, bos_id: int) -> jax.Array:
    """What the decoder reads to predict `target`: the token before, `bos_id` at a segment's start.

    Args:
      target: int `[B, T]`; segment_ids: int `[B, T]`.

    >>> shift_right(jnp.array([[5, 6, 7, 8]]), jnp.array([[1, 1, 2, 2]]), bos_id=1).tolist()
    [[1, 5, 1, 7]]
    """
    before = jnp.pad(target[:, :-1], ((0, 0), (1, 0)), constant_values=bos_id)
    return jnp.where(segment_positions(segment_ids) == 0, bos_id, before)


class EncoderDecoder(nn.Module):
    """The Transformer of Vaswani et al. (2017) over packed or padded rows of tokens.

    Attributes:
      config: the architecture.
      pad_id: the id of cells that hold no token; read only where no segment ids are given.

    >>> config = EncoderDecoderConfig(vocab_size=11, features=8, ff_features=16, num_heads=2)
    >>> model, source, target = EncoderDecoder(config), jnp.ones((2, 5), int), jnp.ones((2, 3), int)
    >>> variables = model.init(jax.random.key(0), source, target, deterministic=True)
    >>> model.apply(variables, source, target, deterministic=True).shape
    (2, 3, 11)
    """

    config: EncoderDecoderConfig
    pad_id: int = 0

    def setup(self) -> None:
        config = self.config
        embed = functools.partial(
            nn.Embed,
            config.vocab_size,
            config.features,
            dtype=jnp.dtype(config.dtype),
            param_dtype=jnp.dtype(config.param_dtype),
            embedding_init=named(nn.initializers.normal(config.features**-0.5), ("vocab", "embed")),
        )
        self.source_embedding = embed()
        if config.tie_embeddings != "all":
            self.target_embedding = embed()
        if config.tie_embeddings == "none":
            self.output_embedding = embed()
        if config.positions == "learned":
            self.source_positions, self.target_positions = (
                LearnedPositions(
                    config.max_positions,
                    config.features,
                    dtype=jnp.dtype(config.dtype),
                    param_dtype=jnp.dtype(config.param_dtype),
                )
                for _ in range(2)
            )
        self.dropout = Dropout(config.dropout_rate)
        self.encoder = self._stack(Encoder, EncoderLayer, config.encoder_layers)
        self.decoder = self._stack(Decoder, DecoderLayer, config.decoder_layers)

    def __call__(
        self,
        source: jax.Array,
        target_inputs: jax.Array,
        *,
        source_segment_ids: jax.Array | None = None,
        target_segment_ids: jax.Array | None = None,
        sow_weights: bool = False,
        deterministic: bool,
    ) -> jax.Array:
        """The logits of the token after each of `target_inputs`.

        Args:
          source: int `[B, S]`; target_inputs: int `[B, T]`, the target shifted right.
          source_segment_ids, target_segment_ids: int, of the same shapes; 0 is padding and sees
            nothing. None: one segment per row, padding where the token is `pad_id`.
          sow_weights: as in `MultiHeadAttention`.
          deterministic: True switches dropout off.

        Returns:
          float32 `[B, T, V]`.

        Raises:
          TypeError for tokens or segment ids that are no integers, ValueError for shapes that do
          not fit; each names the argument.
        """
        if source_segment_ids is None:
            source_segment_ids = self._segment_ids(source)
        if target_segment_ids is None:
            target_segment_ids = self._segment_ids(target_inputs)
        sizes: dict[str, tuple[int, str]] = {}
        for name, array, axes in (
            ("source", source, "B S"),
            ("source_segment_ids", source_segment_ids, "B S"),
            ("target_inputs", target_inputs, "B T"),
            ("target_segment_ids", target_segment_ids, "B T"),
        ):
            checks.check_axes(name, array, axes, sizes)
            checks.check_integer(name, array)
        encoded = self.encode(
            source, source_segment_ids, sow_weights=sow_weights, deterministic=deterministic
        )
        decoded = self.decode(
            target_inputs,
            encoded,
            source_segment_ids,
            target_segment_ids,
            sow_weights=sow_weights,
            deterministic=deterministic,
        )
        return self.logits(decoded)

    def encode(
        self,
        source: jax.Array,
        source_segment_ids: jax.Array,
        *,
        sow_weights: bool = False,
        deterministic: bool,
    ) -> jax.Array:
        """int [B, S] and segment ids [B, S] -> [B, S, D]."""
        positions = segment_positions(source_segment_ids)
        mask = build_masks(source_segment_ids, source_segment_ids).encoder
        return self.encoder(
            self._embed("source", source, positions, deterministic),
            mask=prepare(mask, source.shape[1], source.shape[1]),
            positions=positions,
            sow_weights=sow_weights,
            deterministic=deterministic,
        )

    def decode(
        self,
        target_inputs: jax.Array,
        encoded: jax.Array,
        source_segment_ids: jax.Array,
        target_segment_ids: jax.Array,
        *,
        sow_weights: bool = False,
        deterministic: bool,
    ) -> jax.Array:
        """int [B, T], `encoded` [B, S, D] and segment ids -> [B, T, D], to be given to `logits`."""
        positions = segment_positions(target_segment_ids)
        masks = build_masks(source_segment_ids, target_segment_ids)
        q_len, kv_len = target_inputs.shape[1], encoded.shape[1]
        return self.decoder(
            self._embed("target", target_inputs, positions, deterministic),
            encoded,
            mask=prepare(masks.decoder, q_len, q_len),
            cross_mask=prepare(masks.cross, q_len, kv_len),
            positions=positions,
            sow_weights=sow_weights,
            deterministic=deterministic,
        )

    def decode_step(
        self,
        target_inputs: jax.Array,
        encoded: jax.Array | None,
        source_segment_ids: jax.Array,
        *,
        cache_position: CachePosition,
        mask: Mask | None = None,
        positions: jax.Array | None = None,
        sow_weights: bool = False,
        deterministic: bool,
    ) -> jax.Array:
        """`decode` of the next tokens, with all before them kept in the "cache" collection.

        A row is one sentence, from position 0 on. One token or many; the same numbers as from
        `decode` of the whole. Every leaf of the cache has the batch as its first axis.

        Args:
          target_inputs: int `[B, T]`, the tokens from the index of `cache_position` on.
          encoded: `[B, S, D]`; None: its keys and values, which an earlier call kept.
          source_segment_ids: int `[B, S]`; 0 is padding.
          cache_position: where in the cache `target_inputs` stand; its length is the most tokens
            of a row.
          mask: of the whole sequence; default: `causal()`. With `positions`, a row may also be a
            tree of sentences that share their beginnings, as beam search has them.
          positions: int `[B, T]`; default: from that index on.
          sow_weights: as in `MultiHeadAttention`.
          deterministic: True switches dropout off.

        Returns:
          `[B, T, D]`, to be given to `logits`.

        >>> config = EncoderDecoderConfig(vocab_size=11, features=8, ff_features=16, num_heads=2)
        >>> model, source = EncoderDecoder(config), jnp.ones((2, 5), int)
        >>> variables = model.init(jax.random.key(0), source, source, deterministic=True)
        >>> def decode_step(variables, tokens, encoded, position):
        ...     return model.apply(
        ...         variables, tokens, encoded, source, cache_position=position,
        ...         deterministic=True, method="decode_step", mutable=["cache"]
        ...     )
        >>> encoded = model.apply(variables, source, source, deterministic=True, method="encode")
        >>> prompt, token = jnp.array([[1, 7], [1, 9]]), jnp.array([[4], [5]])
        >>> position = CachePosition(0, length=8)
        >>> decoded, cache = decode_step(variables, prompt, encoded, position)
        >>> decoded, cache = decode_step(variables | cache, token, None, CachePosition(2))
        >>> decoded.shape
        (2, 1, 8)
        """
        if positions is None:
            index = check_index(cache_position, target_inputs.shape[:1])
            positions = index_positions(index, target_inputs.shape[1])
        return self.decoder(
            self._embed("target", target_inputs, positions, deterministic),
            encoded,
            mask=causal() if mask is None else mask,
            cross_mask=valid(source_segment_ids != 0),
            positions=positions,
            cache_position=cache_position,
            sow_weights=sow_weights,
            deterministic=deterministic,
        )

    def logits(self, decoded: jax.Array) -> jax.Array:
        """[..., D] -> float32 [..., V]."""
        table = self._embedding("output").embedding.astype(decoded.dtype)
        return wide_einsum("...d,vd->...v", decoded, table, jnp.float32)

    def _embedding(self, side: Literal["source", "target", "output"]) -> nn.Embed:
        tied = self.config.tie_embeddings
        if side == "source" or tied == "all":
            return self.source_embedding
        return (
            self.output_embedding if side == "output" and tied == "none" else self.target_embedding
        )

    def _embed(
        self,
        side: Literal["source", "target"],
        tokens: jax.Array,
        positions: jax.Array,
        deterministic: bool,
    ) -> jax.Array:
        """Token embeddings times sqrt(D), plus positions: int [B, T] -> [B, T, D]."""
        checks.check_integer(side, tokens)
        x = constrained(self._embedding(side)(tokens)) * math.sqrt(self.config.features)
        if self.config.positions == "sinusoidal":
            x += sinusoidal(positions, self.config.features).astype(x.dtype)
        elif self.config.positions == "learned":
            x += getattr(self, f"{side}_positions")(positions)
        return self.dropout(x, deterministic=deterministic)

    def _segment_ids(self, tokens: jax.Array) -> jax.Array:
        return (tokens != self.pad_id).astype(jnp.int32)

    def _stack(self, stack: type[Stack], layer: type[TransformerLayer], num_layers: int) -> Stack:
        config = self.config
        make_layer = functools.partial(
            layer,
            num_heads=config.num_heads,
            num_kv_heads=config.num_kv_heads,
            ff_features=config.ff_features,
            rotary=config.positions == "rotary",
            activation=config.activation,
            norm_position=config.norm_position,
            dropout_rate=config.dropout_rate,
            attention_dropout_rate=config.attention_dropout_rate,
            activation_dropout_rate=config.activation_dropout_rate,
            dtype=jnp.dtype(config.dtype),
            param_dtype=jnp.dtype(config.param_dtype),
        )
        return stack(make_layer, num_layers, share_layers=config.share_layers, remat=config.remat)
