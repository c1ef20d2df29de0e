"""What a search asks of a model: a function that reads one token of every row."""

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp

__all__ = [
    "DecodeStep",
    "State",
    "call_decode_step",
    "log_normaliser",
    "repeat_rows",
    "take_rows",
]

State = TypeVar("State")
"""What a model remembers of the tokens it has read: a tree of arrays."""

DecodeStep = Callable[[jax.Array, jax.Array, State], tuple[jax.Array, State]]
"""`decode_step(tokens, index, state) -> (logits, state)`: a model reads one token of every row.

tokens: int32 `[R]`; index: int32 `[]`, which token of its sequence each is: 0 for `bos_id`;
state: a pytree whose leaves have a leading axis R; logits: floating `[R, V]`, of the next token.
With n rows to an example, R = B * n and those of an example stand together: r // n is its number.
"""


def call_decode_step(
    decode_step: DecodeStep[State], tokens: jax.Array, index: jax.Array, state: State
) -> tuple[jax.Array, State]:
    """Calls it and checks what comes back: float32 logits [R, V] and the state.

    Raises:
      ValueError or TypeError if the logits are not floating [R, V] or the state changed its shape.
    """
    logits, new_state = decode_step(tokens, index, state)
    if logits.ndim != 2 or logits.shape[0] != tokens.shape[0]:
        raise ValueError(
            f"decode_step gave logits of shape {logits.shape}; expected [R, V] with R = "
            f"{tokens.shape[0]} rows, as many as tokens."
        )
    if not jnp.issubdtype(logits.dtype, jnp.floating):
        raise TypeError(
            f"decode_step gave logits of dtype {logits.dtype}; expected a floating dtype."
        )
    before, after = (jax.tree.map(_shape_and_dtype, x) for x in (state, new_state))
    if jax.tree.flatten(before) != jax.tree.flatten(after):
        raise ValueError(
            f"decode_step was given a state of {before} but gave back {after}; expected the same "
            "structure, shapes and dtypes."
        )
    return logits.astype(jnp.float32), new_state


def log_normaliser(logits: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(top, rest), each [..., 1], such that log_softmax(logits) = (logits - top) - rest.

    `top` or `rest` is not finite exactly where no log-probability can be computed.
    """
    top = logits.max(axis=-1, keepdims=True)
    return top, jnp.log(jnp.exp(logits - top).sum(axis=-1, keepdims=True))


def repeat_rows(tree: State, times: int) -> State:
    """Every leaf [B, ...] -> [B * times, ...], the rows of an example beside each other."""
    return jax.tree.map(lambda x: jnp.repeat(x, times, axis=0), tree)


def take_rows(tree: State, rows: jax.Array) -> State:
    """Every leaf x [R, ...] -> x[rows]."""
    return jax.tree.map(lambda x: x[rows], tree)


def _shape_and_dtype(x: jax.Array) -> str:
    return f"{jnp.result_type(x)}{list(jnp.shape(x))}"
