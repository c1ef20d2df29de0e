"""A run that is killed goes on to the same bytes: the short form of `killing.py`."""

import json

import killing
import pytest


@pytest.mark.thorough
def test_killed_runs_end_in_the_same_bytes(tmp_path):
    assert killing.kill_runs(tmp_path, kills=4, steps=400, seed=1) == []
    log = (tmp_path / "whole" / "log.jsonl").read_text().splitlines()
    assert json.loads(log[-1])["step"] < 400  # it stopped early
