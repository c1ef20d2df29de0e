"""From a configuration to everything training needs: text, tokens, packed rows, a model."""

import dataclasses
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from flaxattn.models import EncoderDecoder
from flaxattn.text.pairs import Pair, StoredPairs
from flaxattn.text.records import place_for
from flaxattn.text.sampling import sample
from flaxattn.text.splits import Corpus
from flaxattn.text.supply import PackedPairs
from flaxattn.text.tokenizer import Tokenizer
from flaxattn.text.tokens import Tokens, sampled, tokenized
from flaxattn.training.architecture import check_architecture
from flaxattn.training.parameters.freezing import labels
from flaxattn.training.record import read_data
from flaxattn.training.screen import Tell
from flaxattn.training.storage.layout import START
from flaxattn.training.storage.weights import read_weights
from flaxattn.training.trees import Params
from flaxattn.translation.config import RunConfig, tokenizer_path
from flaxattn.translation.initial import grown, init_params
from flaxattn.translation.layout import TOKENIZER
from flaxattn.translation.naming import corpora
from flaxattn.translation.text.corpus import load_corpus, load_others
from flaxattn.translation.trained.loading import Loaded, load

__all__ = ["Prepared", "prepare"]


class Split(NamedTuple):
    """Pairs, and the same in rows."""

    pairs: list[Pair]
    packed: PackedPairs


class Prepared(NamedTuple):
    """What training starts from."""

    corpus: Corpus
    tokenizer: Tokenizer
    model: EncoderDecoder
    params: Params  # before the first step, on no device
    train: PackedPairs
    valid: PackedPairs
    others: dict[str, Split]
    """More to validate with, by name."""


def prepare(config: RunConfig, tell: Tell, begun: Path | None = None) -> Prepared:
    """Reads the corpus, learns the tokenizer, packs, makes the model.

    Nothing is written that stays: text that does not fit memory lies beside the run's folder, in
    files without names.

    Args:
      tell: as in `load_corpus`.
      begun: the folder of the run, if it has begun: the tokenizer and what it started from are
        then those kept there, whatever has become of the run they are from.

    Raises:
      ValueError or FileNotFoundError that names the file, line or option at fault.
    """
    start = _start(config, begun)
    kept = _kept_tokenizer(config, begun, start)
    normalization = kept.normalization if kept else config.data.normalization
    data = dataclasses.replace(config.data, normalization=normalization)
    corpus = load_corpus(data, tell, place_for(Path(config.output)))
    others = load_others(data, tell)
    tokenizer = kept or _learned_tokenizer(config, corpus)
    model_config = dataclasses.replace(config.model, vocab_size=tokenizer.vocab_size)
    model = EncoderDecoder(model_config, pad_id=tokenizer.pad_id)
    params = jax.device_get(_first_params(config, model, begun, start))
    labels(params, config.training.freeze)  # before packing, which may take long
    return Prepared(
        corpus,
        tokenizer,
        model,
        params,
        _pack(corpus.train, tokenizer, config, config.training.subword_dropout),
        _pack(StoredPairs([corpus.valid]), tokenizer, config),
        {
            name: Split(pairs, _pack(StoredPairs([pairs]), tokenizer, config))
            for name, pairs in others.items()
        },
    )


def _start(config: RunConfig, begun: Path | None) -> Loaded | None:
    """The model that --init-from names, as far as the run has not kept it itself."""
    name = config.training.init_from
    if not name or (begun and read_data(begun).get("start")):
        return None
    try:
        start = load(Path(name))
    except (ValueError, OSError) as error:
        raise ValueError(f"--init-from: {error}") from error
    if begun and start.tokenizer.model != Tokenizer.load(begun / TOKENIZER).model:
        raise ValueError(
            f"--init-from: {name} has another tokenizer than when the run in {begun} began. Name "
            "another folder with --output."
        )
    return start


def _kept_tokenizer(
    config: RunConfig, begun: Path | None, start: Loaded | None
) -> Tokenizer | None:
    """That of the run, of the model it starts from, or of one's own; with the symbols it lacks.

    Raises:
      ValueError or FileNotFoundError naming the option or the file.
    """
    data, dropout, own = config.data, config.training.subword_dropout, tokenizer_path(config.data)
    if begun:
        kept = Tokenizer.load(begun / TOKENIZER)
        if own and own.exists() and Tokenizer.adopted(own).grown(data.symbols).model != kept.model:
            raise ValueError(
                f"--tokenizer: {own} is another than when the run in {begun} began. Name another "
                "folder with --output."
            )
        return kept
    if start and own:
        raise ValueError("--tokenizer: a model that --init-from names has its own; leave one out.")
    found = start.tokenizer if start else Tokenizer.adopted(own) if own else None
    if found is None:
        return None
    if dropout and not found.spells_anew:
        raise ValueError(
            f"--subword-dropout {dropout}: expected 0, since the tokenizer is no BPE model with "
            "byte fallback."
        )
    return found.grown(data.symbols)


def _learned_tokenizer(config: RunConfig, corpus: Corpus) -> Tokenizer:
    return Tokenizer.train(
        (text for pair in sample(corpus.train) for text in pair),
        config.model.vocab_size,
        character_coverage=config.data.character_coverage,
        normalization=config.data.normalization,
        symbols=config.data.symbols,
    )


def _first_params(
    config: RunConfig, model: EncoderDecoder, begun: Path | None, start: Loaded | None
) -> Params:
    """The parameters before the first step."""
    if start:
        vocab_size = model.config.vocab_size  # which may have grown
        check_architecture(
            dataclasses.replace(start.model.config, vocab_size=vocab_size), model.config
        )
        return grown(start.params, model, config.training.seed)
    if begun and config.training.init_from:
        return read_weights(begun / START, jax.eval_shape(lambda: init_params(model, 0)))
    return init_params(model, config.training.seed)


def _pack(
    pairs: StoredPairs, tokenizer: Tokenizer, config: RunConfig, subword_dropout: float = 0.0
) -> PackedPairs:
    training = config.training
    length = training.sequence_length

    def resample(blocks: np.ndarray, seed: tuple[int, int, int]) -> Tokens:
        return sampled(pairs, tokenizer, length, subword_dropout, blocks=blocks, seed=seed)

    return PackedPairs(
        tokenized(pairs, tokenizer, length),
        batch_size=training.batch_size,
        sequence_length=length,
        seed=training.seed,
        weights=[weight for weight, _ in corpora(config.data.train)][: len(pairs.parts)] or [1.0],
        resample=resample if subword_dropout else None,
    )
