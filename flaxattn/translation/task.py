"""Translation as a task: what training asks of it, answered from what was prepared."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from flaxattn.explorer import svg
from flaxattn.text.lines import to_show
from flaxattn.text.packing import Batch
from flaxattn.text.pairs import Pair
from flaxattn.text.splits import digests_of
from flaxattn.text.supply import PackedPairs
from flaxattn.training.config import to_json
from flaxattn.training.metrics import total
from flaxattn.training.screen import Screen
from flaxattn.training.task import Picture, Sums, Tested
from flaxattn.training.trees import Params
from flaxattn.translation.config import DecodingConfig, RunConfig
from flaxattn.translation.decoding.explaining import CROSS_ATTENTION, explain_translations
from flaxattn.translation.decoding.translator import Translation, Translator, translate
from flaxattn.translation.initial import axes_of
from flaxattn.translation.layout import EXPORTED, TEST, TOKENIZER
from flaxattn.translation.loss import loss_of, means
from flaxattn.translation.preparation import Prepared
from flaxattn.translation.text.scoring import score
from flaxattn.translation.trained.exporting import export
from flaxattn.translation.trained.loading import Loaded
from flaxattn.types import PyTree

__all__ = ["TranslationTask"]

SHOWN = 5  # translations of the test split


@dataclasses.dataclass(frozen=True)
class TranslationTask:
    """To translate as the sentence pairs of a corpus do; it is a `flaxattn.training.task.Task`."""

    config: RunConfig
    prepared: Prepared

    unit = "target_tokens"
    shown = ("accuracy",)

    @property
    def params(self) -> Params:
        return self.prepared.params

    @property
    def axes(self) -> PyTree:
        return axes_of(self.prepared.model)

    def files(self) -> dict[str, bytes]:
        return {TOKENIZER: self.prepared.tokenizer.model}

    def digests(self) -> dict[str, str]:
        return digests_of(self.prepared.corpus, self.prepared.train.order)

    def batch(self, step: int) -> Batch:
        return self.prepared.train.batch(step)

    def valid_batches(self) -> list[Batch]:
        return self.prepared.valid.all_batches()

    def loss(self, params: Params, batch: Batch, key: jax.Array | None) -> Sums:
        model, bos_id = self.prepared.model, self.prepared.tokenizer.bos_id
        return loss_of(model, self.config.training, bos_id)(params, batch, key)

    def means(self, sums: Sums) -> dict[str, float]:
        return means(sums)

    def validate(self, params: Params, means: dict[str, float]) -> tuple[dict[str, float], float]:
        """Adds the score of the validation split where it is the metric, and those of others."""
        own = self._measured(params, self.prepared.corpus.valid, means["nll"])
        others = {
            f"{name}/{other}": value
            for other, (pairs, packed) in self.prepared.others.items()
            for name, value in self._measured(params, pairs, self._nll(params, packed)).items()
        }
        metric = self.config.training.metric
        return means | own | others, -own[metric] if metric == "nll" else own[metric]

    def _measured(self, params: Params, pairs: Sequence[Pair], nll: float) -> dict[str, float]:
        """What pairs are told of by: the loss, and the metric."""
        metric = self.config.training.metric
        return {"nll": nll} | ({} if metric == "nll" else {metric: self._scored(params, pairs)})

    def _nll(self, params: Params, packed: PackedPairs) -> float:
        """Of one process, as scores are."""
        sums = total([self._sums(params, batch) for batch in packed.all_batches()])
        return self.means(sums)["nll"]

    @functools.cached_property
    def _sums(self) -> Callable[[Params, Batch], Sums]:
        return jax.jit(functools.partial(self.loss, key=None))

    def _scored(self, params: Params, pairs: Sequence[Pair]) -> float:
        """The metric of translations of these pairs."""
        sources, references = zip(*pairs, strict=True)
        hypotheses = self._translate(params, sources)
        scores = score(hypotheses, references, tokenizer=self.config.data.bleu_tokenizer)
        (value,) = (s.value for s in scores if s.name == self.config.training.metric)
        return value

    def samples(self, params: Params) -> Iterator[Mapping[str, str]]:
        pairs = self.prepared.corpus.valid[: self.config.training.samples]
        translations = self._translate(params, [source for source, _ in pairs])
        for (source, reference), translation in zip(pairs, translations, strict=True):
            yield {"source": source, "reference": reference, "translation": translation}

    def test(self, params: Params, screen: Screen) -> Tested:
        """Translates and scores the test split."""
        sources, references = (list(side) for side in zip(*self.prepared.corpus.test, strict=True))
        found = self._translate_test(params, sources, screen)
        hypotheses = [best[0].text for best in found]
        texts = {"source": sources, "reference": references, "hypothesis": hypotheses}
        scores = score(hypotheses, references, tokenizer=self.config.data.bleu_tokenizer)
        values = {s.name: {"value": round(s.value, 2), "signature": s.signature} for s in scores}
        return Tested(
            {"scores": values},
            {TEST[side]: "".join(f"{x}\n" for x in lines) for side, lines in texts.items()},
            ", ".join(f"{s.name} {s.value:.2f}" for s in scores),
            [
                *_chosen(sources, references, hypotheses),
                *(f"{s.name:<8} {s.value:6.2f}  {s.signature}" for s in scores),
            ],
            functools.partial(self._pictures, params, sources, found),
        )

    def _pictures(
        self, params: Params, sources: list[str], found: list[list[Translation]]
    ) -> list[Picture]:
        """The cross-attention of a sentence of the test split, in the last layer but one."""
        parts, text = self.prepared, to_show(sources)
        given = [text], [found[sources.index(text)]], self.config.decoding
        pictures = []
        for seen in explain_translations(parts.model, params, parts.tokenizer, *given):
            layers = [x for x in seen.attentions if x.kind == CROSS_ATTENTION][-2:]
            pictures.append(Picture(f"{seen.text} \u2192 {seen.translation}", svg(layers[:1])))
        return pictures

    def export(self, params: Params, folder: Path, result: Mapping[str, Any]) -> None:
        parts = self.prepared
        loaded = Loaded(parts.model, params, parts.tokenizer, self.config.decoding)
        run, name = to_json(self.config), result["run"]
        export(folder / EXPORTED, loaded, run=run, result=result, name=name)

    def _translate(self, params: Params, texts: Sequence[str]) -> list[str]:
        """Greedy, since it is done at every validation."""
        greedy = DecodingConfig(beam_size=1, max_ratio=self.config.decoding.max_ratio)
        return translate(self.prepared.model, params, self.prepared.tokenizer, texts, greedy)

    def _translate_test(
        self, params: Params, sources: list[str], screen: Screen
    ) -> list[list[Translation]]:
        decoding, prepared = self.config.decoding, self.prepared
        screen.say(f"Translating the {len(sources)} sentences of the test split.")
        translator = Translator(prepared.model, params, prepared.tokenizer, decoding)
        with screen.progress("translating", len(sources)) as progress:
            found = translator.translate(sources, progress=progress.advance)
        if cut := sum(best[0].at_limit for best in found):
            screen.warn(
                f"{cut} of {len(found)} test translations ended at the limit of their length: "
                f"--max-ratio {decoding.max_ratio:g}."
            )
        return found


def _chosen(sources: list[str], references: list[str], hypotheses: list[str]) -> Iterator[str]:
    """A few translations, from all parts of the split."""
    for i in range(0, len(sources), max(len(sources) // SHOWN, 1))[:SHOWN]:
        yield f"\n  source       {sources[i]}"
        yield f"  reference    {references[i]}\n  translation  {hypotheses[i]}"
