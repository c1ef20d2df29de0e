"""Plain flax.linen as a contender of `training.py`: random batches, padded to one length.

An ordinary encoder-decoder of flax's own modules, with dense masks, in the manner of flax's
examples. Its modules are named as flaxattn's, whose parameters it starts from.
"""

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from training_problem import PaddedPairs, Problem, evenly, pad
from training_process import Count, count

from flaxattn.layers import sinusoidal
from flaxattn.models import EncoderDecoderConfig

__all__ = ["Contender", "Transformer"]


class FeedForward(nn.Module):
    """D -> F -> D."""

    config: EncoderDecoderConfig

    @nn.compact
    def __call__(self, x: Any, *, deterministic: bool) -> Any:
        hidden = nn.relu(nn.Dense(self.config.ff_features, name="up")(x))
        dropout = nn.Dropout(self.config.activation_dropout_rate, deterministic=deterministic)
        return nn.Dense(x.shape[-1], name="down")(dropout(hidden))


class Layer(nn.Module):
    """A pre-norm layer; it attends to `encoded` where that is given."""

    config: EncoderDecoderConfig

    @nn.compact
    def __call__(
        self, x: Any, mask: Any, encoded: Any = None, cross_mask: Any = None, *, deterministic: bool
    ) -> Any:
        """[B, T, D] -> [B, T, D]."""
        config = self.config
        dropout = nn.Dropout(config.dropout_rate, deterministic=deterministic)
        attention = functools.partial(
            nn.MultiHeadDotProductAttention,
            config.num_heads,
            dropout_rate=config.attention_dropout_rate,
            deterministic=deterministic,
        )
        y = nn.LayerNorm(name="self_attention_norm")(x)
        x += dropout(attention(name="self_attention")(y, mask=mask))
        if encoded is not None:
            y = nn.LayerNorm(name="cross_attention_norm")(x)
            x += dropout(attention(name="cross_attention")(y, encoded, mask=cross_mask))
        y = nn.LayerNorm(name="feed_forward_norm")(x)
        feed_forward = FeedForward(config, name="feed_forward")
        return x + dropout(feed_forward(y, deterministic=deterministic))


class Stack(nn.Module):
    """Layers and a last norm."""

    config: EncoderDecoderConfig
    num_layers: int

    @nn.compact
    def __call__(self, x: Any, *arguments: Any, deterministic: bool) -> Any:
        """[B, T, D] -> [B, T, D]."""
        for i in range(self.num_layers):
            layer = Layer(self.config, name=f"layer_{i}")
            x = layer(x, *arguments, deterministic=deterministic)
        return nn.LayerNorm(name="final_norm")(x)


class Transformer(nn.Module):
    """Source and target, int [B, S] and [B, T] -> logits [B, T, V]; 0 is padding."""

    config: EncoderDecoderConfig
    bos_id: int

    @nn.compact
    def __call__(self, source: Any, target: Any, *, deterministic: bool) -> Any:
        config = self.config
        embedding = nn.Embed(config.vocab_size, config.features, name="source_embedding")
        dropout = nn.Dropout(config.dropout_rate, deterministic=deterministic)

        def embed(tokens: Any) -> Any:
            x = embedding(tokens) * math.sqrt(config.features)
            return dropout(x + sinusoidal(jnp.arange(x.shape[1])[None], config.features))

        source_mask = nn.make_attention_mask(source > 0, source > 0)
        target_mask = nn.combine_masks(
            nn.make_attention_mask(target > 0, target > 0), nn.make_causal_mask(target)
        )
        cross_mask = nn.make_attention_mask(target > 0, source > 0)
        encoder = Stack(config, config.encoder_layers, name="encoder")
        decoder = Stack(config, config.decoder_layers, name="decoder")
        encoded = encoder(embed(source), source_mask, deterministic=deterministic)
        inputs = jnp.pad(target[:, :-1], ((0, 0), (1, 0)), constant_values=self.bos_id)
        arguments = (embed(inputs), target_mask, encoded, cross_mask)
        return embedding.attend(decoder(*arguments, deterministic=deterministic))


class Contender:
    """One jitted step on batches [B, L] of one shape."""

    trial_updates = 1

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self._model = Transformer(problem.model, problem.bos_id)
        training, rates = problem.training, jnp.asarray(problem.rates)
        self._optimizer = optax.chain(
            optax.clip_by_global_norm(training.clip_norm),
            optax.adamw(
                lambda step: rates[step],
                b1=training.adam_b1,
                b2=training.adam_b2,
                eps=1e-9,
                weight_decay=training.weight_decay,
            ),
        )
        self._step = jax.jit(self._updated, donate_argnums=(0, 1))
        self._nll = jax.jit(lambda params, source, target: self._loss(params, source, target, 0.0))
        self._train = PaddedPairs(problem, evenly, problem.longest)
        source, target = pad(problem.valid, problem.longest)
        size = self._train.batch(0)[0].shape[0]
        self._valid = [
            (source[i : i + size], target[i : i + size]) for i in range(0, len(source), size)
        ]
        self.parameters = sum(x.size for x in jax.tree.leaves(problem.params))
        self.reset()

    def reset(self) -> None:
        self._params = jax.tree.map(jnp.array, self._problem.params)
        self._opt_state = self._optimizer.init(self._params)

    def update(self, step: int) -> Count:
        source, target = self._train.batch(step)
        state = (self._params, self._opt_state)
        self._params, self._opt_state = self._step(*state, source, target, step)
        return count(source, target, self._problem.pad_id)

    def wait(self) -> None:
        jax.block_until_ready((self._params, self._opt_state))

    def validate(self) -> tuple[float, float]:
        parts = [self._nll(self._params, *batch) for batch in self._valid]
        nll, tokens = (float(sum(values)) for values in zip(*parts, strict=True))
        return nll, tokens

    def _updated(self, params: Any, opt_state: Any, source: Any, target: Any, step: Any) -> Any:
        key = jax.random.fold_in(jax.random.key(self._problem.training.seed), step)

        def mean(params: Any) -> Any:
            smoothing = self._problem.training.label_smoothing
            loss, tokens = self._loss(params, source, target, smoothing, key)
            return loss / tokens

        updates, opt_state = self._optimizer.update(jax.grad(mean)(params), opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    def _loss(
        self, params: Any, source: Any, target: Any, smoothing: float, key: Any = None
    ) -> Any:
        """The sum over target tokens, and their number."""
        logits = self._model.apply(
            {"params": params},
            source,
            target,
            deterministic=key is None,
            rngs=None if key is None else {"dropout": key},
        )
        labels = optax.smooth_labels(jax.nn.one_hot(target, logits.shape[-1]), smoothing)
        losses = optax.softmax_cross_entropy(logits, labels)
        return jnp.sum(losses, where=target > 0), jnp.sum(target > 0)
