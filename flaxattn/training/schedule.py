"""The learning rate of every step, also of a run that was continued after it had ended."""

import dataclasses
import types
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flaxattn.training.config import TrainingConfig

if TYPE_CHECKING:  # what trains nothing does not wait for it
    import optax

__all__ = ["Stage", "describe_rate", "learning_rate", "peak", "same_until", "shortfall", "stages"]

POINTS = 100_000  # at which a schedule is looked at, besides those where it bends
NEARLY = 0.99  # of the rate asked for

Array = jax.Array | np.ndarray


class Stage(NamedTuple):
    """Steps that were planned together: after `begin`, to the end."""

    begin: int
    end: int
    cooldown: int
    rewarm: int  # steps in which the rate comes back from the zero it had been cooled down to


def learning_rate(config: TrainingConfig) -> "optax.Schedule":
    """Linear warm-up, fall with the inverse square root of the step, linear cool-down to zero.

    The first two are equation 3 of Vaswani et al. (2017), scaled to a given peak. Where a run that
    had cooled down is continued, the rate comes back linearly to where it would be without, and
    cools down again at the new end.
    """
    return lambda step: _rate(jnp, config, jnp.asarray(step, jnp.float32) + 1.0)


def peak(config: TrainingConfig) -> tuple[float, int]:
    """The highest rate since the run began or was continued last, and its step."""
    steps = _points(config, stages(config)[-1].begin + 1, config.steps)
    rates = _rates(config, steps)
    highest = int(rates.argmax())
    return float(rates[highest]), int(steps[highest])


def same_until(step: int, first: TrainingConfig, second: TrainingConfig) -> bool:
    """Whether two schedules give all steps up to this one the same rates."""
    if step < 1:
        return True
    steps = np.union1d(_points(first, 1, step), _points(second, 1, step))
    return np.array_equal(_rates(first, steps), _rates(second, steps))


def describe_rate(config: TrainingConfig) -> str:
    """One line: what the rate is from the last beginning on.

    >>> describe_rate(TrainingConfig(steps=500, warmup_steps=80, cooldown_steps=150))
    'Learning rate: rises to 0.002 at step 80, falls with the inverse square root of the step, ...'
    """
    stage, (rate, step) = stages(config)[-1], peak(config)
    after = f"after step {stage.begin}, where it was 0, " if stage.begin else ""
    falls = ", falls with the inverse square root of the step" if step < config.steps else ""
    cools = min(stage.cooldown, config.steps - stage.begin)
    last = "step" if cools == 1 else f"{cools} steps"
    end = f", and in the last {last} linearly to 0" if cools else ""
    of_matrices = ""
    if config.optimizer == "muon":
        of_matrices = f" ({rate / config.learning_rate * config.muon_rate:.3g} for matrices)"
    return f"Learning rate: {after}rises to {rate:.3g}{of_matrices} at step {step}{falls}{end}."


def shortfall(config: TrainingConfig) -> str | None:
    """What to say where warm-up and cool-down leave no step with the rate asked for, else None."""
    first = dataclasses.replace(config, ended_at=(), cooled_for=())
    rate, _ = peak(first)
    if config.ended_at or rate >= NEARLY * config.learning_rate:
        return None
    return (
        f"the learning rate reaches no more than {rate:.3g}, not {config.learning_rate:.3g}, since "
        f"{config.warmup_steps} steps of warm-up and {config.cooldown_steps} of cool-down are more "
        f"than {config.steps}. Choose fewer: --warmup-steps, --cooldown-steps."
    )


def stages(config: TrainingConfig) -> list[Stage]:
    """The stages of a run in turn; those without a cool-down are one with the next."""
    found: list[Stage] = []
    begin = 0
    ends, cooldowns = (*config.ended_at, config.steps), (*config.cooled_for, config.cooldown_steps)
    for end, cooldown in zip(ends, cooldowns, strict=True):
        if cooldown or end == config.steps:
            rewarm = max(1, min(config.warmup_steps, (end - begin) // 4)) if begin else 0
            found.append(Stage(begin, end, cooldown, rewarm))
            begin = end
    return found


def _rate(xp: types.ModuleType, config: TrainingConfig, update: Array) -> Any:
    """The rate of updates, counted from 1, as float32 arrays of `jax.numpy` or `numpy`."""
    warmup = max(config.warmup_steps, 1)
    warm = xp.minimum(update / warmup, xp.sqrt(warmup / update))
    first, *later = stages(config)
    cool = _cool(xp, first, update)
    for stage in later:
        back = xp.clip((update - stage.begin) / stage.rewarm, 0.0, 1.0)
        cool = xp.where(update > stage.begin, back * _cool(xp, stage, update), cool)
    return config.learning_rate * warm * cool


def _cool(xp: types.ModuleType, stage: Stage, update: Array) -> Any:
    return xp.clip((stage.end + 1.0 - update) / max(stage.cooldown, 1), 0.0, 1.0)


def _rates(config: TrainingConfig, steps: np.ndarray) -> np.ndarray:
    return _rate(np, config, steps.astype(np.float32))


def _points(config: TrainingConfig, first: int, last: int) -> np.ndarray:
    """The steps from first to last; of very many, some, and those around bends and maxima."""
    bends = [config.warmup_steps, (config.steps + 1) // 2]
    for stage in stages(config):
        middle = (stage.begin + stage.end + 1) // 2
        bends += [stage.begin + stage.rewarm, stage.end - stage.cooldown, stage.end, middle]
    near = [bend + offset for bend in bends for offset in (-1, 0, 1)]
    inside = [first, last, *(step for step in near if first <= step <= last)]
    spread = np.linspace(first, last, min(last - first + 1, POINTS)).astype(np.int64)
    return np.union1d(spread, np.array(inside, np.int64))
