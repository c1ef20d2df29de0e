"""From the options that were given to a whole configuration: what the others become."""

import contextlib
import dataclasses
from collections.abc import Set
from pathlib import Path
from typing import Any

from flaxattn.models import EncoderDecoderConfig
from flaxattn.training.continuing import Kept, kept_run
from flaxattn.translation.config import DataConfig, RunConfig, TrainingConfig
from flaxattn.translation.preparation import free_to_differ
from flaxattn.translation.trained.loading import architecture

__all__ = ["completed", "going_on", "own_paths", "scaled", "starting_from"]

COUNTS = ("warmup_steps", "cooldown_steps", "log_every", "valid_every")  # of steps


def completed(config: RunConfig, preset: RunConfig, given: Set[str]) -> tuple[RunConfig, list[str]]:
    """The configuration in which every option that was not given fits those that were.

    Args:
      config: the preset with what was given.
      preset: it alone.
      given: the names of the fields that were given.

    Returns:
      the configuration, and what there is to say of it.

    Raises:
      ValueError that names the option which does not fit.
    """
    remarks: list[str] = []
    kept = _readable(kept_run, config.output)
    if kept:
        _check_end(config, kept, given)
        training = going_on(config.training, kept, given)
    else:
        training, remarks = scaled(config.training, preset.training, given)
    model = config.model
    if start := config.training.init_from:
        known = kept.config.model if kept else _readable(architecture, start)
        model = starting_from(model, known, start, given) if known else model
    data = own_paths(config.data, given)
    return dataclasses.replace(config, model=model, data=data, training=training), remarks


def _check_end(config: RunConfig, kept: Kept, given: Set[str]) -> None:
    """Raises ValueError if a run would get another end that nobody asked for."""
    steps, wanted = kept.config.training.steps, config.training.steps
    if steps != wanted and "steps" not in given:
        raise ValueError(
            f"{config.output} holds a run of {steps} steps. To go on with it give --steps {steps}, "
            f"to train on --steps {wanted}; or name another folder with --output."
        )


def scaled(
    training: TrainingConfig, preset: TrainingConfig, given: Set[str]
) -> tuple[TrainingConfig, list[str]]:
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


def going_on(training: TrainingConfig, kept: Kept, given: Set[str]) -> TrainingConfig:
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


def starting_from(
    model: EncoderDecoderConfig, start: EncoderDecoderConfig, folder: str, given: Set[str]
) -> EncoderDecoderConfig:
    """`model` with the architecture that the parameters of `start` are of.

    Raises:
      ValueError if an option was given that says otherwise; it names both.
    """
    fixed = {name: x for name, x in vars(start).items() if not free_to_differ(name)}
    for name, value in fixed.items():
        if name in given and getattr(model, name) != value:
            option = f"--{name.replace('_', '-')}"
            raise ValueError(
                f"{option} is {getattr(model, name)}; the model of --init-from {folder} has "
                f"{option} {value}. Leave the option out, or give the same."
            )
    return dataclasses.replace(model, **fixed)


def own_paths(data: DataConfig, given: Set[str]) -> DataConfig:
    """`data` with files that were given relative to the current directory, as a person means them.

    Unless --data-dir was given as well: then all are relative to that.
    """
    splits = ("train", "valid", "test")
    if "data_dir" in given or not given & {*splits}:
        return data
    folder = Path(data.data_dir)
    others: dict[str, Any] = {
        split: tuple(str(folder / name) for name in getattr(data, split))
        for split in splits
        if split not in given
    }
    return dataclasses.replace(data, data_dir=".", **others)


def _times(count: int, factor: float) -> int:
    """A share of a count; of one that is not 0, at least 1."""
    return max(1, round(count * factor)) if count else 0


def _readable(read: Any, folder: str) -> Any:
    """What can be read in a folder; None where nothing can, which is told of when it is needed."""
    with contextlib.suppress(ValueError, OSError):
        return read(Path(folder))
    return None
