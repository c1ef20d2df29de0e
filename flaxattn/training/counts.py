"""Counts of steps: scaled to another number of steps than they were chosen for, unless given."""

import contextlib
import dataclasses
from collections.abc import Set
from pathlib import Path
from typing import Any, TypeVar

from flaxattn.training.config import Config, RunConfig, TrainingConfig, with_training
from flaxattn.training.continuing import Kept, kept_run
from flaxattn.training.task import RunRules

__all__ = ["fitted", "going_on", "scaled"]

COUNTS = ("warmup_steps", "cooldown_steps", "log_every", "valid_every")

Training = TypeVar("Training", bound=TrainingConfig)


def fitted(
    config: Config, preset: Config, given: Set[str], rules: RunRules
) -> tuple[Config, list[str], Kept | None]:
    """The configuration in which the counts that were not given fit the steps.

    Args:
      config: the preset with what was given.
      preset: it alone.
      given: the names of the fields that were given.

    Returns:
      it, what there is to say of it, and the run that is in its folder already.

    Raises:
      ValueError that names the option which does not fit.
    """
    kept, remarks = None, list[str]()
    with contextlib.suppress(ValueError, OSError):  # told of when the folder is checked
        kept = kept_run(Path(config.output), rules)
    if kept:
        _check_end(config, kept, given)
        training = going_on(config.training, kept, given)
    else:
        training, remarks = scaled(config.training, preset.training, given)
    return with_training(config, training), remarks, kept


def _check_end(config: RunConfig, kept: Kept, given: Set[str]) -> None:
    """Raises ValueError if a run would get another end that nobody asked for."""
    steps, wanted = kept.config.training.steps, config.training.steps
    if steps != wanted and "steps" not in given:
        raise ValueError(
            f"{config.output} holds a run of {steps} steps. To go on with it give --steps {steps}, "
            f"to train on --steps {wanted}; or name another folder with --output."
        )


def scaled(training: Training, preset: Training, given: Set[str]) -> tuple[Training, list[str]]:
    """`training` with counts of steps that are the same shares of its steps as in the preset.

    So is the time that the moving average looks back.
    """
    factor = training.steps / preset.steps
    changes: dict[str, Any] = {name: _times(getattr(preset, name), factor) for name in COUNTS}
    if preset.ema_decay:
        changes["ema_decay"] = round(max(0.0, 1 - (1 - preset.ema_decay) / factor), 6)
    changes = {
        name: value
        for name, value in changes.items()
        if name not in given and value != getattr(preset, name)
    }
    if factor == 1 or not changes:
        return training, []
    options = ", ".join(f"--{name.replace('_', '-')} {x}" for name, x in changes.items())
    remark = f"Scaled from the preset's {preset.steps} steps to {training.steps}: {options}."
    return dataclasses.replace(training, **changes), [remark]


def going_on(training: Training, kept: Kept, given: Set[str]) -> Training:
    """`training` with the counts of the run that it takes further.

    With another end, the cool-down is the same share of the steps that were planned together.
    """
    before = kept.config.training
    changes = {name: getattr(before, name) for name in (*COUNTS, "ema_decay")}
    if training.steps != before.steps:
        begin = before.ended_at[-1] if before.ended_at else 0
        planned = training.steps - (before.steps if kept.has_ended else begin)
        share = max(planned, 0) / (before.steps - begin)
        changes["cooldown_steps"] = _times(before.cooldown_steps, share)
    return dataclasses.replace(
        training, **{name: value for name, value in changes.items() if name not in given}
    )


def _times(count: int, factor: float) -> int:
    """A share of a count; of one that is not 0, at least 1."""
    return max(1, round(count * factor)) if count else 0
