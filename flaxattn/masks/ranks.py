"""How many axes of the arrays of a rule of one's own belong to one example and head."""

import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
from jax.typing import ArrayLike

__all__ = ["Asked", "find_ranks"]


class Asked(NamedTuple):
    """What a rule is given before its arrays, and what it is to give."""

    name: str  # of the mask or score
    call: str  # how it is called, in words
    given: tuple[jax.ShapeDtypeStruct, ...]
    answer: str  # in words
    fits: Callable[[jax.ShapeDtypeStruct], bool]  # whether a single number is that


def find_ranks(
    asked: Asked,
    fn: Callable[..., ArrayLike],
    arrays: tuple[jax.Array | jax.ShapeDtypeStruct, ...],
    ranks: Sequence[int] | None,
) -> tuple[int, ...]:
    """The given ranks if `fn` accepts them; by default those that leave the fewest leading axes.

    Raises ValueError for ranks that do not fit the arrays, TypeError if `fn` gives something else.
    """
    name = asked.name
    if ranks is not None and len(ranks) != len(arrays):
        raise ValueError(f"{name}: ranks has {len(ranks)} entries for {len(arrays)} arrays.")
    for array, rank in zip(arrays, ranks or (), strict=False):
        if not rank <= array.ndim <= rank + 2:
            raise ValueError(
                f"{name}: ranks has {rank} for an array of shape {array.shape}; expected its rank "
                "for one example and head, leaving at most batch and head."
            )
    choices = [
        [rank] if ranks is not None else range(a.ndim, max(a.ndim - 3, -1), -1)
        for a, rank in zip(arrays, ranks or [0] * len(arrays), strict=True)
    ]
    answers = []
    for choice in sorted(itertools.product(*choices), key=sum, reverse=True):
        answer = _answer(asked, fn, arrays, choice)
        if isinstance(answer, jax.ShapeDtypeStruct) and answer.shape == () and asked.fits(answer):
            return tuple(choice)
        answers.append(answer)
    raise TypeError(
        f"{name}: {asked.call} must give {asked.answer}; with arrays of shapes "
        f"{[a.shape for a in arrays]} it gave {answers[0]}."
    )


def _answer(
    asked: Asked,
    fn: Callable[..., ArrayLike],
    arrays: tuple[jax.Array | jax.ShapeDtypeStruct, ...],
    ranks: Sequence[int],
) -> object:
    """The shape and dtype, or trees of such, that `fn` gives, or what it raises."""
    one = [
        jax.ShapeDtypeStruct(a.shape[a.ndim - r :], a.dtype)
        for a, r in zip(arrays, ranks, strict=True)
    ]
    try:
        answer: object = jax.eval_shape(fn, *asked.given, *one)
    except Exception as error:  # whatever fn raises, these ranks are not the right ones
        return error
    return answer
