"""The best translations of a batch of token rows, sought on the device."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from flaxattn.models import EncoderDecoder
from flaxattn.search import Hypotheses, beam_search, greedy, sample
from flaxattn.translation.config import DecodingConfig
from flaxattn.translation.decoding.prefix_tree import PrefixTree, ancestry, descend, reorder

__all__ = ["decode"]


@functools.partial(
    jax.jit,
    static_argnames=("model", "config", "max_length", "n_best", "bos_id", "eos_id", "mesh"),
)
def decode(
    model: EncoderDecoder,
    params: Any,
    source: jax.Array,
    limits: jax.Array,
    minimums: jax.Array,
    keys: jax.Array,
    *,
    config: DecodingConfig,
    max_length: int,
    bos_id: int,
    eos_id: int,
    mesh: Mesh,
    n_best: int = 1,
) -> Hypotheses:
    """The `n_best` best translations of each source, or as many drawn at random.

    Rows are spread over the devices of `mesh`, each of which stops when its own rows have ended.

    Args:
      source: int `[B, S]`, padded with the model's `pad_id`; B is a multiple of the devices.
      limits, minimums: int `[B]`, the most and the fewest tokens, the end token included; a limit
        of 0 seeks nothing.
      keys: random keys `[B]`, used by sampling alone.
      max_length: T, no less than any limit.

    Returns:
      `flaxattn.search.Hypotheses` of B examples.
    """

    def on_device(params: Any, source: jax.Array, *of_rows: jax.Array) -> Hypotheses:
        search = _Decoder(model, params, source, max_length)
        ids = {"bos_id": bos_id, "eos_id": eos_id, "pad_id": model.pad_id}
        return search.run(config, n_best, ids, *of_rows)

    rows = PartitionSpec("data")
    return jax.shard_map(
        on_device,
        mesh=mesh,
        in_specs=(PartitionSpec(), rows, rows, rows, rows),
        out_specs=rows,
        check_vma=False,  # loops on different devices end at different times
    )(params, source, limits, minimums, keys)


class _Decoder:
    """The decoder over the encoded rows of one device."""

    def __init__(self, model: EncoderDecoder, params: Any, source: jax.Array, max_length: int):
        self._apply: Any = model.apply
        self._params, self._max_length = params, max_length
        self._segment_ids = (source != model.pad_id).astype(jnp.int32)
        encoded: Any = self._apply(
            {"params": params}, source, self._segment_ids, deterministic=True, method="encode"
        )
        self._encoded = encoded

    def run(
        self,
        config: DecodingConfig,
        n_best: int,
        ids: dict[str, int],
        limits: jax.Array,
        minimums: jax.Array,
        keys: jax.Array,
    ) -> Hypotheses:
        common: dict[str, Any] = dict(
            ids,
            batch=len(limits),
            max_length=self._max_length,
            limits=limits,
            minimums=minimums,
            length_penalty=config.length_penalty,
        )
        beams = max(config.beam_size, n_best)
        if not config.sampling and beams > 1:
            return beam_search(
                self._step_of_beams,
                self._fresh_cache(ids["bos_id"], cells=self._max_length * beams),
                beam_size=beams,
                n_best=n_best,
                spread=self._spread,
                reorder=reorder,
                **common,
            )
        cache = self._fresh_cache(ids["bos_id"], cells=self._max_length)
        if not config.sampling:
            return greedy(self._step, cache, **common)
        return sample(
            self._step,
            cache,
            keys,
            num_samples=n_best,
            temperature=config.temperature,
            top_k=config.top_k,
            top_p=config.top_p,
            **common,
        )

    def _fresh_cache(self, bos_id: int, cells: int) -> Any:
        """The cache with the keys and values of the source, and `cells` for the target's."""
        begin = jnp.full((self._encoded.shape[0], 1), bos_id)
        return self._decode({}, begin, self._encoded, cache_index=0, cache_len=cells)[1]

    def _step(self, tokens: jax.Array, index: jax.Array, cache: Any) -> tuple[jax.Array, Any]:
        """One token of every row."""
        logits, cache = self._decode(cache, tokens[:, None], None, cache_index=index)
        return logits[:, 0], cache

    def _step_of_beams(
        self, tokens: jax.Array, index: jax.Array, tree: PrefixTree
    ) -> tuple[jax.Array, PrefixTree]:
        """One token of every beam: those of an example are T of one row."""
        batch, beams, _ = tree.ancestors.shape
        ancestors = descend(tree, index)
        logits, cache = self._decode(
            tree.cache,
            tokens.reshape(batch, beams),
            None,
            cache_index=index * beams,
            positions=jnp.broadcast_to(index, (batch, beams)),
            mask=ancestry(ancestors, index),
        )
        return logits.reshape(batch * beams, -1), PrefixTree(cache, ancestors)

    def _spread(self, cache: Any, beams: int) -> PrefixTree:
        shape = (self._encoded.shape[0], beams, self._max_length)
        return PrefixTree(cache, jnp.zeros(shape, jnp.int32))

    def _decode(
        self, cache: Any, tokens: jax.Array, encoded: jax.Array | None, **how: Any
    ) -> tuple[jax.Array, Any]:
        """The logits after [B, T] tokens, one or more rows for a source, and the new cache."""
        rows = tokens.shape[0] // self._segment_ids.shape[0]
        variables = {"params": self._params} | ({"cache": cache} if cache else {})
        decoded, changed = self._apply(
            variables,
            tokens,
            encoded,
            jnp.repeat(self._segment_ids, rows, axis=0),
            **how,
            deterministic=True,
            method="decode_step",
            mutable=["cache"],
        )
        logits = self._apply({"params": self._params}, decoded, method="logits")
        return logits, changed["cache"]
