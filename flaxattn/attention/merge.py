"""Attention to parts of a sequence, put together exactly by the log-sum-exp of each row."""

import functools
from collections.abc import Iterable
from typing import TypeAlias

import jax
import jax.numpy as jnp

from flaxattn import checks
from flaxattn.attention.arguments import check_of_heads

__all__ = ["Part", "merge", "share"]

Part: TypeAlias = tuple[jax.Array, jax.Array]
"""What `attend_with_stats` gives: an output `[..., H']` and its log-sum-exp `[...]`."""


def merge(parts: Iterable[Part], *, sinks: float | jax.Array | None = None) -> Part:
    """Attention to all keys from attention to parts of them, each with its own log-sum-exp.

    The order of the parts does not matter, and merged parts can be merged again: a `jax.lax.scan`
    can begin with an output of zeros and a log-sum-exp of -inf, which is attention to no keys.

    Args:
      parts: pairs of an output `[B, T, N, H']` and its log-sum-exp `[B, T, N]`, as
        `attend_with_stats` gives them for the same queries and each part of the keys. Stacked ones
        are `zip(outputs, lses)`.
      sinks: as in `attend`, a logit or `[N]`, if no part has been given them: each counts once.

    Returns:
      The output in its dtype, summed up in that of the log-sum-exp, and the log-sum-exp of all
      parts. A row that sees nothing in a part takes nothing from it, whatever stands there; one
      that sees nothing in any is zero and -inf, with zero gradients. NaN in what is seen stays NaN.

    Raises:
      TypeError for what is no pair of floating arrays, ValueError for shapes that do not fit. Each
      names the part.

    >>> q = k = v = jnp.ones((1, 4, 2, 8))
    >>> parts = [attend_with_stats(q, k[:, i : i + 2], v[:, i : i + 2]) for i in (0, 2)]
    >>> output, lse = merge(parts)
    >>> bool(jnp.allclose(output, attend(q, k, v)))
    True
    """
    if not isinstance(parts, Iterable):
        kind = type(parts).__name__
        raise TypeError(f"parts is a {kind}; expected pairs of output and log-sum-exp.")
    outputs, lses = zip(*_checked(list(parts)), strict=True)
    if sinks is not None:
        check_of_heads("sinks", sinks, (1, *lses[0].shape)[-1])
    merged: Part = _merge(outputs, lses, sinks)
    return merged


def share(part: Part, total: Part) -> Part:
    """What has the derivatives of the total as far as these are a part's, the total being given.

    It is the mean of outputs, weighted by the exponentials of log-sum-exps, and these add up.
    """
    (output, lse), (of_all, all_lse) = part, total
    unseen = lse == -jnp.inf  # nothing flows back from there, not even NaN
    weight = jnp.exp(lse - jnp.where(unseen, 0.0, all_lse))
    return jnp.where(unseen[..., None], 0.0, weight[..., None] * (output - of_all)), weight


def _checked(parts: list[Part]) -> list[Part]:
    """The parts; errors name the one that is no pair, or that does not fit the first."""
    if not parts:
        raise ValueError("parts is empty; expected at least one pair of output and log-sum-exp.")
    for i, part in enumerate(parts):
        if not isinstance(part, tuple | list) or len(part) != 2:
            raise TypeError(
                f"parts[{i}] is a {type(part).__name__}; expected a pair, output and log-sum-exp."
            )
        for j in range(2):
            _check_like_first(f"[{j}]", i, part[j], parts[0][j])
    output, lse = parts[0]
    if output.shape[:-1] != lse.shape:
        raise ValueError(
            f"parts[0] has an output of shape {tuple(output.shape)} and a log-sum-exp of "
            f"{tuple(lse.shape)}; expected [..., H'] and [...]."
        )
    return parts


def _check_like_first(which: str, i: int, array: jax.Array, first: jax.Array) -> None:
    """Raises an error unless output or log-sum-exp of part `i` are floating as those of part 0."""
    checks.check_array(f"parts[{i}]{which}", array)
    checks.check_floating(f"parts[{i}]{which}", array)
    if array.shape != first.shape or array.dtype != first.dtype:
        raise ValueError(
            f"parts[{i}]{which} is {_described(array)}, but parts[0]{which} {_described(first)}; "
            "expected the same."
        )


def _described(array: jax.Array) -> str:
    return f"{array.dtype}{list(array.shape)}"


@jax.jit
def _merge(
    outputs: tuple[jax.Array, ...],
    lses: tuple[jax.Array, ...],
    sinks: float | jax.Array | None,
) -> Part:
    """The mean of the outputs, weighted by the exponentials of the log-sum-exps."""
    sees = functools.reduce(jnp.maximum, lses) != -jnp.inf
    if sinks is not None:  # a part whose values are zero
        sinks, rank = jnp.asarray(sinks, lses[0].dtype), lses[0].ndim
        sinks = sinks.reshape((*(1,) * (rank - 1), -1) if rank else ())
        outputs = (*outputs, jnp.zeros_like(outputs[0]))
        lses = (*lses, jnp.broadcast_to(sinks, lses[0].shape))
    top = jax.lax.stop_gradient(functools.reduce(jnp.maximum, lses))
    seen = top != -jnp.inf
    origin = jnp.where(seen, top, 0.0)
    powers = [_where_seen(lse, jnp.exp(_where_seen(lse, lse) - origin)) for lse in lses]
    total = jnp.where(seen, sum(powers), 1.0)
    mixed = jnp.zeros(outputs[0].shape, total.dtype)
    for output, lse, power in zip(outputs, lses, powers, strict=True):
        mixed += (power / total)[..., None] * _where_seen(lse[..., None], output).astype(
            total.dtype
        )
    # From a row that sees nothing nothing flows back, not even NaN.
    output = jnp.where(sees[..., None], mixed, 0.0).astype(outputs[0].dtype)
    return output, jnp.where(seen, origin + jnp.log(total), -jnp.inf)


def _where_seen(lse: jax.Array, x: jax.Array) -> jax.Array:
    """`x` of the rows that see something, 0 of the others."""
    return jnp.where(lse == -jnp.inf, 0.0, x)
