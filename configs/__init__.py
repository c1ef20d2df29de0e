"""Presets: what `train.py NAME` runs. The first is the default."""

from configs.multi30k import MULTI30K
from configs.small import SMALL
from configs.tatoeba_en_de import TATOEBA_EN_DE
from configs.tiny import TINY

PRESETS = {
    "tiny": TINY,
    "small": SMALL,
    "multi30k": MULTI30K,
    "tatoeba_en_de": TATOEBA_EN_DE,
}
