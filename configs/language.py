"""Language models: on the built-in grammar, and on your own text."""

from flaxattn.models import TransformerConfig
from flaxattn.tasks.config import LanguageRun, TextTraining

LANGUAGE = LanguageRun(
    output="runs/language",
    model=TransformerConfig(
        vocab_size=1000, features=128, ff_features=256, num_heads=4, num_layers=3
    ),
    training=TextTraining(
        steps=600,
        batch_size=16,
        sequence_length=128,
        learning_rate=4e-3,
        warmup_steps=80,
        cooldown_steps=360,
        valid_every=200,
    ),
)
LANGUAGE_SMALL = LanguageRun(
    output="runs/language_small",
    model=TransformerConfig(
        vocab_size=8000,
        features=256,
        ff_features=768,
        num_heads=4,
        num_layers=6,
        dropout_rate=0.1,
    ),
    training=TextTraining(
        steps=5000,
        batch_size=16,
        sequence_length=256,
        learning_rate=2e-3,
        warmup_steps=500,
        cooldown_steps=2000,
        valid_every=500,
    ),
)
