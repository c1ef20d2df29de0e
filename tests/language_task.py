"""A language model of a few lines as a task: the characters of a text, each told by those before.

    python tests/language_task.py FOLDER

trains it, and kills itself halfway.
"""

import dataclasses
import functools
import hashlib
import json
import math
import signal
import sys
import time
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from flaxattn import Encoder, EncoderLayer, causal
from flaxattn.training.config import TrainingConfig
from flaxattn.training.ending import exit_code
from flaxattn.training.run import run
from flaxattn.training.storage.weights import write_weights
from flaxattn.training.task import RunRules, Sums, Tested

TEXT = "the old man sees the dog that the child finds, and the dog sees the old man. " * 12
LENGTH = 16
TRAINING = TrainingConfig(
    steps=12,
    batch_size=8,
    microbatches=2,
    learning_rate=0.02,
    warmup_steps=2,
    ema_decay=0.8,
    seed=5,
    log_every=3,
    valid_every=4,
    average=2,
)


@dataclasses.dataclass(frozen=True)
class Model:
    width: int = 16
    text: str = TEXT


@dataclasses.dataclass(frozen=True)
class Config:
    output: str
    model: Model = Model()
    training: TrainingConfig = TRAINING


RULES = RunRules(Config, files=["alphabet.json"], results=["model.safetensors"], of_data={"text"})


class Network(nn.Module):
    """Decoder-only: a stack with one attention, under a causal mask."""

    letters: int
    width: int

    @nn.compact
    def __call__(self, tokens, *, deterministic):
        embed = nn.Embed(self.letters, self.width, name="embedding")
        layer = functools.partial(
            EncoderLayer, num_heads=2, ff_features=32, rotary=True, dropout_rate=0.1
        )
        x = Encoder(layer, 1)(embed(tokens), mask=causal(), deterministic=deterministic)
        return embed.attend(x)


class LanguageTask:
    """What training asks of a task."""

    unit, shown = "characters", ("bits",)

    def __init__(self, config, begun=None, screen=None, before_step=lambda step: None):
        self.config, self._before_step = config, before_step
        self._letters = sorted(set(config.model.text))
        ids = np.array([self._letters.index(x) for x in config.model.text], np.int32)
        self._splits = dict(zip(("train", "valid", "test"), np.split(ids, [700, 800]), strict=True))
        self._network = Network(len(self._letters), config.model.width)
        init = functools.partial(self._network.init, deterministic=True)
        key, tokens = jax.random.key(config.training.seed), jnp.zeros((1, 2), jnp.int32)
        self.params = jax.jit(init)(key, tokens)["params"]
        with nn.logical_axis_rules([("embed", None)]):
            boxed = jax.eval_shape(lambda: init(key, tokens))["params"]  # traced anew, with names
        self.axes = nn.get_partition_spec(boxed)
        self._logits = jax.jit(functools.partial(self._network.apply, deterministic=True))

    def files(self):
        return {"alphabet.json": json.dumps(self._letters).encode()}

    def digests(self):
        return {name: hashlib.sha256(ids).hexdigest() for name, ids in self._splits.items()}

    def batch(self, step):
        self._before_step(step)
        rng = np.random.default_rng([self.config.training.seed, step])
        return self._windows("train", rng.integers(0, 700 - LENGTH, 8))

    def valid_batches(self):
        return [self._windows("valid", range(8))]

    def loss(self, params, batch, key):
        rngs = None if key is None else {"dropout": key}
        network = functools.partial(self._network.apply, {"params": params}, rngs=rngs)
        logits = network(batch[:, :-1], deterministic=key is None)
        at_target = jax.nn.one_hot(batch[:, 1:], len(self._letters))
        nll = -(jax.nn.log_softmax(logits) * at_target).sum(axis=-1)
        return Sums(nll.sum(), (), jnp.float32(nll.size))

    def means(self, sums):
        loss = float(sums.loss) / max(float(sums.units), 1.0)
        return {"loss": loss, "bits": loss / math.log(2)}

    def validate(self, params, means):
        return means, -means["bits"]

    def samples(self, params):
        tokens = self._windows("valid", [0])[:, :-1]
        logits = self._logits({"params": params}, tokens)
        shown = "".join(self._letters[i] for i in tokens[0])
        return [{"text": shown, "next": self._letters[int(logits[0, -1].argmax())]}]

    def test(self, params, screen):
        batch = self._windows("test", range(8))
        sums = jax.jit(functools.partial(self.loss, key=None))(params, batch)
        bits = round(self.means(jax.device_get(sums))["bits"], 3)
        return Tested({"bits": bits}, headline=f"{bits} bits for a character")

    def export(self, params, folder, result):
        write_weights(folder / "model.safetensors", params)

    def _windows(self, split, starts):
        return np.stack([self._splits[split][i : i + LENGTH + 1] for i in starts])


def train(config, before_step=lambda step: None):
    """The exit code of training."""
    prepare = functools.partial(LanguageTask, before_step=before_step)
    with jax.numpy_dtype_promotion("standard"):  # optax raises floats to int32 powers
        return exit_code(lambda: run(config, prepare, RULES))


def raising(number, at):
    """What sends this process a signal before a step."""
    return lambda step: signal.raise_signal(number) if step == at else None


def kill_after_checkpoint(folder, at):
    """Kills this process before a step, once the checkpoint of the fourth is there."""

    def before_step(step):
        while step == at and not (folder / "checkpoints" / "4").exists():
            time.sleep(0.01)
        raising(signal.SIGKILL, at)(step)

    return before_step


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", 4)  # as in the tests
    folder = Path(sys.argv[1])
    sys.exit(train(Config(str(folder)), kill_after_checkpoint(folder, 6)))
