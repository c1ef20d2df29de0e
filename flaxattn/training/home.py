"""The folder that a run lives in while it trains, which someone may delete or move meanwhile."""

import itertools
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Self, TextIO

from flaxattn.training.storage.files import make_folder, replacing
from flaxattn.training.storage.layout import CONFIG, DATA, LOCK, START

__all__ = ["Home"]


class Home:
    """A run's folder, and what is needed to make it anew.

    Args:
      path: of the folder.
      run: the run's name.
      lock: the open file by which the run holds the folder.
      files: the names of the task's own files that the run began with.
    """

    def __init__(
        self,
        path: Path,
        run: str | None = None,
        lock: TextIO | None = None,
        files: Iterable[str] = (),
    ) -> None:
        self.path, self.run, self._lock = path, run, lock
        # Open files can be read, and their inodes are given to no others, when they are deleted.
        begun_with = (*files, START, DATA, CONFIG)
        names = [name for name in begun_with if (path / name).exists()]
        self._files = {name: (path / name).open("rb") for name in names}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        for file in self._files.values():
            file.close()

    def is_whole(self) -> bool:
        """Whether the folder is there, is this one, and holds what the run began with."""
        return self._is_ours() and all((self.path / name).exists() for name in self._files)

    def made_anew(self, contents: Mapping[str, bytes]) -> Path:
        """A folder with what the run began with, and these files by name.

        It is the same one if it has been deleted; if something else has taken its place, one that
        is called almost like it.
        """
        folder = self.path
        taken = (folder / LOCK).exists() or (folder / CONFIG).exists()  # else: what we still wrote
        if taken and not self._is_ours():
            names = (folder.with_name(f"{folder.name}.rescued{n or ''}") for n in itertools.count())
            folder = next(path for path in names if not path.exists())
        make_folder(folder)
        for name, content in contents.items():
            with replacing(folder / name) as new:
                new.write(content)
        for name, file in self._files.items():
            file.seek(0)
            with replacing(folder / name) as new:
                shutil.copyfileobj(file, new)
        return folder

    def _is_ours(self) -> bool:
        if self._lock is None:
            return self.path.is_dir()
        lock = self.path / LOCK
        return lock.exists() and os.path.samestat(lock.stat(), os.fstat(self._lock.fileno()))
