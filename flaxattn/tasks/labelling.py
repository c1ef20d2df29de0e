"""Sequence labelling: a tag for each word of a sentence, told by all of it."""

import functools
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flaxattn.tasks.builtin import labelling as builtin
from flaxattn.tasks.builtin.draws import Split
from flaxattn.tasks.config import LabellingRun, TextRun
from flaxattn.tasks.losses import nll_of
from flaxattn.tasks.metrics import entity_scores
from flaxattn.tasks.metrics.entities import EntityScores
from flaxattn.tasks.predicting import logits_of
from flaxattn.tasks.preparation import TextKind, prepare
from flaxattn.tasks.reading import tagged_sentences
from flaxattn.tasks.storing import Loaded
from flaxattn.tasks.text_task import LabelledRows, TextTask
from flaxattn.text.normalization import Normalization, normalized
from flaxattn.text.packing import Batch
from flaxattn.text.pairs import Pair
from flaxattn.text.splits import Corpus
from flaxattn.text.tokenizer import Tokenizer
from flaxattn.text.tokens import Tokens
from flaxattn.training.screen import Screen, Tell
from flaxattn.training.task import Sums, Tested
from flaxattn.training.trees import Params

__all__ = ["LabellingTask", "label", "prepared_task"]

OUTSIDE = "O"


class LabellingTask(TextTask):
    """To tag words as sentences of a corpus are; it is a `flaxattn.training.task.Task`."""

    name = "labelling"
    unit, shown = "words", ("accuracy",)

    def rows(self, pairs: Batch, draw: object) -> LabelledRows:
        return LabelledRows(pairs.source, pairs.source_segment_ids, pairs.target)

    def loss(self, params: Params, batch: LabelledRows, key: jax.Array | None) -> Sums:
        logits = self.logits(params, batch, key)
        first = batch.labels > 0  # token of a word
        nll, correct = nll_of(logits, batch.labels - 1, first)
        return Sums(nll, correct, first.astype(jnp.float32).sum())

    def means(self, sums: Sums) -> dict[str, float]:
        words = max(float(sums.units), 1.0)
        return {"loss": float(sums.loss) / words, "accuracy": float(sums.others) / words}

    def validate(self, params: Params, means: dict[str, float]) -> tuple[dict[str, float], float]:
        """Adds precision, recall and F1 of entities."""
        precision, recall, f1, _ = self._scores(params, self.prepared.corpus.valid).micro
        return means | {"precision": precision, "recall": recall, "f1": f1}, f1

    def samples(self, params: Params) -> Iterator[Mapping[str, str]]:
        pairs = self.prepared.corpus.valid[: self.config.training.samples]
        sentences = [text.split(" ") for text, _ in pairs]
        found = label(self.loaded(params), sentences)
        for words, (_, tags), guessed in zip(sentences, pairs, found, strict=True):
            yield {"entities": _shown(words, tags.split(" ")), "found": _shown(words, guessed)}

    def test(self, params: Params, screen: Screen) -> Tested:
        """Scores entities of the test split, of all kinds together and of each."""
        scores = self._scores(params, self.prepared.corpus.test)
        rows = {"all": scores.micro, **scores.kinds}
        values = {name: _rounded(of._asdict()) for name, of in rows.items()}
        lines = [f"  {'entities':<12} precision  recall      F1   number"] + [
            f"  {name:<12} {of.precision:9.2%} {of.recall:7.2%} {of.f1:7.2%} {of.support:8}"
            for name, of in rows.items()
        ]
        headline, pictures = f"F1 {scores.micro.f1:.2%}", functools.partial(self.pictures, params)
        return Tested({"entities": values}, headline=headline, lines=lines, pictures=pictures)

    def _scores(self, params: Params, pairs: Sequence[Pair]) -> EntityScores:
        sentences = [text.split(" ") for text, _ in pairs]
        found = label(self.loaded(params), sentences)
        return entity_scores([tags.split(" ") for _, tags in pairs], found)


def label(loaded: Loaded, sentences: Sequence[Sequence[str]]) -> list[list[str]]:
    """A tag for each word of sentences.

    A word's tag is told at its first token. A sentence that is longer than the rows of training is
    labelled in parts.

    Args:
      loaded: a model of the task `labelling`.

    Raises:
      ValueError if it is of another task.
    """
    if loaded.task != "labelling":
        raise ValueError(f"a model of the task {loaded.task} gives no tags; expected labelling.")
    parts = [_parts(words, loaded.tokenizer, loaded.sequence_length) for words in sentences]
    ids = [np.concatenate(part) for part in itertools.chain.from_iterable(parts)]
    logits = iter(logits_of(loaded.module, loaded.params, ids))
    return [
        [
            loaded.labels[int(best)]
            for part in of_sentence
            for best in next(logits)[_firsts(part)].argmax(axis=-1)
        ]
        for of_sentence in parts
    ]


Part = list[np.ndarray]  # the ids of each word


def _parts(words: Sequence[str], tokenizer: Tokenizer, length: int) -> list[Part]:
    """The words' ids in parts that fit a row; of a word that fits none the first ids."""
    parts, room = list[Part](), 0
    for ids in (ids[:-1][:length] for ids in tokenizer.encode(words)):
        if len(ids) > room:
            parts.append([])
            room = length
        parts[-1].append(ids)
        room -= len(ids)
    return parts


def _firsts(part: Part) -> np.ndarray:
    """Where each word begins."""
    return np.cumsum([0, *map(len, part)])[:-1]


def _encode(
    pairs: list[Pair], tokenizer: Tokenizer, labels: tuple[str, ...], length: int
) -> Tokens:
    """Parts of sentences, and for each token 1 + its label where it is the first of its word."""
    sources, targets = list[np.ndarray](), list[np.ndarray]()
    numbers = {label: number for number, label in enumerate(labels, 1)}
    for text, tags in pairs:
        told = iter(tags.split(" "))
        for part in _parts(text.split(" "), tokenizer, length):
            sources.append(np.concatenate(part))
            targets.append(np.zeros(len(sources[-1]), np.int32))
            targets[-1][_firsts(part)] = [numbers.get(next(told), 0) for _ in part]
    return Tokens.of(sources, targets)


def _labels_of(corpus: Corpus) -> tuple[str, ...]:
    found = {tag for _, tags in corpus.train for tag in tags.split(" ")}
    return (OUTSIDE, *sorted(found - {OUTSIDE}))


def _builtin(split: Split, count: int) -> Iterable[Pair]:
    return ((" ".join(words), " ".join(tags)) for words, tags in builtin.sentences(split, count))


def _read(path: Path, config: TextRun, tell: Tell) -> Iterator[Pair]:
    assert isinstance(config, LabellingRun)
    data = config.data
    columns = (data.word_column, data.tag_column)
    return tagged_sentences(path, tell, columns, skip_invalid=data.invalid_lines == "skip")


def _spelt(text: str, normalization: Normalization) -> str:
    """Words in that form, as many as there were: what becomes a space within one is left out."""
    words = ("".join(normalized(word, normalization).split()) for word in text.split(" "))
    return " ".join(new or old for new, old in zip(words, text.split(" "), strict=True))


def _rounded(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: round(value, 5) for name, value in values.items()}


def _shown(words: Sequence[str], tags: Sequence[str]) -> str:
    """The words with their tags behind them, but for those outside."""
    return " ".join(
        word if tag == OUTSIDE else f"{word}/{tag}" for word, tag in zip(words, tags, strict=True)
    )


KIND = TextKind("labelling", _read, _builtin, _encode, _labels_of, normalize=_spelt)


def prepared_task(config: TextRun, begun: Path | None, screen: Screen) -> LabellingTask:
    """The task, once all is read and told."""
    return LabellingTask(config, prepare(KIND, config, begun, screen))
