"""One update of the parameters: jitted, donated, spread over a mesh, exact to the token."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.tree_util import Partial

from flaxattn.training.config import TrainingConfig
from flaxattn.training.mesh import on_mesh, place_like, shardings_like
from flaxattn.training.parameters.averaging import update_average
from flaxattn.training.parameters.freezing import held
from flaxattn.training.task import Batch, Loss, Sums
from flaxattn.training.trees import Params
from flaxattn.types import PyTree

__all__ = [
    "OfLoss",
    "TrainState",
    "init_state",
    "make_eval_step",
    "make_train_step",
    "spread_state",
]


class TrainState(NamedTuple):
    """All that training changes."""

    step: jax.Array
    params: Params
    opt_state: Any
    ema: Params | None = None  # the moving average of `params`, where there is one

    @property
    def model(self) -> Params:
        """The parameters to use."""
        return self.params if self.ema is None else self.ema


class OfLoss(NamedTuple):
    """A jitted function of a loss and of what a call gives it.

    The arrays to which a loss is bound that is a `jax.tree_util.Partial` are arguments of the
    program: as constants they would stand in it, number by number.
    """

    function: Any
    """Jitted, or compiled."""
    loss: Partial

    def __call__(self, *arguments: Any) -> Any:
        return self.function(self.loss, *arguments)

    def lower(self, *arguments: Any) -> jax.stages.Lowered:
        """As `jax.stages.Wrapped.lower`."""
        return self.function.lower(self.loss, *arguments)

    def compiled(self, *arguments: Any) -> "OfLoss":
        """The same, compiled for arguments like these."""
        return self._replace(function=self.lower(*arguments).compile())


def init_state(
    params: Params,
    optimizer: optax.GradientTransformation,
    config: TrainingConfig,
    shardings: TrainState | None = None,
) -> TrainState:
    """The state before the first step, in arrays of its own, since the step takes them over.

    Args:
      shardings: where it is made; default: where the parameters are.
    """

    def init(params: Params) -> TrainState:
        ema = jax.tree.map(jnp.copy, params) if config.ema_decay else None
        params = jax.tree.map(jnp.copy, params)
        return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), ema)

    return jax.jit(init, out_shardings=shardings)(params)


def spread_state(
    params: Params,
    axes: PyTree,
    optimizer: optax.GradientTransformation,
    config: TrainingConfig,
    mesh: Mesh,
) -> TrainState:
    """The state before the first step on a mesh, on no device of which it ever is in the whole.

    Args:
      params: in the memory of each process.
      axes: the logical names of their axes, as in `shardings_like`.
    """
    shapes = jax.eval_shape(lambda params: init_state(params, optimizer, config), params)
    shardings = shardings_like(shapes, axes, mesh)
    return init_state(place_like(params, shardings.params), optimizer, config, shardings)


def make_train_step(
    loss: Loss,
    optimizer: optax.GradientTransformation,
    config: TrainingConfig,
    *,
    mesh: Mesh,
    shardings: TrainState | None = None,
) -> OfLoss:
    """The jitted update: (TrainState, Batch) -> (TrainState, Sums).

    The state it is given is donated: use the one it returns, which lies where `shardings` say, by
    default the same on all devices.
    The loss is summed over all that is counted in all microbatches and on all devices, and divided
    once by their number, so that neither the number of microbatches nor of devices changes the
    gradient. Where it or a gradient is not finite, the step changes nothing but its number, and is
    counted as skipped.
    """

    def step(loss: Loss, state: TrainState, batch: Batch) -> tuple[TrainState, Sums]:
        with on_mesh(mesh):
            return made(loss, state, batch)

    def made(loss: Loss, state: TrainState, batch: Batch) -> tuple[TrainState, Sums]:
        def loss_of(params: Params, batch: Batch, key: jax.Array) -> tuple[jax.Array, Sums]:
            sums = loss(held(params, config.freeze), batch, key)
            return sums.loss, sums

        step_key = jax.random.fold_in(jax.random.key(config.seed), state.step)

        def add_microbatch(total: Params, part: tuple[jax.Array, Batch]) -> tuple[Params, Sums]:
            index, microbatch = part
            key = jax.random.fold_in(step_key, index)
            gradients, sums = jax.grad(loss_of, has_aux=True)(state.params, microbatch, key)
            return jax.tree.map(jnp.add, total, gradients), sums

        parts = (jnp.arange(config.microbatches), _split(batch, config.microbatches))
        zeros = jax.tree.map(jnp.zeros_like, state.params)
        gradients, of_parts = jax.lax.scan(add_microbatch, zeros, parts)
        sums = jax.tree.map(lambda x: x.sum(axis=0), of_parts)
        gradients = jax.tree.map(lambda g: g / jnp.maximum(sums.units, 1.0), gradients)
        finite = jax.tree.reduce(
            jnp.logical_and, jax.tree.map(lambda x: jnp.isfinite(x).all(), (sums.loss, gradients))
        )
        updated = update(state, gradients)
        kept = jax.tree.map(lambda new, old: jnp.where(finite, new, old), updated, state)
        skipped = jax.tree.map(jnp.zeros_like, sums)._replace(skipped=jnp.ones(()))
        sums = jax.tree.map(lambda done, none: jnp.where(finite, done, none), sums, skipped)
        return kept._replace(step=state.step + 1), sums

    def update(state: TrainState, gradients: Params) -> TrainState:
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = state.ema
        if ema is not None:
            ema = update_average(ema, params, state.step, config.ema_decay)
        return TrainState(state.step, params, opt_state, ema)

    everywhere = NamedSharding(mesh, PartitionSpec())
    places = (everywhere if shardings is None else shardings, everywhere)
    return OfLoss(jax.jit(step, donate_argnums=1, out_shardings=places), _bound(loss))


def make_eval_step(loss: Loss, *, mesh: Mesh) -> OfLoss:
    """The jitted loss without dropout: (params, Batch) -> Sums."""

    def evaluated(loss: Loss, params: Params, batch: Batch) -> Sums:
        with on_mesh(mesh):
            return loss(params, batch, None)

    everywhere = NamedSharding(mesh, PartitionSpec())
    return OfLoss(jax.jit(evaluated, out_shardings=everywhere), _bound(loss))


def _bound(loss: Loss) -> Partial:
    """A loss as an argument of a program: a tree of the arrays that it is bound to."""
    if isinstance(loss, Partial):
        return loss
    return Partial(lambda *arguments: loss(*arguments))  # which can be hashed, whatever it is of


def _split(batch: Batch, parts: int) -> Batch:
    """[R, ...] -> [parts, R / parts, ...], every part taking rows from every device."""
    return jax.tree.map(
        lambda x: x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1), batch
    )
