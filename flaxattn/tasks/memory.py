"""How much memory a run needs at least, so that what cannot fit is refused before it starts."""

import math

import jax

from flaxattn.tasks.config import TextRun
from flaxattn.tasks.modules import init_of, module_of
from flaxattn.training.memory import check_memory, copies_of, state_bytes
from flaxattn.training.parameters.initial import shapes_of

__all__ = ["check_training"]

TELLS_TOKENS = ("denoising", "language", "spans")  # with logits of the vocabulary for each


def check_training(config: TextRun) -> None:
    """Raises ValueError if a step of training needs more memory than there is."""
    model, training = config.model, config.training
    shapes = jax.tree.leaves(shapes_of(init_of(module_of(config.task, model, num_labels=1))))
    params = sum(math.prod(x.shape) * x.dtype.itemsize for x in shapes)
    tokens = training.batch_size * training.sequence_length // training.microbatches
    logits = 4 * model.vocab_size * tokens * (config.task in TELLS_TOKENS)
    check_memory(
        copies_of(training.mesh) * state_bytes(params, training) + logits / jax.process_count(),
        "a step of training",
        "a smaller model (--vocab-size, --features, --ff-features, fewer layers) or a smaller "
        "batch (--batch-size, --sequence-length, or more --microbatches)",
    )
