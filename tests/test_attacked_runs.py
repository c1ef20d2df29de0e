"""What a hasty or hostile hand does to a run: it is told, and nothing of anybody's is lost."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from run_cases import tiny

from configs import PRESETS
from flaxattn.__main__ import main
from flaxattn.text.arguments import check_words
from flaxattn.text.tokenizer import Tokenizer
from flaxattn.training.log import RunLog
from flaxattn.training.record import is_outdated
from flaxattn.training.storage.layout import LOCK, LOG, RESULT
from flaxattn.training.storage.manifest import read_sealed, write_sealed
from flaxattn.translation.config import DataConfig, RunConfig
from flaxattn.translation.options import completed
from flaxattn.translation.text.corpus import load_corpus
from flaxattn.translation.trained.loading import load, load_run

KEPT = "tests/kept/1"


@pytest.fixture
def run(finished, tmp_path):
    """A copy of a finished run."""
    return shutil.copytree(finished.folder, tmp_path / "run")


def test_what_lies_beside_the_output_is_no_input(tmp_path, monkeypatch, capsys):
    partial = tmp_path / "o.de.partial"
    partial.write_text("A dog.\n")
    words = ["translate", KEPT, "--input", str(partial), "--output", str(tmp_path / "o.de")]
    assert main(words) == 2
    assert partial.read_text() == "A dog.\n"
    assert "--input" in capsys.readouterr().err


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["models/12/manifest.json", "checkpoints/new", "model/a/b"])
@pytest.mark.parametrize("option", ["--output", "--explain"])
def test_nothing_is_written_into_what_a_run_keeps(run, name, option, capsys):
    if option == "--explain":
        name += ".html"
    assert main(["translate", str(run), "A dog.", option, str(run / name)]) == 2
    assert option in capsys.readouterr().err


@pytest.mark.thorough
def test_a_link_in_place_of_the_lock_leads_nowhere(run, tmp_path, capsys):
    precious = tmp_path / "precious"
    precious.write_text("precious")
    (run / LOCK).unlink()
    (run / LOCK).symlink_to(precious)
    assert tiny(run) == 2
    assert precious.read_text() == "precious"


@pytest.mark.parametrize(
    "result",
    [
        {"scores": 5},
        {"files": 5},
        {"files": {"../../x": "a"}},
        {"scores": {"bleu": {}}},
        {"scores": {"bleu": {"value": "x", "signature": "s"}}},
        {"scores": {"bleu": {"value": float("nan"), "signature": "s"}}},
        {"steps": "many"},
    ],
    ids=str,
)
def test_a_result_of_another_form_is_named(run, tmp_path, result, capsys):
    (run / RESULT).write_text(json.dumps(result))
    for words in (["score", str(run)], ["export", str(run), str(tmp_path / "out")]):
        assert main(words) == 2
        assert f"{RESULT}: is no result of a run" in capsys.readouterr().err


def test_what_was_exported_before_more_steps_is_not_the_model_any_more(run):
    assert not is_outdated(run)
    write_sealed(run / RESULT, read_sealed(run / RESULT) | {"steps": 6})
    shutil.rmtree(run / "model")
    (run / "model").mkdir()  # were it read, there would be an error
    assert is_outdated(run)
    for x, y in zip(load(run).params["encoder"], load_run(run).params["encoder"], strict=True):
        np.testing.assert_array_equal(x, y)


def test_a_log_that_is_deleted_is_written_anew_and_goes_on(tmp_path):
    with RunLog(tmp_path) as log:
        log.write("train", 1, {"loss": 2.0})
        (tmp_path / LOG).unlink()
        log.mend()
        log.write("train", 2, {"loss": 1.0})
    steps = [json.loads(row)["step"] for row in (tmp_path / LOG).read_text().splitlines()]
    assert steps == [1, 2]


def test_another_end_is_given_by_name_alone(run):
    preset = dataclasses.replace(PRESETS["tiny"], output=str(run))
    with pytest.raises(ValueError, match=r"holds a run of 12 steps.*--steps 12.*--steps 1200"):
        completed(preset, preset, set())
    config, _ = completed(preset, preset, {"steps"})
    assert config.training.steps == 1200


def test_of_the_built_in_corpus_a_tenth_is_held_out_at_most():
    corpus = load_corpus(DataConfig(builtin_pairs=100, held_out=10_000_000), print)
    assert [len(split) for split in corpus] == [100, 10, 10]


def test_a_table_of_positions_is_as_long_as_rows():
    model = dataclasses.replace(PRESETS["tiny"].model, positions="learned", max_positions=63)
    with pytest.raises(ValueError, match=r"max_positions is 63; .*--sequence-length, 64"):
        RunConfig("run", model)


def test_an_empty_tokenizer_is_named(tmp_path):
    (tmp_path / "tokenizer.model").touch()
    with pytest.raises(ValueError, match=r"tokenizer\.model: is empty"):
        Tokenizer.load(tmp_path / "tokenizer.model")


def test_no_name_of_an_option_steers_the_terminal():
    with pytest.raises(ValueError, match=r"argument 2, --\\x1b\[31mred: no option"):
        check_words(["text", "--\x1b[31mred"])
    check_words(["text\x1b"])  # which is text to translate
