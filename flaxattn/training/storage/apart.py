"""What a command writes is none of what it reads, nor anything that a folder keeps for itself."""

import os
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path

from flaxattn.training.storage.files import beside

__all__ = ["check_apart", "check_outside", "with_partial"]


def check_outside(
    written: Mapping[str, Path | int],
    folder: Path,
    *,
    folders: Iterable[str],
    names: Iterable[str],
) -> None:
    """Raises ValueError if something would be written over what a run or a model keeps.

    Args:
      written: as in `check_apart`.
      folder: of the run, or of the exported model.
      folders: those in it, into which nothing else is written.
      names: of all that it keeps.
    """
    own = [folder / name for name in folders]
    for name, path in written.items():
        if isinstance(path, Path) and any(
            path.resolve().is_relative_to(place.resolve()) for place in own
        ):
            raise ValueError(f"{name}: {path} lies in what {folder} keeps. Name one elsewhere.")
    kept = {f"the model's {folder / name}": folder / name for name in names}
    check_apart(written, kept)


def with_partial(name: str, path: Path) -> dict[str, Path | int]:
    """A file that will be written, and the one beside it that it is until all is in it."""
    if not path.parent.is_dir():
        return {name: path}
    return {name: path, f"the .partial file of {name}": beside(path)}


def check_apart(written: Mapping[str, Path | int], read: Mapping[str, Path | int]) -> None:
    """Raises ValueError if something written is also read, or written twice, under any name.

    Args:
      written, read: paths or descriptors of open files, by what people call them.
    """
    for number, (name, path) in enumerate(written.items()):
        earlier = list(written.items())[:number]
        for other_name, other in [*read.items(), *earlier]:
            if _same_file(path, other):
                raise ValueError(f"{name}: is the same file as {other_name}. Name another one.")


def _same_file(one: Path | int, other: Path | int) -> bool:
    """Whether two are the same regular file, or will be."""
    try:
        found = os.stat(one), os.stat(other)
    except OSError:
        if isinstance(one, int) or isinstance(other, int):
            return False
        return one.resolve() == other.resolve()
    return os.path.samestat(*found) and stat.S_ISREG(found[0].st_mode)
