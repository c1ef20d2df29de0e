"""Text to token ids and back: SentencePiece BPE with byte fallback, trained in place."""

import functools
import io
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import sentencepiece

from flaxattn.text.model_file import is_bpe, symbols_of, with_special_first, with_symbols
from flaxattn.text.normalization import (
    NORMALIZATIONS,
    Normalization,
    normalize_source,
    normalize_targets,
)
from flaxattn.text.subword_dropout import SPACE, SubwordDropout
from flaxattn.training.storage.files import read_regular, write_whole

__all__ = ["Tokenizer"]

MOST_BYTES = 2**28  # of a file

MASK = "<mask>"
LONGEST = 16  # characters that a learned token stands for, at most
STAND_INS = [chr(code) for code in range(0xE000, 0xF900)]  # characters for private use


class Tokenizer:
    """One joint vocabulary for source and target.

    Every text can be encoded: characters never seen become bytes. `decode(encode(text))` gives
    the text back, runs of spaces collapsed. "</s>", "<pad>" or SentencePiece's own sign for a
    space written in a text is text.

    It knows how texts were normalised when it was learned, and its file does; to `encode` is to
    take them as they are.
    """

    pad_id, bos_id, eos_id, unk_id = range(4)

    def __init__(self, model: bytes) -> None:
        self.model = model
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)

    @classmethod
    def train(
        cls,
        texts: Iterable[str],
        vocab_size: int,
        *,
        character_coverage: float = 0.9998,
        normalization: Normalization = "none",
        keep_spaces: bool = False,
        with_mask: bool = False,
        symbols: Sequence[str] = (),
    ) -> "Tokenizer":
        """A tokenizer learned from `texts`, with at most `vocab_size` tokens.

        Args:
          normalization: how these texts have been normalised, so that others can be alike.
          keep_spaces: keep runs of spaces, and those around a text, instead of collapsing them.
          with_mask: whether there is a token that stands for hidden ones: `mask_id`.
          symbols: strings without spaces that are one token each, wherever they stand.

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
                max_sentencepiece_length=LONGEST,
                normalization_rule_name="identity",
                remove_extra_whitespaces=not keep_spaces,
                control_symbols=[MASK] if with_mask else [],
                user_defined_symbols=_spelt(symbols, normalization),
                pad_id=cls.pad_id,
                bos_id=cls.bos_id,
                eos_id=cls.eos_id,
                unk_id=cls.unk_id,
                minloglevel=2,
            )
        except RuntimeError as error:
            raise ValueError(_too_small(vocab_size, str(error))) from error
        return cls(model.getvalue() + _mark(normalization))

    @classmethod
    def load(cls, path: Path) -> "Tokenizer":
        """The tokenizer kept in a file. Raises ValueError if that is empty or much too large."""
        model = read_regular(path, MOST_BYTES)
        if not model:
            raise ValueError(f"{path}: is empty; expected a SentencePiece model.")
        return cls(model)

    @classmethod
    def adopted(cls, path: Path) -> "Tokenizer":
        """The tokenizer in a SentencePiece model that was learned elsewhere, in a file.

        Its tokens get other ids where its special tokens have others than here.

        Raises:
          ValueError naming the file if it is no such model.
        """
        model = read_regular(path, MOST_BYTES)
        try:
            kept = cls(model)
            return kept if kept._has_our_ids() else cls(with_special_first(model))
        except (ValueError, RuntimeError) as error:
            raise ValueError(f"{path}: expected a SentencePiece model; {error}") from error

    def _has_our_ids(self) -> bool:
        processor = self._processor
        ids = processor.pad_id(), processor.bos_id(), processor.eos_id(), processor.unk_id()
        return ids == (self.pad_id, self.bos_id, self.eos_id, self.unk_id)

    def grown(self, symbols: Sequence[str]) -> "Tokenizer":
        """This tokenizer with these strings as tokens as well, behind those that it has."""
        how = self.normalization
        known = symbols_of(self.model)
        new = [x for x in _spelt(symbols, how) if x not in known]
        return Tokenizer(with_symbols(self.model, new) + _mark(how)) if new else self

    @property
    def spells_anew(self) -> bool:
        """Whether `sample` can leave out merges: those of BPE, with bytes for all else."""
        processor = self._processor
        has_bytes = processor.is_byte(processor.piece_to_id("<0x00>"))
        return has_bytes and is_bpe(self.model)

    def save(self, path: Path) -> None:
        """Writes a standard SentencePiece model file."""
        write_whole(path, self.model)

    @functools.cached_property
    def max_piece_length(self) -> int:
        """Characters that a token stands for, at most."""
        return max(map(len, self.pieces(range(self.vocab_size))))

    @functools.cached_property
    def normalization(self) -> Normalization:
        """How the texts that it was learned from were normalised."""
        marks = (how for how in NORMALIZATIONS if how != "none" and self.model.endswith(_mark(how)))
        return next(marks, "none")

    def normalize_source(self, text: str) -> str:
        """A text to translate, in the form that the texts it was learned from have."""
        return normalize_source(text, self.normalization)

    @functools.cached_property
    def mask_id(self) -> int | None:
        """The id of the token that stands for hidden ones; None: there is none."""
        found = self._processor.piece_to_id(MASK)
        return found if self._processor.is_control(found) else None

    @property
    def vocab_size(self) -> int:
        """V."""
        return self._processor.vocab_size()

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The ids of each text, with `eos_id` at its end: int32 [length]."""
        rows = self._processor.encode(list(texts), add_eos=True, out_type="numpy")
        return [
            np.array(self._encode_sign(text), np.int32) if SPACE in text else row
            for text, row in zip(texts, rows, strict=True)
        ]

    def _encode_sign(self, text: str) -> list[int]:
        """The ids of a text with SentencePiece's sign for a space in it: bytes, which stay it."""
        unknown = (c for c in STAND_INS if self._processor.piece_to_id(c) == self.unk_id)
        other = next((c for c in unknown if c not in text), SPACE)
        ids = self._processor.encode(text.replace(SPACE, other), add_eos=True)
        old, new = (self._bytes_of(character) for character in (other, SPACE))
        for at in range(len(ids)):
            if ids[at : at + len(old)] == old:
                ids[at : at + len(old)] = new
        return ids

    def _bytes_of(self, character: str) -> list[int]:
        return [self._processor.piece_to_id(f"<0x{byte:02X}>") for byte in character.encode()]

    def fits(self, text: str, length: int) -> bool:
        """Whether a text may have at most `length` ids: False only if it surely has more.

        Costs next to nothing, whatever a text holds that would take long to encode.
        """
        most = self.max_piece_length * length
        return len(text) <= most or len(_collapsed(text)) <= most

    def encode_start(self, text: str, length: int) -> tuple[np.ndarray, bool]:
        """As `encode` of one text, of which only so much is read as `length` ids may stand for.

        Returns:
          int32, at most `length` ids, the last of them `eos_id`; and whether that is not all.
        """
        most = self.max_piece_length * length
        text = text if len(text) <= most else _collapsed(text)
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
        return SubwordDropout(self._processor, symbols_of(self.model))

    def decode(self, rows: Iterable[Sequence[int]]) -> list[str]:
        """The text of each row of ids, up to its first `eos_id`."""
        return [self._processor.decode(_until(list(map(int, row)), self.eos_id)) for row in rows]

    def bytes_of_ids(self) -> np.ndarray:
        """How many bytes of text each id stands for: int32 [V]; the space before a text counts."""
        processor = self._processor
        special = [self.pad_id, self.bos_id, self.eos_id, self.unk_id, self.mask_id]

        def size(i: int) -> int:
            if i in special:
                return 0
            return (
                1
                if processor.is_byte(i)
                else len(processor.id_to_piece(i).replace(SPACE, " ").encode())
            )

        return np.array([size(i) for i in range(self.vocab_size)], np.int32)

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """What each id stands for, to show to people."""
        return [self._processor.id_to_piece(int(i)) for i in ids]


def _mark(normalization: Normalization) -> bytes:
    """The end of a model's file: its `normalizer_spec.name`, a name on which nothing else depends.

    Messages of protocol buffers are merged by writing one after the other.
    """
    if normalization == "none":
        return b""
    name = b"\x0a" + bytes([len(normalization)]) + normalization.encode()
    return b"\x1a" + bytes([len(name)]) + name


def _spelt(symbols: Sequence[str], normalization: Normalization) -> list[str]:
    """As they stand in texts."""
    return [normalize_targets([symbol], normalization)[0] for symbol in symbols]


def _collapsed(text: str) -> str:
    return " ".join(word for word in text.split(" ") if word)


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
