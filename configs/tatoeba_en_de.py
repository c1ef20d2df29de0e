"""Tatoeba English-German sentence pairs: many, short, colloquial."""

from flaxattn.models import EncoderDecoderConfig
from flaxattn.translation.config import DataConfig, RunConfig, TranslationTraining

TATOEBA_EN_DE = RunConfig(
    output="runs/tatoeba_en_de",
    data=DataConfig(
        data_dir="data/tatoeba_en-de",
        train=("train.en", "train.de"),
        valid=("valid.en", "valid.de"),
        test=("test.en", "test.de"),
    ),
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
        steps=10_000,
        batch_size=64,
        sequence_length=64,
        learning_rate=2e-3,
        warmup_steps=1000,
        cooldown_steps=3000,
        valid_every=1000,
    ),
)
