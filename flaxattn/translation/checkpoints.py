"""What a run keeps through orbax, one folder per step: states to resume from, models to use."""

from pathlib import Path
from typing import Any, Literal, Self

import jax
import orbax.checkpoint as ocp

from flaxattn.translation.averaging import mean

__all__ = ["Checkpoints", "Models"]


class _Kept:
    """An orbax manager, which is closed when its block ends."""

    def __init__(self, folder: Path, **options: Any) -> None:
        self._manager = ocp.CheckpointManager(
            folder.absolute(), options=ocp.CheckpointManagerOptions(create=True, **options)
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Waits until everything is on disk. Raises what went wrong in the background."""
        self._manager.wait_until_finished()
        self._manager.close()


class Checkpoints(_Kept):
    """The checkpoints in one folder.

    Args:
      folder: made when the first checkpoint is written.
      keep: how many of the latest are kept.
    """

    def __init__(self, folder: Path, *, keep: int) -> None:
        super().__init__(folder, max_to_keep=keep)

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


class Models(_Kept):
    """The models of a run that are worth using: parameters alone, of the best or last validations.

    Args:
      folder: made when the first model is written.
      keep: how many are kept; None: all.
      select: which: those of the best metric, or the last.
    """

    def __init__(self, folder: Path, *, keep: int | None, select: Literal["best", "last"]) -> None:
        best = {"best_fn": lambda metrics: metrics["metric"], "best_mode": "max"}
        super().__init__(folder, max_to_keep=keep, **(best if select == "best" else {}))

    def save(self, step: int, params: Any, metric: float) -> None:
        """Writes `params` in the background, if `metric` (more is better) is worth keeping."""
        if step not in self._manager.all_steps():
            self._manager.save(step, args=ocp.args.StandardSave(params), metrics={"metric": metric})

    def average(self, like: Any) -> Any:
        """The mean of the models kept, with the structure, shapes and placement of `like`."""
        self._manager.wait_until_finished()
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        restore = ocp.args.StandardRestore(abstract)
        steps = sorted(self._manager.all_steps())
        if not steps:
            raise ValueError(
                f"{self._manager.directory}: no model has been kept here yet; "
                "a run keeps its first one at its first validation."
            )
        return mean([self._manager.restore(step, args=restore) for step in steps])
