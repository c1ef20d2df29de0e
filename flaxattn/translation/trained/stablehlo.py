"""The encoder and the decode step as StableHLO: programs that run without this package.

`jax.export` writes them for any batch and any length of source, and for CPU, CUDA and TPU at once.
They take the weights as an argument, by the names they have in `model.safetensors`, so that these
lie on disk once and one program serves every model of the same architecture.
"""

import contextlib
import functools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import export

from flaxattn.layers import CachePosition
from flaxattn.models import EncoderDecoder
from flaxattn.training.storage.weights import named, nested
from flaxattn.translation.config import DecodingConfig
from flaxattn.translation.initial import init_params
from flaxattn.translation.text.lengths import EXTRA
from flaxattn.types import PyTree

__all__ = ["LONGEST", "PLATFORMS", "Programs", "programs", "room"]

PLATFORMS = ("cpu", "cuda", "tpu")
LONGEST = 256  # tokens of a source: up to there the dense definition of attention serves
ROOM = 2  # cells for a translation: so many for each token of the source, or more, and EXTRA


class Programs(NamedTuple):
    """Two programs, as `jax.export.deserialize` reads them.

    The state that passes between them is a tree of arrays, each with the batch as its first axis:
    the keys and values of the source and of the target so far.
    """

    encode: bytes
    """(weights, source int32 [B, S]) -> (encoded [B, S, D], state)."""
    decode_step: bytes
    """(weights, state, tokens int32 [B], index int32 []) -> (logits float32 [B, V], state)."""


def room(decoding: DecodingConfig) -> int:
    """How many cells for each token of the source there are for a translation, and EXTRA more."""
    return max(ROOM, math.ceil(decoding.max_ratio or 0))


@functools.lru_cache(maxsize=8)
def programs(model: EncoderDecoder, bos_id: int, ratio: int = ROOM) -> Programs:
    """The programs of an architecture; parameters are theirs to be given.

    Args:
      ratio: the cells for a translation, as `room` says.

    Raises:
      ValueError if the package that writes them is missing.
    """
    batch, length = export.symbolic_shape("B, S", constraints=[f"S <= {LONGEST}"])
    weights = named(jax.eval_shape(lambda: init_params(model, 0)))
    source = jax.ShapeDtypeStruct((batch, length), jnp.int32)
    functions = _Functions(model, bos_id, ratio)
    _, state = jax.eval_shape(functions.encode, weights, source)
    tokens, index = jax.ShapeDtypeStruct((batch,), jnp.int32), jax.ShapeDtypeStruct((), jnp.int32)
    return Programs(
        _serialized(functions.encode, weights, source),
        _serialized(functions.decode_step, weights, state, tokens, index),
    )


class _Functions:
    """What the programs compute."""

    def __init__(self, model: EncoderDecoder, bos_id: int, ratio: int) -> None:
        self._apply: Any = functools.partial(model.apply, deterministic=True)
        self._logits: Any = functools.partial(model.apply, method="logits")
        self._pad_id, self._bos_id, self._ratio = model.pad_id, bos_id, ratio

    def encode(self, weights: Any, source: jax.Array) -> tuple[jax.Array, Any]:
        params, segment_ids = {"params": nested(weights)}, self._segment_ids(source)
        encoded = self._apply(params, source, segment_ids, method="encode")
        # The first decode step writes it again.
        begin = jnp.full((source.shape[0], 1), self._bos_id, jnp.int32)
        cells = self._ratio * source.shape[1] + EXTRA
        _, state = self._decode(params, source, begin, encoded, CachePosition(0, length=cells))
        return encoded, state

    def decode_step(
        self, weights: Any, state: Any, tokens: jax.Array, index: jax.Array
    ) -> tuple[jax.Array, Any]:
        params = {"params": nested(weights)}
        source, cache = state["source"], {"cache": state["cache"]}
        decoded, state = self._decode(
            params | cache, source, tokens[:, None], None, CachePosition(index)
        )
        return self._logits(params, decoded[:, 0]), state

    def _decode(
        self,
        variables: PyTree,
        source: jax.Array,
        tokens: jax.Array,
        encoded: jax.Array | None,
        cache_position: CachePosition,
    ) -> tuple[jax.Array, PyTree]:
        decoded, changed = self._apply(
            variables,
            tokens,
            encoded,
            self._segment_ids(source),
            cache_position=cache_position,
            method="decode_step",
            mutable=["cache"],
        )
        return decoded, {"source": source, "cache": changed["cache"]}

    def _segment_ids(self, source: jax.Array) -> jax.Array:
        return (source != self._pad_id).astype(jnp.int32)


def _serialized(fn: Any, *arguments: Any) -> bytes:
    with _no_source_locations():
        exported = export.export(jax.jit(fn), platforms=PLATFORMS)(*arguments)
    try:
        return bytes(exported.serialize())
    except ImportError as error:
        raise ValueError(f"to write StableHLO: pip install flatbuffers ({error}).") from error


@contextlib.contextmanager
def _no_source_locations() -> Iterator[None]:
    """Keeps the paths of this machine's source files out of a program."""
    option = "jax_traceback_in_locations_limit"
    before = getattr(jax.config, option)
    jax.config.update(option, 0)
    try:
        yield
    finally:
        jax.config.update(option, before)
