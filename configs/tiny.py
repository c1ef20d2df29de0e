"""The built-in English-German corpus: nothing to download, minutes on a laptop's CPU."""

from flaxattn.models import EncoderDecoderConfig
from flaxattn.translation.config import DataConfig, RunConfig, TranslationTraining

TINY = RunConfig(
    output="runs/tiny",
    data=DataConfig(),
    model=EncoderDecoderConfig(
        vocab_size=1000,
        features=128,
        ff_features=512,
        num_heads=4,
        encoder_layers=2,
        decoder_layers=2,
        dropout_rate=0.0,
    ),
    training=TranslationTraining(
        steps=1200,
        batch_size=16,
        sequence_length=64,
        learning_rate=3e-3,
        warmup_steps=200,
        cooldown_steps=600,
        label_smoothing=0.0,
        valid_every=400,
    ),
)
