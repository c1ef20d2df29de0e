"""What all tasks on texts answer alike to what training asks."""

import abc
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import jax
import numpy as np

from flaxattn.explorer import svg
from flaxattn.tasks.config import TextRun
from flaxattn.tasks.explaining import explain
from flaxattn.tasks.modules import init_of
from flaxattn.tasks.preparation import Prepared
from flaxattn.tasks.rules import EXPORTED, LABELS, TOKENIZER
from flaxattn.tasks.storing import Loaded, export, to_labels
from flaxattn.text.lines import to_show
from flaxattn.text.packing import Batch as PackedBatch
from flaxattn.text.splits import digests_of
from flaxattn.training.parameters.initial import axes_of
from flaxattn.training.task import Batch, Picture, Sums
from flaxattn.training.trees import Params
from flaxattn.types import PyTree

__all__ = ["TRAINED", "LabelledRows", "Rows", "TextTask"]

TRAINED, VALIDATED, TESTED = range(3)  # what a batch is for


class Rows(NamedTuple):
    """Packed rows of texts, int32 [R, L] each; segment 0 is padding."""

    tokens: Any
    segment_ids: Any


class LabelledRows(NamedTuple):
    """The same with labels, int32 [R, L], counted from 1; 0 is none."""

    tokens: Any
    segment_ids: Any
    labels: Any


@dataclasses.dataclass(frozen=True)
class TextTask(abc.ABC):
    """Part of a `flaxattn.training.task.Task`; what is learned is for each task to say."""

    config: TextRun
    prepared: Prepared

    name: ClassVar[str]

    @property
    def params(self) -> Params:
        return self.prepared.params

    @property
    def axes(self) -> PyTree:
        return axes_of(init_of(self.prepared.module))

    def files(self) -> dict[str, bytes]:
        labels = self.prepared.labels
        of_labels = {LABELS: to_labels(labels)} if labels else {}
        return {TOKENIZER: self.prepared.tokenizer.model} | of_labels

    def digests(self) -> dict[str, str]:
        return digests_of(self.prepared.corpus, self.prepared.train.order)

    def batch(self, step: int) -> Batch:
        return self.rows(self.prepared.train.batch(step), (TRAINED, step))

    def valid_batches(self) -> list[Batch]:
        batches = self.prepared.valid.all_batches()
        return [self.rows(pairs, (VALIDATED, i)) for i, pairs in enumerate(batches)]

    def test_batches(self) -> list[Batch]:
        """The batches of the test split."""
        batches = self.prepared.test.all_batches()
        return [self.rows(pairs, (TESTED, i)) for i, pairs in enumerate(batches)]

    def test_sums(self, params: Params) -> Any:
        """The sums of the loss over the test split, on no device."""
        loss = jax.jit(lambda params, batch: self.loss(params, batch, None))
        sums = [jax.device_get(loss(params, batch)) for batch in self.test_batches()]
        return jax.tree.map(lambda *parts: np.sum(parts), *sums)

    @abc.abstractmethod
    def loss(self, params: Params, batch: Batch, key: jax.Array | None) -> Sums:
        """As `flaxattn.training.task.Task` has it."""

    @abc.abstractmethod
    def rows(self, pairs: PackedBatch, draw: tuple[int, int]) -> Batch:
        """What of packed pairs of ids the loss takes.

        Args:
          draw: what for and which batch of it, beside the seed all that what is random depends on.
        """

    def pictures(self, params: Params) -> list[Picture]:
        """What the model attends to in a text of the test split, at its last attention."""
        text = to_show([text for text, _ in self.prepared.corpus.test])
        seen = explain(self.loaded(params), text)
        return [Picture(f"{text} ({seen.attentions[-1].name})", svg(seen.attentions[-1:]))]

    def logits(
        self, params: Params, batch: Rows | LabelledRows, key: jax.Array | None
    ) -> jax.Array:
        """What the model makes of rows: float32 `[R, L, C]`; key None drops nothing."""
        apply: Any = self.prepared.module.apply
        logits: jax.Array = apply(
            {"params": params},
            batch.tokens,
            segment_ids=batch.segment_ids,
            deterministic=key is None,
            rngs=None if key is None else {"dropout": key},
        )
        return logits

    def export(self, params: Params, folder: Path, result: Mapping[str, Any]) -> None:
        export(folder / EXPORTED, self.loaded(params), result=result, name=result["run"])

    def loaded(self, params: Params) -> Loaded:
        """The model as one who uses it has it, on one device."""
        prepared, device = self.prepared, jax.local_devices()[0]
        return Loaded(
            self.name,
            prepared.module.config,
            jax.device_put(params, device),
            prepared.tokenizer,
            self.config.training.sequence_length,
            prepared.labels,
        )
