"""Small runs of the command line, for the tests of everything that a run does."""

import dataclasses
import io
import itertools
from contextlib import redirect_stdout
from typing import Any

import jax
import numpy as np
import pytest

import flaxattn.training.run as run_module
from configs import PRESETS
from flaxattn.search import Hypotheses
from flaxattn.training.storage.checkpoints import Checkpoints
from flaxattn.translation.cli import main
from flaxattn.translation.decoding import translator

SMALL = {
    "--features": 16,
    "--ff-features": 16,
    "--num-heads": 2,
    "--encoder-layers": 1,
    "--decoder-layers": 1,
    "--dropout-rate": 0.1,
    "--vocab-size": 400,
    "--builtin-pairs": 300,
    "--held-out": 8,
    "--batch-size": 8,
    "--sequence-length": 64,
    "--steps": 12,
    "--learning-rate": 0.004,
    "--warmup-steps": 5,
    "--cooldown-steps": 0,
    "--r-drop": 0.5,
    "--subword-dropout": 0.1,
    "--ema-decay": 0.8,
    "--average": 2,
    "--metric": "chrf",
    "--log-every": 4,
    "--valid-every": 6,
    "--beam-size": 2,
}


def words_of(options):
    words = []
    for name, value in options.items():
        words += [name, *(map(str, value) if isinstance(value, tuple) else [str(value)])]
    return words


def tiny(folder, options=None, *flags):
    """The exit code of preset "tiny", shrunk, with other options."""
    given = SMALL | {"--output": folder} | (options or {})
    with jax.numpy_dtype_promotion("standard"):  # optax raises floats to int32 powers
        return main(PRESETS, ["tiny", *words_of(given), *flags])


def record_training(monkeypatch):
    """A list to which every training adds its outcome."""
    outcomes, train = [], run_module.train
    recorded = lambda *arguments: outcomes.append(train(*arguments)) or outcomes[-1]  # noqa: E731
    monkeypatch.setattr(run_module, "train", recorded)
    return outcomes


def record_states(monkeypatch):
    """A dictionary in which every checkpoint's state is kept by its step."""
    states, save = {}, Checkpoints.save

    def recorded(checkpoints, step, state, progress):
        states[step] = jax.device_get(state)
        save(checkpoints, step, state, progress)

    monkeypatch.setattr(Checkpoints, "save", recorded)
    return states


def decode_to(monkeypatch, ids):
    """Makes every translation the same."""

    def decode(model, params, source, *arrays, n_best, **options):
        tokens = np.tile(ids, (len(source), n_best, 1))
        none = np.zeros(tokens.shape[:2])
        return Hypotheses(tokens, none, none, np.full(tokens.shape[:2], len(ids)))

    monkeypatch.setattr(translator, "decode", decode)


def contents(folder):
    """Every file below a folder, with its bytes."""
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def lines_of(path):
    return path.read_bytes().decode().removesuffix("\n").split("\n")


def prepared_by(monkeypatch, folder, options):
    """What a dry run has prepared."""
    found = []
    with monkeypatch.context() as context:
        context.setattr(run_module, "dry_run", lambda task, *_: found.append(task.prepared))
        assert tiny(folder, options, "--dry-run") == 0
    return found[0]


@dataclasses.dataclass
class Finished:
    folder: Any
    code: int
    printed: list[str]
    trained: Any  # what training came to
    states: dict  # of each checkpoint


def finish(folder):
    """A run on the built-in corpus, from its first step to its last without a break."""
    screen = io.StringIO()
    with pytest.MonkeyPatch.context() as monkeypatch, redirect_stdout(screen):
        outcomes, states = record_training(monkeypatch), record_states(monkeypatch)
        code = tiny(folder)
    return Finished(folder, code, screen.getvalue().splitlines(), outcomes[0], states)


ANIMALS = [("dog", "Hund"), ("cat", "Kater"), ("horse", "Esel"), ("bird", "Vogel")]
VERBS = [("sees", "sieht"), ("hears", "hört"), ("finds", "findet")]


def own_pairs():
    return [
        (f"a {animal} {verb} number {i}", f"ein {tier} {wort} Größe {i}")
        for (animal, tier), (verb, wort), i in itertools.product(ANIMALS, VERBS, range(6))
    ]


def write_pairs(folder, name, pairs, newline="\n"):
    for side, lines in zip(("en", "de"), zip(*pairs, strict=True), strict=True):
        text = "".join(line + newline for line in lines)
        (folder / f"{name}.{side}").write_bytes(text.encode())
    return f"{name}.en", f"{name}.de"
