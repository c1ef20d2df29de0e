"""Multi30k English-German image descriptions (Elliott et al. 2016), 29,000 pairs."""

from flaxattn.models import EncoderDecoderConfig
from flaxattn.translation.config import DataConfig, RunConfig, TrainingConfig

MULTI30K = RunConfig(
    output="runs/multi30k",
    data=DataConfig(
        data_dir="data/multi30k",
        train=("train.en", "train.de"),
        valid=("valid.en", "valid.de"),
        test=("test2016.en", "test2016.de"),
    ),
    model=EncoderDecoderConfig(
        vocab_size=4000,
        features=192,
        ff_features=512,
        num_heads=4,
        encoder_layers=3,
        decoder_layers=3,
        dropout_rate=0.15,
    ),
    training=TrainingConfig(
        steps=4200,
        rows=32,
        row_length=64,
        learning_rate=2.5e-3,
        warmup_steps=800,
        cooldown_steps=1400,
        valid_every=500,
    ),
)
