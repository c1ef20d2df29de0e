"""What settings and counts were once called: older files are read, older options explained."""

from collections.abc import Iterable, Mapping
from typing import Any

__all__ = ["RENAMED", "renamed"]

RENAMED = {
    "rows": "batch_size",
    "row_length": "sequence_length",
    "max_source": "max_source_length",
    "target_tokens": "units",
}


def renamed(data: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """The data of an older version under today's names.

    Args:
      names: those that are expected; of others nothing is renamed.

    >>> renamed({"rows": 8, "steps": 3}, ["batch_size", "steps"])
    {'batch_size': 8, 'steps': 3}
    """
    known = {*names}
    new = {name: RENAMED[name] for name in data if name in RENAMED and name not in known}
    return {new.get(name, name) if new.get(name) in known else name: x for name, x in data.items()}
