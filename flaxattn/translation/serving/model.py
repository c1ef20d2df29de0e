"""The model that answers: all of it is called by one thread."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from flaxattn.explorer import page
from flaxattn.training.programs import ANEW, Programs
from flaxattn.translation.decoding.aligning import Links, align
from flaxattn.translation.decoding.explaining import explain_translations, hypotheses_sought
from flaxattn.translation.decoding.forced import PairScorer
from flaxattn.translation.decoding.translator import Translation, Translator
from flaxattn.translation.trained.loading import Loaded

__all__ = ["MOST_TOGETHER", "Question", "Service"]

MOST_TOGETHER = 16  # texts in a batch; fewer but more than one are filled up, to compile less
WARM = (16, 32)  # lengths in tokens that are compiled for before anybody asks


class Question(NamedTuple):
    """One text, and what is asked of it."""

    text: str
    n_best: int = 1
    align: bool = False


class Service:
    """A model that answers questions.

    Args:
      loaded: as `loading.load` gives it; what is likeliest is sought, even by one that samples.
      programs: those that are kept from one process to the next.
    """

    def __init__(self, loaded: Loaded, programs: Programs = ANEW) -> None:
        config = dataclasses.replace(loaded.decoding, sampling=False)
        self._loaded = loaded._replace(decoding=config)
        self._translator = Translator(
            *self._loaded, batch_size=MOST_TOGETHER, rows=(1, MOST_TOGETHER), programs=programs
        )
        self._scorer = PairScorer(*self._loaded, batch_size=1)

    @property
    def most_best(self) -> int:
        """How many translations of a text may be asked for."""
        return hypotheses_sought(self._loaded.decoding)

    def warm_up(self) -> None:
        """Compiles for what is asked first: one text or a batch, of all usual lengths."""
        for length in WARM:
            text = _of_length(self._loaded, length)
            for count in (1, MOST_TOGETHER):
                self.answer([Question(text, align=count == 1)] * count)

    def _sought(self, texts: list[str]) -> list[list[Translation]]:
        """As many translations as cost no more: one program for all questions."""
        return self._translator.translate(texts, n_best=self.most_best)

    def answer(self, questions: Sequence[Question]) -> list[list[dict[str, Any]]]:
        """The translations of each text, best first, as JSON has them."""
        texts = [question.text for question in questions]
        found = self._sought(texts)
        answers = [
            [_told(x) for x in best[: question.n_best]]
            for question, best in zip(questions, found, strict=True)
        ]
        for question, best, told in zip(questions, found, answers, strict=True):
            if question.align:
                told[0]["alignment"] = self._links(question.text, best[0].text)
        return answers

    def _links(self, text: str, translation: str) -> Links:
        """The words that belong together; none where a side is blank or too long to be read."""
        try:
            return align(self._scorer, [text], [translation])[0] or []
        except ValueError:
            return []

    def explain(self, text: str) -> str | None:
        """The page on which the attention in the translation of a text is seen, if it can be."""
        model, params, tokenizer, config = self._loaded
        found = self._sought([text])
        sentences = explain_translations(model, params, tokenizer, [text], found, config)
        return page(sentences) if sentences else None


def _told(translation: Translation) -> dict[str, Any]:
    score = translation.score if math.isfinite(translation.score) else None
    return {"text": translation.text, "score": score}


def _of_length(loaded: Loaded, length: int) -> str:
    """A text of so many tokens, the end included, or nearly."""
    text = "a" * length
    while len(loaded.tokenizer.encode([text])[0]) > length:
        text = text[:-1]
    return text
