"""Checkpoints: whatever happens to one, it is not restored silently, and the one before it is."""

import errno
import json
import shutil
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxattn.training.storage import checkpoints as checkpoints_module
from flaxattn.training.storage import files, manifest
from flaxattn.training.storage.checkpoints import Checkpoints, Models, size_of
from flaxattn.training.storage.files import SaveError
from flaxattn.training.storage.manifest import DamagedError, read_manifest, seal, verify


def state_of(step):
    return {
        "params": {"w": jnp.arange(6.0).reshape(2, 3) + step, "b": jnp.full(3, step, jnp.bfloat16)},
        "step": jnp.array(step),
        "none": None,
    }


def saved(folder, steps=(3, 6), keep=9, run="ours"):
    with Checkpoints(folder, keep=keep, run=run) as checkpoints:
        for step in steps:
            checkpoints.save(step, state_of(step), {"seconds": 1.5 * step})
    return folder


def restored(folder, like=None, run="ours"):
    """The state, the progress, and the warnings."""
    warnings = []
    with Checkpoints(folder, keep=9, run=run, warn=warnings.append) as checkpoints:
        state, progress = checkpoints.restore_latest(state_of(0) if like is None else like)
    return state, progress, warnings


def bytes_of(tree):
    return [(x.dtype, x.shape, np.asarray(x).tobytes()) for x in jax.tree.leaves(tree)]


def test_the_latest_state_comes_back_to_the_bit_with_its_progress(tmp_path):
    state, progress, warnings = restored(saved(tmp_path / "kept"))
    assert bytes_of(state) == bytes_of(state_of(6))
    assert jax.tree.structure(state) == jax.tree.structure(state_of(6))
    assert progress == {"seconds": 9.0} and warnings == []


def test_where_nothing_is_kept_the_state_stays_as_it_is(tmp_path):
    like = state_of(0)
    state, progress, warnings = restored(tmp_path / "none", like)
    assert state is like and progress == {} and warnings == []
    assert not (tmp_path / "none").exists()


def test_only_the_latest_are_kept(tmp_path):
    saved(tmp_path, steps=(1, 2, 3, 10), keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["10", "3"]


def test_a_step_written_again_replaces_the_former(tmp_path):
    saved(tmp_path)
    with Checkpoints(tmp_path, keep=9, run="ours") as checkpoints:
        checkpoints.save(6, state_of(7), {})
    assert bytes_of(restored(tmp_path)[0]) == bytes_of(state_of(7))


# ---- Damage ----------------------------------------------------------------------------------


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


def empty(path):
    path.write_bytes(b"")


def lengthen(path):
    path.write_bytes(path.read_bytes() + b"\0")


def delete(path):
    path.unlink()


DAMAGES = [flip, truncate, empty, lengthen, delete]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("checkpoints") / "kept")


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda f: f.__name__)
def test_damage_to_any_file_is_seen_and_the_step_before_is_used(whole, tmp_path, damage):
    names = [p.relative_to(whole) for p in sorted((whole / "6").rglob("*")) if p.is_file()]
    assert len(names) > 5
    for number, name in enumerate(names):
        copy = shutil.copytree(whole, tmp_path / str(number))
        before = (copy / name).read_bytes()
        damage(copy / name)
        if (copy / name).exists() and (copy / name).read_bytes() == before:
            continue  # a file that was empty from the first
        state, progress, warnings = restored(copy)
        assert bytes_of(state) == bytes_of(state_of(3)), name
        assert progress == {"seconds": 4.5}
        assert len(warnings) == 1 and name.name in warnings[0] and "Skipped" in warnings[0], name


def test_every_bit_of_a_manifest_matters(whole, tmp_path):
    copy = shutil.copytree(whole / "6", tmp_path / "6")
    path = copy / "manifest.json"
    content = path.read_bytes()
    verify(copy)
    for at in range(0, len(content), 7):
        changed = bytearray(content)
        changed[at] ^= 1 << at % 8
        path.write_bytes(changed)
        if at >= len(content.rstrip()):
            continue
        try:
            same = json.loads(changed) == json.loads(content)
        except ValueError:
            same = False
        if not same:
            with pytest.raises(DamagedError):
                verify(copy)


@pytest.mark.parametrize("name", ["9", "09", "notes", "-1", "state"])
def test_stray_folders_are_skipped_with_a_warning(whole, tmp_path, name):
    copy = shutil.copytree(whole, tmp_path / "copy")
    (copy / name).mkdir()
    state, _, warnings = restored(copy)
    assert bytes_of(state) == bytes_of(state_of(6))
    assert len(warnings) == 1 and str(copy / name) in warnings[0]


def test_a_folder_half_written_is_not_taken_for_a_checkpoint_and_is_cleared_away(whole, tmp_path):
    copy = shutil.copytree(whole, tmp_path / "copy")
    shutil.copytree(copy / "6", copy / "9.partial")
    state, _, warnings = restored(copy)
    assert bytes_of(state) == bytes_of(state_of(6)) and warnings == []
    saved(copy, steps=(12,))
    assert sorted(path.name for path in copy.iterdir()) == ["12", "3", "6"]


def test_a_step_under_another_number_is_skipped(whole, tmp_path):
    copy = shutil.copytree(whole, tmp_path / "copy")
    (copy / "6").rename(copy / "60")
    state, _, warnings = restored(copy)
    assert bytes_of(state) == bytes_of(state_of(3))
    assert len(warnings) == 1 and "holds step 6" in warnings[0]


def test_a_step_of_another_run_is_skipped(whole, tmp_path):
    copy = shutil.copytree(whole, tmp_path / "copy")
    saved(tmp_path / "other", steps=(9,), run="theirs")
    shutil.copytree(tmp_path / "other" / "9", copy / "9")
    state, _, warnings = restored(copy)
    assert bytes_of(state) == bytes_of(state_of(6))
    assert len(warnings) == 1 and "another run" in warnings[0]


def damaged_later(copy):
    flip(next((copy / "6" / "state").rglob("_METADATA")))


def foreign_later(copy):
    saved(copy.parent / "other", steps=(90,), run="theirs")
    shutil.copytree(copy.parent / "other" / "90", copy / "90")


def misnumbered_later(copy):
    (copy / "6").rename(copy / "60")


@pytest.mark.parametrize("happen", [damaged_later, foreign_later, misnumbered_later])
def test_a_later_step_that_is_skipped_does_not_displace_the_one_just_written(
    whole, tmp_path, happen
):
    copy = shutil.copytree(whole, tmp_path / "copy")
    happen(copy)
    saved(copy, steps=(5,), keep=1)
    state, _, warnings = restored(copy)
    expected = 6 if happen is foreign_later else 5
    assert bytes_of(state) == bytes_of(state_of(expected)) and len(warnings) == 1
    assert (copy / "5").exists() and not (copy / "3").exists()


def test_with_nothing_whole_left_one_begins_anew_and_is_told(whole, tmp_path):
    copy = shutil.copytree(whole, tmp_path / "copy")
    for step in ("3", "6"):
        delete(copy / step / "manifest.json")
    like = state_of(0)
    state, progress, warnings = restored(copy, like)
    assert state is like and progress == {} and len(warnings) == 2


@pytest.mark.parametrize(
    "change, expected",
    [
        (
            lambda s: s["params"].update(w=jnp.zeros((2, 4))),
            r"float32\[2,3\] is kept, float32\[2,4",
        ),
        (lambda s: s["params"].update(b=jnp.zeros(3)), r"bfloat16\[3\] is kept, float32\[3\]"),
        (lambda s: s["params"].pop("b"), r"\['b'\]: bfloat16\[3\] is kept, nothing is expected"),
        (
            lambda s: s.update(more=jnp.zeros(5)),
            r"\['more'\]: nothing is kept, float32\[5\] is exp",
        ),
    ],
)
def test_a_state_of_other_arrays_is_an_error_that_lists_them(whole, change, expected):
    like = state_of(0)
    change(like)
    with pytest.raises(ValueError, match=expected):
        restored(whole, like)


# ---- Manifests -------------------------------------------------------------------------------


def test_a_manifest_keeps_what_is_said_and_names_all_files(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b.txt").write_text("text")
    seal(tmp_path, {"ä": [1, 2.5]})
    assert verify(tmp_path) == {"ä": [1, 2.5]}
    assert list(read_manifest(tmp_path)["files"]) == ["a/b.txt"]


def sealed_with(folder, name):
    """A folder whose manifest names a file outside it, as only someone hostile would write."""
    outside = folder.parent / "outside"
    outside.write_text("secret")
    seal(folder, {})
    content = read_manifest(folder)
    content["files"] = {name: {"bytes": 6, "sha256": manifest.sha256(outside)}}
    sealed = content | {"sha256": manifest._digest(content)}
    (folder / "manifest.json").write_text(json.dumps(sealed))


@pytest.mark.parametrize("absolute", [False, True])
def test_paths_in_a_manifest_never_lead_outside(tmp_path, absolute):
    folder = tmp_path / "inside"
    folder.mkdir()
    sealed_with(folder, str(tmp_path / "outside") if absolute else "../outside")
    with pytest.raises(DamagedError, match="outside its folder"):
        verify(folder)


def test_links_in_a_folder_never_lead_outside(tmp_path):
    (tmp_path / "outside").write_text("text")
    folder = tmp_path / "inside"
    folder.mkdir()
    (folder / "a").write_text("text")
    seal(folder, {})
    (folder / "a").unlink()
    (folder / "a").symlink_to(tmp_path / "outside")
    with pytest.raises(DamagedError, match="outside its folder"):
        verify(folder)


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"{}", b"\xff", b"[" * 100_000, b'{"format": "flaxattn manifest"}', b"null"],
)
def test_what_is_no_manifest_is_damage(tmp_path, content):
    (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises(DamagedError, match=r"manifest\.json"):
        verify(tmp_path)


# ---- Failures to write -----------------------------------------------------------------------


def failing(monkeypatch, at_step):
    """Makes the disk full when a step is sealed."""

    def sealed(folder, about):
        if about["step"] == at_step:
            raise OSError(errno.ENOSPC, "No space left on device")
        seal(folder, about)

    monkeypatch.setattr(checkpoints_module, "seal", sealed)


def test_a_failure_in_the_background_is_raised_names_the_place_and_harms_nothing(
    tmp_path, monkeypatch
):
    folder = saved(tmp_path / "kept", steps=(3,))
    failing(monkeypatch, at_step=6)
    with (
        pytest.raises(SaveError) as failure,
        Checkpoints(folder, keep=1, run="ours") as checkpoints,
    ):
        checkpoints.save(6, state_of(6), {})
    text = str(failure.value)
    assert str(folder / "6") in text and "No space left" in text and "Step 3 is kept" in text
    assert f"{size_of(state_of(6)):,} bytes" in text
    assert [path.name for path in folder.iterdir()] == ["3"]
    assert bytes_of(restored(folder)[0]) == bytes_of(state_of(3))


def test_a_disk_without_room_is_told_before_anything_is_written(tmp_path, monkeypatch):
    folder = saved(tmp_path, steps=(3,))
    state = state_of(6)
    little = shutil.disk_usage(folder)._replace(free=size_of(state) - 1)
    monkeypatch.setattr(files.shutil, "disk_usage", lambda _: little)
    with (
        pytest.raises(SaveError) as failure,
        Checkpoints(folder, keep=1, run="ours") as checkpoints,
    ):
        checkpoints.save(6, state, {})
    said = f"{folder / '6'}: could not be written: [Errno 28] No space left on device. It has "
    assert str(failure.value).startswith(said + f"{size_of(state):,} bytes of arrays")
    assert f"{size_of(state) - 1:,} bytes are free there. Step 3" in str(failure.value)
    assert [path.name for path in folder.iterdir()] == ["3"]


def test_the_next_save_raises_the_failure_of_the_former(tmp_path, monkeypatch):
    failing(monkeypatch, at_step=3)
    checkpoints = Checkpoints(tmp_path, keep=1, run="ours")
    checkpoints.save(3, state_of(3), {})
    with pytest.raises(SaveError, match="No earlier step is kept"):
        checkpoints.save(6, state_of(6), {})
    checkpoints.close()


def test_saving_does_not_wait_for_the_disk(tmp_path, monkeypatch):
    events = []

    def slowly(folder, about):
        time.sleep(0.3)
        seal(folder, about)
        events.append("sealed")

    monkeypatch.setattr(checkpoints_module, "seal", slowly)
    with Checkpoints(tmp_path, keep=1, run="ours") as checkpoints:
        checkpoints.save(3, state_of(3), {})
        events.append("went on")
    assert events == ["went on", "sealed"]


FULL = """
import resource, signal, sys
from pathlib import Path
import numpy as np
from flaxattn.training.storage.checkpoints import Checkpoints
from flaxattn.training.storage.files import SaveError

state = {"w": np.random.default_rng(0).normal(size=50_000)}
checkpoints = Checkpoints(Path(sys.argv[1]), keep=1)
checkpoints.save(3, state, {})
checkpoints.wait()
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
checkpoints.save(6, state, {})
try:
    checkpoints.wait()
except SaveError as error:
    print(error)
"""


@pytest.mark.thorough
def test_when_files_can_grow_no_more_the_former_checkpoint_stays(tmp_path):
    ended = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path)], capture_output=True, text=True, timeout=300
    )
    assert ended.returncode == 0, ended.stderr
    assert f"{tmp_path / '6'}: could not be written" in ended.stdout
    assert "400,000 bytes of arrays" in ended.stdout and "Step 3 is kept" in ended.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["3"]
    verify(tmp_path / "3")


def test_a_damaged_model_is_left_out_of_the_mean_with_a_warning(tmp_path):
    warnings = []
    with Models(tmp_path, keep=3, warn=warnings.append) as models:
        for step in (1, 2, 3):
            models.save(step, {"w": jnp.full(2, float(step))}, -step)
        models.wait()
        flip(next((tmp_path / "2" / "state").rglob("_METADATA")))
        assert models.average({"w": jnp.zeros(2)})["w"].tolist() == [2.0, 2.0]
    assert len(warnings) == 1 and "_METADATA" in warnings[0]
