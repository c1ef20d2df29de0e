"""Classification: one label for a text, told by all of it."""

import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from flaxattn.layers import segment_positions
from flaxattn.tasks.builtin import classification as builtin
from flaxattn.tasks.builtin.draws import Split
from flaxattn.tasks.config import ClassificationRun, TextRun
from flaxattn.tasks.losses import nll_of
from flaxattn.tasks.metrics import class_scores
from flaxattn.tasks.metrics.classes import ClassScores
from flaxattn.tasks.predicting import logits_of
from flaxattn.tasks.preparation import TextKind, prepare
from flaxattn.tasks.reading import labelled_texts
from flaxattn.tasks.storing import Loaded
from flaxattn.tasks.text_task import LabelledRows, TextTask
from flaxattn.text.packing import Batch
from flaxattn.text.pairs import Pair
from flaxattn.text.splits import Corpus
from flaxattn.text.tokenizer import Tokenizer
from flaxattn.text.tokens import Tokens
from flaxattn.training.screen import Screen, Tell
from flaxattn.training.task import Sums, Tested
from flaxattn.training.trees import Params

__all__ = ["ClassificationTask", "classify", "prepared_task"]


class ClassificationTask(TextTask):
    """To label texts as those of a corpus are; it is a `flaxattn.training.task.Task`."""

    name = "classification"
    unit, shown = "texts", ("accuracy",)

    def rows(self, pairs: Batch, draw: object) -> LabelledRows:
        """`labels` `[R, L]` has that of a row's first text first, and so on."""
        return LabelledRows(pairs.source, pairs.source_segment_ids, pairs.target)

    def loss(self, params: Params, batch: LabelledRows, key: jax.Array | None) -> Sums:
        logits, segment_ids = self.logits(params, batch, key), jnp.asarray(batch.segment_ids)
        begins = (segment_positions(segment_ids) == 0) & (segment_ids > 0)
        labels = jnp.take_along_axis(batch.labels, jnp.maximum(segment_ids - 1, 0), axis=1)
        nll, correct = nll_of(logits, labels - 1, begins & (labels > 0))
        return Sums(nll, correct, (begins & (labels > 0)).astype(jnp.float32).sum())

    def means(self, sums: Sums) -> dict[str, float]:
        texts = max(float(sums.units), 1.0)
        return {"loss": float(sums.loss) / texts, "accuracy": float(sums.others) / texts}

    def validate(self, params: Params, means: dict[str, float]) -> tuple[dict[str, float], float]:
        """Adds the mean F1 of classes."""
        scores = self._scores(params, self.prepared.corpus.valid)
        return means | {"accuracy": scores.accuracy, "f1": scores.macro.f1}, scores.accuracy

    def samples(self, params: Params) -> Iterator[Mapping[str, str]]:
        pairs = self.prepared.corpus.valid[: self.config.training.samples]
        found = classify(self.loaded(params), [text for text, _ in pairs])
        for (text, label), probabilities in zip(pairs, found, strict=True):
            best = max(probabilities, key=probabilities.__getitem__)
            yield {"text": text, "label": label, "found": f"{best} ({probabilities[best]:.0%})"}

    def test(self, params: Params, screen: Screen) -> Tested:
        """Scores the test split: accuracy, and precision, recall and F1 of each class."""
        scores = self._scores(params, self.prepared.corpus.test)
        rows = {**scores.classes, "mean": scores.macro}
        values = {
            name: {key: round(x, 5) for key, x in of._asdict().items()} for name, of in rows.items()
        }
        lines = [f"  {'class':<16} precision  recall      F1   number"] + [
            f"  {name:<16} {of.precision:9.2%} {of.recall:7.2%} {of.f1:7.2%} {of.support:8}"
            for name, of in rows.items()
        ]
        told = {"accuracy": round(scores.accuracy, 5), "classes": values}
        headline = f"accuracy {scores.accuracy:.2%}, mean F1 {scores.macro.f1:.2%}"
        pictures = functools.partial(self.pictures, params)
        return Tested(told, headline=headline, lines=lines, pictures=pictures)

    def _scores(self, params: Params, pairs: Sequence[Pair]) -> ClassScores:
        found = classify(self.loaded(params), [text for text, _ in pairs])
        best = [max(of_text, key=of_text.__getitem__) for of_text in found]
        return class_scores([label for _, label in pairs], best)


def classify(loaded: Loaded, texts: Sequence[str]) -> list[dict[str, float]]:
    """The probability of each label, for each text; of a long one its beginning is read.

    Args:
      loaded: a model of the task `classification`.

    Raises:
      ValueError if it is of another task.
    """
    if loaded.task != "classification":
        raise ValueError(
            f"a model of the task {loaded.task} gives texts no labels; expected classification."
        )
    ids = [_ids(text, loaded.tokenizer, loaded.sequence_length) for text in texts]
    first = [logits[0] for logits in logits_of(loaded.module, loaded.params, ids)]
    shares = (np.exp(x - x.max()) / np.exp(x - x.max()).sum() for x in first)
    return [dict(zip(loaded.labels, of_text.tolist(), strict=True)) for of_text in shares]


def _ids(text: str, tokenizer: Tokenizer, length: int) -> np.ndarray:
    """The first ids of a text, behind the token at which its label is told."""
    return np.append(np.int32(tokenizer.bos_id), tokenizer.encode([text])[0])[:length]


def _encode(
    pairs: list[Pair], tokenizer: Tokenizer, labels: tuple[str, ...], length: int
) -> Tokens:
    """The ids of texts, and 1 + the label of each; 0 for one that no training text has."""
    numbers = {label: number for number, label in enumerate(labels, 1)}
    sources = [_ids(text, tokenizer, length) for text, _ in pairs]
    return Tokens.of(sources, [np.array([numbers.get(x, 0)], np.int32) for _, x in pairs])


def _labels_of(corpus: Corpus) -> tuple[str, ...]:
    return tuple(sorted({label for _, label in corpus.train}))


def _builtin(split: Split, count: int) -> Iterator[Pair]:
    return ((text, label) for label, text in builtin.texts(split, count))


def _read(path: Path, config: TextRun, tell: Tell) -> Iterator[Pair]:
    assert isinstance(config, ClassificationRun)
    data = config.data
    return labelled_texts(path, tell, data.columns, skip_invalid=data.invalid_lines == "skip")


KIND = TextKind("classification", _read, _builtin, _encode, _labels_of)


def prepared_task(config: TextRun, begun: Path | None, screen: Screen) -> ClassificationTask:
    """The task, once all is read and told."""
    return ClassificationTask(config, prepare(KIND, config, begun, screen))
