"""What training tells of its speed, and in what order it keeps what it has."""

import json
import time
import types

import pytest
from language_task import Config, LanguageTask, train

from flaxattn.training import metrics
from flaxattn.training.storage.checkpoints import Checkpoints, Models


@pytest.fixture
def clock(monkeypatch):
    """A clock that training reads, and that moves a little whenever it is read."""

    class Clock:
        now = 0.0

        def read(self):
            self.now += 1e-3
            return self.now

    clock = Clock()
    monkeypatch.setattr(metrics, "time", types.SimpleNamespace(perf_counter=clock.read))
    return clock


def test_the_speed_is_that_of_steps_without_validations(clock, monkeypatch, tmp_path):
    """A step takes a second of this clock, a validation a thousand."""
    validate = LanguageTask.validate

    def long(self, params, means):
        clock.now += 1000
        return validate(self, params, means)

    def take(step):
        clock.now += 1

    monkeypatch.setattr(LanguageTask, "validate", long)
    assert train(Config(str(tmp_path)), take) == 0
    logged = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    units = [row["characters"] for row in logged if row["kind"] == "train"]
    speeds = [json.loads(line) for line in (tmp_path / "speed.jsonl").read_text().splitlines()]
    counts = [after - before for before, after in zip([0, *units], units, strict=False)]
    rates = [row["characters_per_second"] for row in speeds]
    seconds = [count / rate for count, rate in zip(counts, rates, strict=True)]
    assert sum(seconds) == pytest.approx(12, abs=0.5)


def test_no_checkpoint_is_there_before_the_models_it_counts(monkeypatch, tmp_path):
    """Else a run that was killed in between would go on without one of its best models."""
    begun = []
    write_model, save = Models._write, Checkpoints.save

    def slowly(self, *args):
        time.sleep(0.3)
        write_model(self, *args)

    def looked_at(self, step, *args):
        models = tmp_path / "models"
        begun.append((step, sorted(path.name for path in models.glob("[0-9]*"))))
        save(self, step, *args)

    monkeypatch.setattr(Models, "_write", slowly)
    monkeypatch.setattr(Checkpoints, "save", looked_at)
    assert train(Config(str(tmp_path))) == 0
    assert [(step, str(step) in models) for step, models in begun] == [
        (4, True),
        (8, True),
        (12, True),
    ]
