"""Files that would cost much, or for ever: refused by their size, kind or header, in no time."""

import json
import os
import shutil
import socket
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from flaxattn.__main__ import main
from flaxattn.training.storage.checkpoints import Checkpoints
from flaxattn.training.storage.manifest import seal
from flaxattn.training.storage.weights import read_header
from flaxattn.translation.trained.loading import load, load_run

KEPT = Path(__file__).parent / "kept" / "1"


@pytest.fixture(params=[1, 2])
def folder(request, tmp_path):
    """An exported model of either version of the format."""
    folder = shutil.copytree(KEPT / "model", tmp_path / "model")
    if request.param == 2:
        edit(folder, lambda c: c.update(format_version=2) or c.pop("sha256"))
        seal(folder, {}, ["README.md"])
    return folder


def edit(folder, change):
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


def with_header(folder, change):
    """Changes what the weights say of themselves."""
    path = folder / "model.safetensors"
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header, body = json.loads(content[8 : 8 + size]), content[8 + size :]
    body = change(header, body) or body
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + body)


def with_a_huge_array(folder):
    def add(header, body):
        end = len(body) + 4 * 10**9
        header["odd"] = {"dtype": "F32", "shape": [10**9], "data_offsets": [len(body), end]}

    with_header(folder, add)
    path = folder / "model.safetensors"
    os.truncate(path, path.stat().st_size + 4 * 10**9)  # of which the disk keeps nothing


def with_many_arrays(folder):
    def add(header, body):
        end = len(body)
        for i in range(100_000):
            header[f"odd.{i}"] = {"dtype": "F32", "shape": [0], "data_offsets": [end, end]}

    with_header(folder, add)


def with_floats_of_8_bits(folder):
    def change(header, body):
        header["encoder.final_norm.scale"]["dtype"] = "F8_E4M3"

    with_header(folder, change)


def with_a_header_of_all_memory(folder):
    (folder / "model.safetensors").write_bytes((2**60).to_bytes(8, "little") + b"{}")


def with_many_layers(folder):
    edit(folder, lambda c: c["architecture"].update(encoder_layers=1000))


def with_a_huge_configuration(folder):
    os.truncate(folder / "config.json", 10**10)


COSTLY = {
    with_a_huge_array: "odd is of no use",
    with_many_arrays: "and 99,995 more",
    with_floats_of_8_bits: r"encoder\.final_norm\.scale is F8_E4M3 \[8\], expected float32 \[8\]",
    with_a_header_of_all_memory: "header has 1,152,921,504,606,846,976 bytes",
    with_many_layers: "the encoder has 1 layers, expected 1000",
    with_a_huge_configuration: r"config\.json.* has 10,?000,?000,?000 bytes",
}


@pytest.mark.thorough(quick=1)
@pytest.mark.parametrize("make", COSTLY, ids=lambda f: f.__name__)
@pytest.mark.parametrize("sealed", [True, False])
def test_what_would_cost_much_is_refused_in_no_time(folder, capsys, make, sealed):
    make(folder)
    manifest = folder / "manifest.json"
    if manifest.exists() and sealed:
        if make in (with_a_huge_array, with_a_huge_configuration):
            return  # to seal such a file would cost as much
        seal(folder, {}, ["README.md"])
    began = time.process_time()
    expected = COSTLY[make] if sealed or not manifest.exists() else "damaged|expected at most"
    with pytest.raises(ValueError, match=expected) as refused:
        load(folder)
    assert main(["translate", str(folder), "a"]) == 2
    assert time.process_time() - began < 10
    assert len(str(refused.value)) < 600
    assert "Traceback" not in capsys.readouterr().err


def pipe(path):
    os.mkfifo(path)


def device(path):
    path.symlink_to("/dev/zero")


def unix_socket(path):
    with socket.socket(socket.AF_UNIX) as new:
        new.bind(os.path.relpath(path))


def a_folder(path):
    path.mkdir()


KINDS = [pipe, device, unix_socket, a_folder]


@pytest.mark.filterwarnings("ignore:.* Skipped ")  # as a model that is left out is told
@pytest.mark.parametrize("kind", KINDS, ids=lambda f: f.__name__)
@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer.model", "model.safetensors", "manifest.json"]
)
def test_what_is_no_file_is_refused_and_not_waited_for(folder, monkeypatch, capsys, kind, name):
    if not (folder / name).exists():
        return
    monkeypatch.chdir(folder)
    (folder / name).unlink()
    kind(folder / name)
    with pytest.raises((ValueError, OSError), match=name.replace(".", r"\.")):
        load(folder)
    assert main(["translate", str(folder), "a"]) == 2


@pytest.mark.filterwarnings("ignore:.* Skipped ")  # as a model that is left out is told
@pytest.mark.parametrize("kind", KINDS, ids=lambda f: f.__name__)
@pytest.mark.parametrize(
    "name", ["config.json", "data.json", "tokenizer.model", "models/200/manifest.json"]
)
def test_nor_in_the_folder_of_a_run(tmp_path, monkeypatch, kind, name):
    folder = shutil.copytree(KEPT, tmp_path / "run")
    monkeypatch.chdir((folder / name).parent)
    shutil.rmtree(folder / "models" / "100")
    (folder / name).unlink()
    kind(folder / name)
    with pytest.raises((ValueError, OSError)):
        load_run(folder)


@pytest.mark.parametrize("kind", KINDS, ids=lambda f: f.__name__)
def test_nor_in_a_checkpoint(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    with Checkpoints(tmp_path / "kept", keep=1) as checkpoints:
        checkpoints.save(3, {"w": np.ones(3)}, {})
    path = tmp_path / "kept" / "3" / "state" / "_METADATA"
    path.unlink()
    kind(path)
    told = []
    with Checkpoints(tmp_path / "kept", keep=1, warn=told.append) as checkpoints:
        checkpoints.restore_latest({"w": np.ones(3)})
    assert len(told) == 1 and "_METADATA" in told[0]


def test_a_header_is_what_safetensors_writes(tmp_path):
    arrays = {
        dtype: np.zeros((2, 3), dtype)
        for dtype in "float16 float32 float64 int8 int16 int32 int64 uint8 uint32 bool".split()
    }
    save_file(arrays, tmp_path / "some.safetensors", metadata={"format": "flax"})
    assert read_header(tmp_path / "some.safetensors") == {name: f"{name} [2, 3]" for name in arrays}
