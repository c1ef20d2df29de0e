"""What a person gives on a command line: words in UTF-8, and paths in which `~` is their home."""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

__all__ = ["paths_at_home", "check_words"]


def check_words(words: Sequence[str]) -> None:
    """Raises ValueError naming the first word that is not valid UTF-8, or no name of an option."""
    for number, word in enumerate(words, 1):
        try:
            word.encode()
        except UnicodeEncodeError as error:
            shown = os.fsencode(word).decode("utf-8", "backslashreplace")
            raise ValueError(
                f"argument {number}, {shown}: invalid UTF-8 at character {error.start}; give text "
                "and names of files in UTF-8."
            ) from None
        if word.startswith("-") and not word.isprintable():
            shown = word.encode("unicode_escape").decode()
            raise ValueError(f"argument {number}, {shown}: no option has such a name.")


def paths_at_home(command: Any) -> Any:
    """A dataclass with `~` and `~name` in its paths replaced by the folder they stand for."""
    return dataclasses.replace(command, **{k: _expanded(v) for k, v in vars(command).items()})


def _expanded(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(_expanded, value))
    if dataclasses.is_dataclass(value):
        return paths_at_home(value)
    return Path(os.path.expanduser(value)) if isinstance(value, Path) else value
