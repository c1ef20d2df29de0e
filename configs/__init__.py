"""Presets: what `train.py NAME` runs. The first is the default."""

from configs.multi30k import MULTI30K
from configs.multi30k_quick import MULTI30K_QUICK
from configs.small import SMALL
from configs.tatoeba_en_de import TATOEBA_EN_DE
from configs.tiny import TINY

PRESETS = {
    "tiny": TINY,
    "small": SMALL,
    "multi30k": MULTI30K,
    "multi30k_quick": MULTI30K_QUICK,
    "tatoeba_en_de": TATOEBA_EN_DE,
}
