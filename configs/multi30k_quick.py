"""Multi30k in a coffee break: the most that was learned in half an hour of two CPU cores."""

import dataclasses

from configs.multi30k import MULTI30K
from flaxattn.translation.config import DecodingConfig

MULTI30K_QUICK = dataclasses.replace(
    MULTI30K,
    output="runs/multi30k_quick",
    model=dataclasses.replace(MULTI30K.model, vocab_size=4000, dropout_rate=0.1),
    training=dataclasses.replace(
        MULTI30K.training,
        steps=4400,
        optimizer="adamw",
        learning_rate=3e-3,
        warmup_steps=500,
        cooldown_steps=1800,
        r_drop=0.0,
        subword_dropout=0.0,
        ema_decay=0.998,
        average=1,
    ),
    decoding=DecodingConfig(),  # as its kept row was translated
)
