"""What the options that were not given become, beside those that were."""

import dataclasses
import json

import pytest
from run_cases import tiny

from configs import PRESETS
from flaxattn import EncoderDecoderConfig
from flaxattn.training.architecture import starting_from
from flaxattn.training.config import to_json
from flaxattn.training.continuing import Kept
from flaxattn.training.counts import going_on, scaled
from flaxattn.translation import cli
from flaxattn.translation.cli import main
from flaxattn.translation.config import DataConfig, RunConfig, TranslationTraining
from flaxattn.translation.options import own_paths


@pytest.fixture
def configured(monkeypatch, tmp_path):
    """The configuration that a command line comes to, with what is said of it."""
    monkeypatch.chdir(tmp_path)

    def come_to(*words):
        found = []
        monkeypatch.setattr(
            cli, "run", lambda config, remarks, **_: found.append((config, remarks))
        )
        assert main(PRESETS, [*words]) == 0
        return found[0]

    return come_to


# ---- Steps ------------------------------------------------------------------------------------


def test_fewer_steps_scale_every_count_of_steps_and_say_so(configured):
    config, remarks = configured("small", "--steps", "500")
    expected = dataclasses.replace(
        PRESETS["small"].training,
        steps=500,
        warmup_steps=80,
        cooldown_steps=150,
        log_every=2,
        valid_every=50,
    )
    assert config.training == expected
    assert remarks == [
        "Scaled from the preset's 5000 steps to 500: --warmup-steps 80, --cooldown-steps 150, "
        "--log-every 2, --valid-every 50."
    ]


def test_what_is_given_is_taken_as_it_is(configured):
    words = ("--warmup-steps", "800", "--cooldown_steps=1500", "--log-every", "20")
    config, remarks = configured("small", "--steps", "500", *words)
    training = config.training
    assert (training.warmup_steps, training.cooldown_steps, training.log_every) == (800, 1500, 20)
    assert training.valid_every == 50 and remarks[0].endswith("to 500: --valid-every 50.")


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("words", [(), ("same",)])
def test_a_preset_at_its_own_steps_is_itself(configured, name, words):
    words = ("--steps", str(PRESETS[name].training.steps)) if words else ()
    config, remarks = configured(name, *words)
    assert config == PRESETS[name] and remarks == []


def test_the_moving_average_looks_back_as_great_a_share_of_the_steps():
    preset = dataclasses.replace(PRESETS["multi30k"].training, steps=15_000)
    for steps, decay in ((1500, 0.99), (150, 0.9), (30_000, 0.9995), (3, 0.0)):
        training, _ = scaled(dataclasses.replace(preset, steps=steps), preset, {"steps"})
        assert training.ema_decay == pytest.approx(decay)


def kept(made, **training):
    return Kept(
        RunConfig("", EncoderDecoderConfig(9), training=TranslationTraining(**training)), made
    )


TAKEN_UP = {"warmup_steps": 10, "cooldown_steps": 30, "valid_every": 7, "ema_decay": 0.5}


@pytest.mark.parametrize(
    "made, before, steps, cooldown",
    [
        (60, {"steps": 100}, 100, 30),  # the same command
        (100, {"steps": 100}, 100, 30),
        (100, {"steps": 100}, 150, 15),  # 50 more
        (60, {"steps": 100}, 200, 60),  # another end for one that has not ended
        (120, {"steps": 150, "ended_at": (100,), "cooled_for": (9,)}, 150, 30),
        (150, {"steps": 150, "ended_at": (100,), "cooled_for": (9,)}, 250, 60),
        (120, {"steps": 150, "ended_at": (100,), "cooled_for": (9,)}, 200, 60),
    ],
)
def test_a_run_goes_on_with_its_own_counts(made, before, steps, cooldown):
    training = dataclasses.replace(PRESETS["small"].training, steps=steps)
    found = going_on(training, kept(made, **TAKEN_UP | before), {"steps"})
    taken = {name: getattr(found, name) for name in TAKEN_UP}
    assert taken == TAKEN_UP | {"cooldown_steps": cooldown}
    given = {"steps", *TAKEN_UP, "log_every"}
    assert going_on(training, kept(made, **TAKEN_UP | before), given) == training


# ---- Where a run starts from ------------------------------------------------------------------

START = EncoderDecoderConfig(9, features=8, num_heads=2, positions="rotary", dropout_rate=0.5)


def test_the_architecture_is_that_of_the_model_it_starts_from():
    model = PRESETS["tiny"].model
    found = starting_from(model, START, "runs/a", {"dropout_rate"})
    assert dataclasses.replace(found, dropout_rate=0.5) == START
    assert found.dropout_rate == model.dropout_rate


@pytest.mark.parametrize("name", ["vocab_size", "features", "positions", "encoder_layers"])
def test_an_architecture_given_otherwise_is_refused_naming_both(name):
    model = dataclasses.replace(PRESETS["tiny"].model, encoder_layers=7)
    option = f"--{name.replace('_', '-')}"
    with pytest.raises(ValueError) as error:
        starting_from(model, START, "runs/a", {name})
    assert f"{option} is {getattr(model, name)}" in str(error.value)
    assert f"--init-from runs/a has {option} {getattr(START, name)}" in str(error.value)
    same = dataclasses.replace(model, **{name: getattr(START, name)})
    assert starting_from(same, START, "runs/a", {name}).features == START.features


@pytest.mark.parametrize("place", ["", "model"])
def test_the_architecture_is_read_from_a_run_and_from_an_exported_model(configured, place):
    from test_kept import KEPT

    folder = KEPT[0] / place
    config, _ = configured("multi30k", "--init-from", str(folder), "--dropout-rate", "0.3")
    model = json.loads((KEPT[0] / "config.json").read_text())["model"]
    assert to_json(config)["model"] == model | {"dropout_rate": 0.3}


def test_a_start_that_is_not_there_is_told_of_where_it_is_needed(tmp_path, capsys):
    assert tiny(tmp_path / "run", {"--init-from": tmp_path / "nowhere"}) == 2
    assert "--init-from: " in capsys.readouterr().err


# ---- Paths ------------------------------------------------------------------------------------

OF_PRESET = DataConfig(
    data_dir="data/x", train=("a.en", "a.de"), valid=("v.en", "v.de"), test=("t.tsv",)
)


def test_files_that_are_given_lie_where_the_person_is():
    given = dataclasses.replace(OF_PRESET, train=("my.en", "my.de"))
    assert own_paths(given, {"train", "batch_size"}) == DataConfig(
        data_dir=".",
        train=("my.en", "my.de"),
        valid=("data/x/v.en", "data/x/v.de"),
        test=("data/x/t.tsv",),
    )


@pytest.mark.parametrize("given", [{"batch_size"}, {"data_dir"}, {"data_dir", "train", "test"}])
def test_else_files_lie_in_the_folder_of_the_data(given):
    assert own_paths(OF_PRESET, given) == OF_PRESET


def test_a_command_line_finds_files_of_ones_own_whatever_folder_the_preset_has(
    configured, tmp_path
):
    config, _ = configured("multi30k", "--test", "my.en", "train.de")
    assert (config.data.data_dir, config.data.test) == (".", ("my.en", "train.de"))
    assert config.data.train == ("data/multi30k/train.en", "data/multi30k/train.de")
    config, _ = configured("multi30k", "--data-dir", str(tmp_path))
    assert config.data == dataclasses.replace(PRESETS["multi30k"].data, data_dir=str(tmp_path))


def test_one_file_where_two_are_needed_is_told_of(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.en").write_text("a dog\na cat\n")
    assert tiny("run", {"--train": ("my.en",)}) == 2
    error = capsys.readouterr().err
    assert "my.en, line 1" in error and "two aligned files both" in error
