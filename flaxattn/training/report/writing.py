"""Writes the page of a run into its folder, when all else is there."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flaxattn.training.report.page import page
from flaxattn.training.screen import Screen
from flaxattn.training.storage.files import read_regular, write_whole
from flaxattn.training.storage.layout import LOG, REPORT
from flaxattn.training.task import Tested

__all__ = ["write_page"]


def write_page(
    folder: Path, unit: str, tested: Tested, result: Mapping[str, Any], screen: Screen
) -> None:
    """Writes `report.html`; one that cannot be drawn is told of, and takes nothing with it.

    Args:
      unit: what the log counts.
      result: the row of results.
    """
    path = folder / REPORT
    try:
        rows = [json.loads(line) for line in read_regular(folder / LOG).splitlines()]
        drawn = page(
            folder.resolve().name,
            tested.headline,
            result,
            rows,
            unit,
            tested.lines,
            tested.pictures(),
        )
        write_whole(path, drawn)
    except Exception as error:  # of whatever draws
        screen.warn(f"{path} was not written: {error!r}. All else is there.")
    else:
        screen.say(f"To look at in a browser: {path}")
