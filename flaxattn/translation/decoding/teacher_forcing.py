"""One pass over sources and their given translations: what the model makes of each token."""

from typing import Any

import jax
import jax.numpy as jnp

from flaxattn.models import EncoderDecoder, shift_right
from flaxattn.training.trees import Params
from flaxattn.types import PyTree

__all__ = ["teacher_forced"]


def teacher_forced(
    model: EncoderDecoder,
    params: Params,
    source: jax.Array,
    target: jax.Array,
    *,
    bos_id: int,
    sow_weights: bool,
) -> tuple[jax.Array, PyTree]:
    """The logits of each token after those before it, and the tree of sown attention weights.

    Args:
      source, target: int `[B, S]` and `[B, T]`, padded with the model's `pad_id`.

    Returns:
      float32 `[B, T, V]`; the tree is empty without `sow_weights`.
    """
    source_ids, target_ids = ((x != model.pad_id).astype(jnp.int32) for x in (source, target))
    apply: Any = model.apply
    logits, state = apply(
        {"params": params},
        source,
        shift_right(target, target_ids, bos_id),
        source_segment_ids=source_ids,
        target_segment_ids=target_ids,
        sow_weights=sow_weights,
        deterministic=True,
        mutable=["intermediates"],
    )
    return logits, state.get("intermediates", {})
