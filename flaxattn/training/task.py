"""What training asks of a task, and all that it asks; and the rules of its runs' folders."""

from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from flaxattn.training.config import RunConfig
from flaxattn.training.screen import Screen
from flaxattn.training.trees import Params
from flaxattn.types import PyTree

__all__ = ["Batch", "Loss", "Picture", "RunRules", "Sums", "Task", "Tested"]

Batch = PyTree
"""Each array with `batch_size` rows, and, if it has a second axis, with the positions of a row."""


class Sums(NamedTuple):
    """Sums over all that a batch counts, e.g. tokens; they add up over microbatches and devices."""

    loss: jax.Array
    """What is minimised, after division by `units`."""
    others: PyTree
    """A tree of scalars: what else is added up to be reported."""
    units: jax.Array
    """How many tokens there were, or whatever is counted."""
    skipped: Any = np.float32(0)
    """Batches that were left out, since they gave no finite loss. Training counts them."""


Loss = Callable[[Params, Batch, jax.Array | None], Sums]
"""The sums of a batch under parameters, and under a random key for dropout; None drops nothing."""


class Picture(NamedTuple):
    """What shows a model at work."""

    caption: str
    svg: bytes


class Tested(NamedTuple):
    """What came of the test at the end."""

    values: Mapping[str, Any]
    """JSON-able, for `result.json`."""
    files: Mapping[str, str] = {}
    """What to keep beside it, by name."""
    headline: str = ""
    """What a person should know above all."""
    lines: Sequence[str] = ()
    """What else there is to show."""
    pictures: Callable[[], Sequence[Picture]] = list
    """Draws what shows the model at work, for the page on the run, when all else is written."""


class Task(Protocol):
    """Something to learn. A batch and its loss are pure functions: so a run can be resumed."""

    @property
    def config(self) -> RunConfig:
        """All settings, as far as they are known once all is prepared."""

    @property
    def unit(self) -> str:
        """What `Sums.units` counts, in the plural, e.g. `target_tokens`."""

    @property
    def shown(self) -> Sequence[str]:
        """Which of the values of `means` are shown beside the loss while training."""

    @property
    def params(self) -> Params:
        """The parameters before the first step; with `init_from`, those of the model it names."""

    @property
    def axes(self) -> PyTree:
        """For each parameter the logical names of its axes, `embed` and others, in a tuple.

        As layers name them, and `flax.linen.get_partition_spec` tells; () for what has none. By
        these `training.mesh` spreads it over devices, of which the task need know nothing.
        """

    def files(self) -> Mapping[str, bytes]:
        """The task's own files that a run begins with, by name: those of `RunRules.files`."""

    def digests(self) -> Mapping[str, str]:
        """The SHA-256 of each split of the data; none but `test` may change in a run."""

    def batch(self, step: int) -> Batch:
        """The batch of a step: a pure function of the seed and the step."""

    def valid_batches(self) -> Sequence[Batch]:
        """The batches of the validation split, at least one."""

    @property
    def loss(self) -> Loss:
        """A method, as a rule; it is compiled. Its parameters and its results are those of `Loss`.

        Arrays that it needs besides are bound to a `jax.tree_util.Partial`, or else constants of
        the program.
        """

    def means(self, sums: Sums) -> dict[str, float]:
        """The values to report, `loss` first."""

    def validate(self, params: Params, means: dict[str, float]) -> tuple[dict[str, float], float]:
        """The values of a model to report, and that by which models are compared: more is better.

        Args:
          means: of the validation split.
        """

    def samples(self, params: Params) -> Iterable[Mapping[str, str]]:
        """Texts that show what a model does, by what they are."""

    def test(self, params: Params, screen: Screen) -> Tested:
        """Looks in the end at what the model is worth."""

    def export(self, params: Params, folder: Path, result: Mapping[str, Any]) -> None:
        """Writes the model as others are to have it.

        Args:
          folder: of the run, in which it has a place of its own.
          result: what `result.json` holds.
        """


def _nothing(config: object) -> frozenset[str]:
    return frozenset()


def _no_files(config: object) -> dict[str, list[Path]]:
    return {}


class RunRules(NamedTuple):
    """What the folders of a task's runs must know before anything is prepared."""

    config: type
    """The dataclass of a run's settings, as `RunConfig`."""
    files: Sequence[str] = ()
    """The names of the task's own files that a run begins with."""
    results: Sequence[str] = ()
    """The names of the task's own files and folders that a run ends with."""
    data: str = "data"
    """What the digests of its data are called in `data.json`."""
    of_data: Set[str] = frozenset()
    """The settings that are checked through the digests of the data."""
    places: Set[str] = frozenset()
    """The settings that are folders, which differ from machine to machine."""
    free: Callable[[Any], Set[str]] = _nothing
    """Of a configuration, the other settings that may change in a run."""
    inputs: Callable[[Any], Mapping[str, Sequence[Path]]] = _no_files
    """Of a configuration, the files that a run reads, by option."""
