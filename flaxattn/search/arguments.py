"""What a search is given, checked before anything is computed; errors name the argument."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from flaxattn import checks
from flaxattn.search.hypotheses import Rules

__all__ = ["check_count", "check_ids", "check_keys", "check_range", "check_state", "make_rules"]


def make_rules(
    batch: int,
    *,
    bos_id: int,
    eos_id: int,
    pad_id: int,
    max_length: int,
    limits: Any,
    minimums: Any,
    length_penalty: Any,
) -> Rules:
    """The rules that the arguments of these names state.

    Raises:
      TypeError or ValueError naming the argument.
    """
    check_count("batch", batch)
    check_count("max_length", max_length)
    check_range("length_penalty", length_penalty)
    for name, token in (("bos_id", bos_id), ("eos_id", eos_id), ("pad_id", pad_id)):
        if not checks.is_static(token) or token < 0:
            raise ValueError(f"{name} is {token!r}; expected a token's id, 0 or more, as an int.")
    longest = _per_example("limits", limits, batch, max_length)
    return Rules(
        bos_id=bos_id,
        eos_id=eos_id,
        pad_id=pad_id,
        max_length=max_length,
        exponent=length_penalty,
        limits=jnp.clip(longest, 0, max_length),
        minimums=_per_example("minimums", minimums, batch, 0),
    )


def check_count(name: str, value: Any, most: int | None = None) -> None:
    """Raises unless `value` is a static integer from 1 to `most`."""
    if not checks.is_static(value):
        raise TypeError(f"{name} is {value!r}; expected an int that is known while tracing.")
    if value < 1 or (most is not None and value > most):
        raise ValueError(
            f"{name} is {value}; expected 1 or more" + (f", at most {most}." if most else ".")
        )


def check_range(
    name: str, value: Any, *, least: float = 0.0, most: float = math.inf, open_below: bool = False
) -> None:
    """Raises ValueError unless `value` is a finite number in its range; traced ones pass."""
    if jnp.ndim(value) != 0:
        raise ValueError(f"{name} has shape {jnp.shape(value)}; expected a single number.")
    if isinstance(value, jax.core.Tracer):
        return
    inside = (least < value if open_below else least <= value) and value <= most
    if not inside or not math.isfinite(value):
        lower = f"above {least}" if open_below else f"{least} or more"
        upper = f", at most {most}" if math.isfinite(most) else ""
        raise ValueError(f"{name} is {value}; expected a finite number, {lower}{upper}.")


def check_ids(rules: Rules, vocab_size: int) -> None:
    """Raises ValueError if a special token is not in the vocabulary."""
    largest = max(rules.bos_id, rules.eos_id, rules.pad_id)
    if largest >= vocab_size:
        raise ValueError(
            f"step gave logits of V = {vocab_size} tokens, but one of bos_id, eos_id and pad_id is "
            f"{largest}; expected ids below V."
        )


def check_keys(keys: Any, batch: int) -> jax.Array:
    """The keys [B] as typed ones; raises TypeError or ValueError if they are something else."""
    if not hasattr(keys, "dtype"):
        raise TypeError(f"keys is a {type(keys).__name__}; expected an array of keys.")
    if not jnp.issubdtype(keys.dtype, jax.dtypes.prng_key):
        keys = jax.random.wrap_key_data(keys)
    checks.check_axes("keys", keys, "B", {"B": (batch, "batch")})
    return keys


def check_state(state: Any, batch: int) -> Any:
    """The state with its leaves as arrays; raises ValueError unless all are [B, ...]."""
    state = jax.tree.map(jnp.asarray, state)
    for path, leaf in jax.tree.leaves_with_path(state):
        if leaf.ndim == 0 or leaf.shape[0] != batch:
            raise ValueError(
                f"state{jax.tree_util.keystr(path)} has shape {leaf.shape}; "
                f"expected a leading axis of batch = {batch}."
            )
    return state


def _per_example(name: str, values: Any, batch: int, default: int) -> jax.Array:
    if values is None:
        return jnp.full((batch,), default, jnp.int32)
    values = jnp.asarray(values)
    checks.check_integer(name, values)
    checks.check_axes(name, values, "B", {"B": (batch, "batch")})
    return values.astype(jnp.int32)
