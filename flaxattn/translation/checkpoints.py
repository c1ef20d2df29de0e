"""Checkpoints of a run's state, kept by orbax: one folder per step, the latest few."""

from pathlib import Path
from typing import Any, Self

import jax
import orbax.checkpoint as ocp

__all__ = ["Checkpoints"]


class Checkpoints:
    """The checkpoints in one folder.

    Args:
      folder: made when the first checkpoint is written.
      keep: how many of the latest are kept.
    """

    def __init__(self, folder: Path, *, keep: int) -> None:
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True)
        self._manager = ocp.CheckpointManager(folder.absolute(), options=options)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def save(self, step: int, state: Any) -> None:
        """Writes `state` in the background; a step already written is left as it is."""
        if self._manager.latest_step() != step:
            self._manager.save(step, args=ocp.args.StandardSave(state))

    def restore_latest(self, like: Any) -> Any:
        """The latest state, with the structure, shapes and placement of `like`; else `like`."""
        step = self._manager.latest_step()
        if step is None:
            return like
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        return self._manager.restore(step, args=ocp.args.StandardRestore(abstract))

    def close(self) -> None:
        """Waits until everything is on disk. Raises what went wrong in the background."""
        self._manager.wait_until_finished()
        self._manager.close()
