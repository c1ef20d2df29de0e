"""SacreBLEU scores with the signatures that make them comparable (Post 2018)."""

import re
import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

from sacrebleu.metrics import BLEU, CHRF
from sacrebleu.metrics.base import Metric

from flaxattn.translation.config import BLEU_TOKENIZERS

__all__ = [
    "Score",
    "check_tokenizer",
    "doubt_of_spelling",
    "doubt_of_tokenizer",
    "metrics_of",
    "score",
]

LOOKED_AT = 1000  # references whose script is looked at
# Scripts without spaces between words: a share of the letters, and the tokenizers that split them.
SCRIPTS = {
    "Japanese": (re.compile("[\u3040-\u30ff]"), 0.1, ("ja-mecab", "char")),
    "Chinese": (re.compile("[\u3400-\u9fff\U00020000-\U0003ffff]"), 0.5, ("zh", "char")),
    "Thai or alike": (re.compile("[\u0e00-\u109f\u1780-\u17ff]"), 0.5, ("char",)),
}


class Score(NamedTuple):
    """One metric's value, 0 to 100, and how it was computed."""

    name: str
    value: float
    signature: str


def score(
    hypotheses: Sequence[str],
    references: Sequence[str],
    *others: Sequence[str],
    tokenizer: str = "13a",
) -> list[Score]:
    """BLEU cased, BLEU lower-cased and chrF of one hypothesis for each sentence.

    Args:
      references, others: whole texts; each sentence has one reference in each.
      tokenizer: SacreBLEU's, e.g. "13a" or "zh".

    Raises:
      ValueError if there are not as many of the one as of the other, or none.

    >>> from flaxattn.translation.text.scoring import score  # not the one of attention
    >>> [round(s.value) for s in score(["Das ist gut so ."], ["Das ist gut so ."])]
    [100, 100, 100]
    """
    texts = [list(text) for text in (references, *others)]
    for text in texts:
        if len(hypotheses) != len(text):
            raise ValueError(f"{len(hypotheses)} hypotheses for {len(text)} references.")
    if not references:
        raise ValueError("no hypotheses and references: there is nothing to score.")
    scores = []
    for name, metric in metrics_of(tokenizer).items():
        value = metric.corpus_score(list(hypotheses), texts).score
        scores.append(Score(name, value, str(metric.get_signature())))
    return scores


def metrics_of(tokenizer: str) -> dict[str, Metric]:
    """SacreBLEU's metrics by name, BLEU with a tokenizer."""
    return {
        "bleu": BLEU(tokenize=tokenizer),
        "bleu_lc": BLEU(tokenize=tokenizer, lowercase=True),
        "chrf": CHRF(),
    }


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


def doubt_of_tokenizer(references: Sequence[str], tokenizer: str) -> str:
    """What is wrong with SacreBLEU's `tokenizer` for the script of these references, if anything.

    >>> doubt_of_tokenizer(["我喜欢猫。"], "13a")
    '--bleu-tokenizer 13a does not split Chinese text into words; expected zh or char.'
    """
    text = "".join(references[:LOOKED_AT])
    letters = sum(map(str.isalpha, text))
    for name, (script, share, fitting) in SCRIPTS.items():
        if len(script.findall(text)) > share * letters:
            return (
                ""
                if tokenizer in fitting
                else (
                    f"--bleu-tokenizer {tokenizer} does not split {name} text into words; expected "
                    f"{' or '.join(fitting)}."
                )
            )
    return ""


def doubt_of_spelling(hypotheses: Sequence[str], references: Sequence[str]) -> str:
    """What differs between translations and references in Unicode's forms alone, if anything."""
    forms = ([unicodedata.normalize("NFC", text) for text in x] for x in (hypotheses, references))
    pairs = zip(hypotheses, references, *forms, strict=True)
    count = sum((h == a) != (r == b) for h, r, a, b in pairs)
    if not count:
        return ""
    return (
        f"in {count} lines, translation or reference is not in Unicode's form NFC and the other "
        "is: what looks the same counts as different. Bring both to NFC."
    )
