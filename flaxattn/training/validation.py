"""What a model is worth, on the validation split: measured by the task, told to log and screen."""

import math
from collections.abc import Sequence

from jax.sharding import Mesh

from flaxattn.training.log import Log
from flaxattn.training.mesh import place_batch
from flaxattn.training.metrics import total
from flaxattn.training.processes import by_first, is_first, whole
from flaxattn.training.screen import Screen
from flaxattn.training.task import Task
from flaxattn.training.train_step import make_eval_step
from flaxattn.training.trees import Params

__all__ = ["Validation", "stale"]


class Validation:
    """Validates the models of a task.

    Args:
      task: what they are to do.
      mesh: the devices.
      screen: is told of it.
    """

    def __init__(self, task: Task, mesh: Mesh, screen: Screen) -> None:
        self._task, self._mesh, self._screen = task, mesh, screen
        self._eval_step = make_eval_step(task.loss, mesh=mesh)

    def measure(self, params: Params, own: Params) -> tuple[dict[str, float], float]:
        """The values of a model, and its metric: more is better, and no number is worst.

        Args:
          params: on the mesh.
          own: the same, all of which this process has.
        """
        batches = (place_batch(batch, self._mesh) for batch in self._task.valid_batches())
        means = self._task.means(total([self._eval_step(params, batch) for batch in batches]))
        values, metric = by_first(lambda: self._task.validate(own, means))
        return values, -math.inf if math.isnan(metric) else metric

    def report(self, step: int, params: Params, log: Log) -> float:
        """Tells of a model's values and of its samples, and gives its metric."""
        own = whole(params)
        values, metric = self.measure(params, own)
        log.write("valid", step, values)
        shown = "  ".join(f"{name} {x:.3f}" for name, x in values.items() if name != "loss")
        self._screen.say(f"step {step:>6}  validation  {shown}")
        for texts in self._task.samples(own) if is_first() else ():
            log.write("sample", step, dict(texts))
            for name, text in texts.items():
                self._screen.say(f"    {name:<12} {text}")
        return metric


def stale(metrics: Sequence[float]) -> int:
    """How many of the latest validations are no better than an earlier one.

    Args:
      metrics: of all validations, in order; more is better.

    >>> stale([1.0, 3.0, 2.0, 3.0])
    2
    """
    return len(metrics) - 1 - metrics.index(max(metrics)) if metrics else 0
