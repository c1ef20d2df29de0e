"""A trained model in the format of CTranslate2, whose C++ engine translates on CPUs and GPUs.

The names of its weights are those of CTranslate2's own specifications, which write them, too.
"""

from pathlib import Path
from types import ModuleType
from typing import Any

import jax.numpy as jnp
import numpy as np

from flaxattn.layers import EncoderLayer, sinusoidal
from flaxattn.models import EncoderDecoderConfig
from flaxattn.training.storage.files import sync_tree
from flaxattn.training.storage.folders import check_only, replacing_folder
from flaxattn.training.trees import Params
from flaxattn.translation.config import Quantization
from flaxattn.translation.layout import OF_CTRANSLATE2, TOKENIZER
from flaxattn.translation.trained.loading import Loaded

__all__ = ["export_ctranslate2"]

POSITIONS = 2048  # in the table of sinusoidal positions, which CTranslate2 needs written out
ACTIVATIONS = {"relu": "RELU", "gelu": "GELUTanh", "swiglu": "SWISH"}


def export_ctranslate2(folder: Path, loaded: Loaded, quantization: Quantization) -> None:
    """Writes a folder for `ctranslate2.Translator`, with the tokenizer beside its files.

    Args:
      folder: a new one, an empty one, or one that this function wrote.
      quantization: what the weights are kept as.

    Raises:
      ValueError if the folder holds anything else, if ctranslate2 is not installed, or if it has
      no such model.
    """
    check_only(folder, OF_CTRANSLATE2)
    spec = _specification(loaded)
    spec.validate()
    spec.optimize(quantization=quantization)
    with replacing_folder(folder) as new:
        spec.save(str(new))
        loaded.tokenizer.save(new / TOKENIZER)
        sync_tree(new)


def _specification(loaded: Loaded) -> Any:
    """The model as a `ctranslate2.specs.TransformerSpec`."""
    specs, config, params = _specs(), loaded.model.config, loaded.params
    if config.num_kv_heads not in (None, config.num_heads):
        raise ValueError(
            f"num_kv_heads is {config.num_kv_heads} of {config.num_heads} heads; CTranslate2 has "
            "no encoder-decoder whose heads share keys and values."
        )
    common: dict[str, Any] = {
        "pre_norm": config.norm_position == "pre",
        "activation": getattr(specs.Activation, ACTIVATIONS[config.activation]),
        "ffn_glu": config.activation == "swiglu",
    }
    if config.positions == "rotary":  # 0: all features of a head, in halves
        common |= {"rotary_dim": 0, "rotary_interleave": False}
    spec = specs.TransformerSpec(
        specs.TransformerEncoderSpec(config.encoder_layers, config.num_heads, **common),
        specs.TransformerDecoderSpec(config.decoder_layers, config.num_heads, **common),
    )
    _set_stack(spec.encoder, params["encoder"])
    _set_stack(spec.decoder, params["decoder"])
    _set_embeddings(spec, config, params)
    _set_tokens(spec, loaded)
    spec.config.layer_norm_epsilon = EncoderLayer.norm_epsilon
    return spec


def _specs() -> ModuleType:
    try:
        from ctranslate2 import specs
    except ModuleNotFoundError as error:
        raise ValueError(
            "The package ctranslate2 is not installed, which writes its format: "
            "pip install ctranslate2."
        ) from error
    return specs


def _set_tokens(spec: Any, loaded: Loaded) -> None:
    """What tokens are called, which of them begin and end a text, and that sources have an end."""
    tokenizer = loaded.tokenizer
    tokens = tokenizer.pieces(range(loaded.model.config.vocab_size))
    spec.register_source_vocabulary(tokens)
    spec.register_target_vocabulary(tokens)
    spec.config.unk_token = tokens[tokenizer.unk_id]
    spec.config.bos_token = spec.config.decoder_start_token = tokens[tokenizer.bos_id]
    spec.config.eos_token = tokens[tokenizer.eos_id]
    spec.config.add_source_eos = True


def _set_embeddings(spec: Any, config: EncoderDecoderConfig, params: Params) -> None:
    def table(*names: str) -> np.ndarray:
        """The first of these that the model has: those that it lacks are tied to it."""
        return _array(next(params[name] for name in names if name in params)["embedding"])

    source, target = "source_embedding", "target_embedding"
    spec.encoder.embeddings[0].weight = table(source)
    spec.decoder.embeddings.weight = table(target, source)
    spec.decoder.projection.weight = table("output_embedding", target, source)
    for stack, side in ((spec.encoder, "source"), (spec.decoder, "target")):
        if config.positions == "learned":
            stack.position_encodings.encodings = table(f"{side}_positions")
        elif config.positions == "sinusoidal":
            positions = sinusoidal(jnp.arange(POSITIONS), config.features)
            stack.position_encodings.encodings = _array(positions)


def _set_stack(stack: Any, params: Params) -> None:
    if "final_norm" in params:
        _set_norm(stack.layer_norm, params["final_norm"])
    depths = sum(name.startswith("layer_") for name in params)
    for depth, layer in enumerate(stack.layer):
        given = params[f"layer_{depth % depths}"]  # one for all where they are shared
        attentions = {"self_attention": layer.self_attention}
        if "cross_attention" in given:
            attentions["cross_attention"] = layer.attention
        for name, attention in attentions.items():
            _set_attention(attention, given[name])
            _set_norm(attention.layer_norm, given[f"{name}_norm"])
        _set_norm(layer.ffn.layer_norm, given["feed_forward_norm"])
        _set_feed_forward(layer.ffn, given["feed_forward"])


def _set_attention(attention: Any, params: Params) -> None:
    """Projections of one input are one matrix there: of query, key and value, or of the others."""
    features = params["query"]["kernel"].shape[0]
    query, key, value = (
        (_array(p["kernel"]).reshape(features, -1).T, _array(p["bias"]).reshape(-1))
        for p in (params["query"], params["key"], params["value"])
    )
    out = params["out"]
    projections = [[query], [key, value]] if len(attention.linear) == 3 else [[query, key, value]]
    for linear, parts in zip(attention.linear[:-1], projections, strict=True):
        linear.weight, linear.bias = map(np.concatenate, zip(*parts, strict=True))
    attention.linear[-1].weight = _array(out["kernel"]).reshape(-1, features).T
    attention.linear[-1].bias = _array(out["bias"])


def _set_feed_forward(feed_forward: Any, params: Params) -> None:
    _set_linear(feed_forward.linear_1, params["down"])
    if "gate" in params:  # the activation is that of the first
        _set_linear(feed_forward.linear_0, params["gate"])
        _set_linear(feed_forward.linear_0_noact, params["up"])
    else:
        _set_linear(feed_forward.linear_0, params["up"])


def _set_linear(linear: Any, params: Params) -> None:
    linear.weight, linear.bias = _array(params["kernel"]).T, _array(params["bias"])


def _set_norm(norm: Any, params: Params) -> None:
    norm.gamma, norm.beta = _array(params["scale"]), _array(params["bias"])


def _array(x: Any) -> np.ndarray:
    """A copy, since it is quantised in place, in float32, which holds all that bfloat16 does."""
    return np.array(x, np.float32)
