"""From the options that were given to a whole configuration: what the others become."""

import dataclasses
from collections.abc import Set
from pathlib import Path
from typing import Any

from flaxattn.training.architecture import started
from flaxattn.training.counts import fitted
from flaxattn.translation.config import DataConfig, RunConfig
from flaxattn.translation.naming import is_weight
from flaxattn.translation.rules import RULES
from flaxattn.translation.trained.loading import architecture

__all__ = ["completed", "own_paths"]


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
    config, remarks, kept = fitted(config, preset, given, RULES)
    model = config.model
    if start := config.training.init_from:
        known = kept.config.model if kept else None
        model = started(model, architecture, start, kept=known, given=given)
    data = own_paths(config.data, given)
    return dataclasses.replace(config, model=model, data=data), remarks


def own_paths(data: DataConfig, given: Set[str]) -> DataConfig:
    """`data` with files that were given relative to the current directory, as a person means them.

    Unless --data-dir was given as well: then all are relative to that.
    """
    splits = ("train", "valid", "more_valid", "test")
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
