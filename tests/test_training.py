"""The training loop, with a model that counts its steps: what is kept, when it stops, goes on."""

import concurrent.futures
import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flaxattn.training.interruption as interruption
import flaxattn.training.loop as training
from flaxattn.training.config import TrainingConfig
from flaxattn.training.home import Home
from flaxattn.training.interruption import InterruptedRun, Interruption
from flaxattn.training.metrics import DivergedError
from flaxattn.training.screen import Screen
from flaxattn.training.storage.checkpoints import Models
from flaxattn.training.task import Sums
from flaxattn.training.validation import stale

EMA = 100  # what this model's moving average is ahead of it


@dataclasses.dataclass(frozen=True)
class Config:
    training: TrainingConfig
    output: str = ""


class Counting:
    """A task whose steps `count_step` makes; `measure` gives the metric of its parameters."""

    unit, shown, axes = "apples", (), ()

    def __init__(self, config, measure):
        self.config, self._measure = config, measure
        self.params = {"w": np.zeros(3, np.float32)}

    def batch(self, step):
        return np.zeros((4, 2), np.int32)

    def valid_batches(self):
        return [self.batch(0)]

    def loss(self, params, batch, key):
        return Sums(params["w"][0], (), jnp.ones(()))

    def means(self, sums):
        return {"loss": float(sums.loss) / max(float(sums.units), 1.0)}

    def validate(self, params, means):
        value = self._measure(params)
        return means | {"nll": -value}, value

    def samples(self, params):
        return [{"seen": str(params["w"][0])}]


def count_step(state, batch):
    """In place of an update: the parameters are the number of steps."""
    params = jax.tree.map(lambda x: x + 1, state.params)
    ema = None if state.ema is None else jax.tree.map(lambda x: x + EMA, params)
    step = state.step.astype(jnp.float32)
    sums = Sums(step / 3 + 1, (), step + 1, jnp.zeros(()))
    return state._replace(step=state.step + 1, params=params, ema=ema), sums


class InterruptionError(Exception):
    pass


@pytest.fixture
def train(tmp_path, monkeypatch):
    """Trains, validating after each step with the values given; gives outcome and steps measured.

    Each call goes on with the same folder.
    """
    monkeypatch.setattr(training, "make_train_step", lambda *_, **__: count_step)

    def train(values, *, interrupt_at=None, **settings):
        measured = []

        def measure(params):
            measured.append(int(params["w"][0]))
            if measured[-1] == interrupt_at:
                raise InterruptionError
            return -values[measured[-1] % EMA - 1]

        settings = {"valid_every": 1, "steps": len(values)} | settings
        task = Counting(Config(TrainingConfig(**settings)), measure)
        with train.home(train.folder) as home:
            return training.train(task, home, Screen()), measured

    train.folder, train.home = tmp_path, Home
    return train


def kept(folder):
    return sorted(int(p.name) for p in (folder / "models").iterdir() if p.name.isdigit())


NLL = [5.0, 3.0, 4.0, 2.0, 6.0, 7.0]


# ---- The models kept -------------------------------------------------------------------------


@pytest.mark.thorough(quick=1)
@pytest.mark.parametrize(
    "select, average, steps",
    [("best", 1, [4]), ("best", 3, [2, 3, 4]), ("last", 1, [6]), ("last", 2, [5, 6])],
)
def test_the_best_or_last_models_are_kept_and_averaged(train, select, average, steps):
    trained, measured = train(NLL, select=select, average=average)
    assert measured == [1, 2, 3, 4, 5, 6]
    assert kept(train.folder) == steps
    np.testing.assert_allclose(trained.params["w"], np.mean(steps), rtol=1e-6)
    assert trained.params["w"].shape == (3,)
    assert trained.steps == 6


def test_fewer_validations_than_models_are_all_averaged(train):
    trained, _ = train(NLL[:2], average=5)
    assert trained.params["w"].tolist() == [1.5, 1.5, 1.5]


def test_the_moving_average_is_validated_kept_and_used(train):
    trained, measured = train([3.0, 2.0], ema_decay=0.5, average=2)
    assert measured == [EMA + 1, EMA + 2]
    assert trained.params["w"].tolist() == [EMA + 1.5] * 3


def test_no_model_kept_is_an_error_that_names_the_folder(tmp_path):
    with (
        Models(tmp_path / "models", keep=1, select="best") as models,
        pytest.raises(ValueError, match=r"models: no whole model.*validation"),
    ):
        models.average({"w": jnp.zeros(3)})


# ---- Stopping early --------------------------------------------------------------------------

RISING = [5.0, 3.0, 4.0, 3.5, 6.0, 7.0]


@pytest.mark.thorough(quick=2)
@pytest.mark.parametrize("patience, steps", [(1, 3), (2, 4), (3, 5), (4, 6), (0, 6)])
def test_training_stops_after_so_many_validations_without_a_better_one(train, patience, steps):
    trained, measured = train(RISING, patience=patience)
    assert trained.steps == measured[-1] == steps
    assert trained.params["w"].tolist() == [2, 2, 2]


@pytest.mark.thorough
def test_a_stopped_run_given_again_stays_stopped_and_more_patience_takes_it_on(train, capsys):
    train(RISING, patience=2)
    again, measured = train(RISING, patience=2)
    assert (again.steps, measured) == (4, [])
    assert again.params["w"].tolist() == [2, 2, 2]
    assert capsys.readouterr().out.count("Stopped early: no better model in 2 validations") == 2
    longer, measured = train(RISING, patience=3)
    assert (longer.steps, measured) == (5, [5])


@pytest.mark.thorough(quick=1)
@pytest.mark.parametrize("step", [2, 3, 4])
def test_an_interruption_changes_neither_the_stop_nor_the_models(train, step):
    with pytest.raises(InterruptionError):
        train(RISING, patience=2, average=2, interrupt_at=step)
    trained, measured = train(RISING, patience=2, average=2)
    assert measured == list(range(step, 5))
    assert trained.steps == 4 and kept(train.folder) == [2, 4]
    assert trained.params["w"].tolist() == [3, 3, 3]


def test_no_number_is_worse_than_any(train):
    trained, measured = train([math.nan, 3.0, 4.0, math.nan, 1.0], patience=2)
    assert trained.steps == measured[-1] == 4
    assert trained.params["w"].tolist() == [2, 2, 2]


@pytest.mark.parametrize(
    "metrics, count", [([], 0), ([1.0], 0), ([1.0, 2.0], 0), ([2.0, 2.0], 1), ([3.0, 1.0, 2.0], 2)]
)
def test_validations_since_the_best(metrics, count):
    assert stale(metrics) == count


def test_every_validation_has_its_row(train):
    train(RISING, patience=2)
    lines = (train.folder / "log.jsonl").read_text().splitlines()
    rows = [row for row in map(json.loads, lines) if row["kind"] == "valid"]
    assert [(row["step"], row["nll"]) for row in rows] == list(enumerate(RISING[:4], 1))


# ---- Being asked to stop ---------------------------------------------------------------------


@pytest.fixture
def stop_in_step(monkeypatch):
    """Sends this process a signal while a step is computed."""

    def stop(step, number=signal.SIGTERM):
        def count(state, batch):
            if int(state.step) + 1 == step:
                signal.raise_signal(number)
            return count_step(state, batch)

        monkeypatch.setattr(training, "make_train_step", lambda *_, **__: count)

    return stop


SETTINGS = {"valid_every": 5, "log_every": 3, "ema_decay": 0.5, "average": 2}
LONG = [7.0, 6.0, 5.0, 4.0, 3.0, 2.5, 2.0, 1.5, 1.4, 1.3, 1.2, 1.1]


@pytest.mark.thorough(quick=1)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("step", [1, 4, 5, 9, 12])
def test_a_run_asked_to_stop_keeps_its_step_and_goes_on_to_the_same_log(
    train, stop_in_step, tmp_path_factory, monkeypatch, number, step
):
    whole, interrupted = tmp_path_factory.mktemp("whole"), tmp_path_factory.mktemp("interrupted")
    monkeypatch.setattr(interruption, "SECOND_WISH", 0.01)
    train.folder = whole
    expected, _ = train(LONG, **SETTINGS)
    train.folder = interrupted
    handlers = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    stop_in_step(step, number)
    with pytest.raises(InterruptedRun, match=f"^{step}$"):
        train(LONG, **SETTINGS)
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == handlers
    assert str(step) in [path.name for path in (interrupted / "checkpoints").iterdir()]
    stop_in_step(None)
    trained, measured = train(LONG, **SETTINGS)
    assert [s % EMA for s in measured] == [s for s in (5, 10, 12) if s > step]
    assert trained.params["w"].tolist() == expected.params["w"].tolist()
    assert trained.units == expected.units == sum(range(1, 13))
    assert (interrupted / "log.jsonl").read_bytes() == (whole / "log.jsonl").read_bytes()


ASKED = """
import os, signal, sys, time
from flaxattn.training.interruption import InterruptedRun, Interruption

asked = []
try:
    with Interruption() as interruption:
        print("ready", flush=True)
        end = time.monotonic() + 60
        while not interruption.requested and time.monotonic() < end:
            time.sleep(0.001)
        if "busy" in sys.argv:
            import ctypes
            ctypes.CDLL(None).usleep(60_000_000)  # C code, in which no handler of Python runs
        raise InterruptedRun(1)
except InterruptedRun:
    sys.exit(75)
"""

# What forwards the signals that it gets to the process that it has started, as `uv run` does.
FORWARDING = """
import signal, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", *sys.argv[1:]])
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, lambda number, _: child.send_signal(number))
sys.exit(child.wait())
"""


def asked(code, *arguments):
    """A process in a group of its own, which is ready to be asked to stop."""
    command = [sys.executable, "-c", code, *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True)
    assert process.stdout.readline() == b"ready\n"
    return process


@pytest.mark.thorough
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_delivered_twice_is_one_request(number):
    with asked(ASKED) as process:
        process.send_signal(number)
        process.send_signal(number)
        assert process.wait(30) == 75


@pytest.mark.thorough(quick=1)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_group_of_a_parent_that_forwards_it_is_one_request(number):
    with asked(FORWARDING, ASKED) as process:
        os.killpg(process.pid, number)
        assert process.wait(30) == 75


@pytest.mark.thorough
def test_a_signal_that_comes_while_all_is_put_away_is_still_the_same_request():
    with asked(ASKED) as process:
        for _ in range(8):
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
            time.sleep(0.1)
        assert process.wait(30) == 75


@pytest.mark.thorough
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_request_well_after_the_first_is_obeyed_at_once_whatever_the_process_does(number):
    with asked(ASKED, "busy") as process:
        process.send_signal(signal.SIGTERM)
        time.sleep(interruption.SECOND_WISH + 0.2)
        began = time.monotonic()
        process.send_signal(number)
        assert process.wait(30) == 128 + number
        assert time.monotonic() - began < 2


@pytest.mark.thorough
def test_after_the_block_signals_do_what_they_did_before():
    code = ASKED.replace("sys.exit(75)", "signal.raise_signal(signal.SIGTERM)")
    with asked(code) as process:
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == -signal.SIGTERM


def test_outside_the_main_thread_there_are_no_requests():
    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        assert thread.submit(lambda: Interruption().__enter__().requested).result() is False


# ---- Batches without a finite loss -----------------------------------------------------------


@pytest.fixture
def skip_steps(monkeypatch):
    def skip(steps):
        def count(state, batch):
            if int(state.step) + 1 not in steps:
                return count_step(state, batch)
            return state._replace(step=state.step + 1), Sums(
                jnp.zeros(()), (), jnp.zeros(()), jnp.ones(())
            )

        monkeypatch.setattr(training, "make_train_step", lambda *_, **__: count)

    return skip


def train_rows(folder):
    lines = (folder / "log.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["kind"] == "train"]


def test_skipped_batches_are_counted(train, skip_steps, capsys):
    skip_steps({2, 3, 4, 5, 7, 8, 9})
    trained, _ = train(LONG, valid_every=6, log_every=4)
    rows = train_rows(train.folder)
    assert [(row["step"], row["skipped"]) for row in rows] == [(4, 3), (6, 1), (8, 2), (12, 1)]
    assert all(math.isfinite(row["loss"]) for row in rows)
    assert trained.params["w"].tolist() == [5, 5, 5]
    assert "3 batches skipped" in capsys.readouterr().out


@pytest.mark.thorough(quick=2)
@pytest.mark.parametrize("first", [1, 2, 6])
def test_too_many_skipped_in_a_row_end_training_with_the_last_good_checkpoint(
    train, skip_steps, first
):
    skip_steps(set(range(first, first + 5)))
    with pytest.raises(DivergedError, match=rf"steps {first} to {first + 4} .*--learning-rate"):
        train(LONG, valid_every=3, log_every=1, keep_checkpoints=9)
    good = [path.name for path in (train.folder / "checkpoints").glob("*")]
    assert sorted(map(int, good)) == [step for step in (3, 6, 9) if step < first + 4]
