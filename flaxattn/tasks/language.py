"""Language modelling: each token of a document is told by those before it."""

import functools
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from flaxattn.models import shift_right
from flaxattn.tasks.builtin import language as grammar
from flaxattn.tasks.builtin.draws import Split
from flaxattn.tasks.config import SamplingConfig, TextRun
from flaxattn.tasks.documents import HINT, cut, read_documents
from flaxattn.tasks.generating import generate
from flaxattn.tasks.losses import nll_of
from flaxattn.tasks.preparation import TextKind, prepare
from flaxattn.tasks.text_task import Rows, TextTask
from flaxattn.text.packing import Batch
from flaxattn.text.pairs import Pair
from flaxattn.training.screen import Screen
from flaxattn.training.task import Sums, Tested
from flaxattn.training.trees import Params

__all__ = ["LanguageTask", "prepared_task"]

BEGINNING = 5  # tokens of a sample that are given


class Reported(NamedTuple):
    """What is added up over tokens besides the loss."""

    correct: jax.Array
    """Tokens that had the highest logit."""
    bytes: jax.Array
    """Of the text that they stand for, a line break behind each document counted in."""


class LanguageTask(TextTask):
    """To go on as documents do; it is a `flaxattn.training.task.Task`."""

    name = "language"
    unit, shown = "tokens", ("bits_per_byte",)

    def rows(self, pairs: Batch, draw: object) -> Rows:
        return Rows(pairs.source, pairs.source_segment_ids)

    def loss(self, params: Params, batch: Rows, key: jax.Array | None) -> Sums:
        tokenizer = self.prepared.tokenizer
        before = shift_right(batch.tokens, batch.segment_ids, tokenizer.bos_id)
        logits = self.logits(params, batch._replace(tokens=before), key)
        is_token = batch.segment_ids != 0
        nll, correct = nll_of(logits, batch.tokens, is_token)
        sizes = jnp.asarray(tokenizer.bytes_of_ids())[batch.tokens]
        size = jnp.sum(sizes, where=is_token)
        return Sums(nll, Reported(correct, size), is_token.astype(jnp.float32).sum())

    def means(self, sums: Sums) -> dict[str, float]:
        tokens, others = max(float(sums.units), 1.0), sums.others
        nll = float(sums.loss) / tokens
        return {
            "loss": nll,
            "perplexity": math.exp(min(nll, 100.0)),
            "bits_per_byte": float(sums.loss) / math.log(2) / max(float(others.bytes), 1.0),
            "accuracy": float(others.correct) / tokens,
        }

    def validate(self, params: Params, means: dict[str, float]) -> tuple[dict[str, float], float]:
        return means, -means["loss"]

    def samples(self, params: Params) -> Iterator[Mapping[str, str]]:
        """Goes on with the beginnings of validation documents."""
        loaded, sampling = self.loaded(params), SamplingConfig(max_tokens=40)
        for text, _ in self.prepared.corpus.valid[: self.config.training.samples]:
            ids = loaded.tokenizer.encode([text])[0][:BEGINNING]
            beginning = loaded.tokenizer.decode([ids.tolist()])[0]
            yield {"given": beginning, "written": "".join(generate(loaded, beginning, sampling))}

    def test(self, params: Params, screen: Screen) -> Tested:
        """Tells the test documents' nll, and what of it is the built-in grammar's own."""
        total = self.test_sums(params)
        means = self.means(total)
        values: dict[str, Any] = {f"test_{name}": round(x, 5) for name, x in means.items()}
        said = f"{means['bits_per_byte']:.4f} bits per byte"
        if not self.config.data.train:
            count = len(self.prepared.corpus.test)
            own = -sum(log_prob for _, log_prob in grammar.texts("test", count))
            values["nll_to_entropy"] = round(float(total.loss) / own, 4)
            said += f", {values['nll_to_entropy']:.3f} times the entropy of the built-in grammar"
        said += f"; perplexity {means['perplexity']:.2f}"
        return Tested(values, headline=said, pictures=functools.partial(self.pictures, params))


def _builtin(split: Split, count: int) -> Iterator[Pair]:
    return ((text, "") for text, _ in grammar.texts(split, count))


KIND = TextKind(
    name="language",
    read=read_documents,
    builtin=_builtin,
    encode=cut,
    tokenizer={"keep_spaces": True},
    hint=HINT,
)


def prepared_task(config: TextRun, begun: Path | None, screen: Screen) -> LanguageTask:
    """The task, once all is read and told."""
    return LanguageTask(config, prepare(KIND, config, begun, screen))
