"""What commands tell as JSON, an object on each line: translations, and scores of given ones."""

import json
import math
from collections.abc import Sequence

import numpy as np

from flaxattn.text.tokenizer import Tokenizer
from flaxattn.translation.decoding.aligning import links_of, pharaoh
from flaxattn.translation.decoding.forced import Forced, PairScorer
from flaxattn.translation.decoding.translator import Translation

__all__ = ["of_pair", "of_translations"]


def of_pair(tokenizer: Tokenizer, found: Forced | None) -> str:
    """The log-probability of a given translation, and of its tokens; null where a side is blank."""
    return _line({"log_prob": found.log_prob} | _tokens(tokenizer, found) if found else None)


def of_translations(
    scorer: PairScorer, texts: Sequence[str], translations: Sequence[Sequence[Translation]]
) -> list[str]:
    """A line for each text, with what was found of it, best first; of a blank one nothing was.

    All translations are looked at once more, together: for tokens and alignments.
    """
    found = [[one for one in several if one.tokens] for several in translations]
    ids = [scorer.read(text) for text in texts]
    pairs = [
        (source, np.array(one.tokens, np.int32))
        for source, several in zip(ids, found, strict=True)
        for one in several
    ]
    forced = iter(scorer.force(pairs, attention=True))
    return [
        _line(
            {
                "text": text,
                "translations": [
                    _translation(scorer.tokenizer, text, source, one, next(forced))
                    for one in several
                ],
            }
        )
        for text, source, several in zip(texts, ids, found, strict=True)
    ]


def _translation(
    tokenizer: Tokenizer, text: str, source: np.ndarray, one: Translation, forced: Forced
) -> dict[str, object]:
    return {
        "text": one.text,
        "score": one.score,
        "log_prob": one.log_prob,
        "confidence": math.exp(forced.log_prob / len(forced.tokens)),
        **_tokens(tokenizer, forced),
        "alignment": pharaoh(links_of(tokenizer, text, source, forced)),
    }


def _tokens(tokenizer: Tokenizer, forced: Forced) -> dict[str, object]:
    return {
        "tokens": tokenizer.pieces(forced.tokens),
        "token_log_probs": list(forced.log_probs),
    }


def _line(found: object) -> str:
    return json.dumps(found, ensure_ascii=False)
