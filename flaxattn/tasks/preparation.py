"""From files to what training a task needs: texts, tokens, packed rows, first parameters."""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from flaxattn.tasks.builtin.draws import Split
from flaxattn.tasks.config import TextRun
from flaxattn.tasks.memory import check_training
from flaxattn.tasks.modules import Module, init_of, module_of
from flaxattn.tasks.rules import LABELS, TOKENIZER, path_of_text
from flaxattn.tasks.storing import Loaded, labels_of, load
from flaxattn.text.normalization import Normalization, normalized
from flaxattn.text.opening import check_kind
from flaxattn.text.pairs import Pair, StoredPairs
from flaxattn.text.records import place_for
from flaxattn.text.sampling import sample
from flaxattn.text.splits import Corpus, completed
from flaxattn.text.supply import PackedPairs
from flaxattn.text.tokenizer import Tokenizer
from flaxattn.text.tokens import Tokens, encoded
from flaxattn.training.architecture import check_architecture
from flaxattn.training.parameters.freezing import labels as freezing_labels
from flaxattn.training.parameters.initial import fresh_params, shapes_of
from flaxattn.training.record import read_data
from flaxattn.training.screen import Screen, Tell
from flaxattn.training.storage.layout import START
from flaxattn.training.storage.weights import read_weights
from flaxattn.training.trees import Params

__all__ = ["Prepared", "TextKind", "prepare"]

SHOWN = 10  # labels
FEW = 10  # texts, of which a tenth is none
TEXT = "text"  # the part that models which read both sides of a text have in common


class Prepared(NamedTuple):
    """What training starts from."""

    corpus: Corpus
    tokenizer: Tokenizer
    labels: tuple[str, ...]
    module: Module
    params: Params  # before the first step, on no device
    train: PackedPairs
    valid: PackedPairs
    test: PackedPairs


@dataclasses.dataclass(frozen=True)
class TextKind:
    """How the texts of a task become rows.

    Attributes:
      name: of the task.
      read: the pairs of a file: a text, and what is to be told of it, which may be nothing.
      builtin: so many pairs of a split of the built-in corpus.
      encode: pairs as ids of both; no id is below 0.
      labels_of: the labels that a corpus has.
      tokenizer: how, as in `Tokenizer.train`.
      hint: what else to do where there are too few texts.
      normalize: a text as a tokenizer has it.
    """

    name: str
    read: Callable[[Path, TextRun, Tell], Iterator[Pair]]
    builtin: Callable[[Split, int], Iterable[Pair]]
    encode: Callable[[list[Pair], Tokenizer, tuple[str, ...], int], Tokens]
    labels_of: Callable[[Corpus], tuple[str, ...]] = lambda corpus: ()
    tokenizer: dict[str, Any] = dataclasses.field(default_factory=dict)
    hint: str = ""
    normalize: Callable[[str, Normalization], str] = normalized


def prepare(kind: TextKind, config: TextRun, begun: Path | None, screen: Screen) -> Prepared:
    """Reads the texts, learns the tokenizer, packs, makes the model.

    Args:
      begun: the folder of the run, if it has begun: tokenizer, labels and what it started from are
        then those kept there.

    Raises:
      ValueError or FileNotFoundError that names the file, line or option at fault; SaveError.
    """
    check_training(config)
    start = _start(config, begun)
    kept = Tokenizer.load(begun / TOKENIZER) if begun else start.tokenizer if start else None
    how = kept.normalization if kept else config.data.normalization
    corpus = _corpus(kind, config, how, screen.say)
    tokenizer = kept or _learned(kind, config, corpus)
    labels = labels_of(begun / LABELS) if begun else kind.labels_of(corpus)
    architecture = dataclasses.replace(config.model, vocab_size=tokenizer.vocab_size)
    module = module_of(kind.name, architecture, len(labels))
    params = jax.device_get(_first_params(kind, config, module, labels, begun, start))
    freezing_labels(params, config.training.freeze)  # before packing, which may take long
    rows = (
        _packed(kind, pairs, tokenizer, labels, config)
        for pairs in (corpus.train, StoredPairs([corpus.valid]), StoredPairs([corpus.test]))
    )
    prepared = Prepared(corpus, tokenizer, labels, module, params, *rows)
    _describe(prepared, config, screen)
    return prepared


def _describe(prepared: Prepared, config: TextRun, screen: Screen) -> None:
    """Tells what will be learned, and what will not."""
    corpus, training, labels = prepared.corpus, config.training, prepared.labels
    screen.say(
        f"Texts: {len(corpus.train)} to train, {len(corpus.valid)} to validate, "
        f"{len(corpus.test)} to test; {prepared.tokenizer.vocab_size} tokens."
    )
    if labels:
        more = ", ..." * (len(labels) > SHOWN)
        screen.say(f"{len(labels)} labels: {', '.join(labels[:SHOWN])}{more}.")
        unknown = {x for _, told in (*corpus.valid, *corpus.test) for x in told.split(" ")}
        if missing := sorted(unknown - {x for label in labels for x in label.split(" ")}):
            screen.warn(f"No training text has {', '.join(missing[:SHOWN])}: never to be found.")
    epochs = prepared.train.epochs(training.steps)[0]
    screen.say(
        f"{training.steps} steps of {training.batch_size} rows of {training.sequence_length} "
        f"tokens: {epochs:.1f} epochs."
    )


def _start(config: TextRun, begun: Path | None) -> Loaded | None:
    """The model that --init-from names, as far as the run has not kept it itself."""
    name = config.training.init_from
    if not name or (begun and read_data(begun).get("start")):
        return None
    try:
        return load(Path(name))
    except (ValueError, OSError) as error:
        raise ValueError(f"--init-from: {error}") from error


def _corpus(kind: TextKind, config: TextRun, how: Normalization, tell: Tell) -> Corpus:
    """The three splits."""
    data, folder = config.data, place_for(Path(config.output))
    if not data.train:
        held_out = min(data.held_out, max(data.builtin_texts // 10, 1))
        counts: dict[Split, int] = {"train": data.builtin_texts}
        counts |= {"valid": min(500, held_out), "test": held_out}
        train, valid, test = (kind.builtin(split, count) for split, count in counts.items())
        return Corpus(StoredPairs([train], folder), [*valid], [*test])
    for name in (*data.train, *data.valid, *data.test):
        check_kind(path_of_text(name))

    def read(option: str, names: Sequence[str]) -> Iterator[Pair]:
        paths = map(path_of_text, names)
        pairs = itertools.chain.from_iterable(kind.read(path, config, tell) for path in paths)
        found = False
        for text, told in pairs:
            found = True
            yield kind.normalize(text, how), told
        if names and not found:
            raise ValueError(f"{option}: no text found in {' and '.join(names)}.")

    valid, test = [*read("--valid", data.valid)], [*read("--test", data.test)]
    train = StoredPairs([read("--train", data.train)], folder)
    if len(train) < FEW and not (data.valid and data.test):
        raise ValueError(
            f"--train: only {len(train)} texts found in {' and '.join(data.train)}, too few to "
            f"hold some out. Name files with --valid and --test{kind.hint}."
        )
    return completed(Corpus(train, valid, test), data.held_out, tell)


def _learned(kind: TextKind, config: TextRun, corpus: Corpus) -> Tokenizer:
    return Tokenizer.train(
        (line for text, _ in sample(corpus.train) for line in text.split("\n")),
        config.model.vocab_size,
        character_coverage=config.data.character_coverage,
        normalization=config.data.normalization,
        **kind.tokenizer,
    )


def _first_params(
    kind: TextKind,
    config: TextRun,
    module: Module,
    labels: tuple[str, ...],
    begun: Path | None,
    start: Loaded | None,
) -> Params:
    """The parameters before the first step."""
    if begun and config.training.init_from and not start:
        return read_weights(begun / START, shapes_of(init_of(module)))
    fresh = fresh_params(init_of(module), config.training.seed)
    if start is None:
        return fresh
    check_architecture(start.architecture, module.config)
    if start.task == kind.name and start.labels == labels:
        return start.params
    if TEXT in fresh and TEXT in start.params:
        if config.training.lora:
            raise ValueError(
                f"--lora: the model of --init-from {config.training.init_from} has nothing that "
                "tells these labels, and beside adapters nothing is trained. Train without --lora."
            )
        return dict(fresh) | {TEXT: start.params[TEXT]}
    raise ValueError(
        f"--init-from: {config.training.init_from} is a model of the task {start.task}, of which "
        f"{kind.name} has no use."
    )


def _packed(
    kind: TextKind,
    pairs: StoredPairs,
    tokenizer: Tokenizer,
    labels: tuple[str, ...],
    config: TextRun,
) -> PackedPairs:
    training = config.training
    length = training.sequence_length

    def encode(texts: list[Pair]) -> Tokens:
        return kind.encode(texts, tokenizer, labels, length)

    return PackedPairs(
        encoded(pairs, encode, max(tokenizer.vocab_size, len(labels) + 1)),
        batch_size=training.batch_size,
        sequence_length=length,
        seed=training.seed,
    )
