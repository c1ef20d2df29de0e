"""The power fails after any call: a whole checkpoint, file or exported model is left."""

import dataclasses
import json
from pathlib import Path

import jax.numpy as jnp
import pytest
from power import MODES, Disk

import flaxattn.training.storage.folders as folders
import flaxattn.translation.trained.exporting as exporting
from flaxattn.training.storage.checkpoints import Checkpoints
from flaxattn.training.storage.files import write_whole
from flaxattn.training.storage.manifest import DamagedError, verify
from flaxattn.translation.trained.exporting import export
from flaxattn.translation.trained.loading import load_exported
from flaxattn.translation.trained.stablehlo import Programs

KEPT = Path(__file__).parent / "kept" / "1"


@pytest.fixture(params=MODES)
def after(request, tmp_path_factory):
    """What is left after each call that a disk has recorded, with its number."""
    place = tmp_path_factory.mktemp("left")

    def each(disk, start=0):
        for point in range(start, len(disk.points)):
            disk.left_at(point, request.param, place / str(point))
            yield point, place / str(point)

    return each


def is_whole(folder):
    try:
        verify(folder)
    except DamagedError:
        return False
    return True


def test_a_whole_checkpoint_is_left(tmp_path, monkeypatch, after):
    disk, sure = Disk(tmp_path, monkeypatch), {}
    with Checkpoints(tmp_path / "kept", keep=1, run="ours") as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(step, {"w": jnp.full(3, float(step))}, {})
            checkpoints.wait()
            sure[len(disk.points) - 1] = step
    monkeypatch.undo()
    assert len(disk.points) > 60
    for point, left in after(disk, min(sure)):
        whole = [int(p.name) for p in (left / "kept").iterdir() if p.name.isdigit() and is_whole(p)]
        least = max(step for begin, step in sure.items() if begin <= point)
        assert max(whole, default=0) >= least, disk.points[point][0]


@pytest.mark.parametrize("linked", [False, True])
def test_a_file_is_the_old_one_or_the_new_one(tmp_path, monkeypatch, after, linked):
    (tmp_path / "there").mkdir()
    write_whole(tmp_path / "there" / "file", "old")
    if linked:
        (tmp_path / "link").symlink_to(tmp_path / "there" / "file")
    disk = Disk(tmp_path / "there", monkeypatch)
    write_whole(tmp_path / ("link" if linked else "there/file"), "new")
    monkeypatch.undo()
    found = [(left / "file").read_bytes() for _, left in after(disk)]
    assert set(found) <= {b"old", b"new"} and found[-1] == b"new"


def test_an_exported_model_is_left_where_it_is_or_is_given_back_by_the_next_export(
    tmp_path, monkeypatch, after
):
    monkeypatch.setattr(exporting, "programs", lambda *_: Programs(b"encode", b"decode"))
    old = load_exported(KEPT / "model")
    new = old._replace(decoding=dataclasses.replace(old.decoding, beam_size=2))
    export(tmp_path / "place" / "model", old)
    disk = Disk(tmp_path / "place", monkeypatch)
    export(tmp_path / "place" / "model", new)
    monkeypatch.undo()
    beams = []
    for _, left in after(disk):
        hidden = left / ".model.partial"
        folders._recover(left / "model", hidden, hidden / "old")
        assert is_whole(left / "model")
        config = json.loads((left / "model" / "config.json").read_text())
        beams.append(config["decoding"]["beam_size"])
    assert set(beams) <= {5, 2} and beams[-1] == 2
