"""The architecture of a model that starts from another's parameters: which fields are decided."""

import contextlib
import dataclasses
from collections.abc import Callable, Set
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

__all__ = ["check_architecture", "started", "starting_from"]

Model = TypeVar("Model", bound="DataclassInstance")


def started(
    model: Model,
    read: Callable[[Path], Model],
    folder: str,
    *,
    kept: Model | None,
    given: Set[str],
) -> Model:
    """`model` as it becomes where training starts from the one in a folder.

    Args:
      read: gives the architecture of the model in a folder; where it cannot, that is told of when
        the parameters are needed.
      folder: of `--init-from`.
      kept: the architecture of the run itself, if it has begun.
      given: the names of the fields that were given.

    Raises:
      ValueError as `starting_from`.
    """
    known = kept
    with contextlib.suppress(ValueError, OSError):
        known = known or read(Path(folder))
    return starting_from(model, known, folder, given) if known else model


def starting_from(model: Model, start: Model, folder: str, given: Set[str]) -> Model:
    """`model` with the architecture that the parameters of `start` are of.

    Raises:
      ValueError if an option was given that says otherwise; it names both.
    """
    fixed = {name: x for name, x in vars(start).items() if not _free_to_differ(name)}
    for name, value in fixed.items():
        if name in given and getattr(model, name) != value:
            option = f"--{name.replace('_', '-')}"
            raise ValueError(
                f"{option} is {getattr(model, name)}; the model of --init-from {folder} has "
                f"{option} {value}. Leave the option out, or give the same."
            )
    return dataclasses.replace(model, **fixed)


def check_architecture(start: Model, wanted: Model) -> None:
    """Raises ValueError if the parameters of `start` do not fit the model that is wanted."""
    differing = [
        f"--{name.replace('_', '-')} {value} (here {getattr(wanted, name)})"
        for name, value in vars(start).items()
        if not _free_to_differ(name) and value != getattr(wanted, name)
    ]
    if differing:
        raise ValueError(
            f"--init-from: that run's model has {', '.join(differing)}; give the same here."
        )


def _free_to_differ(name: str) -> bool:
    """Whether a model may have another value of this field than the one it starts from."""
    return name in ("dtype", "remat") or name.endswith("dropout_rate")
