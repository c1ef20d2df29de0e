"""How much memory there is for what is about to begin, and how much of it training takes."""

import jax

from flaxattn.training.config import TrainingConfig
from flaxattn.training.devices import device_memory
from flaxattn.training.mesh import mesh_sizes

__all__ = ["check_memory", "copies_of", "state_bytes"]

GIB = 2**30


def check_memory(needed: float, what: str, smaller: str) -> None:
    """Raises ValueError if all local devices together have fewer bytes than are `needed`.

    Args:
      what: needs them, and `smaller` what to choose instead, in words.
    """
    memory = device_memory()
    if needed > memory:
        raise ValueError(
            f"{what} needs at least {needed / GIB:,.1f} GiB of memory; there are "
            f"{memory / GIB:,.1f}. Choose {smaller}."
        )


def state_bytes(params: float, training: TrainingConfig) -> float:
    """A lower bound: parameters, gradients, what the optimizer keeps, and a moving average.

    Where some parameters stay as they are, nothing is counted of the others' gradients and moments.

    Args:
      params: bytes of all parameters.
    """
    some_stay = bool(training.freeze or training.lora)
    moments = 1 if training.optimizer == "muon" else 2
    average = bool(training.ema_decay and not training.lora)
    trees = 1 + (not some_stay) * (1 + moments) + average
    return trees * params


def copies_of(mesh: str) -> float:
    """How many copies of the parameters the devices of this process have together."""
    sizes = mesh_sizes(mesh)
    return jax.local_device_count() / (sizes.get("fsdp", 1) * sizes.get("model", 1))
