"""Low-rank adapters in a file of their own, which says to which parameters they belong."""

import hashlib
import json
from pathlib import Path

import jax
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.flax import load_file, save

from flaxattn.training.parameters.lora import merged
from flaxattn.training.storage.files import check_regular, write_whole
from flaxattn.training.storage.weights import named, nested
from flaxattn.training.trees import Params

__all__ = ["with_adapter", "write_adapter"]

ABOUT = "lora"  # one entry, since safetensors writes several in any order


def write_adapter(path: Path, adapters: Params, params: Params, scale: float) -> None:
    """Writes adapters, with their scale, and digests of them and of what they were trained on.

    Args:
      adapters, params, scale: as in `parameters.lora.merged`.
    """
    arrays = named(jax.device_get(adapters))
    (rank,) = {x.shape[-1] for name, x in arrays.items() if name.endswith(".a")}
    about = {"rank": rank, "scale": scale, "base": _digest(params), "adapters": _digest(adapters)}
    write_whole(path, save(arrays, metadata={ABOUT: json.dumps(about)}))


def with_adapter(params: Params, path: Path) -> Params:
    """Parameters merged with the adapters in a file.

    Args:
      params: those that the adapters were trained on.

    Raises:
      ValueError if the file holds no adapters, is damaged, or belongs to other parameters.
    """
    check_regular(path)
    try:
        with safe_open(path, "numpy") as file:
            about = json.loads((file.metadata() or {}).get(ABOUT, "{}"))
        adapters = nested(load_file(path))
    except SafetensorError as error:
        raise ValueError(f"{path}: not a whole safetensors file: {error}") from error
    if not about:
        raise ValueError(f"{path}: holds no adapters; expected the adapter.safetensors of a run.")
    if about.get("adapters") != _digest(adapters):
        raise ValueError(f"{path}: damaged; the SHA-256 of its arrays is not that in its header.")
    if about["base"] != _digest(params):
        raise ValueError(
            f"{path}: was trained on other parameters than these; give those of the model that "
            "--init-from named."
        )
    return merged(params, adapters, about["scale"])


def _digest(params: Params) -> str:
    """SHA-256 of names, kinds and contents."""
    digest = hashlib.sha256()
    for name, x in sorted(named(params).items()):
        digest.update(f"{name} {x.dtype} {x.shape}\n".encode())
        digest.update(np.ascontiguousarray(x).tobytes())
    return digest.hexdigest()
