"""Parameters that training leaves as they are, named by path."""

import fnmatch
from collections.abc import Sequence
from typing import TYPE_CHECKING

import jax

from flaxattn.training.trees import Params
from flaxattn.types import PyTree

if TYPE_CHECKING:
    import optax

__all__ = ["freeze", "held", "labels", "matches", "path_of"]


def freeze(
    optimizer: "optax.GradientTransformation", patterns: Sequence[str], params: Params
) -> "optax.GradientTransformation":
    """`optimizer` for all parameters but those whose path a pattern matches; these never change.

    Args:
      patterns, params: as in `labels`, which says what it raises.
    """
    if not patterns:
        return optimizer
    import optax  # so late that what trains nothing does not wait for it

    parts = {"trained": optimizer, "frozen": optax.set_to_zero()}
    return optax.multi_transform(parts, labels(params, patterns))


def labels(params: Params, patterns: Sequence[str]) -> PyTree:
    """The tree of parameters with "frozen" or "trained" in the place of each.

    Args:
      patterns: of paths such as `encoder/layer_0/feed_forward/wi/kernel`, with `*` for anything;
        the start of a path stands for all below it, so that `encoder` is the whole encoder.

    Raises:
      ValueError if a pattern matches nothing, or all is frozen.

    >>> labels({"encoder": {"wi": 1, "wo": 2}, "norm": 3}, ["*/wo", "norm"])
    {'encoder': {'wi': 'trained', 'wo': 'frozen'}, 'norm': 'frozen'}
    """
    paths = [path_of(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    for pattern in patterns:
        if not any(matches(path, pattern) for path in paths):
            raise ValueError(
                f"--freeze: no parameter matches {pattern!r}; the paths begin with "
                f"{', '.join(sorted({path.split('/')[0] for path in paths}))}, and --dry-run shows "
                "them all."
            )
    if all(_frozen(path, patterns) for path in paths):
        raise ValueError("--freeze: nothing would be left to train; freeze fewer parameters.")
    return jax.tree_util.tree_map_with_path(
        lambda path, _: "frozen" if _frozen(path_of(path), patterns) else "trained", params
    )


def held(params: Params, patterns: Sequence[str]) -> Params:
    """The same parameters, with no gradient in those that a pattern matches, as in `labels`."""

    def of(path: jax.tree_util.KeyPath, x: jax.Array) -> jax.Array:
        return jax.lax.stop_gradient(x) if _frozen(path_of(path), patterns) else x

    return jax.tree_util.tree_map_with_path(of, params)


def path_of(path: jax.tree_util.KeyPath, separator: str = "/") -> str:
    """A path of `jax.tree_util` as text: `encoder/layer_0/...`."""
    return separator.join(str(getattr(key, "key", key)) for key in path)


def matches(path: str, pattern: str) -> bool:
    """Whether a path is one that a pattern stands for, as in `labels`."""
    pattern = pattern.rstrip("/")
    return fnmatch.fnmatchcase(path, pattern) or fnmatch.fnmatchcase(path, f"{pattern}/*")


def _frozen(path: str, patterns: Sequence[str]) -> bool:
    return any(matches(path, pattern) for pattern in patterns)
