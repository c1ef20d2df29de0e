"""Attention over the live blocks of a plan, with memory that grows with T + S, on any backend.

The forward pass and its derivatives are operations of jax, which stay what they are under all its
transformations: see `passes.py` for the mathematics and `operation.py` for the rules.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from flaxattn.attention.axes import (
    OUTPUT_AXES,
    QKV_AXES,
    Axes,
    head_axes,
    lead_axes,
    mask_axes,
    tree_axes,
)
from flaxattn.attention.chunks import Fixed, Inputs, Setting
from flaxattn.attention.costs import draw_plan
from flaxattn.attention.dense import attend_dense, softmax_dtype
from flaxattn.attention.fused import passes as fused
from flaxattn.attention.fused.chip import platform_of
from flaxattn.attention.merge import share
from flaxattn.attention.operation import Operation, Pass, bind
from flaxattn.attention.options import Call, Options
from flaxattn.attention.passes import backward, forward, tangents
from flaxattn.attention.placement import Flat
from flaxattn.attention.repair import marked, repair
from flaxattn.attention.residuals import Outputs, Residuals
from flaxattn.attention.scoring import halves, whole
from flaxattn.masks import BlockPlan, Mask, full
from flaxattn.types import PyTree
from flaxattn.varying import varying_like

__all__ = ["attend_blockwise", "attended", "prepared", "share_blockwise"]


def attend_blockwise(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: Mask | BlockPlan | None,
    options: Options,
) -> tuple[jax.Array, jax.Array]:
    """The output [B, T, N, H'] and the float32 log-sum-exp [B, T, N] of attention by blocks.

    Without a mask nothing can be hidden, and values that are not finite are not looked for.
    """
    if 0 in (*query.shape, *value.shape):  # there are no blocks; dense returns at once
        return attend_dense(query, key, value, mask, options)
    return attended(*_by_plan(query, key, value, mask, options))


def _by_plan(*call: *Call) -> tuple[Setting, Inputs, Fixed]:
    query, key, value, mask, options = call
    plan = mask
    if not isinstance(plan, BlockPlan):
        plan = draw_plan(full() if plan is None else plan, query.shape[1], key.shape[1])
    return prepared(query, key, value, plan, options, has_mask=mask is not None)


def share_blockwise(
    total: tuple[jax.Array, jax.Array],
    *call: *Call,
    by_plan: Callable[..., tuple[Setting, Inputs, Fixed]] = _by_plan,
) -> tuple[jax.Array, jax.Array]:
    """What has the derivatives of `merge.share`, without the part being computed once more."""
    query, _, value, *_ = call
    if 0 in (*query.shape, *value.shape):
        return share(attend_dense(*call), total)
    output, lse = _share(*by_plan(*call), Outputs(*total))
    return output, lse


def attended(setting: Setting, inputs: Inputs, fixed: Fixed) -> tuple[jax.Array, jax.Array]:
    """The output, in the dtype of the query or wide, and the log-sum-exp, by `prepared`."""
    output, lse = _attend(setting, inputs, fixed)
    output, sinks = output if setting.wide else output.astype(inputs.query.dtype), inputs.sinks
    # Of a row that sees nothing the sink is all there is; until here -inf tells which these are.
    return output, lse if sinks is None else jnp.where(lse == -jnp.inf, sinks[None, None], lse)


def prepared(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    plan: BlockPlan,
    options: Options,
    *,
    has_mask: bool,
    kernels: str | None = None,
) -> tuple[Setting, Inputs, Fixed]:
    """What the passes are given: over the blocks of a plan, by loops or the kernels of a chip."""
    dtype = softmax_dtype(query.dtype)
    in_tiles = has_mask and kernels is not None and fused.kernels_of(kernels).REPAIRS
    blocks, num_full, num_live = (jnp.asarray(x) for x in plan.live)
    fixed = Fixed(jax.tree.map(jnp.asarray, plan.mask), blocks, num_full, num_live)
    if has_mask:
        found = (marked if in_tiles else repair)(query, key, value, dtype)
        query, key, value, q_nan, kv_nan = found
        # If anything is not finite, full blocks are treated as partial ones, which repair it.
        broken = jnp.isnan(q_nan).any() | jnp.isnan(kv_nan).any()
        num_full = jnp.where(broken, 0, num_full)
        fixed = fixed._replace(num_full=num_full, q_nan=q_nan, kv_nan=kv_nan)
    own = options.of_heads(query.shape[-1], dtype)
    score, others = own.score, None
    if score is not None:  # gradients flow to floating arrays
        floating = [jnp.issubdtype(x.dtype, jnp.floating) for x in jax.tree.leaves(score)]
        score, others = halves(score, floating)
    fixed = fixed._replace(score=others, seeds=options.seeds)
    if options.seeds is not None and options.places is not None:
        q_places, kv_places = map(jnp.asarray, options.places)
        fixed = fixed._replace(q_places=q_places, kv_places=kv_places)
    sinks = None if own.sinks is None else own.sinks[0]
    sizes = (plan.block_q, plan.block_kv)
    setting = Setting(
        *sizes,
        options.dropout_rate,
        has_mask,
        kernels=kernels,
        wide=options.wide,
        marked=in_tiles,
    )
    inputs = Inputs(query, key, value, own.bias, own.scale[0], score, sinks)
    return setting, _varying_alike(inputs, fixed), fixed


def _varying_alike(inputs: Inputs, fixed: Fixed) -> Inputs:
    """The inputs, varying over devices as all of them together: gradients do, in `shard_map`."""

    both = (inputs, fixed)
    varied: Inputs = jax.tree.map(lambda x: varying_like(x, both), inputs)
    return varied


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _attend(setting: Setting, inputs: Inputs, fixed: Fixed) -> Outputs:
    arguments, tree = jax.tree.flatten((inputs, fixed))
    operation = Operation(
        forward=_pass(forward, setting, tree, kernels=fused.forward),
        backward=None,
        residual_axes=(*_input_axes(inputs), *_fixed_axes(fixed)),
        argument_axes=(),
        output_axes=OUTPUT_AXES,
        platform=platform_of(setting.kernels),
    )
    return Outputs(*bind(operation, *arguments))


@functools.partial(_attend.defjvp, symbolic_zeros=True)
def _attend_jvp(
    setting: Setting, primals: tuple[Inputs, Fixed], along: tuple[Inputs, Fixed]
) -> tuple[Outputs, Outputs]:
    (inputs, fixed), (d_inputs, _) = primals, along
    setting = setting._replace(wide=True)
    outputs = _attend(setting, inputs, fixed)
    return outputs, _along(setting, inputs, fixed, outputs, d_inputs)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _share(setting: Setting, inputs: Inputs, fixed: Fixed, total: Outputs) -> Outputs:
    """The outputs of all parts, whose derivative here is what this part adds to it."""
    return total


@functools.partial(_share.defjvp, symbolic_zeros=True)
def _share_jvp(
    setting: Setting,
    primals: tuple[Inputs, Fixed, Outputs],
    along: tuple[Inputs, Fixed, Outputs],
) -> tuple[Outputs, Outputs]:
    (inputs, fixed, total), (d_inputs, *_) = primals, along
    return total, _along(setting._replace(wide=True), inputs, fixed, total, d_inputs)


def _along(
    setting: Setting, inputs: Inputs, fixed: Fixed, outputs: Outputs, d_inputs: Inputs
) -> Outputs:
    """The derivative of the outputs along `d_inputs`."""
    inputs, fixed, d_inputs = _moving(inputs, fixed, d_inputs)
    residuals = Residuals(inputs, fixed, outputs)
    there, back = (jax.tree.structure((residuals, x)) for x in (inputs, outputs))
    operation = Operation(
        forward=_pass(tangents, setting, there),
        backward=_pass(backward, setting, back, kernels=fused.backward),
        residual_axes=(*_input_axes(inputs), *_fixed_axes(fixed), *OUTPUT_AXES),
        argument_axes=_input_axes(inputs),
        output_axes=OUTPUT_AXES,
        platform=platform_of(setting.kernels),
    )
    return Outputs(*bind(operation, *jax.tree.leaves((residuals, d_inputs))))


def _moving(inputs: Inputs, fixed: Fixed, along: Inputs) -> tuple[Inputs, Fixed, Inputs]:
    """The same, with a bias and arrays of the score that stay as they are among the fixed ones.

    So no gradient of theirs is looked for. All other inputs have a tangent, of zeros if they stay.
    """
    if _stays(along.bias):
        fixed = fixed._replace(bias=inputs.bias)
        inputs, along = (x._replace(bias=None) for x in (inputs, along))
    if inputs.score is not None and fixed.score is not None:
        tangents = jax.tree.leaves(along.score, is_leaf=_stays)
        score, still = halves(inputs.score, [not _stays(x) for x in tangents])
        inputs = inputs._replace(score=score)
        fixed = fixed._replace(score=whole(still, fixed.score))
        moving = [x for x in tangents if not _stays(x)]
        along = along._replace(score=jax.tree.unflatten(jax.tree.structure(score), moving))

    def tangent(x: jax.Array, d: jax.Array) -> jax.Array:
        return _zeros(x) if _stays(d) else d

    return inputs, fixed, jax.tree.map(tangent, inputs, along, is_leaf=_stays)


def _stays(tangent: object) -> bool:
    return isinstance(tangent, jax.custom_derivatives.SymbolicZero)


def _zeros(x: jax.Array) -> jax.Array:
    """Zeros of the type of `x`, which says where it is."""
    return ((x != x) & False).astype(x.dtype)  # noqa: PLR0124


def _pass(
    loops: Callable[..., PyTree],
    setting: Setting,
    tree: jax.tree_util.PyTreeDef,
    kernels: Callable[..., PyTree] | None = None,
) -> Pass:
    """A pass `fn(setting, *trees)` as functions of the leaves of the trees.

    Whenever it is traced, matrices are multiplied as precisely as jax is asked to now.
    """
    precision = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]

    def flat(fn: Callable[..., PyTree], setting: Setting) -> Flat:
        def of_leaves(*leaves: jax.Array) -> list[jax.Array]:
            with jax.default_matmul_precision(precision):
                return jax.tree.leaves(fn(setting, *jax.tree.unflatten(tree, leaves)))

        return of_leaves

    return Pass(
        kernels=None if kernels is None or setting.kernels is None else flat(kernels, setting),
        loops=flat(loops, setting),
        smooth=flat(loops, setting._replace(smooth=True)),
    )


def _input_axes(inputs: Inputs) -> tuple[Axes, ...]:
    bias = () if inputs.bias is None else (lead_axes(inputs.bias, 2),)
    score = () if inputs.score is None else tree_axes(inputs.score)
    sinks = () if inputs.sinks is None else (head_axes(inputs.sinks),)
    return (*QKV_AXES, *bias, head_axes(inputs.scale), *score, *sinks)


def _fixed_axes(fixed: Fixed) -> tuple[Axes, ...]:
    lead = fixed.num_full.ndim - 1
    of_plan = (lead_axes(x, lead) for x in (fixed.blocks, fixed.num_full, fixed.num_live))
    of_nan = () if fixed.q_nan is None else (("b", None, "n"), ("b", None, "k"))
    of_score = () if fixed.score is None else tree_axes(fixed.score)
    of_seeds = () if fixed.seeds is None else (lead_axes(fixed.seeds, 2),)
    of_places = () if fixed.q_places is None else ((None,), (None,))
    of_bias = () if fixed.bias is None else (lead_axes(fixed.bias, 2),)
    of_others = (*of_nan, *of_score, *of_seeds, *of_places, *of_bias)
    return (*mask_axes(fixed.mask), *of_plan, *of_others)
