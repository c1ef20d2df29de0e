"""Folders that are written whole or not at all, each in the place of the one before."""

import contextlib
import shutil
from collections.abc import Iterator, Set
from pathlib import Path

from flaxattn.training.storage.files import beside, make_folder, sync

__all__ = ["check_only", "replacing_folder"]


def check_only(folder: Path, names: Set[str]) -> None:
    """Raises ValueError if a folder holds anything but an exported model, which may be replaced.

    Args:
      names: of the files and folders that such a model is made of.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ValueError(f"{folder} is a file; expected the folder to export to.")
    others = sorted(path.name for path in folder.iterdir() if path.name not in names)
    if others:
        raise ValueError(
            f"{folder} holds {', '.join(others[:3])}, which is no part of an exported model; name "
            "a new folder, or one that holds an exported model alone."
        )


@contextlib.contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """A folder to write in, which takes the place of `folder`, for good, once all went well."""
    folder = folder.resolve()
    make_folder(folder.parent)
    hidden = beside(folder.with_name(f".{folder.name}"))
    new, old = hidden / "new", hidden / "old"
    _recover(folder, hidden, old)
    try:
        hidden.mkdir()
        sync(folder.parent)
        new.mkdir()
        yield new
        if folder.exists():
            shutil.copymode(folder, new)
            folder.rename(old)
        try:
            new.rename(folder)
        except OSError:
            if old.exists():
                old.rename(folder)
            raise
        sync(folder.parent)
    finally:
        shutil.rmtree(hidden, ignore_errors=True)


def _recover(folder: Path, hidden: Path, old: Path) -> None:
    """Clears away what a process that was killed has left, and gives back what it had replaced."""
    if hidden.is_symlink():
        hidden.unlink()
    elif hidden.exists():
        if old.exists() and not folder.exists():
            old.rename(folder)
            sync(folder.parent)
        shutil.rmtree(hidden)
