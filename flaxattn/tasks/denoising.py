"""Denoising: the hidden tokens of a text are told by the others (BERT, arXiv:1810.04805).

Which are hidden is drawn anew for each step, as in RoBERTa (arXiv:1907.11692, section 4.1), a
function of seed and step; or once for all, by the option that this improves on.
"""

import functools
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flaxattn.tasks.builtin import classification, labelling, language
from flaxattn.tasks.builtin.draws import Split
from flaxattn.tasks.config import DenoisingRun, TextRun
from flaxattn.tasks.documents import HINT, cut, read_documents
from flaxattn.tasks.hiding import hide_tokens
from flaxattn.tasks.losses import nll_of
from flaxattn.tasks.predicting import logits_of
from flaxattn.tasks.preparation import TextKind, prepare
from flaxattn.tasks.text_task import TRAINED, LabelledRows, TextTask
from flaxattn.text.packing import Batch
from flaxattn.text.pairs import Pair
from flaxattn.text.subword_dropout import SPACE
from flaxattn.training.screen import Screen
from flaxattn.training.task import Sums, Tested
from flaxattn.training.trees import Params

__all__ = ["DenoisingTask", "builtin_texts", "prepared_task"]

ALWAYS = 0  # in the place of a draw, for masks that do not change


class DenoisingTask(TextTask):
    """To tell hidden tokens; it is a `flaxattn.training.task.Task`."""

    name = "denoising"
    unit, shown = "hidden_tokens", ("accuracy",)
    config: DenoisingRun

    def rows(self, pairs: Batch, draw: tuple[int, int]) -> LabelledRows:
        if self.config.training.static_masks and draw[0] == TRAINED:
            return self._hidden_by_text(pairs)
        rng = np.random.default_rng([self.config.training.seed, *draw])
        tokens, labels = hide_tokens(pairs.source, rng=rng, **self._how())
        return LabelledRows(tokens, pairs.source_segment_ids, labels)

    def loss(self, params: Params, batch: LabelledRows, key: jax.Array | None) -> Sums:
        logits, hidden = self.logits(params, batch, key), batch.labels > 0
        nll, correct = nll_of(logits, batch.labels - 1, hidden)
        return Sums(nll, correct, hidden.astype(jnp.float32).sum())

    def means(self, sums: Sums) -> dict[str, float]:
        tokens = max(float(sums.units), 1.0)
        nll = float(sums.loss) / tokens
        perplexity = math.exp(min(nll, 100.0))
        return {"loss": nll, "perplexity": perplexity, "accuracy": float(sums.others) / tokens}

    def validate(self, params: Params, means: dict[str, float]) -> tuple[dict[str, float], float]:
        return means, -means["loss"]

    def samples(self, params: Params) -> Iterator[Mapping[str, str]]:
        """Validation texts with tokens hidden, and with what the model puts in their places."""
        batch, tokenizer = self.valid_batches()[0], self.prepared.tokenizer
        loaded = self.loaded(params)
        for i in range(min(self.config.training.samples, len(batch.tokens))):
            tokens, _, labels = (x[i, batch.segment_ids[i] == 1] for x in batch)
            (logits,) = logits_of(loaded.module, loaded.params, [tokens])
            told = np.where(labels > 0, logits.argmax(axis=-1), tokens)
            shown = "".join(tokenizer.pieces(tokens.tolist()))
            yield {
                "hidden": shown.replace(SPACE, " "),
                "told": tokenizer.decode([told.tolist()])[0],
            }

    def test(self, params: Params, screen: Screen) -> Tested:
        """Tells the hidden tokens of the test split."""
        means = self.means(self.test_sums(params))
        values = {f"test_{name}": round(x, 5) for name, x in means.items()}
        said = (
            f"{means['accuracy']:.2%} of hidden tokens told, perplexity {means['perplexity']:.2f}"
        )
        return Tested(values, headline=said, pictures=functools.partial(self.pictures, params))

    def _hidden_by_text(self, rows: Batch) -> LabelledRows:
        """Rows in which the same tokens of a text are hidden whenever it comes."""
        tokens, labels = np.array(rows.source), np.zeros_like(rows.source)
        for row, segments in enumerate(rows.source_segment_ids):
            for segment in range(1, segments.max() + 1):
                cells = segments == segment
                ids = rows.source[row, cells]
                rng = np.random.default_rng([self.config.training.seed, ALWAYS, *ids.tolist()])
                tokens[row, cells], labels[row, cells] = hide_tokens(ids, rng=rng, **self._how())
        return LabelledRows(tokens, rows.source_segment_ids, labels)

    def _how(self) -> dict[str, Any]:
        tokenizer = self.prepared.tokenizer
        return {
            "rate": self.config.training.mask_rate,
            "first_id": tokenizer.unk_id + 1,
            "mask_id": tokenizer.mask_id,
            "vocab_size": tokenizer.vocab_size,
        }


def builtin_texts(split: Split, count: int) -> Iterable[Pair]:
    """The texts of all built-in corpora, in turn."""
    third = -(-count // 3)
    texts = (
        [text for text, _ in language.texts(split, third)],
        [" ".join(words) for words, _ in labelling.sentences(split, third)],
        [text for _, text in classification.texts(split, third)],
    )
    together = (text for of_each in zip(*texts, strict=True) for text in of_each)
    return ((text, "") for text, _ in zip(together, range(count), strict=False))


KIND = TextKind(
    "denoising", read_documents, builtin_texts, cut, tokenizer={"with_mask": True}, hint=HINT
)


def prepared_task(config: TextRun, begun: Path | None, screen: Screen) -> DenoisingTask:
    """The task, once all is read and told.

    Raises:
      ValueError if the tokenizer, of a model that training starts from, has no mask; else as
      `prepare`.
    """
    assert isinstance(config, DenoisingRun)
    prepared = prepare(KIND, config, begun, screen)
    if prepared.tokenizer.mask_id is None:
        raise ValueError(
            f"--init-from: the tokenizer of {config.training.init_from} has no token for what is "
            "hidden; start from a model of the task denoising, or from none."
        )
    return DenoisingTask(config, prepared)
