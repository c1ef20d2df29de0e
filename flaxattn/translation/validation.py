"""What a model is worth, on the validation split: losses, scores, sample translations."""

import math
from collections.abc import Sequence
from typing import Any

from jax.sharding import Mesh

from flaxattn.training.devices import place
from flaxattn.training.reporting import RunLog
from flaxattn.training.train_step import make_eval_step
from flaxattn.translation.config import DecodingConfig, RunConfig
from flaxattn.translation.decoding.translator import translate
from flaxattn.translation.loss import means, total
from flaxattn.translation.preparation import Prepared
from flaxattn.translation.text.scoring import score

__all__ = ["Validation", "stale"]


class Validation:
    """Measures a model as `config` asks, and reports it.

    Args:
      prepared: the model, the tokenizer and the validation split.
      config: of the run.
      mesh: the devices.
    """

    def __init__(self, prepared: Prepared, config: RunConfig, mesh: Mesh) -> None:
        self._prepared, self._config, self._mesh = prepared, config, mesh
        self._eval_step = make_eval_step(prepared.model, bos_id=prepared.tokenizer.bos_id)

    def measure(self, params: Any) -> dict[str, float]:
        """Loss, perplexity and accuracy, and, where it is the metric, the score."""
        batches = (place(batch, self._mesh, "data") for batch in self._prepared.valid.all_batches())
        values = means(total([self._eval_step(params, batch) for batch in batches]))
        metric = self._config.training.metric
        if metric != "nll":
            sources, references = zip(*self._prepared.corpus.valid, strict=True)
            hypotheses = self._translate(params, sources)
            tokenizer = self._config.data.bleu_tokenizer
            scores = score(hypotheses, references, tokenizer=tokenizer)
            values |= {s.name: s.value for s in scores if s.name == metric}
        return values

    def metric(self, values: dict[str, float]) -> float:
        """What models are compared by: more is better, and no number is worst."""
        name = self._config.training.metric
        value = -values[name] if name == "nll" else values[name]
        return -math.inf if math.isnan(value) else value

    def report(self, step: int, params: Any, values: dict[str, float], log: RunLog) -> list[str]:
        """Writes the values and sample translations to the log, and gives the lines to show."""
        log.write("valid", step, values)
        shown = "  ".join(
            f"{name} {values[name]:.3f}"
            for name in ("nll", "perplexity", "accuracy", "bleu", "chrf")
            if name in values
        )
        return [f"step {step:>6}  validation  {shown}", *self._samples(step, params, log)]

    def _samples(self, step: int, params: Any, log: RunLog) -> list[str]:
        pairs = self._prepared.corpus.valid[: self._config.training.samples]
        lines = []
        translations = self._translate(params, [source for source, _ in pairs])
        for (source, reference), translation in zip(pairs, translations, strict=True):
            texts = {"source": source, "reference": reference, "translation": translation}
            log.write("sample", step, texts)
            lines += [f"    {name:<12} {text}" for name, text in texts.items()]
        return lines

    def _translate(self, params: Any, texts: Sequence[str]) -> list[str]:
        prepared, max_ratio = self._prepared, self._config.decoding.max_ratio
        greedy = DecodingConfig(beam_size=1, max_ratio=max_ratio)
        return translate(prepared.model, params, prepared.tokenizer, texts, greedy)


def stale(metrics: Sequence[float]) -> int:
    """How many of the latest validations are no better than an earlier one.

    Args:
      metrics: of all validations, in order; more is better.

    >>> stale([1.0, 3.0, 2.0, 3.0])
    2
    """
    return len(metrics) - 1 - metrics.index(max(metrics)) if metrics else 0
