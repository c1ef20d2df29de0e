"""Every file of a run and of an exported model: damaged or another's, it is told or means nothing.

One bit of each file is flipped, here and there; it is cut, emptied, and swapped with the same file
of another run of the same architecture and vocabulary. What reads the folder then says so, or gives
what it gave before.
"""

import contextlib
import functools
import io
import random
import re
import shutil

import jax
import numpy as np
import pytest
from run_cases import decode_to, tiny

from flaxattn.__main__ import main
from flaxattn.training.optimizer import make_optimizer
from flaxattn.training.record import run_name
from flaxattn.training.run_folder import check_folder
from flaxattn.training.storage.checkpoints import Checkpoints
from flaxattn.training.train_step import init_state
from flaxattn.translation.commands.translate import kept_decoding
from flaxattn.translation.preparation import init_params
from flaxattn.translation.rules import RULES
from flaxattn.translation.trained import loading
from flaxattn.translation.trained.record import read_run

SMALL = {"--steps": 2, "--valid-every": 1, "--metric": "nll", "--samples": 0, "--average": 2}
SMALL |= {"--keep-checkpoints": 1, "--r-drop": 0, "--subword-dropout": 0, "--dropout-rate": 0.0}
READ_BY_NOBODY = {"lock", "speed.jsonl", "log.jsonl", "tensorboard", "README.md"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two finished runs that differ in data and seed alone."""
    place = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as monkeypatch, contextlib.redirect_stdout(io.StringIO()):
        decode_to(monkeypatch, [5, 6, 2])
        for seed, pairs in ((0, 300), (1, 290)):
            options = SMALL | {"--seed": seed, "--builtin-pairs": pairs}
            assert tiny(place / str(seed), options) == 0
    return place / "0", place / "1"


@pytest.fixture(autouse=True)
def shapes_at_once(monkeypatch):
    monkeypatch.setattr(loading, "_shapes", functools.lru_cache(loading._shapes))


def bits(tree):
    return [np.asarray(x).tobytes() for x in jax.tree.leaves(tree)]


def of_model(read, folder):
    model, params, tokenizer, decoding = read(folder)
    return bits(params), tokenizer.model, model.config, decoding


@functools.cache
def like(config):
    with jax.numpy_dtype_promotion("standard"):
        model = loading.EncoderDecoder(config.model, pad_id=0)
        params = init_params(model, 0)
        return init_state(params, make_optimizer(config.training, params), config.training)


def of_resuming(config, folder):
    check_folder(config, RULES)
    with Checkpoints(folder / "checkpoints", keep=1, run=run_name(folder)) as checkpoints:
        state, progress = checkpoints.restore_latest(like(config))
    return bits(state), progress


def of_command(*words):
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        if main([*map(str, words)]) != 0:
            raise ValueError
    return printed.getvalue()


def seen(read, *arguments):
    """What a reader gives; None if it tells of anything."""
    with contextlib.redirect_stderr(io.StringIO()) as told:
        try:
            found = read(*arguments)
        except (ValueError, OSError, UserWarning):
            return None
    return None if "Skipped" in told.getvalue() else found


def of_run(config, folder, part=None):
    """What each reader gives of a run's folder, or of those parts that lie in one folder there."""
    readers = {
        "model": lambda: of_model(loading.load, folder),
        "decoding": lambda: kept_decoding(folder),
        "models": lambda: of_model(loading.load_run, folder),
        "checkpoints": lambda: of_resuming(config, folder),
        "test": lambda: of_command("score", folder),
    }
    names = [part] if part in readers else readers
    return {name: seen(readers[name]) for name in names}


def files_of(folder):
    return sorted(p.relative_to(folder) for p in folder.rglob("*") if p.is_file())


def damages_of(content, other, chance):
    """The contents that a file is given."""
    if content:
        flipped = bytearray(content)
        flipped[chance.randrange(len(flipped))] ^= 1 << chance.randrange(8)
        yield "a bit flipped", bytes(flipped)
    if content:
        yield "cut", content[: chance.randrange(len(content))]
        yield "cut by a byte", content[:-1]
        yield "emptied", b""
    if other not in (None, content):
        yield "of another run", other


@pytest.fixture
def copy(runs, tmp_path):
    return shutil.copytree(runs[0], tmp_path / "run")


def config_of(folder):
    config = read_run(folder)
    return type(config)(str(folder), config.model, config.data, config.training, config.decoding)


@pytest.mark.thorough
def test_no_damage_to_a_file_of_a_run_passes_in_silence(runs, copy):
    config, chance, told = config_of(copy), random.Random(0), 0
    before = of_run(config, copy)
    assert None not in before.values()
    for name in files_of(copy):
        content = (copy / name).read_bytes()
        other = (runs[1] / name).read_bytes() if (runs[1] / name).exists() else None
        for what, new in damages_of(content, other, chance):
            (copy / name).write_bytes(new)
            after = of_run(config, copy, name.parts[0])
            wrong = [k for k, x in after.items() if x is not None and x != before[k]]
            assert not wrong, (name, what, wrong)
            told += None in after.values()
            assert READ_BY_NOBODY & set(name.parts) or None in after.values(), (name, what)
        (copy / name).write_bytes(content)
    assert told > 120 and of_run(config, copy) == before


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["checkpoints", "models", "model", "models/2"])
def test_no_folder_of_another_run_passes_in_silence(runs, copy, name):
    config = config_of(copy)
    before = of_run(config, copy)
    shutil.rmtree(copy / name)
    shutil.copytree(runs[1] / name, copy / name)
    after = of_run(config, copy)
    assert None in after.values()
    assert all(x in (None, before[k]) for k, x in after.items())


@pytest.mark.thorough
def test_no_bit_of_an_exported_model_passes_in_silence(runs, tmp_path):
    folder = shutil.copytree(runs[0] / "model", tmp_path / "model")
    before = of_model(loading.load, folder)
    for name in files_of(folder):
        content = (folder / name).read_bytes()
        if name.name == "README.md":
            continue
        places = range(8 * len(content))
        for at in random.Random(1).sample(places, min(len(places), 150)):
            flipped = bytearray(content)
            flipped[at // 8] ^= 1 << at % 8
            (folder / name).write_bytes(flipped)
            found = seen(of_model, loading.load, folder)
            assert found is None, (name, at)
        (folder / name).write_bytes(content)
    (folder / "README.md").write_text("my own card")
    assert of_model(loading.load, folder) == before


@pytest.mark.parametrize("name", ["encode", "decode_step"])
def test_the_cards_own_program_sees_a_damaged_one(runs, tmp_path, monkeypatch, name):
    folder = shutil.copytree(runs[0] / "model", tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    path = folder / "stablehlo" / f"{name}.bin"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    blocks = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    (alone,) = [block for block in blocks if "flaxattn" not in block]
    with pytest.raises(AssertionError, match=name):
        exec(alone, {})
