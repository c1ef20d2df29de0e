"""The tour runs from start to end, with little work, and the kept one shows what it came to."""

import importlib.metadata
import json
import os
import pathlib
import re
import subprocess

import pytest

nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed: --group dev")
pytest.importorskip("ipykernel", reason="ipykernel is not installed: --group dev")
nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed: --group dev")

ROOT = pathlib.Path(__file__).parents[1]
NOTEBOOK = ROOT / "colab" / "flaxattn_tour.ipynb"
MACHINE_PATH = re.compile(r"(?<![\w.])/(?:home|root|tmp|usr|opt|var|mnt|work|Users)/|\b[A-Z]:\\\\")


@pytest.fixture(scope="module")
def kept():
    return nbformat.read(NOTEBOOK, as_version=4)


def code_of(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def text_of(cell):
    """What a cell printed."""
    return "".join(o.text for o in cell.outputs if o.output_type == "stream")


def check_outputs(notebook):
    """Every code cell shows something, none an error, and some of them pictures or pages."""
    for cell in code_of(notebook):
        assert cell.outputs, cell.id
        assert not [o for o in cell.outputs if o.output_type == "error"], cell.id
        assert not [o for o in cell.outputs if o.get("name") == "stderr"], cell.id
    outputs = {cell.id: cell.outputs for cell in code_of(notebook)}
    for name in ("draw", "packed", "global", "break", "scores", "speed", "cheat", "train"):
        assert any("image/png" in o.get("data", {}) for o in outputs[name]), name
    assert "srcdoc" in outputs["explorer"][-1].data["text/html"]


@pytest.mark.thorough
def test_it_runs_from_start_to_end(kept, tmp_path, monkeypatch):
    monkeypatch.setenv("FLAXATTN_TOUR_SMALL", "1")
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    monkeypatch.setenv("PYTHONPATH", path)
    fresh = nbformat.from_dict(json.loads(json.dumps(kept)))
    nbclient.NotebookClient(
        fresh, timeout=300, resources={"metadata": {"path": tmp_path}}
    ).execute()
    check_outputs(fresh)
    cells = {cell.id: text_of(cell) for cell in code_of(fresh)}
    assert "moved are [11]\n" in cells["break"] and "12 steps, " in cells["train"]
    assert (tmp_path / "runs" / "tour" / "explorer.html").exists()


def test_the_kept_one_shows_a_whole_run(kept):
    check_outputs(kept)
    cells = {cell.id: text_of(cell) for cell in code_of(kept)}
    assert "1,054,208 parameters" in cells["prepare"] and "1000 steps, " in cells["train"]
    assert float(re.search(r"bleu +(\S+)", cells["score"])[1]) > 90
    cheating, entropy, honest, _ = map(float, re.findall(r"(?:nll|has) (\S+)", cells["cheat"]))
    assert 2 * cheating < entropy < honest


def test_the_kept_one_is_small_and_tells_nothing_of_the_machine(kept):
    text = NOTEBOOK.read_text(encoding="utf-8")
    assert len(text) < 2**20
    assert not MACHINE_PATH.search(text)
    assert not [cell.id for cell in kept.cells if "execution" in cell.metadata]
    assert set(kept.metadata) == {"colab", "kernelspec", "language_info"}


def install_cell(kept):
    """What the first cell defines; it installs nothing here."""
    names = {}
    exec(next(cell.source for cell in kept.cells if cell.id == "install"), names)
    return names


def replace_pip(monkeypatch, returncode=0):
    """A list to which every installation adds what is wanted and the constraints."""
    ran = []

    def pip(command, **options):
        ran.append((command[-1], command[command.index("--constraint") + 1].read_text()))
        return subprocess.CompletedProcess(command, returncode, "", "no such wheel")

    monkeypatch.setattr(subprocess, "run", pip)
    return ran


def test_installing_keeps_the_jax_of_the_runtime(kept, monkeypatch):
    names, ran = install_cell(kept), replace_pip(monkeypatch)
    names["install"]("my.whl")
    ((wanted, constraints),) = ran
    assert wanted == "my.whl[train]"
    assert f"jax=={importlib.metadata.version('jax')}\n" in constraints

    versions = iter([{"jax": "1"}, {"jax": "2"}])
    names["installed"] = lambda: next(versions)
    with pytest.raises(RuntimeError, match=r"changed jax; restart"):
        names["install"]("my.whl")


def test_pip_says_why_it_failed(kept, monkeypatch):
    replace_pip(monkeypatch, returncode=1)
    with pytest.raises(RuntimeError, match=r"could not install my\.whl:\nno such wheel"):
        install_cell(kept)["install"]("my.whl")


def test_where_there_is_nothing_to_install_the_field_is_named(kept, tmp_path, monkeypatch):
    names = install_cell(kept)
    (tmp_path / "colab").mkdir()
    monkeypatch.chdir(tmp_path / "colab")
    with pytest.raises(FileNotFoundError, match="the field `source`"):
        names["checkout"]()
    (tmp_path / "flaxattn").mkdir()
    (tmp_path / "pyproject.toml").touch()
    assert names["checkout"]() == pathlib.Path("..")
