"""The learning rate: what it reaches, what continuing does to it, and what is said of it."""

import dataclasses

import hypothesis.strategies as st
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings

from configs import PRESETS
from flaxattn.training import schedule
from flaxattn.training.counts import scaled
from flaxattn.training.schedule import (
    describe_rate,
    learning_rate,
    peak,
    same_until,
    shortfall,
    stages,
)
from flaxattn.translation.config import TranslationTraining

COOLING = TranslationTraining(steps=100, warmup_steps=10, cooldown_steps=50, learning_rate=1.0)
CONTINUED = dataclasses.replace(
    COOLING, steps=200, cooldown_steps=40, ended_at=(100,), cooled_for=(50,)
)

counts = st.integers(0, 400)
ends = st.lists(st.integers(1, 300), min_size=1, max_size=3, unique=True).map(sorted)


@st.composite
def configs(draw):
    *ended, steps = draw(ends)
    return TranslationTraining(
        steps=steps,
        warmup_steps=draw(counts),
        cooldown_steps=draw(counts),
        learning_rate=draw(st.sampled_from([2e-3, 1.0])),
        ended_at=tuple(ended),
        cooled_for=tuple(draw(counts) for _ in ended),
    )


def rates(config):
    """The rate of every step, from 1 on."""
    return np.asarray(learning_rate(config)(jnp.arange(300)))[: config.steps]


@settings(max_examples=20, deadline=None)
@given(config=configs())
def test_the_peak_is_the_highest_rate_and_numpy_agrees_with_jax(config):
    expected = rates(config)
    steps = np.arange(1, config.steps + 1)
    np.testing.assert_allclose(schedule._rates(config, steps), expected, rtol=1e-6)
    begin = stages(config)[-1].begin
    rate, step = peak(config)
    assert rate == pytest.approx(expected[begin:].max(), rel=1e-5)
    assert rate == pytest.approx(expected[step - 1], rel=1e-5)


def test_the_peak_of_millions_of_steps_is_found_at_once():
    config = TranslationTraining(steps=9_999_999, warmup_steps=7_654_321, cooldown_steps=9_000_000)
    steps = np.arange(4_000_000, 6_000_000)
    assert peak(config)[0] == pytest.approx(schedule._rates(config, steps).max(), rel=1e-6)


@pytest.mark.thorough(quick=3)
@pytest.mark.parametrize("name", PRESETS)
@settings(max_examples=100, deadline=None)
@given(steps=st.integers(1, 60_000))
def test_every_preset_reaches_its_rate_however_few_its_steps(name, steps):
    preset = PRESETS[name].training
    training, _ = scaled(dataclasses.replace(preset, steps=steps), preset, {"steps"})
    assert peak(training)[0] == pytest.approx(preset.learning_rate)
    assert shortfall(training) is None


def test_steps_made_keep_their_rates_and_those_after_come_back_and_cool_down_again():
    before, after = rates(COOLING), rates(CONTINUED)
    np.testing.assert_array_equal(after[:100], before)
    plain = rates(dataclasses.replace(COOLING, steps=200, cooldown_steps=0))
    np.testing.assert_allclose(after[100:110], plain[100:110] * np.arange(1, 11) / 10, rtol=1e-5)
    np.testing.assert_allclose(after[110:161], plain[110:161], rtol=1e-6)
    falling = plain[160:] * np.arange(40, 0, -1) / 40
    np.testing.assert_allclose(after[160:], falling, rtol=1e-5)
    assert peak(CONTINUED) == (pytest.approx(plain[109]), 110)


def test_few_steps_more_have_a_short_way_back():
    config = dataclasses.replace(CONTINUED, steps=108, cooldown_steps=4)
    assert [stage.rewarm for stage in stages(config)] == [0, 2]
    assert peak(config)[0] > 0.29  # of 0.3


def test_a_run_that_never_cooled_down_is_as_if_it_had_been_planned_so():
    config = dataclasses.replace(CONTINUED, cooled_for=(0,))
    plain = dataclasses.replace(COOLING, steps=200, cooldown_steps=40)
    assert stages(config) == stages(plain)
    assert describe_rate(config) == describe_rate(plain)


@pytest.mark.parametrize(
    "changes, same",
    [({"steps": 120}, 51), ({"cooldown_steps": 30}, 51), ({"cooldown_steps": 60}, 41)],
)
def test_schedules_are_the_same_until_one_cools_down(changes, same):
    other = dataclasses.replace(COOLING, **changes)
    before, after = rates(COOLING), rates(other)
    expected = [step for step in range(101) if (before[:step] == after[:step]).all()]
    found = [step for step in range(101) if same_until(step, COOLING, other)]
    assert found == expected and max(found) == same


def test_what_is_said_of_it():
    assert describe_rate(COOLING) == (
        "Learning rate: rises to 1 at step 10, falls with the inverse square root of the step, "
        "and in the last 50 steps linearly to 0."
    )
    assert describe_rate(CONTINUED) == (
        "Learning rate: after step 100, where it was 0, rises to 0.302 at step 110, falls with the "
        "inverse square root of the step, and in the last 40 steps linearly to 0."
    )
    muon = dataclasses.replace(CONTINUED, optimizer="muon", muon_rate=0.5)
    assert "rises to 0.302 (0.151 for matrices) at step 110" in describe_rate(muon)


def test_a_warning_says_what_a_rate_that_is_never_reached_becomes():
    config = TranslationTraining(steps=500, warmup_steps=800, cooldown_steps=1500)
    warning = shortfall(config)
    assert "no more than 0.000105, not 0.002" in warning
    for word in ("500", "800", "1500", "--warmup-steps", "--cooldown-steps"):
        assert word in warning
    assert shortfall(COOLING) is None and shortfall(CONTINUED) is None
