"""How much memory something needs at least, so that what cannot fit is refused before it starts."""

import jax

from flaxattn.models import EncoderDecoderConfig
from flaxattn.training.memory import check_memory, copies_of, state_bytes
from flaxattn.translation.config import DecodingConfig, RunConfig

__all__ = [
    "check_decoding",
    "check_forced",
    "check_training",
    "decoding_bytes",
    "parameter_count",
    "training_bytes",
]

ITEM_BYTES = {"float32": 4, "bfloat16": 2}


def check_training(config: RunConfig) -> None:
    """Raises ValueError if a step of training needs more memory than there is."""
    check_memory(
        training_bytes(config, copies_of(config.training.mesh), jax.process_count()),
        "a step of training",
        "a smaller model (--vocab-size, --features, --ff-features, --encoder-layers, "
        "--decoder-layers) or a smaller batch (--batch-size, --sequence-length, or more "
        "--microbatches)",
    )


def check_decoding(
    model: EncoderDecoderConfig,
    config: DecodingConfig,
    *,
    rows: int,
    source_length: int,
    target_length: int,
    n_best: int = 1,
) -> None:
    """Raises ValueError if to translate so many texts together needs more memory than there is."""
    beams = n_best if config.sampling else max(config.beam_size, n_best)
    check_memory(
        decoding_bytes(
            model, beams, rows=rows, source_length=source_length, target_length=target_length
        ),
        f"to translate {rows} texts of up to {source_length} tokens with {beams} beams",
        "fewer or shorter ones: --beam-size, --n-best, --batch-size, --max-source-length, "
        "--max-ratio",
    )


def check_forced(
    model: EncoderDecoderConfig, source: tuple[int, ...], target_length: int, *, attention: bool
) -> None:
    """Raises ValueError if a pass over pairs, [B, S] and [B, T], needs more memory than there is.

    Args:
      attention: whether weights are asked for.
    """
    rows, source_length = source
    of_token = model.vocab_size + attention * model.decoder_layers * source_length
    needed = parameter_count(model) * ITEM_BYTES[model.param_dtype]
    check_memory(
        needed + 4 * rows * target_length * of_token,
        f"to look at {rows} pairs of up to {source_length} and {target_length} tokens",
        "fewer or shorter ones: --batch-size",
    )


def training_bytes(config: RunConfig, copies: float, processes: int = 1) -> float:
    """A lower bound for a process: parameters with gradients and moments, and a step's arrays.

    Where some parameters stay as they are, nothing is counted of what their gradients need.

    Args:
      copies: of the parameters, on its devices together.
      processes: that share the rows.
    """
    model, training = config.model, config.training
    tokens = training.batch_size * training.sequence_length // training.microbatches
    sizes = (model.features, model.features)
    if not model.remat:  # else the input of each layer alone is kept for the backward pass
        sizes = (4 * model.features + model.ff_features, 6 * model.features + model.ff_features)
    kept = model.encoder_layers * sizes[0] + model.decoder_layers * sizes[1]
    kept *= not (training.freeze or training.lora)
    of_token = 4 * model.vocab_size + kept * ITEM_BYTES[model.dtype]
    params = parameter_count(model) * ITEM_BYTES[model.param_dtype]
    return copies * state_bytes(params, training) + tokens * of_token / processes


def decoding_bytes(
    model: EncoderDecoderConfig, beams: int, *, rows: int, source_length: int, target_length: int
) -> int:
    """A lower bound: keys and values that are kept, what beams may see of each other, logits."""
    cells = beams * target_length
    heads = (model.num_kv_heads or model.num_heads) * (model.features // model.num_heads)
    of_cell = 2 * model.decoder_layers * heads * ITEM_BYTES[model.dtype]
    seen = (1 + 4 * model.num_heads) * beams * cells  # a mask, and dense attention under it
    tree = 4 * cells + seen if beams > 1 else 0
    return rows * ((cells + source_length) * of_cell + tree + 4 * beams * model.vocab_size)


def parameter_count(model: EncoderDecoderConfig) -> int:
    """The number of parameters, without making them."""
    width, hidden = model.features, model.ff_features
    kv_width = (model.num_kv_heads or model.num_heads) * (width // model.num_heads)
    attention = 2 * (width + 1) * width + 2 * (width + 1) * kv_width
    inner = 2 if model.activation == "swiglu" else 1
    feed_forward = inner * (width + 1) * hidden + (hidden + 1) * width
    norm = 2 * width
    last = norm if model.norm_position == "pre" else 0
    depths = [1 if model.share_layers else n for n in (model.encoder_layers, model.decoder_layers)]
    layers = (attention + feed_forward + 2 * norm, 2 * attention + feed_forward + 3 * norm)
    tables = {"all": 1, "target": 2, "none": 3}[model.tie_embeddings] * model.vocab_size
    if model.positions == "learned":
        tables += 2 * model.max_positions
    stacks = sum(depth * layer + last for depth, layer in zip(depths, layers, strict=True))
    return tables * width + stacks
