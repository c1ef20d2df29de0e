"""SacreBLEU scores with the signatures that make them comparable (Post 2018)."""

from collections.abc import Sequence
from typing import NamedTuple

from sacrebleu.metrics import BLEU, CHRF

from flaxattn.translation.config import BLEU_TOKENIZERS

__all__ = ["Score", "check_tokenizer", "score"]


class Score(NamedTuple):
    """One metric's value, 0 to 100, and how it was computed."""

    name: str
    value: float
    signature: str


def score(
    hypotheses: Sequence[str], references: Sequence[str], *, tokenizer: str = "13a"
) -> list[Score]:
    """BLEU cased, BLEU lower-cased and chrF of one hypothesis and one reference per sentence.

    Args:
      tokenizer: SacreBLEU's, e.g. "13a" or "zh".

    Raises:
      ValueError if there are not as many of the one as of the other.

    >>> [round(s.value) for s in score(["Das ist gut so ."], ["Das ist gut so ."])]
    [100, 100, 100]
    """
    if len(hypotheses) != len(references):
        raise ValueError(f"{len(hypotheses)} hypotheses for {len(references)} references.")
    metrics = {
        "bleu": BLEU(tokenize=tokenizer),
        "bleu_lc": BLEU(tokenize=tokenizer, lowercase=True),
        "chrf": CHRF(),
    }
    scores = []
    for name, metric in metrics.items():
        value = metric.corpus_score(list(hypotheses), [list(references)]).score
        scores.append(Score(name, value, str(metric.get_signature())))
    return scores


def check_tokenizer(tokenizer: str) -> None:
    """Raises ValueError if SacreBLEU cannot use `tokenizer`, say for want of a package."""
    if tokenizer not in BLEU_TOKENIZERS:
        raise ValueError(
            f"--bleu-tokenizer: no {tokenizer!r}; expected one of {', '.join(BLEU_TOKENIZERS)}."
        )
    try:
        BLEU(tokenize=tokenizer).corpus_score(["a"], [["a"]])
    except (ImportError, RuntimeError) as error:
        raise ValueError(f"--bleu-tokenizer: {tokenizer} cannot be used: {error}") from error
