"""The folder of a run is deleted or moved while it trains: it is told, and what can be is kept."""
# ruff: noqa: F811  a fixture has the name of an import

import contextlib
import json
import shutil

import pytest
from run_cases import decode_to, tiny
from test_training import LONG, train  # noqa: F401

import flaxattn.training.loop as training
import flaxattn.translation.task as task_module
from flaxattn.training.home import Home
from flaxattn.training.log import RunLog
from flaxattn.training.storage.files import SaveError

# orbax leaves coroutines behind where what it writes to is gone
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

BEGUN_WITH = {"config.json": b"{}", "data.json": b'{"run": "ours"}', "tokenizer.model": b"pieces"}


def deleted(folder):
    doomed = folder.rename(folder.with_name("doomed"))  # at once, whatever is written meanwhile
    shutil.rmtree(doomed, ignore_errors=True)
    return folder


def moved(folder):
    folder.rename(folder.with_name("elsewhere"))
    return folder


def deleted_in_part(folder):
    (folder / "config.json").unlink()
    return folder


def replaced(folder):
    deleted(folder)
    folder.mkdir(exist_ok=True)  # what is written meanwhile may have made it
    (folder / "lock").touch()
    (folder / "config.json").write_text("of another")
    return folder.with_name("run.rescued")


@pytest.fixture
def home(tmp_path, train):
    """The folder of a run that trains in it."""
    folder = tmp_path / "run"
    folder.mkdir()
    for name, content in BEGUN_WITH.items():
        (folder / name).write_bytes(content)
    train.folder = folder
    with (
        (folder / "lock").open("a+") as lock,
        Home(folder, "ours", lock, ["tokenizer.model"]) as home,
    ):
        train.home = lambda _: contextlib.nullcontext(home)
        yield home


@pytest.mark.thorough(quick=1)
@pytest.mark.parametrize("happen", [deleted, moved, deleted_in_part, replaced])
@pytest.mark.parametrize("step", [3, 6, 12])
def test_a_lost_folder_is_told_and_the_step_is_kept(
    home,
    tmp_path,
    monkeypatch,
    train,
    happen,
    step,
):
    places, write = [], RunLog.write

    def lose(log, kind, at, values):
        write(log, kind, at, values)
        if kind == "valid" and at == step and not places:
            places.append(happen(home.path))

    monkeypatch.setattr(RunLog, "write", lose)
    with pytest.raises(SaveError, match=rf"run was deleted or moved.* Step {step} and the log"):
        train(LONG, valid_every=3, log_every=2)
    (place,) = places
    assert {name: (place / name).read_bytes() for name in BEGUN_WITH} == BEGUN_WITH
    steps = [json.loads(row)["step"] for row in (place / "log.jsonl").read_text().splitlines()]
    assert max(steps) == step
    train.folder, train.home = place, Home
    trained, measured = train(LONG, valid_every=3, log_every=2)
    assert measured == [at for at in (3, 6, 9, 12) if at > step]
    assert trained.params["w"].tolist() == [12] * 3
    if happen is replaced:
        assert (home.path / "config.json").read_text() == "of another"
        assert not (home.path / "data.json").exists()


def test_a_folder_lost_before_the_models_are_averaged_is_told(
    home,
    monkeypatch,
    train,
):
    average = training.Keeping.average

    def lose(kept, *arguments):
        kept._checkpoints.wait()
        shutil.rmtree(home.path)
        return average(kept, *arguments)

    monkeypatch.setattr(training.Keeping, "average", lose)
    with pytest.raises(SaveError, match="Step 12 and the log are kept"):
        train(LONG, valid_every=3)
    assert (home.path / "checkpoints" / "12").exists()


def test_models_that_were_deleted_are_missed(home, monkeypatch, train, capsys):
    write = RunLog.write

    def lose(log, kind, at, values):
        write(log, kind, at, values)
        if kind == "valid" and at == 9:
            shutil.rmtree(home.path / "models" / "3")

    monkeypatch.setattr(RunLog, "write", lose)
    train(LONG, valid_every=3, average=4)
    assert "3 models are there of 4 that were kept" in capsys.readouterr().out


@pytest.mark.thorough
def test_a_folder_lost_while_the_test_split_is_translated_is_told(tmp_path, monkeypatch, capsys):
    decode_to(monkeypatch, [5, 2])

    class Losing(task_module.Translator):
        def translate(self, *arguments, **options):
            shutil.rmtree(tmp_path / "run")
            return super().translate(*arguments, **options)

    monkeypatch.setattr(task_module, "Translator", Losing)
    options = {"--steps": 1, "--metric": "nll", "--samples": 0, "--r-drop": 0}
    assert tiny(tmp_path / "run", options) == 1
    told = capsys.readouterr()
    assert "deleted or moved while the model was tested" in told.err
    assert "Everything is in" not in told.out
    assert {"model", "result.json", "test.hypothesis", "config.json"} <= {
        path.name for path in (tmp_path / "run").iterdir()
    }
