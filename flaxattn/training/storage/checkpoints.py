"""What a run keeps, verified, a folder for each step: states to resume from, models to use."""

import abc
import concurrent.futures
import contextlib
import errno
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, Self

import jax
import orbax.checkpoint as ocp

from flaxattn.training.parameters.averaging import mean
from flaxattn.training.storage.files import PARTIAL, SaveError, free_bytes, sync
from flaxattn.training.storage.layout import TREE
from flaxattn.training.storage.manifest import DamagedError, read_manifest, seal, verify
from flaxattn.training.trees import Params, Tree
from flaxattn.types import PyTree

__all__ = ["Checkpoints", "Models", "size_of"]

About = dict[str, Any]  # what a step's manifest says of it


class _Kept(abc.ABC):
    """The folders of steps in one folder, written in the background, verified when read.

    A step's folder has its name only when all of it is written: `7/state/`, which orbax reads
    and writes, and `7/manifest.json`.

    Args:
      folder: made when the first step is written, in one that must be there.
      run: names the run; what other runs have written is skipped. None: reads that of any.
      warn: is told of every folder that is skipped. None: Python's warnings are.
    """

    def __init__(
        self, folder: Path, *, run: str | None = None, warn: Callable[[str], None] | None = None
    ) -> None:
        self._folder, self._run, self._warn = folder.absolute(), run, warn or warnings.warn
        self._writer = concurrent.futures.ThreadPoolExecutor(1)
        self._writing: concurrent.futures.Future[None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Waits until everything is on disk. Raises SaveError if that failed."""
        try:
            self.wait()
        finally:
            self._writer.shutdown()

    def wait(self) -> None:
        """Waits until what was given to write is on disk. Raises SaveError if that failed."""
        writing, self._writing = self._writing, None
        if writing:
            writing.result()

    def steps(self) -> list[int]:
        """The steps there are folders of, damaged or not, in order."""
        return sorted(int(path.name) for path in self._folders() if _is_step(path.name))

    def _save(self, step: int, tree: PyTree, about: About) -> None:
        """Begins to write the folder of `step` instead of any that is there."""
        self.wait()
        about = {"step": step, "run": self._run, "arrays": _arrays(tree)} | about
        self._writing = self._writer.submit(self._write, step, jax.device_get(tree), about)

    def _write(self, step: int, tree: PyTree, about: About) -> None:
        partial = self._folder / f"{step}{PARTIAL}"
        try:
            self._make_folder()
            if free_bytes(self._folder) < size_of(tree):  # else orbax finds out, array by array
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            with _orbax() as orbax:
                orbax.save(partial / TREE, args=ocp.args.StandardSave(tree))
            seal(partial, about)
            self._replace(step, partial)
            self._prune(step)
        except Exception as error:  # orbax and tensorstore raise many kinds
            shutil.rmtree(partial, ignore_errors=True)
            raise SaveError(self._failure(step, tree, error)) from error

    def _failure(self, step: int, tree: PyTree, error: Exception) -> str:
        reason = str(error).strip().partition("\n")[0].partition(" [tensorstore_spec")[0]
        reason = reason or type(error).__name__
        kept = self.steps()
        return (
            f"{self._folder / str(step)}: could not be written: {reason}. It has {size_of(tree):,} "
            f"bytes of arrays; {free_bytes(self._folder):,} bytes are free there. "
            + (f"Step {kept[-1]} is kept as it was." if kept else "No earlier step is kept.")
        )

    def _make_folder(self) -> None:
        """Makes the folder, or deletes what a process that was killed has left there."""
        self._folder.mkdir(exist_ok=True)
        sync(self._folder.parent)
        for path in self._folder.glob(f"*{PARTIAL}"):
            shutil.rmtree(path)

    def _replace(self, step: int, new: Path) -> None:
        """Gives a folder the name of `step`, for good, before any other is deleted."""
        folder, old = self._folder / str(step), self._folder / f"{step}.old{PARTIAL}"
        if folder.exists():
            folder.rename(old)
        new.rename(folder)
        sync(self._folder)
        if old.exists():
            shutil.rmtree(old)

    def _delete(self, step: int) -> None:
        """Deletes the folder of `step`, which is at no time there in part."""
        old = self._folder / f"{step}.old{PARTIAL}"
        (self._folder / str(step)).rename(old)
        sync(self._folder)
        shutil.rmtree(old)

    def _prune(self, last: int) -> None:
        """Deletes what is no longer worth keeping.

        Steps after the last one written, which training has not come from, take no part in that:
        they are damaged or of another run, or will be written anew.
        """
        abouts = {}
        for step in self.steps():
            if step <= last:
                with contextlib.suppress(DamagedError):  # when it is read, the person is told
                    about = read_manifest(self._folder / str(step))["about"]
                    self._check_ours(step, about)
                    abouts[step] = about
        for step in abouts.keys() - self._worth_keeping(abouts):
            self._delete(step)

    @abc.abstractmethod
    def _worth_keeping(self, abouts: dict[int, About]) -> set[int]:
        """Which of the steps to keep, by what is said of each."""

    def _folders(self) -> list[Path]:
        return sorted(self._folder.iterdir()) if self._folder.is_dir() else []

    def _verified(self, steps: list[int]) -> Iterator[tuple[int, About]]:
        """Those of the steps that are whole and of this run; the person is told of the others."""
        for step in steps:
            folder = self._folder / str(step)
            try:
                about = verify(folder)
                self._check_ours(step, about)
            except DamagedError as error:
                self._warn(f"{str(error).rstrip('.')}. Skipped {folder}.")
            else:
                yield step, about

    def _check_ours(self, step: int, about: About) -> None:
        """Raises DamagedError unless the folder of a step holds that step of this run."""
        folder = self._folder / str(step)
        if about.get("step") != step:
            raise DamagedError(f"{folder}: holds step {about.get('step')}")
        if self._run is not None and about.get("run") != self._run:
            raise DamagedError(f"{folder}: is of another run")

    def _read(self, step: int, about: About, like: Tree) -> Tree:
        """The tree of a verified step, with the structure, dtypes and placement of `like`."""
        folder = self._folder / str(step)
        _check_arrays(about.get("arrays"), _arrays(like), folder)
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        with _orbax() as orbax:
            return orbax.restore(folder / TREE, args=ocp.args.StandardRestore(abstract))


class Checkpoints(_Kept):
    """The states that training can go on from.

    Args:
      folder, run, warn: as in every such folder.
      keep: how many of the latest are kept.
    """

    def __init__(self, folder: Path, *, keep: int, **about: Any) -> None:
        super().__init__(folder, **about)
        self._keep = keep

    def save(self, step: int, state: PyTree, progress: dict[str, Any]) -> None:
        """Writes in the background.

        Args:
          state: a tree of arrays.
          progress: JSON-able, what training knows besides.

        Raises:
          SaveError if the former checkpoint could not be written.
        """
        self._save(step, state, {"progress": progress})

    def restore_latest(self, like: Tree) -> tuple[Tree, dict[str, Any]]:
        """The latest state that is whole, placed like `like`, and its progress; else `like`, {}.

        Raises:
          ValueError that lists the arrays whose path, shape or dtype are not those of `like`.
        """
        for path in self._folders():
            if not _is_step(path.name) and not path.name.endswith(PARTIAL):
                self._warn(f"{path}: is no checkpoint. Skipped.")
        for step, about in self._verified(self.steps()[::-1]):
            return self._read(step, about, like), about.get("progress", {})
        return like, {}

    def _worth_keeping(self, abouts: dict[int, About]) -> set[int]:
        return set(sorted(abouts)[-self._keep :])


class Models(_Kept):
    """The models of a run that are worth using: parameters alone, of the best or last validations.

    Args:
      folder, run, warn: as in every such folder.
      keep: how many are kept.
      select: which: those of the best metric, or the last.
    """

    def __init__(
        self, folder: Path, *, keep: int = 1, select: Literal["best", "last"] = "last", **about: Any
    ) -> None:
        super().__init__(folder, **about)
        self._keep, self._select = keep, select

    def save(self, step: int, params: Params, metric: float) -> None:
        """Writes in the background, and keeps it if `metric` (more is better) is worth it.

        Raises:
          SaveError if the former model could not be written.
        """
        self._save(step, params, {"metric": metric})

    def average(self, like: Tree) -> Tree:
        """The mean of the models kept, with the structure, shapes and placement of `like`.

        Raises:
          ValueError if there is none, or it does not fit.
        """
        self.wait()
        models = [self._read(step, about, like) for step, about in self._verified(self.steps())]
        if not models:
            raise ValueError(
                f"{self._folder}: no whole model has been kept here yet; "
                "a run keeps its first one at its first validation."
            )
        return mean(models)

    def _worth_keeping(self, abouts: dict[int, About]) -> set[int]:
        by_metric = lambda step: (abouts[step]["metric"], -step)  # noqa: E731  an equal one is no better
        ranked = sorted(abouts, key=by_metric if self._select == "best" else None)
        return set(ranked[-self._keep :])


def _orbax() -> ocp.Checkpointer:
    """Orbax in this process alone: it waits for no others, which keep nothing."""
    alone = ocp.options.MultiprocessingOptions(
        primary_host=jax.process_index(), active_processes={jax.process_index()}
    )
    handler = ocp.StandardCheckpointHandler(multiprocessing_options=alone)
    return ocp.Checkpointer(handler, multiprocessing_options=alone)


def size_of(tree: PyTree) -> int:
    """The bytes of all arrays of a tree."""
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def _arrays(tree: PyTree) -> dict[str, str]:
    """By path, what each array is: `float32[3,4]`."""
    return {
        jax.tree_util.keystr(path): f"{x.dtype}[{','.join(map(str, x.shape))}]"
        for path, x in jax.tree_util.tree_leaves_with_path(tree)
    }


def _check_arrays(kept: object, wanted: dict[str, str], folder: Path) -> None:
    if kept == wanted:
        return
    kept = kept if isinstance(kept, dict) else {}
    differing = [
        f"  {path}: {kept.get(path, 'nothing')} is kept, {wanted.get(path, 'nothing')} is expected"
        for path in sorted(kept.keys() | wanted.keys())
        if kept.get(path) != wanted.get(path)
    ]
    raise ValueError("\n".join([f"{folder} does not fit this model:", *differing]))


def _is_step(name: str) -> bool:
    return name.isascii() and name.isdigit() and str(int(name)) == name
