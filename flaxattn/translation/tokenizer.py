"""Text to token ids and back: SentencePiece BPE with byte fallback, trained in place."""

import concurrent.futures
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import sentencepiece

__all__ = ["Tokenizer"]


class Tokenizer:
    """One joint vocabulary for source and target.

    Every text can be encoded: characters never seen become bytes. `decode(encode(text))` gives
    the text back, runs of spaces collapsed. "</s>" or "<pad>" written in a text is text.
    """

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
                normalization_rule_name="identity",
                pad_id=cls.pad_id,
                bos_id=cls.bos_id,
                eos_id=cls.eos_id,
                unk_id=cls.unk_id,
                minloglevel=2,
            )
        except RuntimeError as error:
            raise ValueError(
                f"--vocab-size: SentencePiece could not learn {vocab_size} tokens from this "
                f"text: {error}"
            ) from error
        return cls(model.getvalue())

    @classmethod
    def load(cls, path: Path) -> "Tokenizer":
        """The tokenizer kept in a file."""
        return cls(path.read_bytes())

    def save(self, path: Path) -> None:
        """Writes a standard SentencePiece model file."""
        path.write_bytes(self.model)

    @property
    def vocab_size(self) -> int:
        """V."""
        return self._processor.vocab_size()

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The ids of each text, with `eos_id` at its end: int32 [length]."""
        ids = self._processor.encode(list(texts), add_eos=True)
        return [np.asarray(row, np.int32) for row in ids]

    def sample(self, texts: Sequence[str], dropout: float, seed: Sequence[int]) -> list[np.ndarray]:
        """As `encode`, with each of BPE's merges left out with probability `dropout`.

        This is BPE-dropout (Provilkov et al. 2020, arXiv:1910.13267): a word is seen in many
        spellings. The outcome depends on the texts, `dropout` and `seed` alone.
        """

        def draw() -> list[list[int]]:
            sentencepiece.set_random_generator_seed(int(state[0]))
            return self._processor.encode(
                list(texts), add_eos=True, enable_sampling=True, alpha=dropout, num_threads=1
            )

        state = np.random.SeedSequence(list(seed)).generate_state(1)
        # SentencePiece seeds a generator when a thread first uses it, so each draw has its own.
        with concurrent.futures.ThreadPoolExecutor(1) as thread:
            return [np.asarray(row, np.int32) for row in thread.submit(draw).result()]

    def decode(self, rows: Iterable[Sequence[int]]) -> list[str]:
        """The text of each row of ids, up to its first `eos_id`."""
        return [self._processor.decode(_until(list(map(int, row)), self.eos_id)) for row in rows]

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """What each id stands for, to show to people."""
        return [self._processor.id_to_piece(int(i)) for i in ids]


def _until(ids: list[int], end: int) -> list[int]:
    return ids[: ids.index(end)] if end in ids else ids
