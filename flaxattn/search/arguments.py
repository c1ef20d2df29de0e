"""What a search is given, checked before anything is computed; errors name the argument."""

import math

import jax
import jax.numpy as jnp

from flaxattn import checks
from flaxattn.search.decode_step import State
from flaxattn.search.rules import Groups, Lengths, Rules, SpecialTokens
from flaxattn.types import Array

__all__ = [
    "check_count",
    "check_groups",
    "check_ids",
    "check_keys",
    "check_range",
    "check_state",
    "make_rules",
]


def make_rules(batch_size: int, special_tokens: SpecialTokens, lengths: Lengths) -> Rules:
    """The rules that these arguments of every search state.

    Raises:
      TypeError or ValueError naming the argument.
    """
    check_count("batch_size", batch_size)
    for name, kind, given in (
        ("special_tokens", SpecialTokens, special_tokens),
        ("lengths", Lengths, lengths),
    ):
        if not isinstance(given, kind):
            raise TypeError(f"{name} is a {type(given).__name__}; expected {kind.__name__}(...).")
    check_range("length_penalty", lengths.length_penalty)
    for name, token in special_tokens._asdict().items():
        if not checks.is_static(token) or token < 0:
            raise ValueError(f"{name} is {token!r}; expected a token's id, 0 or more, as an int.")
    padded_length = _padded_length(lengths)
    max_length = _per_example("max_length", lengths.max_length, batch_size)
    return Rules(
        special_tokens=special_tokens,
        padded_length=padded_length,
        max_length=jnp.clip(max_length, 0, padded_length),
        min_length=_per_example("min_length", lengths.min_length, batch_size),
        length_penalty=lengths.length_penalty,
    )


def check_count(name: str, value: int, most: int | None = None) -> None:
    """Raises unless `value` is a static integer from 1 to `most`."""
    if not checks.is_static(value):
        raise TypeError(f"{name} is {value!r}; expected an int that is known while tracing.")
    if value < 1 or (most is not None and value > most):
        raise ValueError(
            f"{name} is {value}; expected 1 or more" + (f", at most {most}." if most else ".")
        )


def check_groups(groups: Groups, beam_size: int) -> None:
    """Raises unless the beams fall into groups of one size, with a finite diversity."""
    check_count("groups.number", groups.number, most=beam_size)
    if beam_size % groups.number:
        raise ValueError(
            f"groups.number is {groups.number}; expected one that divides beam_size, {beam_size}."
        )
    check_range("groups.diversity", groups.diversity)


def check_range(
    name: str,
    value: float | Array,
    *,
    least: float = 0.0,
    most: float = math.inf,
    open_below: bool = False,
) -> None:
    """Raises ValueError unless `value` is a finite number in its range; traced ones pass."""
    if jnp.ndim(value) != 0:
        raise ValueError(f"{name} has shape {jnp.shape(value)}; expected a single number.")
    if isinstance(value, jax.core.Tracer):
        return
    number = float(value)
    inside = (least < number if open_below else least <= number) and number <= most
    if not inside or not math.isfinite(number):
        lower = f"above {least}" if open_below else f"{least} or more"
        upper = f", at most {most}" if math.isfinite(most) else ""
        raise ValueError(f"{name} is {value}; expected a finite number, {lower}{upper}.")


def check_ids(special_tokens: SpecialTokens, vocab_size: int) -> None:
    """Raises ValueError if a special token is not in the vocabulary."""
    if max(special_tokens) >= vocab_size:
        raise ValueError(
            f"decode_step gave logits of V = {vocab_size} tokens, but one of bos_id, eos_id and "
            f"pad_id is {max(special_tokens)}; expected ids below V."
        )


def check_keys(keys: jax.Array, batch_size: int) -> jax.Array:
    """The keys [B] as typed ones; raises TypeError or ValueError if they are something else."""
    if not hasattr(keys, "dtype"):
        raise TypeError(f"keys is a {type(keys).__name__}; expected an array of keys.")
    if not jnp.issubdtype(keys.dtype, jax.dtypes.prng_key):
        keys = jax.random.wrap_key_data(keys)
    checks.check_axes("keys", keys, "B", {"B": (batch_size, "batch_size")})
    return keys


def check_state(state: State, batch_size: int) -> State:
    """The state with its leaves as arrays; raises ValueError unless all are [B, ...]."""
    state = jax.tree.map(jnp.asarray, state)
    for path, leaf in jax.tree.leaves_with_path(state):
        if leaf.ndim == 0 or leaf.shape[0] != batch_size:
            raise ValueError(
                f"state{jax.tree_util.keystr(path)} has shape {leaf.shape}; "
                f"expected a leading axis of batch_size = {batch_size}."
            )
    return state


def _padded_length(lengths: Lengths) -> int:
    """T, which is known while tracing."""
    if lengths.padded_length is not None:
        check_count("padded_length", lengths.padded_length)
        return lengths.padded_length
    if not checks.is_static(lengths.max_length):
        raise TypeError(
            f"max_length is {lengths.max_length!r}; expected an int, or beside an array an int for "
            "padded_length, the length of the results."
        )
    length = int(lengths.max_length)
    check_count("max_length", length)
    return length


def _per_example(name: str, value: int | Array, batch_size: int) -> jax.Array:
    """int32 [B] of one number for all, or of one for each."""
    array = jnp.asarray(value)
    checks.check_integer(name, array)
    if array.ndim == 0:
        return jnp.full((batch_size,), array, jnp.int32)
    checks.check_axes(name, array, "B", {"B": (batch_size, "batch_size")})
    return array.astype(jnp.int32)
