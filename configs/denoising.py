"""Hidden tokens and spans: what other tasks and translation may start from."""

from flaxattn.models import EncoderDecoderConfig, TransformerConfig
from flaxattn.tasks.config import DenoisingRun, DenoisingTraining, SpansRun, SpansTraining

DENOISING = DenoisingRun(
    output="runs/denoising",
    model=TransformerConfig(
        vocab_size=1000,
        features=128,
        ff_features=256,
        num_heads=4,
        num_layers=3,
        dropout_rate=0.1,
    ),
    training=DenoisingTraining(
        steps=1000,
        batch_size=16,
        sequence_length=128,
        learning_rate=3e-3,
        warmup_steps=100,
        cooldown_steps=500,
        valid_every=250,
    ),
)
SPANS = SpansRun(
    output="runs/spans",
    model=EncoderDecoderConfig(
        vocab_size=1000,
        features=128,
        ff_features=512,
        num_heads=4,
        encoder_layers=2,
        decoder_layers=2,
    ),
    training=SpansTraining(
        steps=1000,
        batch_size=16,
        sequence_length=128,
        learning_rate=3e-3,
        warmup_steps=200,
        cooldown_steps=500,
        valid_every=250,
    ),
)
