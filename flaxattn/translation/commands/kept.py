"""The test split that a run kept, with its translations: what is scored and compared by default."""

from pathlib import Path
from typing import NamedTuple

from flaxattn.translation.layout import TEST

__all__ = ["BLEU_TOKENIZER", "KeptTest", "kept_test"]

BLEU_TOKENIZER = "13a"  # where no run says another


class KeptTest(NamedTuple):
    """Two aligned files, and how BLEU splits them."""

    hypothesis: Path
    reference: Path
    bleu_tokenizer: str


def kept_test(folder: Path) -> KeptTest:
    """What the run in a folder kept.

    Raises:
      ValueError if it is damaged or changed; FileNotFoundError where the settings are missing.
    """
    from flaxattn.training.record import has_begun
    from flaxattn.translation.trained.record import read_result, read_run

    tokenizer = read_run(folder).data.bleu_tokenizer if has_begun(folder) else BLEU_TOKENIZER
    read_result(folder)  # raises where the test split is not as it was written
    return KeptTest(folder / TEST["hypothesis"], folder / TEST["reference"], tokenizer)
