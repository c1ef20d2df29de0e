"""One update of the parameters: jitted, donated, data-parallel, exact to the token."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from flaxattn.models import EncoderDecoder
from flaxattn.training.parameters.averaging import follow
from flaxattn.training.parameters.freezing import freeze
from flaxattn.training.schedule import learning_rate
from flaxattn.translation.config import TrainingConfig
from flaxattn.translation.loss import Sums, batch_loss
from flaxattn.translation.text.packing import Batch

__all__ = [
    "TrainState",
    "init_state",
    "make_eval_step",
    "make_optimizer",
    "make_train_step",
]


class TrainState(NamedTuple):
    """All that training changes."""

    step: jax.Array
    params: Any
    opt_state: Any
    ema: Any = None  # the moving average of `params`, where there is one

    @property
    def model(self) -> Any:
        """The parameters to translate with."""
        return self.params if self.ema is None else self.ema


def make_optimizer(config: TrainingConfig, params: Any = None) -> optax.GradientTransformation:
    """AdamW under the schedule, after clipping of the global norm.

    Args:
      params: the tree of parameters; needed only where some are frozen.

    Raises:
      ValueError if `config.freeze` fits no parameter, or leaves none to train.
    """
    adam = optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(
            learning_rate(config),
            b1=config.adam_b1,
            b2=config.adam_b2,
            eps=1e-9,
            weight_decay=config.weight_decay,
        ),
    )
    return freeze(adam, config.freeze, params)


def init_state(
    params: Any, optimizer: optax.GradientTransformation, config: TrainingConfig
) -> TrainState:
    """The state before the first step, in arrays of its own, since the step takes them over."""

    @jax.jit
    def init(params: Any) -> TrainState:
        ema = jax.tree.map(jnp.copy, params) if config.ema_decay else None
        params = jax.tree.map(jnp.copy, params)
        return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), ema)

    return init(params)


def make_train_step(
    model: EncoderDecoder,
    optimizer: optax.GradientTransformation,
    config: TrainingConfig,
    *,
    bos_id: int,
    mesh: Mesh,
) -> jax.stages.Wrapped:
    """The jitted update: (TrainState, Batch) -> (TrainState, Sums).

    The state it is given is donated: use the one it returns.
    The loss is summed over all tokens of all microbatches and devices and divided once by their
    number, so that neither the count of microbatches nor of devices changes the gradient. Where it
    or a gradient is not finite, the step changes nothing but its number, and is counted as skipped.
    """

    def loss_of(params: Any, batch: Batch, key: jax.Array) -> tuple[jax.Array, Sums]:
        sums = batch_loss(
            model,
            params,
            batch,
            bos_id=bos_id,
            label_smoothing=config.label_smoothing,
            r_drop=config.r_drop,
            dropout_key=key,
        )
        return sums.loss, sums

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Sums]:
        step_key = jax.random.fold_in(jax.random.key(config.seed), state.step)

        def add_microbatch(total: Any, part: Any) -> tuple[Any, None]:
            index, microbatch = part
            key = jax.random.fold_in(step_key, index)
            gradients, sums = jax.grad(loss_of, has_aux=True)(state.params, microbatch, key)
            return jax.tree.map(jnp.add, total, (gradients, sums)), None

        parts = (jnp.arange(config.microbatches), _split(batch, config.microbatches))
        zero = (jax.tree.map(jnp.zeros_like, state.params), Sums(*[jnp.zeros(())] * 5))
        (gradients, sums), _ = jax.lax.scan(add_microbatch, zero, parts)
        gradients = jax.tree.map(lambda g: g / jnp.maximum(sums.tokens, 1.0), gradients)
        finite = jax.tree.reduce(
            jnp.logical_and, jax.tree.map(lambda x: jnp.isfinite(x).all(), (sums.loss, gradients))
        )
        updated = update(state, gradients)
        kept = jax.tree.map(lambda new, old: jnp.where(finite, new, old), updated, state)
        nothing = Sums(*[jnp.zeros(())] * 5)._replace(skipped=jnp.ones(()))
        sums = jax.tree.map(lambda done, none: jnp.where(finite, done, none), sums, nothing)
        return kept._replace(step=state.step + 1), sums

    def update(state: TrainState, gradients: Any) -> TrainState:
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = state.ema
        if ema is not None:
            ema = follow(ema, params, state.step, config.ema_decay)
        return TrainState(state.step, params, opt_state, ema)

    replicated = NamedSharding(mesh, PartitionSpec())
    return jax.jit(step, donate_argnums=0, out_shardings=replicated)


def make_eval_step(model: EncoderDecoder, *, bos_id: int) -> jax.stages.Wrapped:
    """The jitted loss without dropout and label smoothing: (params, Batch) -> Sums."""
    return jax.jit(lambda params, batch: batch_loss(model, params, batch, bos_id=bos_id))


def _split(batch: Batch, parts: int) -> Batch:
    """[R, L] -> [parts, R / parts, L], every part taking rows from every device."""
    rows = batch.source.shape[0] // parts
    return jax.tree.map(lambda x: x.reshape(rows, parts, -1).swapaxes(0, 1), batch)
