"""The best translations of a batch of token rows, sought on the device."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from flaxattn.layers import CachePosition
from flaxattn.masks import Mask
from flaxattn.models import EncoderDecoder
from flaxattn.search import Groups, Hypotheses, Lengths, SpecialTokens, beam_search, greedy, sample
from flaxattn.training.trees import Params
from flaxattn.translation.config import DecodingConfig
from flaxattn.translation.decoding.constraint_arrays import (
    UNCONSTRAINED,
    ConstraintArrays,
    constraints_of,
    specs_of,
)
from flaxattn.translation.decoding.prefix_tree import PrefixTree, ancestry, descend, reorder
from flaxattn.types import PyTree

__all__ = ["decode"]


@functools.partial(
    jax.jit,
    static_argnames=(
        "models",
        "config",
        "padded_length",
        "n_best",
        "special_tokens",
        "mesh",
        "most_terms",
    ),
)
def decode(
    models: tuple[EncoderDecoder, ...],
    params: tuple[Params, ...],
    source: jax.Array,
    max_length: jax.Array,
    min_length: jax.Array,
    keys: jax.Array,
    arrays: ConstraintArrays = UNCONSTRAINED,
    *,
    config: DecodingConfig,
    padded_length: int,
    special_tokens: SpecialTokens,
    mesh: Mesh,
    n_best: int = 1,
    most_terms: int = 0,
) -> Hypotheses:
    """The `n_best` best translations of each source, or as many drawn at random.

    Rows are spread over the devices of `mesh`, each of which stops when its own rows have ended.

    Args:
      models, params: of one model, or of several that have one vocabulary: the mean of their
        probabilities is taken at each token.
      source: int `[B, S]`, padded with the model's `pad_id`; B is a multiple of the devices.
      max_length, min_length: int `[B]`, the most and the fewest tokens, as in `Lengths`.
      keys: random keys `[B]`, used by sampling alone.
      arrays: what translations must have; `most_terms` is no less than the tokens that the terms of
        one row have together.
      padded_length: T, no less than any `max_length`.

    Returns:
      `flaxattn.search.Hypotheses` of B examples.
    """

    def on_device(
        params: tuple[Params, ...],
        source: jax.Array,
        max_length: jax.Array,
        min_length: jax.Array,
        keys: jax.Array,
        arrays: ConstraintArrays,
    ) -> Hypotheses:
        common: dict[str, Any] = {
            "batch_size": len(keys),
            "special_tokens": special_tokens,
            "lengths": Lengths(max_length, min_length, config.length_penalty, padded_length),
            "constraints": constraints_of(arrays, config.no_repeat_ngram, most_terms),
        }
        decoder = _Decoder(models, params, source, special_tokens.bos_id, padded_length)
        return decoder.run(config, n_best, keys, common)

    rows = PartitionSpec("data")
    return jax.shard_map(
        on_device,
        mesh=mesh,
        in_specs=(PartitionSpec(), rows, rows, rows, rows, specs_of(rows)),
        out_specs=rows,
        check_vma=False,  # loops on different devices end at different times
    )(params, source, max_length, min_length, keys, arrays)


class _Member(NamedTuple):
    """A model and what it knows of the sources of one device."""

    apply: Any
    params: Params
    encoded: jax.Array


class _Decoder:
    """The decoder, or several together, over the encoded rows of one device."""

    def __init__(
        self,
        models: tuple[EncoderDecoder, ...],
        params: tuple[Params, ...],
        source: jax.Array,
        bos_id: int,
        padded_length: int,
    ) -> None:
        self._bos_id, self._padded_length = bos_id, padded_length
        self._segment_ids = (source != models[0].pad_id).astype(jnp.int32)
        self._members = [
            self._encoded(model.apply, own, source)
            for model, own in zip(models, params, strict=True)
        ]

    def _encoded(self, apply: Any, params: Params, source: jax.Array) -> _Member:
        encoded = apply(
            {"params": params}, source, self._segment_ids, deterministic=True, method="encode"
        )
        return _Member(apply, params, encoded)

    def run(
        self,
        config: DecodingConfig,
        n_best: int,
        keys: jax.Array,
        common: dict[str, Any],
    ) -> Hypotheses:
        """The search that the configuration says; `common`: what each of them is given."""
        beams = max(config.beam_size, n_best)
        if not config.sampling and beams > 1:
            return beam_search(
                self._decode_step_of_beams,
                self._fresh_cache(beams),
                beam_size=beams,
                n_best=n_best,
                spread=self._spread,
                reorder=reorder,
                groups=Groups(config.beam_groups, config.diversity),
                **common,
            )
        if not config.sampling:
            return greedy(self._decode_step, self._fresh_cache(1), **common)
        return sample(
            self._decode_step,
            self._fresh_cache(1),
            keys,
            num_samples=n_best,
            temperature=config.temperature,
            top_k=config.top_k,
            top_p=config.top_p,
            **common,
        )

    def _fresh_cache(self, beams: int) -> PyTree:
        """The cache with the keys and values of the source, and cells for those of the beams."""
        first = jnp.full((self._segment_ids.shape[0], 1), self._bos_id)
        position = CachePosition(0, length=beams * self._padded_length)
        return self._decode(None, first, position)[1]

    def _decode_step(
        self, tokens: jax.Array, index: jax.Array, cache: PyTree
    ) -> tuple[jax.Array, PyTree]:
        """One token of every row."""
        logits, cache = self._decode(cache, tokens[:, None], CachePosition(index))
        return logits[:, 0], cache

    def _decode_step_of_beams(
        self, tokens: jax.Array, index: jax.Array, tree: PrefixTree
    ) -> tuple[jax.Array, PrefixTree]:
        """One token of every beam: those of an example are T of one row."""
        batch, beams, _ = tree.ancestors.shape
        ancestors = descend(tree, index)
        logits, cache = self._decode(
            tree.cache,
            tokens.reshape(batch, beams),
            CachePosition(index * beams),
            positions=jnp.broadcast_to(index, (batch, beams)),
            mask=ancestry(ancestors, index),
        )
        return logits.reshape(batch * beams, -1), PrefixTree(cache, ancestors)

    def _spread(self, cache: PyTree, beams: int) -> PrefixTree:
        shape = (self._segment_ids.shape[0], beams, self._padded_length)
        return PrefixTree(cache, jnp.zeros(shape, jnp.int32))

    def _decode(
        self,
        caches: PyTree,
        tokens: jax.Array,
        cache_position: CachePosition,
        *,
        positions: jax.Array | None = None,
        mask: Mask | None = None,
    ) -> tuple[jax.Array, PyTree]:
        """The logits after [B, T] tokens, one or more rows for a source, and the new caches.

        Args:
          caches: one of each member; None: there are none yet.
        """
        rows = tokens.shape[0] // self._segment_ids.shape[0]
        logits, new = [], []
        for number, member in enumerate(self._members):
            params = {"params": member.params}
            decoded, changed = member.apply(
                params | ({"cache": caches[number]} if caches else {}),
                tokens,
                None if caches else member.encoded,
                jnp.repeat(self._segment_ids, rows, axis=0),
                cache_position=cache_position,
                positions=positions,
                mask=mask,
                deterministic=True,
                method="decode_step",
                mutable=["cache"],
            )
            logits.append(member.apply(params, decoded, method="logits"))
            new.append(changed["cache"])
        return _of_mean(logits), tuple(new)


def _of_mean(logits: list[jax.Array]) -> jax.Array:
    """Logits whose probabilities are the mean of those of several; those of one as they are."""
    if len(logits) == 1:
        return logits[0]
    log_probs = jnp.stack([jax.nn.log_softmax(x.astype(jnp.float32)) for x in logits])
    return jax.nn.logsumexp(log_probs, axis=0)  # searches divide by their sum
