"""A small model for your own text: `train.py small --train my.en my.de`."""

from flaxattn.models import EncoderDecoderConfig
from flaxattn.translation.config import RunConfig, TranslationTraining

SMALL = RunConfig(
    output="runs/small",
    model=EncoderDecoderConfig(
        vocab_size=8000,
        features=256,
        ff_features=1024,
        num_heads=4,
        encoder_layers=3,
        decoder_layers=3,
        dropout_rate=0.1,
    ),
    training=TranslationTraining(
        steps=5000,
        batch_size=32,
        sequence_length=64,
        learning_rate=2e-3,
        warmup_steps=800,
        cooldown_steps=1500,
        valid_every=500,
    ),
)
