"""The seam between training and its tasks: another task than translation, by the same engine."""

import ast
import dataclasses
import json
import os
import signal
import subprocess
import sys
import types
from pathlib import Path

import jax.numpy as jnp
import language_task
import numpy as np
import pytest
from language_task import Config, LanguageTask, Model, raising, train
from run_cases import contents

import flaxattn.training
from flaxattn.training import interruption
from flaxattn.training.config import flat
from flaxattn.training.dry_run import dry_run
from flaxattn.training.metrics import AHEAD, Metrics, Tally
from flaxattn.training.run import run
from flaxattn.training.screen import Screen
from flaxattn.training.task import Sums

SAME = ("log.jsonl", "model.safetensors", "alphabet.json", "data.json")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a language model trained without a break."""
    folder = tmp_path_factory.mktemp("language") / "whole"
    assert train(Config(str(folder))) == 0
    return folder


def test_a_language_model_is_trained_validated_tested_and_kept(whole):
    rows = [json.loads(line) for line in (whole / "log.jsonl").read_text().splitlines()]
    kinds = ("train", "valid", "sample")
    of_kind = {kind: [row for row in rows if row["kind"] == kind] for kind in kinds}
    assert [row["step"] for row in of_kind["valid"]] == [4, 8, 12]
    assert of_kind["valid"][-1]["bits"] < of_kind["valid"][0]["bits"] < 6
    assert of_kind["train"][-1]["characters"] == 12 * 8 * language_task.LENGTH
    assert set(of_kind["sample"][0]) == {"kind", "step", "text", "next"}
    result = json.loads((whole / "result.json").read_text())
    assert 0 < result["bits"] < 6 and result["steps"] == 12 and result["characters_per_second"] > 0
    assert {p.name for p in whole.iterdir()} >= {"checkpoints", "models", "tensorboard", *SAME}


def test_killed_and_asked_to_stop_it_goes_on_to_the_same_bytes(
    whole, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(interruption, "SECOND_WISH", 0.01)
    folder = tmp_path / "run"
    words = [sys.executable, language_task.__file__, str(folder)]
    path = os.pathsep.join([str(Path(language_task.__file__).parents[1]), *sys.path])
    killed = subprocess.run(words, env=os.environ | {"PYTHONPATH": path}, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert train(Config(str(folder)), raising(signal.SIGTERM, 9)) == 75
    told = capsys.readouterr()
    assert "Resumed from the checkpoint of step 4" in told.out
    assert "Interrupted after step 10" in told.err
    assert train(Config(str(folder))) == 0
    assert "Resumed from the checkpoint of step 10" in capsys.readouterr().out
    for name in SAME:
        assert (folder / name).read_bytes() == (whole / name).read_bytes(), name


def test_few_steps_wait_for_the_device_however_seldom_is_reported():
    """Of many that wait the sums between CPU devices never ended."""

    class Computing:
        def __init__(self, step):
            self.step = step

        def block_until_ready(self):
            waited.append(self.step)

    waited, ignored = [], types.SimpleNamespace(advance=lambda: None)
    training = dataclasses.replace(language_task.TRAINING, log_every=1000)
    task = types.SimpleNamespace(config=types.SimpleNamespace(training=training))
    metrics = Metrics(task, ignored, ignored, Tally())
    for step in range(1, 31):
        metrics.add(step, Sums(Computing(step), (), np.float32(1)))
    assert waited == [*range(1, 31 - AHEAD)]


def values(folder):
    """All that is learned: the numbers of the log, row by row."""
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [[x for x in row.values() if isinstance(x, float)] for row in rows]


@pytest.mark.thorough(quick=1)
@pytest.mark.parametrize("mesh", ["context=4", "fsdp=2,model=2", "data=2,context=2"])
def test_it_is_trained_on_any_mesh(whole, tmp_path, mesh):
    training = dataclasses.replace(language_task.TRAINING, mesh=mesh)
    assert train(Config(str(tmp_path), training=training)) == 0
    for found, expected in zip(values(tmp_path), values(whole), strict=True):
        np.testing.assert_allclose(found, expected, rtol=2e-4)
    kept, begun = (json.loads((f / "data.json").read_text()) for f in (tmp_path, whole))
    assert kept["run"] == begun["run"]  # a mesh makes no other run


def test_its_folder_refuses_other_settings_and_data_by_their_names(whole, capsys):
    before = contents(whole)
    backwards = Model(text=language_task.TEXT[::-1])
    for model, word in ((Model(width=8), "(width)"), (backwards, "(text changed)")):
        assert train(Config(str(whole), model)) == 2
        assert word in capsys.readouterr().err
    after = contents(whole)
    changed = {name for name in before | after if before.get(name) != after.get(name)}
    assert changed <= {Path("lock")}


@pytest.mark.usefixtures("standard_promotion")
def test_a_dry_run_shows_its_time_and_its_parameters(capsys):
    dry_run(LanguageTask(Config("nowhere")), Screen())
    told = capsys.readouterr().out
    assert "12 steps and 3 validations" in told and "embedding" in told


def test_the_progress_of_an_older_checkpoint_is_read_under_todays_names():
    older = {"target_tokens": 7.0, "seconds": 1.0, "window": [[1.0, 2.0, 3.0, 4.0, 0.0]]}
    assert Tally.of(older) == Tally(units=7.0, seconds=1.0, window=older["window"])


def refused(task, folder, rules=language_task.RULES):
    """What a run says that is not begun."""
    with pytest.raises(ValueError) as error:
        run(Config(str(folder)), lambda *_: task(Config(str(folder))), rules)
    assert not folder.exists()
    return str(error.value)


@pytest.mark.usefixtures("standard_promotion")
def test_a_task_that_cannot_be_kept_or_validated_is_refused_before_anything_is_written(tmp_path):
    class Unvalidated(LanguageTask):
        def valid_batches(self):
            return []

    assert "no batch to validate with" in refused(Unvalidated, tmp_path / "a")
    twice = language_task.RULES._replace(files=["alphabet.json", "alphabet.txt"])
    assert "alphabet would stand twice in data.json" in refused(LanguageTask, tmp_path / "b", twice)
    reserved = language_task.RULES._replace(files=["start.json"])
    assert "start would stand twice" in refused(LanguageTask, tmp_path / "c", reserved)


@pytest.mark.usefixtures("standard_promotion")
def test_sums_that_are_no_scalars_are_refused_at_the_first_step(tmp_path):
    class Listing(LanguageTask):
        def loss(self, params, batch, key):
            sums = super().loss(params, batch, key)
            return sums._replace(others=jnp.zeros(3))

    with pytest.raises(ValueError, match=r"others=\(3,\).*expected \[\]"):
        run(Config(str(tmp_path)), lambda config, *_: Listing(config), language_task.RULES)


def test_settings_of_one_name_are_refused():
    with pytest.raises(ValueError, match="width: two settings have this name"):
        flat({"model": {"width": 3}, "data": {"width": 4}})


def test_training_imports_nothing_of_what_is_learned():
    """As the contract of import-linter says, also where that is not installed."""
    allowed = {
        f"flaxattn.{name}" for name in ("logical", "memory", "pages", "ranges", "training", "types")
    }
    for path in Path(flaxattn.training.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("flaxattn"):
                room = ".".join(node.module.split(".")[:2])
                assert room in allowed, (path.name, node.module)
