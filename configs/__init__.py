"""Presets: what `flaxattn train NAME` and `train.py NAME` run. The first is the default.

Those of `TASKS` are run by `flaxattn train TASK NAME`.
"""

from .classification import CLASSIFICATION
from .denoising import DENOISING, SPANS
from .labelling import LABELLING
from .language import LANGUAGE, LANGUAGE_SMALL
from .multi30k import MULTI30K
from .multi30k_quick import MULTI30K_QUICK
from .small import SMALL
from .tatoeba_en_de import TATOEBA_EN_DE
from .tiny import TINY

PRESETS = {
    "tiny": TINY,
    "small": SMALL,
    "multi30k": MULTI30K,
    "multi30k_quick": MULTI30K_QUICK,
    "tatoeba_en_de": TATOEBA_EN_DE,
}

TASKS = {
    "language": {"tiny": LANGUAGE, "small": LANGUAGE_SMALL},
    "labelling": {"tiny": LABELLING},
    "classification": {"tiny": CLASSIFICATION},
    "denoising": {"tiny": DENOISING, "spans": SPANS},
}
