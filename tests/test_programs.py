"""Programs kept from one process to the next: the second imports little and compiles nothing."""

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxattn.__main__ import main
from flaxattn.search import Hypotheses
from flaxattn.text import streaming
from flaxattn.training import programs
from flaxattn.training.programs import Programs, keep_programs, mending, of_user
from flaxattn.translation.decoding import translator

ROOT = Path(__file__).parents[1]
OPTION = "jax_compilation_cache_dir"
UNUSED = {"optax", "orbax", "tensorboardX", "sacrebleu", "matplotlib", "hypothesis"}
WATCHED = """
import collections, json, sys
import jax
from flaxattn.__main__ import main

seen, traced = collections.Counter(), []
jax.monitoring.register_event_listener(lambda event, **_: seen.update([event.split("/")[-1]]))
jax.monitoring.register_event_duration_secs_listener(
    lambda event, _, **told: traced.append(told.get("fun_name"))
)
code = main(sys.argv[1:])
modules = {name.split(".")[0] for name in sys.modules}
print(json.dumps([code, seen, traced, sorted(modules)]))
"""


def watched(folder, *words):
    """What a process of the command printed, and how it began."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")}
    done = subprocess.run(
        [sys.executable, "-c", WATCHED, *words],
        env=env | {"XDG_CACHE_HOME": str(folder), "JAX_PLATFORMS": "cpu"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    *said, told = done.stdout.splitlines()
    code, seen, traced, modules = json.loads(told)
    assert code == 0, done.stderr
    assert "Warning" not in done.stderr
    return said, seen, traced, set(modules)


def test_the_second_process_traces_and_compiles_nothing_and_imports_little(finished, tmp_path):
    words = ["translate", str(finished.folder), "The old man sees a dog."]
    said, seen, traced, modules = watched(tmp_path, *words)
    assert seen["cache_misses"] > 0 and {"decode", "<lambda>"} & {*traced}
    assert not modules & UNUSED
    again, seen, traced, modules = watched(tmp_path, *words)
    assert again == said and len(said) == 1
    assert seen.get("cache_misses", 0) == 0 and seen["cache_hits"] > 0
    assert not {"decode", "<lambda>"} & {*traced}
    assert not modules & UNUSED


class Two(NamedTuple):
    total: jax.Array
    scaled: jax.Array


TRACES = []


def two(name, tree, factor, *, power):
    TRACES.append(name)
    return Two(sum(x.sum() for x in tree.values()) ** power, tree["a"] * factor)


two = jax.jit(two, static_argnames=("name", "power"))
TREE = {"a": np.arange(3, dtype=np.float32), "b": np.ones((2, 2), np.float32)}


def called(kept, name="x", power=2, factor=3):
    two.clear_cache()  # as in another process
    return kept.call(two, name, TREE, np.float32(factor), kind=Two, power=power)


def test_a_kept_program_is_the_function_and_is_traced_once(tmp_path):
    for _ in range(2):
        TRACES.clear()
        found = called(Programs(tmp_path))
        assert isinstance(found, Two) and found.total == 49.0
        np.testing.assert_array_equal(found.scaled, [0.0, 3.0, 6.0])
    assert not TRACES
    assert called(Programs(tmp_path), power=3).total == 343.0
    np.testing.assert_array_equal(called(Programs(tmp_path), factor=2).scaled, [0, 2, 4])
    assert called(Programs(tmp_path), name="y").total == 49.0
    assert len([*tmp_path.iterdir()]) == 3  # another value of an array is no other program
    assert called(Programs()).total == 49.0


def test_what_jax_is_set_to_makes_another_program(tmp_path):
    called(Programs(tmp_path))
    with jax.default_matmul_precision("highest"):
        called(Programs(tmp_path))
    assert len([*tmp_path.iterdir()]) == 2


@pytest.mark.parametrize(
    "harm", [lambda x: x[:-1], lambda x: x[:40] + b"!" + x[41:], lambda x: b""]
)
def test_a_damaged_program_is_made_anew(tmp_path, harm):
    called(Programs(tmp_path))
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    path.write_bytes(harm(whole))
    assert called(Programs(tmp_path)).total == 49.0
    assert len(path.read_bytes()) == len(whole)


def test_what_cannot_be_exported_is_called(tmp_path):
    def parts(model, x):
        return Two(jax.pure_callback(lambda x: x + 1, x, x), x)

    found = Programs(tmp_path).call(jax.jit(parts, static_argnums=0), "m", jnp.ones(2), kind=Two)
    np.testing.assert_array_equal(found.total, [2.0, 2.0])
    assert not [*tmp_path.iterdir()]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache folder of a user who has chosen nothing."""
    names = [OPTION, "jax_enable_compilation_cache", "jax_persistent_cache_min_compile_time_secs"]
    names += ["jax_persistent_cache_min_entry_size_bytes"]
    former = {name: getattr(jax.config, name) for name in names}
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    jax.config.update(OPTION, None)
    yield tmp_path / "cache"
    for name, value in former.items():
        jax.config.update(name, value)


def is_kept(kept):
    return kept._folder is not None


def test_the_cache_folder_is_the_users_and_private(cache):
    assert is_kept(keep_programs())
    assert of_user().is_relative_to(cache) and of_user().stat().st_mode & 0o77 == 0
    assert getattr(jax.config, OPTION) == str(of_user())


def test_a_folder_that_others_can_write_to_is_not_used(cache):
    of_user().mkdir(parents=True)
    of_user().chmod(0o777)
    assert not is_kept(keep_programs())
    assert getattr(jax.config, OPTION) is None


def test_where_no_folder_can_be_made_nothing_is_kept(cache, monkeypatch):
    cache.write_text("a file")
    assert not is_kept(keep_programs())
    monkeypatch.setenv("XDG_CACHE_HOME", "not/absolute")
    assert of_user() is None and not is_kept(keep_programs())


def test_what_the_user_has_chosen_stays(cache):
    jax.config.update(OPTION, str(cache / "chosen"))
    assert is_kept(keep_programs())
    assert getattr(jax.config, OPTION) == str(cache / "chosen")
    jax.config.update("jax_enable_compilation_cache", False)
    assert not is_kept(keep_programs())


def test_what_was_longest_unused_goes_first(cache, monkeypatch):
    keep_programs()
    for age, name in enumerate("abc"):
        (of_user() / name).write_bytes(bytes(10))
        os.utime(of_user() / name, (1000 - age, 1000 - age))
    monkeypatch.setattr(programs, "MOST_BYTES", 20)
    jax.config.update(OPTION, None)
    keep_programs()
    assert {path.name for path in of_user().iterdir()} == {"a", "b"}


def test_a_cache_that_jax_cannot_read_is_deleted_and_not_told(cache):
    with pytest.warns(UserWarning) as told, mending():
        keep_programs()
        warnings.warn("Error reading persistent compilation cache entry for 'jit_x'", stacklevel=1)
        warnings.warn("something else", stacklevel=1)
    assert [str(w.message) for w in told] == ["something else"]
    assert not of_user().exists()


def test_a_file_of_any_length_is_translated_by_few_programs(finished, tmp_path, monkeypatch):
    seen = set()

    def decode(model, params, source, *arrays, n_best, **options):
        seen.add(source.shape)
        none = np.zeros((len(source), n_best))
        return Hypotheses(np.zeros((*none.shape, 1), np.int32), none, none, none.astype(np.int32))

    monkeypatch.setattr(translator, "decode", decode)
    monkeypatch.setattr(streaming, "PIECE", 70)
    lines = [word for i in range(1, 60) for word in ["a"] * i + ["b " * 12] * (61 - i) + [""]]
    (tmp_path / "in.en").write_text("".join(line + "\n" for line in lines))
    words = ["translate", finished.folder, "--input", tmp_path / "in.en", "--batch-size", 32]
    assert main([*map(str, words), "--output", str(tmp_path / "out.de")]) == 0
    assert len((tmp_path / "out.de").read_text().split("\n")) == len(lines) + 1
    assert {rows for rows, _ in seen} == {8, 32}
