"""Every number of every configuration has a range, and nothing outside of one is taken."""

import dataclasses
import json
import math
import types
import typing
from typing import Annotated, Literal

import hypothesis.strategies as st
import jax.numpy as jnp
import pytest
from hypothesis import given, settings

import flaxattn.tasks.config as tasks
from configs import PRESETS
from flaxattn import EncoderDecoderConfig, TransformerConfig
from flaxattn.__main__ import main as commands
from flaxattn.ranges import FieldError, Range, check_fields, ranges
from flaxattn.training.asking import HowToRun
from flaxattn.training.config import from_json, to_json
from flaxattn.training.storage.weights import read_weights, write_weights
from flaxattn.translation.cli import main
from flaxattn.translation.commands.align import Align
from flaxattn.translation.commands.compare import Compare
from flaxattn.translation.commands.export import Export
from flaxattn.translation.commands.score import Score
from flaxattn.translation.commands.translate import Translate
from flaxattn.translation.config import DataConfig, DecodingConfig, RunConfig, TranslationTraining

PARTS = {
    "model": EncoderDecoderConfig,
    "data": DataConfig,
    "training": TranslationTraining,
    "decoding": DecodingConfig,
}
TASKS = [getattr(tasks, name) for name in tasks.__all__]
CONFIGS = [
    *PARTS.values(),
    RunConfig,
    HowToRun,
    Translate,
    Score,
    Compare,
    Align,
    Export,
    TransformerConfig,
    *TASKS,
]
NUMBERS = [(part, name) for part, kind in PARTS.items() for name in ranges(kind)]
HIDDEN = {"ended_at", "cooled_for"}  # which a run keeps, and no option gives


def leaves(hint):
    """The types that a hint is made of."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType, tuple, Annotated):
        parts = typing.get_args(hint)
        return set().union(*(leaves(part) for part in parts[: 1 if hint is Annotated else None]))
    return {hint} if isinstance(hint, type) else set()


@pytest.mark.parametrize("config", CONFIGS, ids=lambda kind: kind.__name__)
def test_every_number_has_a_range_that_is_finite_and_holds_its_default(config):
    hints = typing.get_type_hints(config)
    numeric = {name for name, hint in hints.items() if leaves(hint) & {int, float}}
    assert numeric == set(ranges(config)), "declare a Range beside each of these fields"
    for name, within in ranges(config).items():
        assert math.isfinite(within.least) and math.isfinite(within.most)
        default = next(f.default for f in dataclasses.fields(config) if f.name == name)
        if default not in (None, (), dataclasses.MISSING):
            assert default in within, name


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_passes_its_own_checks_again(name):
    assert from_json(RunConfig, to_json(PRESETS[name]), "a preset") == PRESETS[name]


def outside(within):
    """Numbers that a range does not hold: those next to its ends, huge, tiny and no numbers."""
    beyond = st.floats(min_value=within.most, exclude_min=True)
    below = st.floats(max_value=within.least, exclude_max=True)
    ends = [within.least] * within.above + [within.most] * within.below
    whole = [math.floor(within.least) - 1, math.ceil(within.most) + 1, 10**30, -(10**400), 10**400]
    odd = [math.nan, math.inf, -math.inf, *ends, *whole]
    return st.sampled_from(odd) | st.one_of(below, beyond)


def named(config, name, value):
    """The JSON-able data of the preset `tiny` with one number changed."""
    data = to_json(PRESETS["tiny"])
    return data | {config: data[config] | {name: [value] if name in HIDDEN else value}}


@pytest.mark.thorough(quick=35)
@pytest.mark.parametrize("part, name", NUMBERS)
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_a_number_outside_its_range_is_refused_in_python_and_in_a_file(part, name, data):
    within = ranges(PARTS[part])[name]
    value = data.draw(outside(within))
    given = {name: (value,) if name in HIDDEN else value}
    with pytest.raises(FieldError, match=rf"^{name} is ") as error:
        dataclasses.replace(getattr(PRESETS["tiny"], part), **given)
    assert str(within) in str(error.value) and len(str(error.value)) < 200
    text = json.dumps(named(part, name, value))
    with pytest.raises(ValueError, match=rf"^config.json, {part}: {name} is "):
        from_json(RunConfig, json.loads(text), "config.json")


@pytest.mark.parametrize("value", [True, "1", [], {}], ids=repr)
@pytest.mark.parametrize("part, name", NUMBERS)
def test_what_is_no_number_is_refused_in_a_file(part, name, value):
    with pytest.raises(ValueError, match=rf"^config.json, {part}: {name} is "):
        from_json(RunConfig, named(part, name, value), "config.json")


def words_outside(within):
    """As one would type them."""
    least, most = math.floor(within.least) - 1, math.ceil(within.most) + 1
    ends = [within.least] * within.above + [within.most] * within.below
    return [str(number) for number in (least, most, *ends, 10**30)]


OPTIONS = [(part, name) for part, name in NUMBERS if name not in HIDDEN]


def refusal(capsys, command, *arguments):
    try:
        code = command(*arguments)
    except SystemExit as stop:
        code = stop.code
    error = " ".join(capsys.readouterr().err.split())
    assert code == 2 and "Traceback" not in error and len(error) < 1000
    return error


@pytest.mark.thorough(quick=4)
@pytest.mark.parametrize("part, name", OPTIONS)
def test_a_number_outside_its_range_is_refused_on_the_command_line(capsys, part, name):
    option, within = f"--{name.replace('_', '-')}", ranges(PARTS[part])[name]
    kind = typing.get_type_hints(PARTS[part])[name]
    odd = ["nan", "inf", "-inf", "1e999"]
    for word in words_outside(within) + odd:
        # Joined, since by itself argparse takes -inf for an option.
        error = refusal(capsys, main, PRESETS, ["tiny", f"{option}={word}"])
        assert option in error, word
        if word not in odd or float in leaves(kind):
            assert f"error: {option} is " in error and f"expected {within}." in error, word


@pytest.mark.parametrize("name", [*ranges(DecodingConfig), *ranges(Translate)])
def test_a_number_outside_its_range_is_refused_by_translate(capsys, name):
    kind = DecodingConfig if name in ranges(DecodingConfig) else Translate
    option, within = f"--{name.replace('_', '-')}", ranges(kind)[name]
    for word in words_outside(within):
        error = refusal(capsys, commands, ["translate", "tests/kept/1", "a dog", option, word])
        assert f"error: {option} is " in error and f"expected {within}." in error


def test_help_shows_every_range(capsys):
    with pytest.raises(SystemExit):
        main(PRESETS, ["--help"])
    options = capsys.readouterr().out.partition("config options")[2]
    shown = options.translate({ord(x): None for x in "│╭╮╰╯─\n "})
    for part, name in OPTIONS:
        within, default = ranges(PARTS[part])[name], getattr(getattr(PRESETS["tiny"], part), name)
        hint = f"({within}; default: {default})".replace(" ", "")
        assert hint in shown.partition(f"--{name.replace('_', '-')}")[2][:500], name
    assert not any(name.replace("_", "-") in shown for name in HIDDEN)


# ---- The checker ------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Odd:
    whole: Annotated[int, Range(1, 4)] = 1
    maybe: Annotated[float, Range(0, 1, above=True)] | None = None
    many: tuple[Annotated[int, Range(1, 4)], ...] = ()
    free: str = ""
    choice: Literal["a", "b"] = "a"

    def __post_init__(self):
        check_fields(self)


@pytest.mark.parametrize(
    "given, said",
    [
        ({"whole": 2.0}, "whole is 2.0; expected a whole number, 1 to 4."),
        ({"whole": None}, "whole is None; expected 1 to 4."),
        ({"whole": True}, "whole is True; expected 1 to 4."),
        ({"whole": "2"}, "whole is '2'; expected 1 to 4."),
        ({"maybe": 0.0}, "maybe is 0.0; expected more than 0, at most 1."),
        ({"many": (1, 5)}, "many is 5; expected 1 to 4."),
        ({"choice": "c"}, "choice is 'c'; expected one of a, b."),
        ({"whole": 10**5000}, "whole is too long to be shown; expected 1 to 4."),
    ],
)
def test_the_checker_says_what_is_and_what_was_expected(given, said):
    with pytest.raises(FieldError) as error:
        Odd(**given)
    assert str(error.value) == said


def test_ends_of_a_range_that_it_holds_are_taken():
    for fields in ({"whole": 1}, {"whole": 4}, {"maybe": 1}, {"maybe": 5e-324}, {"many": (1, 4)}):
        Odd(**fields)


@pytest.mark.parametrize(
    "given, option",
    [
        (["--num-kv-heads", "3"], "--num-heads"),
        (["--num-heads", "3"], "--features"),
        (["--num-heads", "3", "--features", "129"], "--features"),
        (["--positions", "rotary", "--features", "132"], "--features"),
        (["--microbatches", "3"], "--batch-size"),
        (["--min-ratio", "2"], "--min-ratio"),
        (["--r-drop", "1"], "--r-drop"),
        (["--bleu-tokenizer", "klingon"], "--bleu-tokenizer"),
        (["--train", "a", "b", "c"], "--train"),
    ],
)
def test_numbers_that_do_not_fit_together_are_refused_by_option(capsys, given, option):
    assert f"error: {option} " in refusal(capsys, main, PRESETS, ["tiny", *given])


# ---- Numbers that are not chosen but read -----------------------------------------------------


@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_that_hold_no_numbers_are_refused_by_name(tmp_path, odd, dtype):
    params = {"encoder": {"norm": jnp.ones(5, dtype)}, "wi": jnp.ones((3, 70_000), dtype)}
    write_weights(tmp_path / "model.safetensors", params)
    read_weights(tmp_path / "model.safetensors", params)
    params["wi"] = params["wi"].at[2, 69_999].set(odd)
    write_weights(tmp_path / "model.safetensors", params)
    with pytest.raises(ValueError, match=r"model\.safetensors: wi holds NaN or infinity"):
        read_weights(tmp_path / "model.safetensors", params)
