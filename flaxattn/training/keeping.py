"""What a run keeps while it trains, elsewhere if its folder is gone: models, states to resume.

Of several processes the first alone reads and writes: the others give it their parts of a state,
and are told what it has read.
"""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import jax

from flaxattn.training.config import TrainingConfig
from flaxattn.training.home import Home
from flaxattn.training.log import Log
from flaxattn.training.mesh import place_like
from flaxattn.training.processes import by_first, from_first, on_first, whole
from flaxattn.training.storage.checkpoints import Checkpoints, Models
from flaxattn.training.storage.files import SaveError
from flaxattn.training.storage.layout import CHECKPOINTS, MODELS
from flaxattn.training.train_step import TrainState
from flaxattn.training.trees import Params, Tree

__all__ = ["Keeping", "NothingKept", "restored"]


class Keeping:
    """The models and checkpoints of a run.

    Args:
      home: the run's folder.
      config: how many are kept, and which.
      warn: is told of what is skipped because it is damaged.
    """

    def __init__(self, home: Home, config: TrainingConfig, warn: Callable[[str], None]) -> None:
        self._home, self._config, self._warn = home, config, warn
        self._checkpoints, self._models = self._kept_in(home.path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Waits until everything is on disk. Raises SaveError if that failed."""
        with self._checkpoints:
            self._models.close()

    def restore(self, like: Tree) -> tuple[Tree, dict[str, Any]]:
        """The latest state that is whole, and its progress, as `Checkpoints.restore_latest`."""
        return self._checkpoints.restore_latest(like)

    def keep(
        self, state: TrainState, progress: dict[str, Any], log: Log, *, validated: bool
    ) -> None:
        """Writes a state in the background and, if it has just been validated, its model.

        Raises:
          SaveError if that failed, or the folder is gone; it says what is kept, and where.
        """
        with self._not_lost(state, progress, log, validated):
            if validated:
                self._models.save(int(state.step), state.model, progress["history"][-1])
            log.mend()
            self._models.wait()  # so that no checkpoint is without the models before it
            self._checkpoints.save(int(state.step), state, progress)

    def average(self, state: TrainState, progress: dict[str, Any], log: Log) -> Params:
        """The mean of the models kept, once all is on disk. Raises as `keep` and `Models.average`.

        Args:
          state, progress, log: after the last step, which was validated.
        """
        with self._not_lost(state, progress, log, True):
            log.mend()
            params = self._models.average(state.model)
            self._checkpoints.wait()
        expected, found = min(self._config.average, len(progress["history"])), self._models.steps()
        if len(found) < expected:
            self._warn(f"{len(found)} models are there of {expected} that were kept.")
        return params

    def _kept_in(self, folder: Path) -> tuple[Checkpoints, Models]:
        config, of_run = self._config, {"run": self._home.run, "warn": self._warn}
        checkpoints = Checkpoints(folder / CHECKPOINTS, keep=config.keep_checkpoints, **of_run)
        models = Models(folder / MODELS, keep=config.average, select=config.select, **of_run)
        return checkpoints, models

    @contextlib.contextmanager
    def _not_lost(
        self, state: TrainState, progress: dict[str, Any], log: Log, validated: bool
    ) -> Iterator[None]:
        """Keeps a state in a new folder if that of the run is not there before or after the block.

        Raises:
          SaveError that says so.
        """
        try:
            if self._home.is_whole():
                yield
            if self._home.is_whole():
                return
            reason: Exception | None = None
        except (OSError, ValueError) as error:
            if self._home.is_whole():
                raise
            reason = error
        raise self._kept_anew(state, progress, log, validated) from reason

    def _kept_anew(
        self, state: TrainState, progress: dict[str, Any], log: Log, validated: bool
    ) -> SaveError:
        """Keeps what is in memory in a new folder, and gives the error that tells of it."""
        step, home = int(state.step), self._home
        with contextlib.suppress(SaveError):  # what was begun before
            self.close()
        folder = home.made_anew(log.contents())
        checkpoints, models = self._kept_in(folder)
        with checkpoints, models:
            if validated:
                models.save(step, state.model, progress["history"][-1])
            checkpoints.save(step, state, progress)
        command = "the same command" + f" with --output {folder}" * (folder != home.path)
        return SaveError(
            f"{home.path} was deleted or moved while it was trained in. Step {step} and the log "
            f"are kept in {folder}, where {command} goes on; models and checkpoints from before "
            "are not."
        )


class NothingKept:
    """What a process keeps that is not the first."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def restore(self, like: Tree) -> tuple[Tree, dict[str, Any]]:
        """As of `Keeping`, as all here."""
        return like, {}

    def keep(
        self, state: TrainState, progress: dict[str, Any], log: Log, *, validated: bool
    ) -> None:
        pass

    def average(self, state: TrainState, progress: dict[str, Any], log: Log) -> Params:
        return state.model


def restored(kept: Keeping | NothingKept, state: TrainState) -> tuple[TrainState, dict[str, Any]]:
    """The latest state that is whole, on all devices of all processes, and its progress.

    Args:
      kept: what this process keeps.
      state: what is given back, with no progress, where nothing is kept; else where all lies.
    """
    like = whole(state)
    tree, progress = on_first(lambda: kept.restore(like)) or (like, {})
    told = by_first(lambda: progress)
    if not told:
        return state, {}
    places = jax.tree.map(lambda x: x.sharding, state)
    return place_like(from_first(tree), places), told
