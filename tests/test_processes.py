"""Several processes that train together, and what becomes of the others when one is stopped."""

import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from flaxattn.training import ending, processes
from flaxattn.training.processes import (
    ALONE,
    Agreement,
    FirstFailedError,
    Rendezvous,
    any_process,
    by_first,
    check_same,
    from_first,
    is_first,
    join,
    on_first,
    whole,
)
from flaxattn.training.storage.files import SaveError

SCRIPT = Path(__file__).with_name("several.py")
WITHIN = 100  # seconds: a minute, of two cores that others use, too
SAME = ("log.jsonl", "model.safetensors", "data.json")


def start(folder, *options, devices=1):
    """A process that trains in a folder, begun."""
    path = os.pathsep.join([str(SCRIPT.parents[1]), *sys.path])
    env = os.environ | {"PYTHONPATH": path, "JAX_NUM_CPU_DEVICES": str(devices)}
    env["JAX_PLATFORMS"] = "cpu"
    words = [sys.executable, str(SCRIPT), str(folder), *options]
    return subprocess.Popen(
        words, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def ended(*started):
    """The exit code of each and what it said, without the lines of libraries."""
    found = []
    for process in started:
        text, _ = process.communicate(timeout=WITHIN)
        found.append((process.returncode, re.sub(r"(?m)^([WIE]\d|\[Gloo\]).*\n?", "", text)))
    return found


def together(folder, *options, others=()):
    """How two processes end that train together; the second has options of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    where = ["--coordinator", f"127.0.0.1:{port}", "--processes", "2"]
    first = start(folder, *where, "--process", "0", *options)
    second = start(folder, *where, "--process", "1", *options, *others)
    return ended(first, second)


def same(folder, other):
    return [name for name in SAME if (folder / name).read_bytes() != (other / name).read_bytes()]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """A run of one process with two devices."""
    folder = tmp_path_factory.mktemp("processes") / "alone"
    ((code, text),) = ended(start(folder, devices=2))
    assert code == 0, text
    return folder


def test_stopped_in_two_processes_it_goes_on_in_one_to_the_same_bytes(alone, tmp_path):
    """Rows, updates and all else are those of one process with as many devices."""
    (code, told), (other, nothing) = together(tmp_path / "run", others=["--signal", "SIGTERM@6"])
    assert (code, other) == (75, 75), told + nothing
    assert "2 processes; mesh data=2" in told
    stopped = int(re.search(r"Interrupted after step (\d+)", told)[1])
    assert 7 <= stopped <= 10  # the others are told some steps later
    assert nothing.splitlines()[1:] == []  # the first alone speaks, but for who is waiting
    ((code, told),) = ended(start(tmp_path / "run", devices=2))
    assert code == 0 and f"Resumed from the checkpoint of step {stopped}" in told
    assert same(tmp_path / "run", alone) == []


@pytest.mark.thorough
def test_stopped_in_one_process_it_goes_on_in_two_with_parameters_spread(tmp_path):
    """Another mesh gives the same up to the order of sums."""
    folder, whole_run = tmp_path / "run", tmp_path / "whole"
    ((code, told),) = ended(start(folder, "--signal", "SIGTERM@6", devices=2))
    assert code == 75, told
    (code, told), (other, words) = together(folder, "--mesh", "fsdp=2")
    assert (code, other) == (0, 0) and "mesh fsdp=2" in told, told + words
    ((code, _),) = ended(start(whole_run, "--mesh", "fsdp=2", devices=2))
    assert code == 0
    losses = [
        [float(x) for x in re.findall(r'"loss": ([\d.e-]+)', (f / "log.jsonl").read_text())]
        for f in (folder, whole_run)
    ]
    np.testing.assert_allclose(*losses, rtol=1e-4)


@pytest.mark.thorough
@pytest.mark.parametrize("killed", [0, 1])
def test_where_one_is_killed_the_other_says_so_and_ends(tmp_path, killed):
    folder, began = tmp_path / "run", time.monotonic()
    options = ["--signal", "SIGKILL@6"]
    outcomes = together(folder, *([] if killed else ["--first", *options]), others=options * killed)
    assert time.monotonic() - began < WITHIN
    assert outcomes[killed][0] == -9
    code, told = outcomes[1 - killed]
    assert code == 1 and "another process of this run has ended" in told


@pytest.mark.thorough
def test_where_the_disk_is_full_both_end_and_go_on_once_there_is_room(alone, tmp_path):
    folder = tmp_path / "run"
    (code, told), (other, _) = together(folder, "--full", "6")
    assert (code, other) == (1, 1) and "No space left on device" in told
    assert [code for code, _ in together(folder)] == [0, 0]
    assert same(folder, alone) == []


@pytest.mark.thorough
def test_what_the_first_refuses_ends_all_with_its_words(alone, tmp_path):
    """Such as other text than the run began with."""
    (code, told), (other, words) = together(alone, "--text", "another text of some length " * 40)
    assert (code, other) == (2, 2)
    assert "holds a run that began with other train" in told
    assert "process 1: error: process 0: " in words and "other train" in words


# ---- A process alone -------------------------------------------------------------------------


def test_a_process_alone_asks_nobody(monkeypatch):
    monkeypatch.setattr(processes, "_broadcast", None)
    assert is_first() and on_first(lambda: 3) == by_first(lambda: 3) == 3
    assert Agreement().asked(True) and any_process(True) and not any_process(False)
    check_same("data", "digest")
    tree = {"w": jax.numpy.ones(3)}
    assert from_first(tree) is tree
    assert whole(tree)["w"] is tree["w"]  # nothing is copied to the host


def test_a_process_with_other_data_than_the_first_says_so(monkeypatch):
    monkeypatch.setattr(processes, "by_first", lambda do: "of the first")
    check_same("data", "of the first")
    with pytest.raises(ValueError, match="reads other data than process 0"):
        check_same("data", "of this one")


@pytest.mark.parametrize(
    "variables, count",
    [
        ({}, 1),
        ({"SLURM_STEP_NUM_TASKS": "1"}, 1),
        ({"SLURM_NTASKS": "8"}, 1),  # of a job, in the shell of which one process was started
        ({"SLURM_STEP_NUM_TASKS": "8"}, 8),
        ({"OMPI_COMM_WORLD_SIZE": "3"}, 3),
        ({"TPU_WORKER_HOSTNAMES": "10.0.0.1"}, 1),
        ({"TPU_WORKER_HOSTNAMES": "10.0.0.1,10.0.0.2"}, 2),
    ],
)
def test_a_cluster_that_tells_of_others_is_asked(monkeypatch, variables, count):
    asked = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *a, **k: asked.append((a, k)))
    monkeypatch.setattr(jax.config, "update", lambda *setting: None)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert join(ALONE) == count
    assert len(asked) == (count > 1)
    assert all(arguments == (None,) and "process_id" not in given for arguments, given in asked)


def test_others_that_are_not_there_are_told(monkeypatch):
    def missing(*_, **__):
        raise RuntimeError("DEADLINE_EXCEEDED: nobody answers")

    monkeypatch.setattr(jax.distributed, "initialize", missing)
    monkeypatch.setattr(jax.config, "update", lambda *setting: None)
    with pytest.raises(OSError, match="--coordinator host:1: the other processes could not"):
        join(Rendezvous("host:1", 2, 0))


def test_a_first_process_that_is_not_there_is_told(monkeypatch):
    monkeypatch.setattr(processes, "PATIENCE", 0.3)
    with pytest.raises(OSError, match=r"--coordinator 127\.0\.0\.1:9: process 0 was not reached"):
        join(Rendezvous("127.0.0.1:9", 2, 1))


@pytest.mark.parametrize("kind, code", [(SaveError, 1), (ValueError, 2)])
def test_what_has_failed_in_the_first_has_its_exit_code_in_others(kind, code, capsys):
    def failed():
        raise FirstFailedError("no room", kind.__name__)

    assert ending.exit_code(failed) == code
    assert "process 0: no room" in capsys.readouterr().err
