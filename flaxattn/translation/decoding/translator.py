"""Texts in, translations out, in the order given: batches by length around `decode`."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np

from flaxattn.models import EncoderDecoder
from flaxattn.search import Hypotheses, SpecialTokens
from flaxattn.text.lines import on_one_line
from flaxattn.text.tokenizer import Tokenizer
from flaxattn.training.mesh import data_mesh, place
from flaxattn.training.programs import ANEW, Programs
from flaxattn.training.trees import Params
from flaxattn.translation.config import DecodingConfig
from flaxattn.translation.decoding.decode import decode
from flaxattn.translation.decoding.text_constraints import (
    TextConstraints,
    arrays_of,
    constraints_of_texts,
    most_terms,
)
from flaxattn.translation.memory import check_decoding
from flaxattn.translation.text.lengths import EXTRA, max_target_length

__all__ = ["Translation", "Translator", "check_translating", "rounded", "translate"]

SHORTEST = 16  # source lengths are rounded up to this times a power of two: few compilations


class Translation(NamedTuple):
    """One translation of a text."""

    text: str
    score: float
    """The log-probability divided by the length penalty; -inf if no translation was found."""
    log_prob: float
    """In nats, the end token included."""
    tokens: tuple[int, ...] = ()
    """What the text was read from, the end token included; none if no translation was found."""
    at_limit: bool = False
    """Whether it ended because it may have no more tokens (`DecodingConfig.max_ratio`)."""


class Translator:
    """A model that translates texts.

    Args:
      model, params, tokenizer: as `loading.load` gives them.
      config: how translations are sought.
      batch_size: texts translated together, at most; a multiple of the devices is taken.
      others: models that are asked as well, as `loading.load` gives them, with the same tokenizer:
        the mean of their probabilities is taken at each token.
      programs: those that are kept from one process to the next.
      rows: of the batches, ascending, of which few are compiled for. None: powers of two.

    Raises:
      ValueError if one of the others has another tokenizer.
    """

    def __init__(
        self,
        model: EncoderDecoder,
        params: Params,
        tokenizer: Tokenizer,
        config: DecodingConfig = DecodingConfig(),
        *,
        batch_size: int = 64,
        others: Sequence[tuple[EncoderDecoder, Params, Tokenizer, DecodingConfig]] = (),
        programs: Programs = ANEW,
        rows: Sequence[int] | None = None,
    ) -> None:
        for number, other in enumerate(others):
            if other[2].model != tokenizer.model:
                raise ValueError(
                    f"others[{number}] has another tokenizer than the model; expected the same: "
                    "probabilities of other tokens have no mean."
                )
        self._tokenizer, self._config = tokenizer, config
        self._mesh = data_mesh()
        self._models = (model, *(other[0] for other in others))
        self._params = place((params, *(other[1] for other in others)), self._mesh)
        self._batch_size, self._programs, self._few_rows = batch_size, programs, rows or ()

    def translate(
        self,
        texts: Sequence[str],
        *,
        n_best: int = 1,
        first: int = 0,
        progress: Callable[[int], None] = lambda done: None,
        beginnings: Sequence[str] | None = None,
        terms: Sequence[Sequence[str]] | None = None,
    ) -> list[list[Translation]]:
        """The `n_best` translations of each text, best first; those of a blank text are blank.

        What a text is translated to does not depend on the texts beside it.

        Args:
          first: the number of the first text in all that is translated; sampling depends on it.
          progress: called with the number of texts finished since the last call.
          beginnings: for each text whole words that its translations begin with; "": none.
          terms: for each text whole words, or several in a row, that its translations must have.

        Raises:
          ValueError if there are not as many beginnings or lists of terms as texts, or terms are
          to be had without several beams.
        """
        constraints = constraints_of_texts(self._tokenizer, len(texts), beginnings, terms)
        if any(one.terms for one in constraints):
            _check_beams(self._config)
        blank = [Translation("", 0.0, 0.0)] * n_best
        answers = [blank] * len(texts)
        sources = self._encode(texts, first)
        filled = [i for i in range(len(texts)) if texts[i].strip()]
        for chosen in self._batches(filled, sources):
            numbers = [first + i for i in chosen]
            found = self._translate_batch(
                numbers, [sources[i] for i in chosen], [constraints[i] for i in chosen], n_best
            )
            for i, translations in zip(chosen, found, strict=True):
                answers[i] = translations
            progress(len(chosen))
        return answers

    def _encode(self, texts: Sequence[str], first: int) -> list[np.ndarray]:
        """The ids of each text, of long ones only the first; the person is told of these."""
        most = self._config.max_source_length
        texts = [self._tokenizer.normalize_source(text) for text in texts]
        if all(self._tokenizer.fits(text, most) for text in texts):
            sources = self._tokenizer.encode(texts)
            if max(map(len, sources), default=0) <= most:
                return sources
        starts = [self._tokenizer.encode_start(text, most) for text in texts]
        for number, (_, is_cut) in enumerate(starts, first + 1):
            if is_cut:
                warnings.warn(
                    f"text {number} has more than {most} tokens; only its beginning is translated. "
                    "DecodingConfig.max_source_length says how much.",
                    stacklevel=3,
                )
        return [ids for ids, _ in starts]

    def _batches(self, indices: list[int], sources: list[np.ndarray]) -> Iterator[list[int]]:
        """The indices, sorted by length, in batches of one rounded length."""
        by_length: dict[int, list[int]] = {}
        for i in indices:
            by_length.setdefault(rounded(len(sources[i])), []).append(i)
        for _, group in sorted(by_length.items()):
            group.sort(key=lambda i: len(sources[i]))
            for start in range(0, len(group), self._batch_size):
                yield group[start : start + self._batch_size]

    def _translate_batch(
        self,
        numbers: list[int],
        sources: list[np.ndarray],
        constraints: list[TextConstraints],
        n_best: int,
    ) -> list[list[Translation]]:
        config, tokenizer = self._config, self._tokenizer
        length = rounded(max(map(len, sources)))
        count = next((n for n in self._few_rows if n >= len(sources)), len(sources))
        rows = _rows(count, self._batch_size, self._mesh.size)
        source = np.full((rows, length), tokenizer.pad_id, np.int32)
        max_length, min_length = np.zeros((2, rows), np.int32)  # rows without a text end at once
        for row, (ids, one) in enumerate(zip(sources, constraints, strict=True)):
            source[row, : len(ids)] = ids
            room = one.size + EXTRA if one.size else 0
            max_length[row] = max(max_target_length(len(ids), config.max_ratio), room)
            min_length[row] = int(len(ids) * config.min_ratio)
        padded_length = max_target_length(length, config.max_ratio)
        if (longest := int(max_length.max())) > padded_length:  # for what is asked
            padded_length = rounded(longest)
        self._check_memory(rows, length, padded_length, n_best)
        seed = config.sampling_seed
        keys = _keys(seed, numbers, rows) if config.sampling else np.zeros(rows, np.uint32)
        found = self._programs.call(
            decode,
            self._models,
            self._params,
            *place((source, max_length, min_length, keys), self._mesh, "data"),
            arrays_of(tokenizer, constraints, rows),
            kind=Hypotheses,
            config=config,
            n_best=n_best,
            padded_length=padded_length,
            special_tokens=SpecialTokens(tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id),
            mesh=self._mesh,
            most_terms=most_terms(constraints),
        )
        return self._texts(jax.device_get(found), max_length[: len(sources)])

    def _check_memory(self, rows: int, source_length: int, length: int, n_best: int) -> None:
        for model in self._models:
            check_decoding(
                model.config,
                self._config,
                rows=rows,
                source_length=source_length,
                target_length=length,
                n_best=n_best,
            )

    def _texts(self, found: Hypotheses, max_length: np.ndarray) -> list[list[Translation]]:
        """What was found in the rows that `max_length` [n] is of: the first n."""
        parts = (part[: len(max_length)].tolist() for part in (*found, max_length))
        return [
            [self._translation(most, *one) for one in zip(*hypotheses, strict=True)]
            for *hypotheses, most in zip(*parts, strict=True)
        ]

    def _translation(
        self, max_length: int, tokens: list[int], score: float, log_prob: float, length: int
    ) -> Translation:
        (text,) = self._tokenizer.decode([tokens])
        ids = tuple(tokens[:length])
        return Translation(on_one_line(text), score, log_prob, ids, length >= max_length)


def translate(
    model: EncoderDecoder,
    params: Params,
    tokenizer: Tokenizer,
    texts: Sequence[str],
    config: DecodingConfig = DecodingConfig(),
    *,
    batch_size: int = 64,
    progress: Callable[[int], None] = lambda done: None,
) -> list[str]:
    """The best translation of each text, in the order given; blank texts stay blank.

    Args:
      config: how it is sought: `Translator` tells more of the others.
    """
    if not any(text.strip() for text in texts):
        return [""] * len(texts)
    translator = Translator(model, params, tokenizer, config, batch_size=batch_size)
    return [best[0].text for best in translator.translate(texts, progress=progress)]


def _check_beams(config: DecodingConfig) -> None:
    """Raises ValueError unless a configuration has beams that terms can be sought by."""
    if config.sampling or config.beam_size == 1:
        raise ValueError(
            "--terms: terms are sought by beams; expected a --beam-size of 2 or more, and no "
            "--sampling."
        )


def check_translating(
    model: EncoderDecoder,
    tokenizer: Tokenizer,
    texts: Sequence[str],
    config: DecodingConfig,
    *,
    batch_size: int = 64,
) -> None:
    """Raises ValueError if the longest of the texts take more memory together than there is.

    Args: as of `translate`.
    """
    lengths = [len(tokenizer.encode_start(text, config.max_source_length)[0]) for text in texts]
    length = rounded(max(lengths, default=1))
    together = min(batch_size, sum(rounded(n) == length for n in lengths))
    check_decoding(
        model.config,
        config,
        rows=_rows(together, batch_size, 1),
        source_length=length,
        target_length=max_target_length(length, config.max_ratio),
    )


def _keys(seed: int, numbers: list[int], rows: int) -> jax.Array:
    """A random key for each row, told by the number of its text alone."""
    padded = np.zeros(rows, np.int32)
    padded[: len(numbers)] = numbers
    return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), padded)


def rounded(length: int) -> int:
    """`length` rounded up to `SHORTEST` times a power of two."""
    return SHORTEST << max(0, -(-length // SHORTEST) - 1).bit_length()


def _rows(count: int, batch_size: int, devices: int) -> int:
    """Rows for `count` texts: a power of two or `batch_size`, and a multiple of the devices."""
    rows = min(1 << max(0, count - 1).bit_length(), max(batch_size, count))
    return -(-rows // devices) * devices
