"""From the options that were given to a whole configuration: what the others become."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Set
from pathlib import Path
from typing import Any, TypeVar

from flaxattn.models import EncoderDecoderConfig
from flaxattn.training.continuing import kept_run
from flaxattn.training.counts import check_end, going_on, scaled
from flaxattn.translation.config import DataConfig, RunConfig, is_weight
from flaxattn.translation.preparation import free_to_differ
from flaxattn.translation.rules import RULES
from flaxattn.translation.trained.loading import architecture

__all__ = ["completed", "own_paths", "starting_from"]

Found = TypeVar("Found")


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
    kept = _readable(functools.partial(kept_run, rules=RULES), config.output)
    if kept:
        check_end(config, kept, given)
        training = going_on(config.training, kept, given)
    else:
        training, remarks = scaled(config.training, preset.training, given)
    model = config.model
    if start := config.training.init_from:
        known = kept.config.model if kept else _readable(architecture, start)
        model = starting_from(model, known, start, given) if known else model
    data = own_paths(config.data, given)
    return dataclasses.replace(config, model=model, data=data, training=training), remarks


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
        split: tuple(
            name if is_weight(name) else str(folder / name) for name in getattr(data, split)
        )
        for split in splits
        if split not in given
    }
    return dataclasses.replace(data, data_dir=".", **others)


def _readable(read: Callable[[Path], Found], folder: str) -> Found | None:
    """What can be read in a folder; None where nothing can, which is told of when it is needed."""
    with contextlib.suppress(ValueError, OSError):
        return read(Path(folder))
    return None
