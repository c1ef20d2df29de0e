"""An operation of jax whose derivatives are given, and which stays what it is under all else.

Loops that go on for as long as there is work cannot be differentiated in reverse by jax. An
operation made of them brings its transpose along; where derivatives of more than first order are
asked for, a slower twin, made of what jax can differentiate any number of times, takes its place.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Primitive, jaxpr_as_fun
from jax.interpreters import ad, batching, mlir

from flaxattn.attention.axes import Axes
from flaxattn.attention.placement import Flat, divided, on_explicit_mesh, warn_unless_single

__all__ = ["Operation", "Pass", "bind"]

Tangent: TypeAlias = jax.Array | ad.Zero


@dataclasses.dataclass(frozen=True, eq=False)
class Pass:
    """A function of arrays: residuals first, then those that it is linear in."""

    kernels: Flat | None
    """By kernels of a chip, on the platform of the operation."""
    loops: Flat
    """In loops that go on for as long as there is work, on any."""
    smooth: Flat
    """In loops of a known length: jax can differentiate it."""

    @property
    def fast(self) -> Flat:
        """What is done on the chip that the program is made for."""
        return self.loops if self.kernels is None else self.kernels

    def vmapped(self, in_axes: Sequence[int | None]) -> "Pass":
        """Of arrays with one more axis, by `in_axes`."""
        loops, smooth = (jax.vmap(fn, in_axes) for fn in (self.loops, self.smooth))
        kernels = None if self.kernels is None else jax.vmap(self.kernels, in_axes)
        return Pass(kernels, loops, smooth)


@dataclasses.dataclass(frozen=True, eq=False)
class Operation:
    """A pass, and its transpose if it is linear."""

    forward: Pass
    backward: Pass | None
    """Of the residuals and cotangents of the outputs: those of the arguments."""
    residual_axes: tuple[Axes, ...]
    argument_axes: tuple[Axes, ...]
    """Of what `forward` is linear in."""
    output_axes: tuple[Axes, ...]
    platform: str | None = None
    """What the kernels of its passes are for, as jax calls it; None: they have none."""
    levels: int = 0
    """How many axes were vmapped over."""

    @property
    def in_axes(self) -> tuple[Axes, ...]:
        """Of residuals and arguments."""
        return (*self.residual_axes, *self.argument_axes)

    def divided(self, fn: Flat) -> Flat:
        """`fn` of a pass, done by each device for what it holds."""
        return divided(fn, self.in_axes, self.output_axes)

    def transposed(self) -> "Operation":
        """From cotangents of the outputs to those of the arguments."""
        assert self.backward is not None
        return dataclasses.replace(
            self,
            forward=self.backward,
            backward=self.forward,
            argument_axes=self.output_axes,
            output_axes=self.argument_axes,
        )

    def vmapped(self, in_axes: Sequence[int | None]) -> "Operation":
        """Of arrays with one more axis, by `in_axes`; it is the first of arguments and outputs."""
        residuals = in_axes[: len(self.residual_axes)]
        letter = f"v{self.levels}"

        def mapped(side: Pass, others: tuple[Axes, ...]) -> Pass:
            return side.vmapped((*residuals, *(0 for _ in others)))

        def lettered(axes: Axes, at: int | None = 0) -> Axes:
            return axes if at is None else (*axes[:at], letter, *axes[at:])

        ahead, back = self.forward, self.backward
        return Operation(
            forward=mapped(ahead, self.argument_axes),
            backward=None if back is None else mapped(back, self.output_axes),
            residual_axes=tuple(map(lettered, self.residual_axes, residuals)),
            argument_axes=tuple(map(lettered, self.argument_axes)),
            output_axes=tuple(map(lettered, self.output_axes)),
            platform=self.platform,
            levels=self.levels + 1,
        )


def bind(operation: Operation, *arrays: jax.Array) -> list[jax.Array]:
    """The outputs of an operation: of its residuals and arguments."""
    closed = jax.make_jaxpr(operation.divided(operation.forward.fast))(*arrays)
    _check_closed_over(closed.consts)
    outputs: list[jax.Array] = operation_p.bind(*arrays, jaxpr=closed, operation=operation)
    return outputs


def _check_closed_over(consts: Sequence[jax.Array]) -> None:
    """Raises ValueError for what belongs to another trace: derivatives trace the rule anew."""
    for x in consts:
        if isinstance(x, jax.core.Tracer):
            raise ValueError(
                f"a rule of the mask or score closes over {x.dtype}{list(x.shape)}, which is being "
                "traced. Give it the array: where(lambda q, k, x: ..., array), or "
                "score(lambda logit, q, k, x: ..., array)."
            )


def _evaluate(*arrays: jax.Array, jaxpr: ClosedJaxpr, operation: Operation) -> list[jax.Array]:
    outputs: list[jax.Array] = jaxpr_as_fun(jaxpr)(*arrays)
    return outputs


def _jvp(
    primals: Sequence[jax.Array],
    tangents: Sequence[Tangent],
    *,
    jaxpr: ClosedJaxpr,
    operation: Operation,
) -> tuple[list[jax.Array], list[jax.Array]]:
    outputs = operation_p.bind(*primals, jaxpr=jaxpr, operation=operation)
    count = len(operation.residual_axes)
    moving = [i for i, t in enumerate(tangents) if not isinstance(t, ad.Zero)]
    if min(moving) >= count:  # only what it is linear in
        arguments = map(ad.instantiate_zeros, tangents[count:])
        return outputs, bind(operation, *primals[:count], *arguments)

    smooth = on_explicit_mesh(operation.forward.smooth, operation.in_axes, operation.output_axes)

    def of_moving(*moved: jax.Array) -> Sequence[jax.Array]:
        arrays = list(primals)
        for i, x in zip(moving, moved, strict=True):
            arrays[i] = x
        return smooth(*arrays)

    starts, directions = ([x[i] for i in moving] for x in (primals, tangents))
    return outputs, list(jax.jvp(of_moving, starts, directions)[1])


def _transpose(
    cotangents: Sequence[Tangent],
    *arrays: jax.Array,  # with placeholders for those asked for
    jaxpr: ClosedJaxpr,
    operation: Operation,
) -> list[jax.Array | None]:
    count = len(operation.residual_axes)
    found = bind(operation.transposed(), *arrays[:count], *map(ad.instantiate_zeros, cotangents))
    asked = map(ad.is_undefined_primal, arrays[count:])
    return [None] * count + [
        x if is_asked else None for x, is_asked in zip(found, asked, strict=True)
    ]


def _batch(
    arrays: Sequence[jax.Array],
    axes: Sequence[int | None],
    *,
    jaxpr: ClosedJaxpr,
    operation: Operation,
) -> tuple[list[jax.Array], list[int]]:
    count = len(operation.residual_axes)
    size = next(x.shape[a] for x, a in zip(arrays, axes, strict=True) if a is not None)
    # A cotangent comes back with the axis that its argument has: all or none.
    arguments = [
        jnp.broadcast_to(x, (size, *x.shape)) if a is None else jnp.moveaxis(x, a, 0)
        for x, a in zip(arrays[count:], axes[count:], strict=True)
    ]
    outputs = bind(operation.vmapped(axes), *arrays[:count], *arguments)
    return outputs, [0] * len(outputs)


def _lower(
    context: mlir.LoweringRuleContext, *arrays: Any, jaxpr: ClosedJaxpr, operation: Operation
) -> Sequence[Any]:
    """Divided, unless the program is exported: what asks how to divide it cannot be written."""
    if context.module_context.lowering_parameters.for_export:
        return _lower_whole(context, *arrays, jaxpr=jaxpr, operation=operation)
    loops = operation.divided(operation.forward.loops)
    return _lower_one(context, arrays, operation, jaxpr_as_fun(jaxpr), loops)


def _lower_whole(
    context: mlir.LoweringRuleContext, *arrays: Any, jaxpr: ClosedJaxpr, operation: Operation
) -> Sequence[Any]:
    """Undivided, as the compiler for TPUs asks nobody how to divide."""
    axes = context.module_context.axis_context
    if isinstance(axes, mlir.ShardingContext):
        warn_unless_single(axes.num_devices)
    return _lower_one(context, arrays, operation, operation.forward.fast, operation.forward.loops)


def _lower_one(
    context: mlir.LoweringRuleContext,
    arrays: Sequence[Any],
    operation: Operation,
    fast: Flat,
    loops: Flat,
) -> Sequence[Any]:
    """`fast`, or `loops` where a program is not for the platform of its kernels.

    Only now is it known what a program is for: arrays may stay on a CPU, or many be asked for.
    """
    platforms, own = context.platforms or context.module_context.platforms, operation.platform
    fn = fast
    if own is not None and set(platforms) != {own}:
        fn = functools.partial(jax.lax.platform_dependent, default=loops, **{own: fast})
    outputs: Sequence[Any] = mlir.lower_fun(fn, multiple_results=True)(context, *arrays)
    return outputs


operation_p = Primitive("blockwise_attention")
operation_p.multiple_results = True
operation_p.def_impl(_evaluate)
operation_p.def_abstract_eval(lambda *_, jaxpr, operation: jaxpr.out_avals)
ad.primitive_jvps[operation_p] = _jvp
ad.primitive_transposes[operation_p] = _transpose
batching.primitive_batchers[operation_p] = _batch
mlir.register_lowering(operation_p, _lower)
mlir.register_lowering(operation_p, _lower_whole, platform="tpu")
