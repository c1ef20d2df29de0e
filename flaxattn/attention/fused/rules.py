"""What a tile of logits asks: the score, the mask and dropout, as one rule that a kernel can do."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from flaxattn.attention.chunks import Fixed, Inputs, Setting, bias_of
from flaxattn.attention.dropout import keep_pair
from flaxattn.attention.fused.split import Split, split
from flaxattn.attention.fused.tables import taken_out, told
from flaxattn.attention.scoring import whole
from flaxattn.masks import Mask
from flaxattn.types import Array, PyTree

__all__ = ["Answers", "TileRule", "led", "tile_rule"]


class Answers(NamedTuple):
    """What becomes of a logit; None: what there is none of."""

    logit: jax.Array | None = None
    """After the score."""
    slope: jax.Array | None = None
    """The derivative of that by the logit; None: one."""
    seen: jax.Array | None = None
    """bool; None: always."""
    kept: jax.Array | None = None
    """bool, by dropout."""


class TileRule(NamedTuple):
    """A rule of a logit and two indices, and the arrays that it reads."""

    split: Split
    names: tuple[str, ...]
    """Those of `Answers` that it gives."""
    arrays: list[jax.Array]
    """[b, n, ...] each, 1 where shared."""
    tables: list[jax.Array]
    """[b, n, T, S] each, of which a tile reads its own: a bias, and masks that are given whole.

    Those of full tiles are the first of those of partial ones.
    """

    def answers(self, tiles: list[jax.Array]) -> Answers:
        """What `Split.tile` gave, by name."""
        return Answers(**dict(zip(self.names, tiles, strict=True)))


def tile_rule(
    setting: Setting, inputs: Inputs, fixed: Fixed, *, partial: bool, derived: bool
) -> TileRule:
    """The rule of tiles that hold hidden pairs, or of full ones.

    Args:
      setting, inputs, fixed: of the pass.
      partial: whether anything may be hidden.
      derived: whether the derivative of the score is asked for.
    """
    # Where kernels repair tiles, what is seen and not finite is NaN by itself; scores may lose it.
    added = not setting.marked or (inputs.score is not None and not derived)
    arrays, tables = _arrays(inputs, fixed, partial, added=added)
    leaves, tree = jax.tree.flatten(arrays)
    q_len, kv_len, names = inputs.query.shape[1], inputs.key.shape[1], list[str]()

    def rule(logit: jax.Array, *given: jax.Array) -> list[jax.Array]:
        pair, (q_idx, kv_idx, *leaves) = given[: len(tables)], given[len(tables) :]
        own = jax.tree.unflatten(tree, leaves)
        biased = logit
        if bias_of(inputs, fixed) is not None:
            biased += _of_pair(own["bias"], q_idx, kv_idx) if "bias" in own else pair[0]
        found = _scored(own, biased, q_idx, kv_idx)
        if partial:
            own["mask"] = told(own["mask"], pair)
            found = found._replace(seen=_seen(setting, own, q_idx, kv_idx, kv_len))
        if derived and "score" in own and q_len % setting.block_q:
            inside = q_idx < q_len  # nobody is to see the score of what stands past the last query
            found = found._replace(seen=inside if found.seen is None else found.seen & inside)
        if "seeds" in own:
            found = found._replace(kept=keep_pair(own["seeds"], q_idx, kv_idx, setting.rate))
        if not derived:
            found = found._replace(slope=None)
        answers = {k: x for k, x in found._asdict().items() if x is not None and x is not logit}
        names[:] = answers
        return list(answers.values())

    dtypes = [jnp.float32, *(x.dtype if x.dtype == bool else jnp.float32 for x in tables)]
    shapes = [jax.ShapeDtypeStruct(x.shape[2:], x.dtype) for x in leaves]
    parts = split(rule, dtypes, shapes, _names(arrays))
    named = [
        (name, out)
        for i, (name, out) in enumerate(zip(names, parts.outputs, strict=True))
        if name == "logit" or parts.constant(i) != 1.0  # a slope of one, or always seen or kept
    ]
    parts = dataclasses.replace(parts, outputs=[out for _, out in named])
    return TileRule(parts, tuple(name for name, _ in named), leaves, tables)


def _arrays(
    inputs: Inputs, fixed: Fixed, partial: bool, *, added: bool
) -> tuple[dict[str, PyTree], list[jax.Array]]:
    """What a rule reads, [b, n, ...] each, 1 where shared; and tables, that of a bias first.

    `added`: whether NaN is added to logits of what is not finite.
    """
    arrays: dict[str, PyTree] = {}
    tables = list[Array]()
    bias = bias_of(inputs, fixed)
    if bias is not None and 1 in bias.shape[2:]:
        arrays["bias"] = bias
    elif bias is not None:
        tables.append(bias)
    if partial:
        arrays["mask"] = taken_out(_all_led(fixed.mask), tables)
    if inputs.score is not None and fixed.score is not None:
        arrays["score"] = whole(inputs.score, fixed.score)
    if fixed.seeds is not None:
        arrays["seeds"] = fixed.seeds
    if partial and fixed.q_nan is not None and fixed.kv_nan is not None and added:
        group = fixed.q_nan.shape[2] // fixed.kv_nan.shape[2]
        arrays["q_nan"] = fixed.q_nan.swapaxes(1, 2)
        arrays["kv_nan"] = jnp.repeat(fixed.kv_nan, group, axis=2).swapaxes(1, 2)
    return arrays, [*map(jnp.asarray, tables)]


def _scored(
    own: dict[str, PyTree], logit: jax.Array, q_idx: jax.Array, kv_idx: jax.Array
) -> Answers:
    """The logit after the score, NaN where something is not finite, and its slope."""
    found = Answers(logit)
    if "score" in own:
        score, one = own["score"], jnp.ones_like(logit)
        found = Answers(*jax.jvp(lambda x: score(x, q_idx, kv_idx), (logit,), (one,)))
    if "q_nan" in own and found.logit is not None:
        nan = own["q_nan"][q_idx] + own["kv_nan"][kv_idx]
        found = found._replace(logit=found.logit + nan)
    return found


def _of_pair(bias: jax.Array, q_idx: jax.Array, kv_idx: jax.Array) -> jax.Array:
    """That of a pair, of [T, S] with an axis of 1."""
    t, s = (i if size > 1 else 0 for i, size in zip((q_idx, kv_idx), bias.shape, strict=True))
    return bias[t, s].astype(jnp.float32)


def _seen(
    setting: Setting, own: dict[str, PyTree], q_idx: jax.Array, kv_idx: jax.Array, kv_len: int
) -> jax.Array:
    """What the mask says; keys past the last are hidden."""
    seen = jnp.asarray(own["mask"](q_idx, kv_idx)) if setting.has_mask else None
    if kv_len % setting.block_kv == 0 and seen is not None:
        return seen
    inside = kv_idx < kv_len
    return inside if seen is None else seen & inside


def _names(arrays: dict[str, PyTree]) -> list[str]:
    """What the leaves of the arrays are called, in the order of `jax.tree.leaves`."""
    names = []
    for key, own in sorted(arrays.items()):
        names += [leaf.name for leaf in own.leaves()] if hasattr(own, "leaves") else [key]
    return names


def _all_led(mask: Mask) -> Mask:
    """The same with all its arrays `led`."""
    leads = [len(leaf.lead) for leaf in mask.leaves()]
    arrays, structure = jax.tree.flatten(mask)
    with_both: Mask = jax.tree.unflatten(structure, map(led, map(jnp.asarray, arrays), leads))
    return with_both


def led(x: jax.Array, lead: int) -> jax.Array:
    """An array with both leading axes, of examples and of heads, of which it has `lead`."""
    return x.reshape(*x.shape[:lead], *(1,) * (2 - lead), *x.shape[lead:])
