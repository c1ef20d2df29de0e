"""Text to token ids and back: SentencePiece BPE with byte fallback, trained in place."""

import functools
import io
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import sentencepiece

from flaxattn.translation.storage.files import read_regular, write_whole
from flaxattn.translation.text.subword_dropout import SubwordDropout

__all__ = ["Tokenizer"]


class Tokenizer:
    """One joint vocabulary for source and target.

    Every text can be encoded: characters never seen become bytes. `decode(encode(text))` gives
    the text back, runs of spaces collapsed. "</s>" or "<pad>" written in a text is text.
    """

    max_piece_length = 16  # characters a token stands for, at most

    pad_id, bos_id, eos_id, unk_id = range(4)

    def __init__(self, model: bytes) -> None:
        self.model = model
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)

    @classmethod
    def train(
        cls, texts: Iterable[str], vocab_size: int, *, character_coverage: float = 0.9998
    ) -> "Tokenizer":
        """A tokenizer learned from `texts`, with at most `vocab_size` tokens.

        Raises:
          ValueError if `vocab_size` has no room for the bytes and characters of the text.
        """
        model = io.BytesIO()
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(texts),
                model_writer=model,
                model_type="bpe",
                vocab_size=vocab_size,
                hard_vocab_limit=False,
                byte_fallback=True,
                character_coverage=character_coverage,
                max_sentencepiece_length=cls.max_piece_length,
                normalization_rule_name="identity",
                pad_id=cls.pad_id,
                bos_id=cls.bos_id,
                eos_id=cls.eos_id,
                unk_id=cls.unk_id,
                minloglevel=2,
            )
        except RuntimeError as error:
            raise ValueError(_too_small(vocab_size, str(error))) from error
        return cls(model.getvalue())

    @classmethod
    def load(cls, path: Path) -> "Tokenizer":
        """The tokenizer kept in a file."""
        return cls(read_regular(path))

    def save(self, path: Path) -> None:
        """Writes a standard SentencePiece model file."""
        write_whole(path, self.model)

    @property
    def vocab_size(self) -> int:
        """V."""
        return self._processor.vocab_size()

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The ids of each text, with `eos_id` at its end: int32 [length]."""
        ids = self._processor.encode(list(texts), add_eos=True)
        return [np.asarray(row, np.int32) for row in ids]

    def fits(self, text: str, length: int) -> bool:
        """Whether a text may have at most `length` ids: False only if it surely has more.

        Costs next to nothing, whatever a text holds that would take long to encode.
        """
        most = self.max_piece_length * length
        return len(text) <= most or len(" ".join(text.split())) <= most

    def encode_start(self, text: str, length: int) -> tuple[np.ndarray, bool]:
        """As `encode` of one text, of which only so much is read as `length` ids may stand for.

        Returns:
          int32, at most `length` ids, the last of them `eos_id`; and whether that is not all.
        """
        most = self.max_piece_length * length
        text = text if len(text) <= most else " ".join(text.split())
        (ids,) = self.encode([text[:most]])
        if len(text) <= most and len(ids) <= length:
            return ids, False
        return np.append(ids[: length - 1], ids[-1:]), True

    def sample(self, texts: Sequence[str], dropout: float, seed: Sequence[int]) -> list[np.ndarray]:
        """As `encode`, with each of BPE's merges left out with probability `dropout`.

        This is BPE-dropout (Provilkov et al. 2020, arXiv:1910.13267): a word is seen in many
        spellings. The outcome depends on the texts, `dropout` and `seed` alone.
        """
        if not dropout:
            return self.encode(texts)
        return self._subword_dropout.sample(texts, dropout, seed)

    @functools.cached_property
    def _subword_dropout(self) -> SubwordDropout:
        return SubwordDropout(self._processor)

    def decode(self, rows: Iterable[Sequence[int]]) -> list[str]:
        """The text of each row of ids, up to its first `eos_id`."""
        return [self._processor.decode(_until(list(map(int, row)), self.eos_id)) for row in rows]

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """What each id stands for, to show to people."""
        return [self._processor.id_to_piece(int(i)) for i in ids]


def _too_small(vocab_size: int, reason: str) -> str:
    found = re.search(rf"{vocab_size} vs (\d+)", reason)
    if not found:
        return f"--vocab-size: SentencePiece could not learn {vocab_size} tokens: {reason}"
    return (
        f"--vocab-size {vocab_size}: expected at least {found[1]}, as many as this text has "
        "characters, with the 256 bytes and the special tokens; or lower --character-coverage."
    )


def _until(ids: list[int], end: int) -> list[int]:
    return ids[: ids.index(end)] if end in ids else ids
