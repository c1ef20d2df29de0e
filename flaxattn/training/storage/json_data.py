"""JSON files and the dataclasses in them, checked: what comes from a file is data, never code."""

import dataclasses
import json
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from flaxattn.training.renamed import renamed
from flaxattn.training.storage.files import read_regular

__all__ = ["from_data", "from_older", "read_object", "same_fields", "some"]

MOST_BYTES = 1 << 26  # of a file: no configuration or manifest comes near
MOST_NAMES = 5  # in a message

Kind = TypeVar("Kind")


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
      FileNotFoundError if there is no such file, ValueError if it holds anything else.
    """
    content = read_regular(path, MOST_BYTES)
    try:
        data = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: expected JSON: {error}") from error
    if not isinstance(data, dict):
        raise ValueError(f"{path}: expected a JSON object, found {type(data).__name__}.")
    return data


def from_data(kind: type[Kind], data: object, where: str) -> Kind:
    """An instance of the dataclass `kind` from the values of all its fields.

    Args:
      where: the file and the place in it, for errors.

    Raises:
      ValueError for unknown or missing fields, and for values of other types or out of range.

    >>> from flaxattn.training.config import TrainingConfig
    >>> from_data(TrainingConfig, {"beam": 4}, "config.json, training")
    Traceback (most recent call last):
    ValueError: config.json, training: unknown field beam; missing fields steps, batch_size, ...
    """
    names = [field.name for field in dataclasses.fields(kind)]  # type: ignore[arg-type]
    read = same_fields(data, names, where)
    hints = typing.get_type_hints(kind)
    for name in names:
        if not _fits(read[name], hints[name]):
            expected = getattr(hints[name], "__name__", str(hints[name]))
            raise ValueError(f"{where}: {name} is {read[name]!r}; expected {expected}.")
    values = {name: tuple(x) if isinstance(x, list) else x for name, x in read.items()}
    try:
        return kind(**values)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def from_older(kind: type[Kind], data: object, where: str) -> Kind:
    """As `from_data`; fields that an older version called otherwise have their new names.

    Those that it did not write have their defaults.
    """
    fields = dataclasses.fields(kind)  # type: ignore[arg-type]
    defaults = {x.name: x.default for x in fields if x.default is not dataclasses.MISSING}
    if isinstance(data, dict):
        data = defaults | renamed(data, [x.name for x in fields])
    return from_data(kind, data, where)


def same_fields(data: object, names: list[str], where: str) -> dict[str, Any]:
    """`data`, an object with exactly these fields; else raises ValueError."""
    if not isinstance(data, dict):
        raise ValueError(f"{where}: expected a JSON object, found {type(data).__name__}.")
    problems = [
        f"{what} field{'s' * (len(found) > 1)} {some(found)}"
        for what, found in (
            ("unknown", [name for name in data if name not in names]),
            ("missing", [name for name in names if name not in data]),
        )
        if found
    ]
    if problems:
        raise ValueError(f"{where}: {'; '.join(problems)}.")
    return data


def some(names: Sequence[str], separator: str = ", ") -> str:
    """The first of the names, and how many more there are.

    >>> some(list("abcdefgh"))
    'a, b, c, d, e and 3 more'
    """
    more = len(names) - MOST_NAMES
    return separator.join(names[:MOST_NAMES]) + (f" and {more:,} more" if more > 0 else "")


def _fits(value: object, hint: object) -> bool:
    if typing.get_origin(hint) is typing.Literal:
        return value in typing.get_args(hint)
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        return any(_fits(value, part) for part in typing.get_args(hint))
    if typing.get_origin(hint) is tuple:  # of any length, as JSON's lists are
        inner = typing.get_args(hint)[0]
        return isinstance(value, list | tuple) and all(_fits(x, inner) for x in value)
    if hint is float:
        return type(value) in (float, int)
    return type(value) is hint
