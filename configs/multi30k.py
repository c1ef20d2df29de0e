"""Multi30k English-German image descriptions (Elliott et al. 2016), 29,000 pairs."""

from flaxattn.models import EncoderDecoderConfig
from flaxattn.translation.config import DataConfig, DecodingConfig, RunConfig, TranslationTraining

MULTI30K = RunConfig(
    output="runs/multi30k",
    data=DataConfig(
        data_dir="data/multi30k",
        train=("train.en", "train.de"),
        valid=("valid.en", "valid.de"),
        test=("test2016.en", "test2016.de"),
    ),
    model=EncoderDecoderConfig(
        vocab_size=5000,
        features=160,
        ff_features=480,
        num_heads=4,
        encoder_layers=3,
        decoder_layers=3,
        dropout_rate=0.2,
    ),
    training=TranslationTraining(
        steps=12_000,
        batch_size=32,
        sequence_length=64,
        optimizer="muon",
        learning_rate=2.5e-3,
        warmup_steps=500,
        cooldown_steps=6000,
        r_drop=1.0,
        subword_dropout=0.1,
        ema_decay=0.999,
        log_every=50,
        valid_every=500,
        average=10,
        select="last",
    ),
    decoding=DecodingConfig(length_penalty=1.5),  # the best of 0.6 to 3 on the validation split
)
