"""Attention weights that the modules of any linen model have sown, as `Attention`s."""

import fnmatch
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from flaxattn.explorer.seen import Attention

__all__ = ["NAME", "Labels", "attentions"]

NAME = "attention_weights"  # as MultiHeadAttention sows them, and those of flax do


class Labels(NamedTuple):
    """The tokens that are the rows and columns of some attentions; see `Attention`."""

    q_tokens: Sequence[str]
    kv_tokens: Sequence[str] | None = None
    """None: `q_tokens`."""
    mask: ArrayLike | None = None
    """bool `[T, S]` or `[N, T, S]`, at least as long as the tokens."""
    q_writes: Sequence[str] | None = None


class _Sown(NamedTuple):
    path: str
    kind: str
    number: int  # the last one in the path
    call: int  # which of the module's calls in one pass
    weights: object


def attentions(
    intermediates: Mapping[str, object],
    labels: Mapping[str, Labels] | None = None,
    *,
    example: int = 0,
) -> list[Attention]:
    """The attentions in an "intermediates" collection, of one example, in the order of the tree.

    The kind of an attention is its module's path less the last number in it, which is the layer:
    "encoder/layer_1/self_attention" is layer 1 of "encoder/layer/self_attention". A module that is
    called several times in one pass, as shared layers are, stands for several layers.

    Args:
      intermediates: the tree that `apply(..., mutable=["intermediates"])` returns, in which weights
        are called "attention_weights", each `[B, N, T, S]`.
      labels: by pattern of path, the first match counting, e.g. {"encoder/*":
        Labels(source), "*/cross_attention": Labels(target, source), "*": Labels(target)}.
        None: positions. Rows and columns beyond the tokens, which are padding, are left out.
      example: which of the batch.

    Raises:
      ValueError if nothing was sown, no pattern matches, or arrays are shorter than their tokens.

    >>> layer, x = MultiHeadAttention(num_heads=2), jnp.ones((1, 3, 8))
    >>> variables = layer.init(jax.random.key(0), x, deterministic=True)
    >>> _, state = layer.apply(
    ...     variables, x, sow_weights=True, deterministic=True, mutable=["intermediates"]
    ... )
    >>> (seen,) = attentions(state["intermediates"], {"*": Labels(["I", "see", "it"])})
    >>> seen.kind, seen.weights.shape
    ('attention', (2, 3, 3))
    """
    found = list(_walk(intermediates, ""))
    if not found:
        raise ValueError(
            f'intermediates hold no "{NAME}"; call apply(..., sow_weights=True, '
            'mutable=["intermediates"]) and give state["intermediates"].'
        )
    counts: dict[str, int] = {}  # of modules of one kind
    for sown in found:
        counts[sown.kind] = max(counts.get(sown.kind, 0), sown.number + 1)
    return [_seen(sown, labels, example, counts[sown.kind]) for sown in found]


def _walk(tree: Mapping[str, object], path: str) -> Iterator[_Sown]:
    for name in sorted(tree, key=_natural):
        value = tree[name]
        if isinstance(value, Mapping):
            yield from _walk(value, f"{path}/{name}" if path else name)
        elif name == NAME:
            kind, number = _split(path)
            calls = value if isinstance(value, tuple) else (value,)
            yield from (_Sown(path, kind, number, i, x) for i, x in enumerate(calls))


def _natural(name: str) -> list[int | str]:
    """Sorts layer_10 after layer_9."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def _split(path: str) -> tuple[str, int]:
    """A path less its last number, and that number, 0 if there is none."""
    numbers = list(re.finditer(r"_?(\d+)(?=/|$)", path))
    if not numbers:
        return path or "attention", 0
    last = numbers[-1]
    return (path[: last.start()] + path[last.end() :]).strip("/") or "attention", int(last[1])


def _seen(
    sown: _Sown, labels: Mapping[str, Labels] | None, example: int, modules: int
) -> Attention:
    name = (sown.path or "attention") + (f" (call {sown.call})" if sown.call else "")
    weights = np.asarray(sown.weights)
    if weights.ndim != 4 or not 0 <= example < len(weights):
        raise ValueError(
            f"{name}: weights have shape {weights.shape}; expected [B, N, T, S] with B above "
            f"example = {example}."
        )
    q_tokens, kv_tokens, mask, q_writes = _labels_of(sown.path, labels, weights.shape)
    cut = (..., slice(len(q_tokens)), slice(len(kv_tokens)))
    return Attention(
        name,
        q_tokens,
        kv_tokens,
        weights[example][cut],
        None if mask is None else np.asarray(mask)[cut],
        kind=sown.kind,
        layer=sown.call * modules + sown.number,
        q_writes=q_writes,
    )


def _labels_of(
    path: str, labels: Mapping[str, Labels] | None, shape: tuple[int, ...]
) -> tuple[Sequence[str], Sequence[str], ArrayLike | None, Sequence[str] | None]:
    if labels is None:
        queries, positions = (list(map(str, range(n))) for n in shape[2:])
        return queries, positions, None, None
    for pattern, given in labels.items():
        if fnmatch.fnmatchcase(path, pattern):
            keys = given.q_tokens if given.kv_tokens is None else given.kv_tokens
            return given.q_tokens, keys, given.mask, given.q_writes
    raise ValueError(
        f"labels: no pattern matches {path!r}; there are {', '.join(map(repr, labels)) or 'none'}. "
        'The pattern "*" matches all.'
    )
