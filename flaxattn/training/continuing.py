"""A run that is there already: how far it has come, and with what configuration it goes on."""

import contextlib
import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

from flaxattn.training.config import Config, TrainingConfig, with_training
from flaxattn.training.record import has_begun, read_config, steps_made
from flaxattn.training.schedule import same_until
from flaxattn.training.task import RunRules

__all__ = ["Kept", "check_schedule", "continued", "kept_run"]


class Kept(NamedTuple):
    """A run as its folder has it."""

    config: Any  # of the kind that the task's rules name
    made: int  # steps

    @property
    def has_ended(self) -> bool:
        """Whether all its steps have been made."""
        return self.made >= self.config.training.steps


def kept_run(folder: Path, rules: RunRules) -> Kept | None:
    """The run in a folder, if one has begun there.

    Raises:
      ValueError if it is damaged.
    """
    if not has_begun(folder):
        return None
    return Kept(read_config(folder, rules), steps_made(folder))


def continued(config: Config, rules: RunRules) -> Config:
    """The configuration with which `config` is trained: what the run in its folder was is kept.

    More steps for a run that has ended begin where it did, and its end and cool-down are told. The
    same configuration given again goes on with that.
    """
    with contextlib.suppress(ValueError, OSError):  # told of when the folder is checked
        kept = kept_run(Path(config.output), rules)
        if kept is not None:
            return with_training(config, _continued(config.training, kept))
    return config


def check_schedule(kept: Kept, config: TrainingConfig, folder: Path) -> None:
    """Raises ValueError if the steps already made were not made under this schedule."""
    before, made = kept.config.training, kept.made
    if config.steps < made:
        raise ValueError(
            f"{folder} holds a run that has made {made} steps; --steps is {config.steps}. Give at "
            "least as many, or name another folder with --output."
        )
    if not same_until(made, before, _scheduled(before, config)):
        raise ValueError(
            f"{folder} holds a run that has made {made} steps and is to cool down in the last "
            f"{before.cooldown_steps} of {before.steps}. Let it end first, with --steps "
            f"{before.steps} --cooldown-steps {before.cooldown_steps}; then it can be continued "
            "with more."
        )


def _continued(wanted: TrainingConfig, kept: Kept) -> TrainingConfig:
    before: TrainingConfig = kept.config.training
    ends, cooldowns = before.ended_at, before.cooled_for
    if kept.has_ended and wanted.steps > before.steps:
        ends, cooldowns = (*ends, before.steps), (*cooldowns, before.cooldown_steps)
    return dataclasses.replace(wanted, ended_at=ends, cooled_for=cooldowns)


def _scheduled(before: TrainingConfig, wanted: TrainingConfig) -> TrainingConfig:
    """`before` with the end and the cool-down that are wanted now."""
    names = ("steps", "cooldown_steps", "ended_at", "cooled_for")
    return dataclasses.replace(before, **{name: getattr(wanted, name) for name in names})
