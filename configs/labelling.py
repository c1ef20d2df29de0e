"""Tags of words: on the built-in sentences, or your own; small enough for a laptop's CPU."""

from flaxattn.models import TransformerConfig
from flaxattn.tasks.config import LabellingRun, TextTraining

LABELLING = LabellingRun(
    output="runs/labelling",
    model=TransformerConfig(
        vocab_size=1000,
        features=128,
        ff_features=256,
        num_heads=4,
        num_layers=3,
        dropout_rate=0.1,
    ),
    training=TextTraining(
        steps=500,
        batch_size=16,
        sequence_length=128,
        learning_rate=3e-3,
        warmup_steps=100,
        cooldown_steps=250,
        valid_every=125,
    ),
)
