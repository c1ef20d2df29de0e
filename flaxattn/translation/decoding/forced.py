"""How likely a model finds given translations: one teacher-forced pass over each pair."""

import dataclasses
import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from flaxattn.models import EncoderDecoder
from flaxattn.text.normalization import normalize_targets
from flaxattn.text.tokenizer import Tokenizer
from flaxattn.training.mesh import data_mesh, place
from flaxattn.training.trees import Params
from flaxattn.translation.config import DecodingConfig
from flaxattn.translation.decoding.teacher_forcing import teacher_forced
from flaxattn.translation.decoding.translator import rounded
from flaxattn.translation.memory import check_forced
from flaxattn.translation.text.lengths import max_target_length
from flaxattn.types import PyTree

__all__ = ["Forced", "IdPair", "PairScorer"]

IdPair = tuple[np.ndarray, np.ndarray]
"""The ids of a source and of its target, each with the end token: int32 [S] and [T]."""


class Forced(NamedTuple):
    """A given translation as the model finds it, token by token."""

    tokens: tuple[int, ...]
    """Those of the target, the end token included."""
    log_probs: tuple[float, ...]
    """Of each token after those before it, in nats."""
    attention: np.ndarray | None = None
    """float32 [L, T, S]: the cross-attention of each layer, the mean of its heads, if asked for.
    Row t is of the step that writes token t."""

    @property
    def log_prob(self) -> float:
        """Of the whole, as `Translation.log_prob`."""
        return sum(self.log_probs)


class PairScorer:
    """A model that looks at given pairs.

    Args:
      model, params, tokenizer: as `loading.load` gives them.
      config: says how long texts may be.
      batch_size: pairs looked at together, at most; a multiple of the devices is taken.
    """

    def __init__(
        self,
        model: EncoderDecoder,
        params: Params,
        tokenizer: Tokenizer,
        config: DecodingConfig = DecodingConfig(),
        *,
        batch_size: int = 64,
    ) -> None:
        self._model = EncoderDecoder(dataclasses.replace(model.config, remat=False), model.pad_id)
        self._mesh, self._batch_size = data_mesh(), batch_size
        self._params = place(params, self._mesh)
        self.tokenizer, self._config = tokenizer, config

    def score(
        self, sources: Sequence[str], targets: Sequence[str], *, first: int = 0
    ) -> list[Forced | None]:
        """How likely each target is as the translation of its source; None where one is blank.

        What is found of a pair does not depend on the pairs beside it.

        Args:
          first: how many pairs have gone before: errors number pairs from 1 on.

        Raises:
          ValueError naming the pair that is longer than the model may read, or the numbers of
          sources and targets if they differ.
        """
        pairs = self.encode(sources, targets, first=first)
        found = iter(self.force([pair for pair in pairs if pair]))
        return [next(found) if pair else None for pair in pairs]

    def encode(
        self, sources: Sequence[str], targets: Sequence[str], *, first: int = 0
    ) -> list[IdPair | None]:
        """The ids of each pair, as they are in training; arguments and errors as of `score`."""
        if len(sources) != len(targets):
            raise ValueError(
                f"there are {len(sources)} sources and {len(targets)} targets; target i must be "
                "the translation of source i."
            )
        numbered = enumerate(zip(sources, targets, strict=True), first + 1)
        return [
            self._encode(*texts, f"pair {number}") if all(map(str.strip, texts)) else None
            for number, texts in numbered
        ]

    def read(self, text: str) -> np.ndarray:
        """The ids of a source as `Translator` reads it: of a long one the beginning; int32 [S]."""
        text = self.tokenizer.normalize_source(text)
        return self.tokenizer.encode_start(text, self._config.max_source_length)[0]

    def _encode(self, source: str, target: str, name: str) -> IdPair:
        tokenizer, most = self.tokenizer, self._config.max_source_length
        source = tokenizer.normalize_source(source)
        (target,) = normalize_targets([target], tokenizer.normalization)
        longest = max_target_length(most, self._config.max_ratio)
        return (
            _encoded(tokenizer, source, most, f"{name}: the source"),
            _encoded(tokenizer, target.strip(), longest, f"{name}: the target"),
        )

    def force(self, pairs: Sequence[IdPair], *, attention: bool = False) -> list[Forced]:
        """What the model finds of each pair of ids, in their order.

        Args:
          attention: whether to give that, too.
        """
        answers: dict[int, Forced] = {}
        for chosen in _batches(pairs, self._batch_size):
            found = self._force_batch([pairs[i] for i in chosen], attention)
            answers |= zip(chosen, found, strict=True)
        return [answers[i] for i in range(len(pairs))]

    def _force_batch(self, pairs: list[IdPair], attention: bool) -> list[Forced]:
        model, mesh = self._model, self._mesh
        rows = min(1 << (len(pairs) - 1).bit_length(), self._batch_size)
        rows = -(-rows // mesh.size) * mesh.size
        source, target = (_padded(side, rows, model.pad_id) for side in zip(*pairs, strict=True))
        check_forced(model.config, source.shape, target.shape[1], attention=attention)
        found = _force(
            model,
            self._params,
            *place((source, target), mesh, "data"),
            bos_id=self.tokenizer.bos_id,
            attention=attention,
            mesh=mesh,
        )
        log_probs, weights = jax.device_get(found)
        return [
            Forced(
                tuple(written.tolist()),
                tuple(log_probs[row, : len(written)].tolist()),
                weights[row, :, : len(written), : len(read)].copy() if attention else None,
            )
            for row, (read, written) in enumerate(pairs)
        ]


def _encoded(tokenizer: Tokenizer, text: str, most: int, what: str) -> np.ndarray:
    ids, is_cut = tokenizer.encode_start(text, most)
    if is_cut:
        raise ValueError(
            f"{what} has more than {most} tokens; expected at most so many "
            "(DecodingConfig.max_source_length). Shorten the pair, or leave it out."
        )
    return ids


def _batches(pairs: Sequence[IdPair], batch_size: int) -> Iterator[list[int]]:
    """The indices of the pairs, in batches whose sides have one rounded length each."""

    def shape(i: int) -> tuple[int, int]:
        source, target = pairs[i]
        return rounded(len(source)), rounded(len(target))

    for _, group in itertools.groupby(sorted(range(len(pairs)), key=shape), shape):
        alike = [*group]
        for start in range(0, len(alike), batch_size):
            yield alike[start : start + batch_size]


def _padded(ids: Sequence[np.ndarray], rows: int, pad_id: int) -> np.ndarray:
    """int32 [rows, length]; the rows without ids are padding."""
    padded = np.full((rows, rounded(max(map(len, ids)))), pad_id, np.int32)
    for row, each in zip(padded, ids, strict=False):
        row[: len(each)] = each
    return padded


@functools.partial(jax.jit, static_argnames=("model", "bos_id", "attention", "mesh"))
def _force(
    model: EncoderDecoder,
    params: Params,
    source: jax.Array,
    target: jax.Array,
    *,
    bos_id: int,
    attention: bool,
    mesh: Mesh,
) -> tuple[jax.Array, jax.Array]:
    """Over sources [B, S] and targets [B, T]: log-probabilities [B, T], attention [B, L, T, S].

    Without `attention` that is [B, 0, 0, 0].
    """

    def on_device(
        params: Params, source: jax.Array, target: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        logits, sown = teacher_forced(
            model, params, source, target, bos_id=bos_id, sow_weights=attention
        )
        every = jax.nn.log_softmax(logits)
        log_probs = jnp.take_along_axis(every, target[..., None], axis=-1)[..., 0]
        if not attention:
            return log_probs, jnp.zeros((len(target), 0, 0, 0))
        return log_probs, _cross_attention(sown["decoder"])

    rows = PartitionSpec("data")
    return jax.shard_map(
        on_device, mesh=mesh, in_specs=(PartitionSpec(), rows, rows), out_specs=rows
    )(params, source, target)


def _cross_attention(decoder: PyTree) -> jax.Array:
    """The mean weights of each layer's heads [B, L, T, S]; a layer that is shared sows several."""
    layers = sorted(decoder, key=lambda name: int(name.rpartition("_")[2]))
    sown = [decoder[layer]["cross_attention"]["attention_weights"] for layer in layers]
    means = [weights.mean(axis=1, dtype=jnp.float32) for calls in sown for weights in calls]
    return jnp.stack(means, axis=1)
