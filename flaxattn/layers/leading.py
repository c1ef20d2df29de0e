"""Inputs with any leading axes, `[..., T, D]`, as one batch `[B, T, D]`."""

import math
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from flaxattn import checks

__all__ = ["flat", "flat_key_value", "flat_logits", "flat_positions"]

T = TypeVar("T")


def flat(name: str, inputs: jax.Array, lead: tuple[int, ...]) -> jax.Array:
    """[*lead, T, D] -> [B, T, D]; ValueError where the leading axes are others."""
    if inputs.ndim < 2 or (len(lead) != 1 and inputs.shape[:-2] != lead):
        axes = ", ".join((*map(str, lead), "T", "D"))
        raise ValueError(f"{name} has shape {inputs.shape}; expected [{axes}].")
    return inputs if len(lead) == 1 else inputs.reshape(-1, *inputs.shape[-2:])


def flat_key_value(
    inputs_q: jax.Array,
    inputs_k: jax.Array | None,
    inputs_v: jax.Array | None,
    lead: tuple[int, ...],
) -> tuple[jax.Array, jax.Array]:
    """What keys and values are made of, [B, S, D] each; ValueError for what does not fit."""
    if inputs_k is None:
        if inputs_v is not None:
            raise ValueError("inputs_v is given without inputs_k; give what the keys are made of.")
        return inputs_q, inputs_q
    sizes = {"B": (inputs_q.shape[0], "inputs_q")}
    inputs_k = flat("inputs_k", inputs_k, lead)
    checks.check_axes("inputs_k", inputs_k, "B S D", sizes)
    if inputs_v is None:
        return inputs_k, inputs_k
    inputs_v = flat("inputs_v", inputs_v, lead)
    checks.check_axes("inputs_v", inputs_v, "B S D'", sizes)
    return inputs_k, inputs_v


def flat_positions(
    name: str, positions: jax.Array | None, lead: tuple[int, ...]
) -> jax.Array | None:
    """int [*lead, T] -> [B, T]; [1, T], which all share, stays; ValueError for other shapes."""
    if positions is None or len(lead) == 1 or (positions.ndim == 2 and positions.shape[0] == 1):
        return positions
    if positions.shape[:-1] != lead:
        axes = ", ".join((*map(str, lead), "T"))
        raise ValueError(f"{name} has shape {positions.shape}; expected [{axes}], or [1, T].")
    return positions.reshape(math.prod(lead), -1)


def flat_logits(name: str, array: T, lead: tuple[int, ...]) -> T | jax.Array:
    """A mask or bias [*lead, N, T, S], 1 where shared, -> [B, N, T, S]; what is no array stays.

    A single axis in front, and a mask [T, S], are as `attend` takes them. ValueError for others.
    """
    if len(lead) == 1 or not isinstance(array, jax.Array | np.ndarray):
        return array
    if name == "mask" and array.ndim == 2:
        return array
    front = array.shape[:-3]
    if len(front) != len(lead) or any(n not in (1, m) for n, m in zip(front, lead, strict=True)):
        axes = ", ".join((*map(str, lead), "N", "T", "S"))
        raise ValueError(f"{name} has shape {array.shape}; expected [{axes}], 1 where shared.")
    full = jnp.asarray(array)
    if any(n != 1 for n in front):
        full = jnp.broadcast_to(full, (*lead, *full.shape[-3:]))
    return full.reshape(-1, *full.shape[-3:])
