"""A run that has ended is trained on: what may change, what is kept, and what is told of it."""

import dataclasses
import functools
import json
import shutil

import jax
import numpy as np
import pytest
from run_cases import (
    contents,
    decode_to,
    own_pairs,
    prepared_by,
    record_states,
    tiny,
    write_pairs,
)

from flaxattn import EncoderDecoderConfig
from flaxattn.text.tokenizer import Tokenizer
from flaxattn.training import continuing, run_folder
from flaxattn.training.config import from_json, to_json
from flaxattn.training.log import RunLog
from flaxattn.training.storage.manifest import read_sealed, seal, write_sealed
from flaxattn.translation.config import RunConfig, TranslationTraining
from flaxattn.translation.rules import RULES, config_hash

continued, kept_run, check_folder = (
    functools.partial(fn, rules=RULES)
    for fn in (continuing.continued, continuing.kept_run, run_folder.check_folder)
)

COOLING = {"steps": 100, "warmup_steps": 10, "cooldown_steps": 50}


@pytest.fixture
def begun(tmp_path):
    """Makes the folder of a run that has made some steps; gives its configuration."""

    def make(made, **training):
        folder = tmp_path / "run"
        config = RunConfig(
            str(folder), EncoderDecoderConfig(9), training=TranslationTraining(**COOLING | training)
        )
        for step in (made // 2, made):
            (folder / "checkpoints" / str(step)).mkdir(parents=True, exist_ok=True)
            seal(folder / "checkpoints" / str(step), {"step": step, "run": "a"})
        (folder / "data.json").write_text('{"run": "a"}')
        (folder / "config.json").write_text(json.dumps(to_json(config)))
        return config

    return make


def wanting(config, **training):
    return dataclasses.replace(config, training=dataclasses.replace(config.training, **training))


def ended(config):
    return config.training.ended_at, config.training.cooled_for


@pytest.mark.parametrize("cooldown", [0, 20])
def test_more_steps_for_a_run_that_has_ended_begin_where_it_did(begun, cooldown):
    config = begun(100)
    more = continued(wanting(config, steps=150, cooldown_steps=cooldown))
    assert ended(more) == ((100,), (50,))
    assert (more.training.steps, more.training.cooldown_steps) == (150, cooldown)
    check_folder(more)


def test_a_run_goes_on_with_what_it_was_continued_with_and_is_continued_again(begun):
    given = {"steps": 150, "cooldown_steps": 20}
    kept = {"ended_at": (100,), "cooled_for": (50,)}
    config = begun(120, **given, **kept)
    again = continued(wanting(config, ended_at=(), cooled_for=()))
    assert again == config
    check_folder(again)
    config = begun(150, **given, **kept)
    third = continued(wanting(config, steps=200, ended_at=(), cooled_for=()))
    assert ended(third) == ((100, 150), (50, 20))
    check_folder(third)


@pytest.mark.parametrize(
    "made, wanted",
    [
        (0, {"steps": 30, "cooldown_steps": 0}),
        (40, {"steps": 90}),
        (40, {"steps": 300, "cooldown_steps": 60}),
        (50, {"cooldown_steps": 10}),
        (60, {}),
    ],
)
def test_another_end_that_changes_no_step_made_is_taken(begun, made, wanted):
    config = continued(wanting(begun(made), **wanted))
    assert ended(config) == ((), ())
    check_folder(config)


@pytest.mark.parametrize(
    "made, wanted, words",
    [
        (60, {"steps": 200}, ["has made 60 steps", "--steps 100 --cooldown-steps 50"]),
        (60, {"cooldown_steps": 0}, ["has made 60 steps", "--steps 100 --cooldown-steps 50"]),
        (100, {"cooldown_steps": 20}, ["has made 100 steps", "--steps 100 --cooldown-steps 50"]),
        (100, {"steps": 90}, ["has made 100 steps", "--steps is 90"]),
        (100, {"steps": 150, "warmup_steps": 20}, ["(warmup_steps)", "--init-from", "--output"]),
        (100, {"steps": 150, "seed": 4}, ["(seed)", "--init-from", "--output"]),
    ],
)
def test_what_would_have_changed_steps_already_made_is_refused(begun, made, wanted, words):
    config = wanting(begun(made), **wanted)
    with pytest.raises(ValueError) as error:
        check_folder(continued(config))
    assert all(word in str(error.value) for word in [config.output, *words])


def test_checkpoints_of_other_runs_and_damaged_ones_do_not_count(begun, tmp_path):
    config = begun(40)
    for name, about in (("70", {"step": 70, "run": "b"}), ("80", {"step": 90, "run": "a"})):
        (tmp_path / "run" / "checkpoints" / name).mkdir()
        seal(tmp_path / "run" / "checkpoints" / name, about)
    (tmp_path / "run" / "checkpoints" / "90").mkdir()
    (tmp_path / "run" / "checkpoints" / "note.txt").write_text("mine")
    assert kept_run(tmp_path / "run") == (config, 40)


def test_a_damaged_configuration_is_told_of_where_the_folder_is_checked(begun, tmp_path):
    config = begun(40)
    (tmp_path / "run" / "config.json").write_text("{")
    assert continued(config) == config
    with pytest.raises(ValueError, match=r"config\.json"):
        check_folder(config)


def test_the_hash_tells_whether_a_run_was_continued():
    config = RunConfig("", EncoderDecoderConfig(9), training=TranslationTraining(**COOLING))
    more = wanting(config, steps=150, ended_at=(100,), cooled_for=(50,))
    assert config_hash(more) != config_hash(wanting(config, steps=150))
    data = to_json(config)
    del data["training"]["ended_at"], data["training"]["cooled_for"]
    assert from_json(RunConfig, data, "an older one") == config


@pytest.mark.parametrize(
    "ends, cooldowns", [((100, 100), (1, 1)), ((150,), (1,)), ((50, 40), (1, 1)), ((50,), ())]
)
def test_a_history_that_cannot_be_is_refused(ends, cooldowns):
    with pytest.raises(ValueError, match="ended_at"):
        TranslationTraining(steps=120, ended_at=ends, cooled_for=cooldowns)


# ---- From end to end --------------------------------------------------------------------------

SHORT = {
    "--steps": 6,
    "--warmup-steps": 2,
    "--cooldown-steps": 3,
    "--valid-every": 4,
    "--metric": "nll",
    "--samples": 0,
    "--r-drop": 0,
}
MORE = SHORT | {"--steps": 11, "--cooldown-steps": 2}


def bytes_of(tree):
    return [np.asarray(x).tobytes() for x in jax.tree.leaves(tree)]


def rows_of(folder):
    return [json.loads(row) for row in (folder / "log.jsonl").read_text().splitlines()]


@pytest.mark.thorough
def test_a_run_continued_and_killed_meanwhile_ends_in_the_same_bytes(tmp_path, monkeypatch, capsys):
    decode_to(monkeypatch, [Tokenizer.eos_id])
    states, write, run, other = (
        record_states(monkeypatch),
        RunLog.write,
        *(tmp_path / name for name in ("run", "other")),
    )
    assert tiny(run, SHORT) == 0
    shutil.copytree(run, other)
    assert tiny(run, MORE) == 0
    whole, said = states.pop(11), capsys.readouterr().out
    assert "Learning rate: after step 6, where it was 0, rises to" in said
    assert "in the last 2 steps linearly to 0" in said

    def stop_at_step_10(log, kind, step, values):
        if step == 11:
            raise KeyboardInterrupt
        write(log, kind, step, values)

    with monkeypatch.context() as context:
        context.setattr(RunLog, "write", stop_at_step_10)
        assert tiny(other, MORE) == 130
    assert tiny(other, MORE) == 0
    assert "Resumed from the checkpoint of step 8" in capsys.readouterr().out
    assert bytes_of(states[11]) == bytes_of(whole)
    assert (run / "log.jsonl").read_bytes() == (other / "log.jsonl").read_bytes()
    kept = json.loads((run / "config.json").read_text())["training"]
    assert [kept[x] for x in ("steps", "cooldown_steps", "ended_at", "cooled_for")] == [
        11,
        2,
        [6],
        [3],
    ]
    assert {row["step"] for row in rows_of(run) if row["kind"] == "valid"} == {4, 6, 8, 11}
    assert json.loads((run / "result.json").read_text())["steps"] == 11
    before = contents(run)
    assert tiny(run, SHORT) == 2
    assert "has made 11 steps; --steps is 6" in capsys.readouterr().err
    assert contents(run) == before


# ---- Data that is the same --------------------------------------------------------------------


@pytest.fixture
def started(tmp_path, monkeypatch):
    """A run of files of one's own that was stopped before its first step."""
    from flaxattn.training import run as run_module
    from flaxattn.training.interruption import InterruptedRun

    monkeypatch.chdir(tmp_path)

    def train(*_):
        raise InterruptedRun(0)

    monkeypatch.setattr(run_module, "train", train)
    pairs = own_pairs()
    for name, part in (("train", pairs[8:]), ("valid", pairs[:4]), ("test", pairs[4:8])):
        write_pairs(tmp_path, name, part)
    options = {f"--{x}": (f"{x}.en", f"{x}.de") for x in ("train", "valid", "test")}

    def begin(more):
        return tiny("run", options | more)

    assert begin({}) == 75
    return begin


def test_other_test_files_and_scores_and_the_same_bytes_elsewhere_are_taken(started, tmp_path):
    for name in ("train", "valid"):
        for side in ("en", "de"):
            shutil.copy(tmp_path / f"{name}.{side}", tmp_path / f"copy_of_{name}.{side}")
    again = {f"--{x}": (f"copy_of_{x}.en", f"copy_of_{x}.de") for x in ("train", "valid")}
    again |= {"--test": ("valid.en", "valid.de"), "--bleu-tokenizer": "char"}
    assert started(again) == 75
    kept = json.loads((tmp_path / "run" / "config.json").read_text())["data"]
    assert kept["test"] == ["valid.en", "valid.de"] and kept["bleu_tokenizer"] == "char"
    digests = json.loads((tmp_path / "run" / "data.json").read_text())["sentence_pairs"]
    assert digests["test"] == digests["valid"]
    assert started({}) == 75


@pytest.mark.thorough(quick=1)
@pytest.mark.parametrize("split", ["train", "valid"])
def test_other_pairs_are_refused_with_the_option_that_gave_them(started, capsys, split):
    assert started({f"--{split}": ("test.en", "test.de")}) == 2
    error = capsys.readouterr().err
    assert f"began with other {split} data ({split} changed)" in error


def test_scores_that_choose_the_model_are_not_taken(started, tmp_path, monkeypatch, capsys):
    path = tmp_path / "run" / "config.json"
    kept = read_sealed(path)
    write_sealed(path, kept | {"training": kept["training"] | {"metric": "bleu"}})
    assert started({"--metric": "bleu"}) == 75
    assert started({"--metric": "bleu", "--bleu-tokenizer": "char"}) == 2
    assert "(bleu_tokenizer)" in capsys.readouterr().err


def test_a_dry_run_says_how_a_run_would_be_continued(begun, monkeypatch):
    config = begun(100)
    assert continued(wanting(config, steps=150)) != config
    assert prepared_by(monkeypatch, config.output, {}).tokenizer.vocab_size == 400
