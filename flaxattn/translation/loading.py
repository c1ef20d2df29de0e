"""A trained model, read back from the folder of its run."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.sharding import SingleDeviceSharding

from flaxattn.models import EncoderDecoder, EncoderDecoderConfig
from flaxattn.translation.models import Models
from flaxattn.translation.tokenizer import Tokenizer
from flaxattn.translation.train_step import init_params

__all__ = ["CONFIG", "MODELS", "TOKENIZER", "Loaded", "load_run"]

CONFIG, TOKENIZER, MODELS = "config.json", "tokenizer.model", "models"  # in a run's folder


class Loaded(NamedTuple):
    """All that translating needs."""

    model: EncoderDecoder
    params: Any
    tokenizer: Tokenizer


def load_run(folder: Path) -> Loaded:
    """The model of a run: the mean of those that it kept.

    Raises:
      ValueError or FileNotFoundError if there is no such run, or it has kept no model yet.
    """
    for name in (CONFIG, TOKENIZER, MODELS):
        if not (folder / name).exists():
            raise FileNotFoundError(
                f"{folder}: no {name} in this folder; expected the folder of a run that has been "
                "validated at least once."
            )
    config = json.loads((folder / CONFIG).read_text("utf-8"))
    tokenizer = Tokenizer.load(folder / TOKENIZER)
    architecture = EncoderDecoderConfig(**config["model"] | {"vocab_size": tokenizer.vocab_size})
    model = EncoderDecoder(architecture, pad_id=tokenizer.pad_id)
    with Models(folder / MODELS, keep=None, select="last") as models:
        return Loaded(model, models.average(_abstract(model)), tokenizer)


def _abstract(model: EncoderDecoder) -> Any:
    """The parameters' shapes, to be read to the first device."""
    device = SingleDeviceSharding(jax.local_devices()[0])
    shapes = jax.eval_shape(lambda: init_params(model, 0))
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), shapes)
