"""The models of a run that are worth using: parameters alone, one for each validation."""

from pathlib import Path
from typing import Any, Literal, Self

import jax
import orbax.checkpoint as ocp

from flaxattn.translation.averaging import mean

__all__ = ["Models"]


class Models:
    """The best or the last models of a run, kept in one folder.

    Args:
      folder: made when the first model is written.
      keep: how many are kept; None: all.
      select: which: those of the best metric, or the last.
    """

    def __init__(self, folder: Path, *, keep: int | None, select: Literal["best", "last"]) -> None:
        best = {"best_fn": lambda metrics: metrics["metric"], "best_mode": "max"}
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, create=True, **(best if select == "best" else {})
        )
        self._manager = ocp.CheckpointManager(folder.absolute(), options=options)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

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

    def close(self) -> None:
        """Waits until everything is on disk. Raises what went wrong in the background."""
        self._manager.wait_until_finished()
        self._manager.close()
