"""What a person types: words that are not UTF-8, `~`, and options that would be of no use."""

import dataclasses
from pathlib import Path

import pytest
from run_cases import tiny

import flaxattn.__main__ as flaxattn_main
from configs import PRESETS
from flaxattn.__main__ import main
from flaxattn.training.config import at_home
from flaxattn.training.renamed import RENAMED
from flaxattn.translation import cli
from flaxattn.translation.config import DataConfig, DecodingConfig, data_path

BAD = "gr\udcf6\udcdfer"  # as Python gives bytes that are not UTF-8


@pytest.mark.parametrize(
    "words",
    [
        ["translate", "folder", BAD],
        ["translate", BAD, "text"],
        ["score", "file", BAD],
        ["export", BAD, "x"],
    ],
)
def test_words_that_are_not_utf8_are_refused_by_number(capsys, words):
    assert main(words) == 2
    error = capsys.readouterr().err
    error.encode()  # can be written anywhere
    assert rf"argument {words.index(BAD) + 1}, gr\xf6\xdfer: invalid UTF-8" in error


@pytest.mark.parametrize("words", [["tiny", "--train", BAD, "x"], [BAD], ["tiny", f"--{BAD}"]])
def test_so_are_those_of_train(capsys, words):
    assert cli.main(PRESETS, words) == 2
    assert "invalid UTF-8" in capsys.readouterr().err


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(
    "words, paths",
    [
        (
            "translate ~/run --input=~/a --output ~/b --explain=~/c.html --ensemble ~/d ~/e",
            {
                "folder": "run",
                "input": "a",
                "output": "b",
                "explain": "c.html",
                "ensemble": ("d", "e"),
            },
        ),
        ("score ~/a --pairs ~/b ~/c", {"files": ("a",), "pairs": ("b", "c")}),
        (
            "compare ~/a ~/b --references ~/c ~/d",
            {"systems": ("a", "b"), "references": ("c", "d")},
        ),
        ("export ~/run ~/model", {"run_folder": "run", "folder": "model"}),
    ],
)
def test_home_is_expanded_in_every_path_of_every_command(home, words, paths):
    command = flaxattn_main._parse(words.split())
    for name, expected in paths.items():
        found = getattr(command, name)
        assert found == (
            tuple(home / one for one in expected)
            if isinstance(expected, tuple)
            else home / expected
        )
    of_paths = {f.name for f in dataclasses.fields(command) if "Path" in str(f.type)}
    assert paths.keys() == of_paths


def test_home_is_expanded_in_options_that_stand_together(home):
    words = "translate ~/run --beginnings ~/a --terms-file=~/b".split()
    files = flaxattn_main._parse(words).constraints.files
    assert files == {"--beginnings": home / "a", "--terms-file": home / "b"}


def test_home_is_expanded_in_every_path_of_a_run(home):
    tiny_preset = PRESETS["tiny"]
    training = dataclasses.replace(tiny_preset.training, init_from="~/start")
    config = at_home(dataclasses.replace(tiny_preset, output="~/out", training=training))
    assert config.output == str(home / "out") and config.training.init_from == str(home / "start")
    assert data_path(DataConfig(data_dir="~/data"), "x") == home / "data" / "x"
    assert data_path(DataConfig(data_dir="data"), "~/x") == home / "x"
    nobody = DataConfig(data_dir="~no-such-person")
    assert data_path(nobody, "x") == Path("~no-such-person/x")


@pytest.mark.parametrize(
    "option", ["--top-k=5", "--top-p=0.9", "--temperature=2", "--sampling-seed=1"]
)
def test_options_of_sampling_without_it_are_refused(tmp_path, capsys, option):
    name = option.split("=")[0]
    for run in (
        lambda: main(["translate", str(tmp_path), "a", option]),
        lambda: tiny("x", {}, option),
    ):
        assert run() == 2
        error = capsys.readouterr().err
        assert name in error and "--sampling" in error


def test_a_model_kept_with_such_an_option_is_not_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"format_version": 2, "decoding": {"top_k": 5}}')
    command = flaxattn_main._parse(["translate", str(tmp_path), "a"])
    assert command.decoding == DecodingConfig(top_k=5)


def test_more_translations_than_beams_are_refused(tmp_path, capsys):
    for words in (["--n-best", "6"], ["--n-best", "3", "--beam-size", "2"]):
        assert main(["translate", str(tmp_path), "a", *words]) == 2
        assert "--n-best" in capsys.readouterr().err
    assert main(["translate", str(tmp_path), "a", "--n-best", "6", "--sampling"]) == 2
    assert "--n-best" not in capsys.readouterr().err  # but that there is no model


OLD = [["tiny", "--rows", "8"], ["tiny", "--row-length=64"], ["tiny", "--max-source", "9"]]


@pytest.mark.parametrize("words", OLD, ids=lambda words: words[1])
def test_an_option_by_an_older_name_is_refused_with_its_name_today(capsys, words):
    assert cli.main(PRESETS, words) == 2
    old = words[1].partition("=")[0]
    new = RENAMED[old[2:].replace("-", "_")].replace("_", "-")
    assert capsys.readouterr().err == f"error: {old} is called --{new} now.\n"


def test_so_it_is_in_a_command_that_has_the_option_and_in_no_other(capsys):
    assert main(["translate", "folder", "a", "--max-source", "9"]) == 2
    assert "--max-source-length" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["export", "a", "b", "--rows", "9"])
    assert "called" not in capsys.readouterr().err
