"""Attention by kernels: which calls they serve, and the plan that they need."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.export import is_symbolic_dim

from flaxattn.attention.blockwise import attended, prepared, share_blockwise
from flaxattn.attention.chunks import Fixed, Inputs, Setting
from flaxattn.attention.dense import attend_dense
from flaxattn.attention.fused.chip import chip, device_kind
from flaxattn.attention.fused.passes import kernels_of
from flaxattn.attention.fused.rules import tile_rule
from flaxattn.attention.options import Call, Options
from flaxattn.attention.scoring import halves
from flaxattn.masks import BlockPlan, Mask, full

__all__ = ["attend_fused", "draw_fused_plan", "is_proven", "share_fused", "why_not_fused"]


def attend_fused(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: Mask | BlockPlan | None,
    options: Options,
) -> tuple[jax.Array, jax.Array]:
    """The output [B, T, N, H'] and the float32 log-sum-exp [B, T, N], by kernels of the chip.

    A plan in blocks of other sizes is drawn anew.
    """
    if 0 in (*query.shape, *value.shape):
        return attend_dense(query, key, value, mask, options)
    return attended(*_by_plan(query, key, value, mask, options))


def share_fused(total: tuple[jax.Array, jax.Array], *call: *Call) -> tuple[jax.Array, jax.Array]:
    """`share_blockwise` with the kernels of the chip."""
    return share_blockwise(total, *call, by_plan=_by_plan)


def _by_plan(*call: *Call) -> tuple[Setting, Inputs, Fixed]:
    query, key, value, mask, options = call
    name, plan = chip(), mask
    assert name is not None
    if not isinstance(plan, BlockPlan):
        plan = draw_fused_plan(full() if plan is None else plan, query.shape[1], key.shape[1])
    elif (plan.block_q, plan.block_kv) != _sizes(plan.mask, plan.q_len, plan.kv_len):
        plan = draw_fused_plan(plan.mask, plan.q_len, plan.kv_len)
    has_mask = mask is not None
    return prepared(query, key, value, plan, options, has_mask=has_mask, kernels=name)


def draw_fused_plan(mask: Mask, q_len: int, kv_len: int) -> BlockPlan:
    """The plan of `mask` in the blocks of the kernels of the chip."""
    block_q, block_kv = _sizes(mask, q_len, kv_len)
    return mask.plan(q_len, kv_len, block_q=block_q, block_kv=block_kv)


def _sizes(mask: Mask, q_len: int, kv_len: int) -> tuple[int, int]:
    name = chip()
    assert name is not None
    sizes: tuple[int, int] = kernels_of(name).block_sizes(q_len, kv_len, mask.lead)
    return sizes


def why_not_fused(*call: *Call) -> str | None:
    """Why the kernels of the chip do not serve a call; None: they do."""
    query, key, value, mask, options = call
    if options.places is not None:
        return "a kernel drops weights by indices, and these stand at positions that are given"
    if any(is_symbolic_dim(n) for x in (query, key, value) for n in x.shape):
        return "a size is symbolic, and kernels need known ones"
    name = chip()
    if name is None:
        return f"there are kernels for Hopper GPUs and TPUs, and the device is {device_kind()}"
    widths = query.shape[3], value.shape[3]
    lengths = query.shape[1], key.shape[1]
    lead = mask.mask.lead if isinstance(mask, BlockPlan) else () if mask is None else mask.lead
    reason: str | None = kernels_of(name).why_not(query.dtype, widths, lengths, lead)
    return reason or _why_no_rule(*call)


def is_proven(*call: *Call) -> bool:
    """Whether kernels of the chip do all of a call, gradients too, and were timed on a device.

    Not gradients of wide heads, or beside a bias, which loops take longer for than the definition.
    """
    (query, _, value, _, options), name = call, chip()
    assert name is not None
    widest: int = kernels_of(name).WIDEST_WITH_GRADIENT
    return options.bias is None and max(query.shape[3], value.shape[3]) <= widest


def _why_no_rule(*call: *Call) -> str | None:
    """Why what tiles ask is not to be done in a kernel."""
    query, _, _, mask, options = call
    rule = mask.mask if isinstance(mask, BlockPlan) else full() if mask is None else mask
    own = options.for_heads(query.shape[2]).of_heads(query.shape[3], jnp.float32)
    arrays, tree = jax.tree.flatten((rule, own.score))
    return _why_no_rule_like(tree, tuple((x.shape, x.dtype) for x in arrays))


@functools.lru_cache(maxsize=256)
def _why_no_rule_like(
    tree: jax.tree_util.PyTreeDef, types: tuple[tuple[tuple[int, ...], np.dtype], ...]
) -> str | None:
    """The same of a mask and a score with arrays of given shapes and dtypes: values are not asked.

    Cached, so that a call outside of `jit` asks once.
    """
    reasons = list[str]()

    def ask(*arrays: jax.Array) -> None:
        mask, score = jax.tree.unflatten(tree, arrays)
        size = jnp.zeros((1, 1, 1, 1))
        none = jnp.zeros((0,), jnp.int32)
        fixed = Fixed(mask, none, none, none)
        inputs = Inputs(size, size, size, None, jnp.ones(1))
        setting = Setting(1, 1, 0.0, has_mask=True)
        rules = {"mask": tile_rule(setting, inputs, fixed, partial=True, derived=False)}
        if score is not None:
            some, others = halves(score, [True] * len(jax.tree.leaves(score)))
            inputs, fixed = inputs._replace(score=some), fixed._replace(score=others)
            rules["score"] = tile_rule(setting, inputs, fixed, partial=False, derived=True)
        reasons.extend(
            f"of the {name}: {rule.split.why_not}"
            for name, rule in rules.items()
            if rule.split.why_not
        )

    jax.eval_shape(ask, *(jax.ShapeDtypeStruct(*of) for of in types))
    return reasons[0] if reasons else None
