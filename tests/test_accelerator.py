"""benchmarks/accelerator.py: what it counts, and that nothing that fails ends the rest."""

import argparse
import importlib
import json
import pathlib
import sys
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

BENCHMARKS = pathlib.Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def load(monkeypatch):
    """Imports a file of benchmarks/."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


def options(**given):
    return argparse.Namespace(**{"quick": False, "tiny": False, "only": "", **given})


def test_the_logits_that_are_counted_are_those_that_the_mask_shows(load):
    sizes = load("accelerator_cases")
    for case in sizes.cases(sizes.TINY):
        mask = load("accelerator_jax").mask_of(case, case.arrays)
        dense = jnp.broadcast_to(
            mask.dense(case.length, case.length), (case.batch, case.length, case.length)
        )
        assert case.live == int(dense.sum()) * case.heads, case


def test_every_job_has_a_name_of_its_own_and_quick_ones_are_few(load):
    accelerator = load("accelerator")
    names = [job.name for job in accelerator.jobs(options())]
    quick = [job.name for job in accelerator.jobs(options(quick=True))]
    assert len(set(names)) == len(names)
    assert set(quick) < set(names)
    assert sum(name.startswith("attention/") for name in quick) < 80


def test_every_check_is_a_job(load):
    assert set(load("accelerator").CHECKS) == set(load("accelerator_check").CHECKS)


@pytest.mark.parametrize("name", ["T=1", "learned ALiBi"])
def test_a_check_is_right_of_what_is_right_and_names_what_is_wrong(load, name, monkeypatch):
    check, table = load("accelerator_check"), load("flaxattn.attention.table")
    assert check.check(name, "dense")["wrong"] == []
    dense = table.IMPLEMENTATIONS["dense"]

    def off(query, key, value, mask, options):
        output, lse = dense.attend(query, key, value, mask, options)
        return output * 1.01, lse

    monkeypatch.setitem(table.IMPLEMENTATIONS, "off", dense._replace(attend=off))
    wrong = check.check(name, "off")["wrong"]
    assert any(words.startswith("output: error") for words in wrong)


def test_rows_are_kept_as_they_are_found_and_failures_are_tried_again(load, tmp_path):
    out, record = tmp_path / "new" / "accelerator", load("accelerator_record").Record
    kept = record(out)
    kept.tell({"device": "a card", "versions": {"jax": "1"}})
    row = {"part": "ceiling", "case": "", "contender": "jax", "pass": ""}
    kept.add("ceiling/jax", row | {"tflops": 800.0, "ms": 1.0})
    attention = {"part": "attention", "case": "causal", "contender": "ours", "pass": "forward"}
    attention |= {"tflops": 400.0, "kernels_us": {"a_mosaic_gpu_kernel": 1.2, "b": 0.6}}
    kept.add("attention/causal/ours/forward", attention)
    kept.add("ceiling/torch", row | {"contender": "torch", "error": "no torch"})
    again = record(out)
    assert again.done("ceiling/jax")
    assert not again.done("ceiling/torch")
    assert again.ceiling == 800.0
    again.tell({"versions": {"torch": "2"}})
    text = again.tables()
    assert "# a card" in text and "jax 1, torch 2" in text and "no torch" in text
    assert "400 (50%)" in text and "a 1, b 1" in text
    with pytest.raises(ValueError, match="is of a card, and this is another"):
        again.tell({"device": "another"})


def test_kernels_of_a_profile_are_added_up(load):
    def event(name, us):
        return SimpleNamespace(name=name, duration_ns=us * 1e3)

    profile, calls = load("accelerator_profile"), load("accelerator_profile").CALLS
    stream = SimpleNamespace(name="Stream #7", events=[event("a", 2.0), event("b", 9.0)] * calls)
    steps = SimpleNamespace(name="Steps", events=[event("a", 100.0)])
    gpu = SimpleNamespace(name="/device:GPU:0", lines=[stream, steps])
    host = SimpleNamespace(name="/host:CPU", lines=[stream])
    found = profile.added_up([gpu, host])
    assert found == {"b": 9.0, "a": 2.0}
    assert list(found) == ["b", "a"]
    assert profile.kernel_times(lambda: 1 / 0) == {}  # none on a CPU, where nothing is called


FAKE = """
import os, time
def about():
    return {"device": "none"}
def healthy():
    return True
def product(size):
    print("not a row")
    if size == 1:
        raise ValueError("one is too few")
    if size == 2:
        os._exit(3)
    if size == 3:
        time.sleep(60)
    return {"tflops": 1.0, "ms": size}
"""


def test_a_job_that_fails_ends_or_hangs_costs_its_row_alone(load, tmp_path, monkeypatch):
    (tmp_path / "accelerator_fake.py").write_text(FAKE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    accelerator = load("accelerator")
    monkeypatch.setattr(accelerator, "LONGEST", 3)
    todo = [
        accelerator.Job("fake", "ceiling", "", str(size), "", {"size": size})
        for size in (0, 1, 2, 3, 4)
    ]
    record = load("accelerator_record").Record(tmp_path / "out")
    accelerator.find(todo, record, argparse.Namespace(minutes=1, torch=sys.executable))
    rows = list(json.loads((tmp_path / "out.json").read_text())["rows"].values())
    assert [row.get("ms") for row in rows] == [0, None, None, None, 4]
    errors = [row.get("error") for row in rows]
    assert errors[1] == "ValueError: one is too few"
    assert errors[2].startswith("its process ended with 3")
    assert errors[3] == "nothing came of it in 3 s"


def test_times_are_of_calls_that_take_inputs_in_turn(load):
    given = []
    row = load("accelerator_timing").timed(lambda x: given.append(x), [[1], [2]], lambda _: None)
    assert given[:3] == [1, 2, 1]
    assert set(given) == {1, 2}
    assert 0 <= row["ms_quartiles"][0] <= row["ms"] <= row["ms_quartiles"][1]
    assert np.isfinite(row["ms"])
