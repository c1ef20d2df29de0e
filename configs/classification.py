"""Labels of texts: on the built-in texts, or your own; small enough for a laptop's CPU."""

from flaxattn.models import TransformerConfig
from flaxattn.tasks.config import ClassificationRun, TextTraining

CLASSIFICATION = ClassificationRun(
    output="runs/classification",
    model=TransformerConfig(
        vocab_size=1000,
        features=128,
        ff_features=256,
        num_heads=4,
        num_layers=3,
        dropout_rate=0.1,
    ),
    training=TextTraining(
        steps=400,
        batch_size=16,
        sequence_length=128,
        learning_rate=2e-3,
        warmup_steps=50,
        cooldown_steps=200,
        valid_every=100,
    ),
)
