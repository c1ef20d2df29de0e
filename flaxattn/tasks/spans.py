"""Denoising by an encoder-decoder: the text is written anew from one with spans hidden in it.

A translator's training may start from such a model: `flaxattn train --init-from` (BART,
arXiv:1910.13461, text infilling). The spans are drawn anew for each step.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from flaxattn.models import EncoderDecoder
from flaxattn.search import SpecialTokens
from flaxattn.tasks.config import SpansRun, TextRun
from flaxattn.tasks.denoising import builtin_texts
from flaxattn.tasks.documents import HINT, pieces_of, read_documents
from flaxattn.tasks.hiding import hide_spans
from flaxattn.tasks.preparation import TextKind, prepare
from flaxattn.tasks.rules import EXPORTED
from flaxattn.tasks.text_task import TextTask
from flaxattn.text.packing import Batch
from flaxattn.text.pairs import Pair
from flaxattn.text.subword_dropout import SPACE
from flaxattn.text.tokenizer import Tokenizer
from flaxattn.text.tokens import Tokens
from flaxattn.training.mesh import data_mesh
from flaxattn.training.screen import Screen
from flaxattn.training.task import Sums, Tested
from flaxattn.training.trees import Params
from flaxattn.translation.config import DecodingConfig
from flaxattn.translation.decoding.decode import decode
from flaxattn.translation.loss import batch_loss, means
from flaxattn.translation.trained.exporting import export
from flaxattn.translation.trained.loading import Loaded

__all__ = ["SpansTask", "prepared_task"]

ROOM = 8  # tokens that a sample may be longer than the text


class SpansTask(TextTask):
    """To write a text of which spans are hidden; it is a `flaxattn.training.task.Task`."""

    name = "spans"
    unit, shown = "target_tokens", ("accuracy",)
    config: SpansRun

    def rows(self, pairs: Batch, draw: tuple[int, int]) -> Batch:
        """Rows in whose sources spans are hidden."""
        rng = np.random.default_rng([self.config.training.seed, *draw])
        mask_id, rate = self.prepared.tokenizer.mask_id, self.config.training.mask_rate
        assert mask_id is not None
        source, segment_ids = np.zeros_like(pairs.source), np.zeros_like(pairs.source)
        for row, segments in enumerate(pairs.source_segment_ids):
            end = 0
            for segment in range(1, segments.max() + 1):
                ids = hide_spans(pairs.source[row, segments == segment], rate, rng, mask_id=mask_id)
                source[row, end : end + len(ids)] = ids
                segment_ids[row, end : end + len(ids)] = segment
                end += len(ids)
        return pairs._replace(source=source, source_segment_ids=segment_ids)

    def loss(self, params: Params, batch: Batch, key: jax.Array | None) -> Sums:
        bos_id = self.prepared.tokenizer.bos_id
        return batch_loss(self._model, params, batch, bos_id=bos_id, dropout_key=key)

    def means(self, sums: Sums) -> dict[str, float]:
        return means(sums)

    def validate(self, params: Params, means: dict[str, float]) -> tuple[dict[str, float], float]:
        return means, -means["nll"]

    def samples(self, params: Params) -> Iterator[Mapping[str, str]]:
        """Validation texts with spans hidden, and what the model writes for them."""
        batch, tokenizer = self.valid_batches()[0], self.prepared.tokenizer
        params = self.loaded(params).params
        for row in range(min(self.config.training.samples, len(batch.source))):
            source, target = (
                ids[row, segments[row] == 1]
                for ids, segments in ((batch.source, batch.source_segment_ids), batch[2:])
            )
            shown = "".join(tokenizer.pieces(source.tolist())).replace(SPACE, " ")
            written = self._written(params, source[None], len(target) + ROOM)
            yield {"hidden": shown, "written": tokenizer.decode([written])[0]}

    def _written(self, params: Params, source: np.ndarray, most: int) -> list[int]:
        """The likeliest tokens, one after another."""
        tokenizer = self.prepared.tokenizer
        ids = SpecialTokens(tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id)
        cells = 1 << (max(source.shape[1], most) - 1).bit_length()
        source = np.pad(source, ((0, 0), (0, cells - source.shape[1])))
        one = np.array([most], np.int32)
        found = decode(
            (self._model,),
            (params,),
            source,
            one,
            np.zeros_like(one),
            jax.random.split(jax.random.key(0), 1),
            config=DecodingConfig(beam_size=1),
            padded_length=cells,
            special_tokens=ids,
            mesh=data_mesh(jax.local_devices()[:1]),
        )
        return np.asarray(found.tokens)[0, 0].tolist()

    def test(self, params: Params, screen: Screen) -> Tested:
        """The loss on the test split."""
        of_test = means(self.test_sums(params))
        values = {f"test_{name}": round(x, 5) for name, x in of_test.items()}
        return Tested(values, headline=f"nll {of_test['nll']:.4f} for a token of the whole text")

    def export(self, params: Params, folder: Path, result: Mapping[str, Any]) -> None:
        """Writes it as a model of translation, from which training to translate can start."""
        loaded = Loaded(self._model, params, self.prepared.tokenizer)
        export(folder / EXPORTED, loaded, result={})

    @property
    def _model(self) -> EncoderDecoder:
        assert isinstance(self.prepared.module, EncoderDecoder)
        return self.prepared.module


def _encode(pairs: list[Pair], tokenizer: Tokenizer, labels: object, length: int) -> Tokens:
    """Texts on both sides; of a long one several pieces."""
    pieces = pieces_of(pairs, tokenizer, length)
    return Tokens.of(pieces, pieces)


KIND = TextKind(
    "spans", read_documents, builtin_texts, _encode, tokenizer={"with_mask": True}, hint=HINT
)


def prepared_task(config: TextRun, begun: Path | None, screen: Screen) -> SpansTask:
    """The task, once all is read and told."""
    assert isinstance(config, SpansRun)
    return SpansTask(config, prepare(KIND, config, begun, screen))
