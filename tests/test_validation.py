"""What a validation measures and compares models by, and what it tells: all that of translation."""

import json
import math
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sacrebleu.metrics import BLEU, CHRF

from flaxattn import EncoderDecoderConfig
from flaxattn.text.packing import Batch
from flaxattn.text.splits import Corpus
from flaxattn.training.log import RunLog
from flaxattn.training.mesh import data_mesh
from flaxattn.training.screen import Screen
from flaxattn.training.task import Sums
from flaxattn.training.validation import Validation
from flaxattn.translation.config import RunConfig, TranslationTraining
from flaxattn.translation.loss import Reported
from flaxattn.translation.preparation import Prepared
from flaxattn.translation.task import TranslationTask

VALID = [("a dog", "Ein Hund läuft schnell nach Hause ."), ("b", "Das ist ein Haus ."), ("c", "x")]
HYPOTHESES = ["Ein Hund läuft schnell nach Haus .", "Das ist ein Haus .", "y"]
BATCHES = [Batch(*[np.zeros((4, 2), np.int32)] * 4)] * 2


@pytest.fixture
def validation(monkeypatch):
    """By metric and number of samples: a Validation whose translations are `HYPOTHESES`."""

    def translate(self, params, texts):
        assert params == "params" and list(texts) == [source for source, _ in VALID][: len(texts)]
        return HYPOTHESES[: len(texts)]

    def made(metric, samples=2):
        training = TranslationTraining(metric=metric, samples=samples)
        valid = types.SimpleNamespace(all_batches=lambda: BATCHES)
        prepared = Prepared(Corpus([], VALID, []), None, None, None, None, valid, {})
        task = TranslationTask(RunConfig("", EncoderDecoderConfig(10), training=training), prepared)
        found = Validation(task, data_mesh(jax.devices()[:1]), Screen())
        loss, nll, correct, tokens = map(jnp.float32, (12.0, 6.0, 1.0, 4.0))
        found._eval_step = lambda params, batch: Sums(loss, Reported(nll, correct), tokens)
        return found

    monkeypatch.setattr(TranslationTask, "_translate", translate)
    return made


LOSSES = {"loss": 3.0, "nll": 1.5, "perplexity": math.exp(1.5), "accuracy": 0.25}


@pytest.mark.parametrize("name, metric", [("nll", None), ("bleu", BLEU()), ("chrf", CHRF())])
def test_the_metric_is_the_loss_or_the_score_of_the_validation_split(validation, name, metric):
    values, found = validation(name).measure("params", "params")
    if metric is None:
        assert values == LOSSES and found == -1.5
    else:
        score = metric.corpus_score(HYPOTHESES, [[target for _, target in VALID]]).score
        assert values == LOSSES | {name: score} and found == score
        assert 40 < score < 100


@pytest.mark.parametrize("samples", [0, 2, 9])
def test_values_and_sample_translations_are_logged_and_shown(validation, tmp_path, capsys, samples):
    with RunLog(tmp_path) as log:
        assert validation("nll", samples).report(7, "params", log) == -1.5
    lines = capsys.readouterr().out.splitlines()
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [row["kind"] for row in rows] == ["valid"] + ["sample"] * min(samples, 3)
    assert all(row["step"] == 7 for row in rows)
    for row, (source, reference), text in zip(rows[1:], VALID, HYPOTHESES, strict=False):
        assert (row["source"], row["reference"], row["translation"]) == (source, reference, text)
        assert sum(text in line for line in lines) >= 1
    assert lines[0] == "step      7  validation  nll 1.500  perplexity 4.482  accuracy 0.250"
    assert len(lines) == 1 + 3 * min(samples, 3)
