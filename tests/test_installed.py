"""The package as it is installed from a wheel, in no checkout."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from configs import PRESETS

builders = pytest.importorskip("hatchling.builders.wheel")
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder with what the wheel holds."""
    folder = tmp_path_factory.mktemp("installed")
    (wheel,) = builders.WheelBuilder(str(ROOT)).build(directory=str(folder / "wheel"))
    with zipfile.ZipFile(wheel) as files:
        files.extractall(folder / "packages")
    return folder


def flaxattn(installed, *words):
    """What the command says there, far from any checkout."""
    return subprocess.run(
        [sys.executable, "-m", "flaxattn", *words],
        cwd=installed,
        env=os.environ | {"PYTHONPATH": str(installed / "packages"), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_the_wheel_holds_the_library_and_its_presets_alone(installed):
    top = {path.name for path in (installed / "packages").iterdir() if path.suffix != ".dist-info"}
    assert top == {"flaxattn"}
    configs = {path.stem for path in (installed / "packages/flaxattn/configs").glob("[!_]*.py")}
    assert configs == {path.stem for path in (ROOT / "configs").glob("[!_]*.py")}


def test_train_knows_every_preset_and_names_itself(installed):
    told = flaxattn(installed, "train", "--help")
    assert told.returncode == 0, told.stderr
    assert f"Presets: {', '.join(PRESETS)}." in " ".join(told.stdout.split())
    assert "flaxattn train small --train my.en my.de" in told.stdout
    assert "train.py" not in told.stdout
    assert "train" in flaxattn(installed, "--help").stdout
    refused = flaxattn(installed, "train", "smal")
    assert refused.returncode == 2 and "Did you mean 'small'?" in refused.stderr


@pytest.mark.thorough
def test_train_looks_at_a_run_as_train_py_does(installed):
    words = ["tiny", "--dry-run", "--builtin-pairs", "200", "--steps", "2", "--vocab-size", "400"]
    told = flaxattn(installed, "train", *words)
    assert told.returncode == 0, told.stderr
    assert "2 steps" in told.stdout
