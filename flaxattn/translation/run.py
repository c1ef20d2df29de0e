"""A run from text to score: what is checked and told of sentence pairs before training them."""

import contextlib
import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flaxattn.training.config import at_home
from flaxattn.training.continuing import kept_run
from flaxattn.training.processes import ALONE, Rendezvous
from flaxattn.training.run import run as run_task
from flaxattn.training.screen import Screen
from flaxattn.translation.config import MAX_RATIO, RunConfig
from flaxattn.translation.decoding.translator import check_translating
from flaxattn.translation.memory import check_training
from flaxattn.translation.preparation import Prepared, prepare
from flaxattn.translation.rules import RULES
from flaxattn.translation.task import TranslationTask
from flaxattn.translation.text.lengths import EXTRA, LONGER, choose_ratio, share_longer
from flaxattn.translation.text.scoring import check_tokenizer, doubt_of_tokenizer

__all__ = ["run"]


def run(
    config: RunConfig,
    *,
    rendezvous: Rendezvous = ALONE,
    stop_before_training: bool = False,
    accept_changed_data: bool = False,
    remarks: Sequence[str] = (),
) -> dict[str, Any] | None:
    """Trains and scores as `config` says, and returns the row of results.

    Besides what every run keeps (`flaxattn.training.run.run`) the folder then holds
    `tokenizer.model`, the test split as `test.source`, `test.reference` and `test.hypothesis`, and
    `model/`, the exported model.

    Args:
      rendezvous, stop_before_training, accept_changed_data: as in `flaxattn.training.run.run`.
      remarks: what there is to say of how `config` came to be.

    Raises:
      ValueError or OSError that says what to change, before any long work; what training raises.
    """
    return run_task(
        _with_kept_limit(at_home(config)),
        functools.partial(_task, remarks=remarks, show_data=stop_before_training),
        RULES,
        rendezvous=rendezvous,
        stop_before_training=stop_before_training,
        accept_changed_data=accept_changed_data,
    )


def _task(
    config: RunConfig,
    begun: Path | None,
    screen: Screen,
    *,
    remarks: Sequence[str],
    show_data: bool,
) -> TranslationTask:
    """The task, once all is checked that can be, and told."""
    check_tokenizer(config.data.bleu_tokenizer)
    check_training(config)
    prepared = prepare(config, screen.say, begun)
    config = _normalized(config, prepared, screen)
    _describe(prepared, config, remarks, screen)
    config = _limited(config, prepared.train.lengths, screen)
    sources = [source for source, _ in prepared.corpus.test]
    check_translating(prepared.model, prepared.tokenizer, sources, config.decoding)
    if show_data:
        _show_data(prepared, screen)
    return TranslationTask(config, prepared)


def _describe(
    prepared: Prepared, config: RunConfig, remarks: Sequence[str], screen: Screen
) -> None:
    corpus, training = prepared.corpus, config.training
    screen.say(
        f"Sentence pairs: {len(corpus.train)} to train, {len(corpus.valid)} to validate, "
        f"{len(corpus.test)} to test; {prepared.tokenizer.vocab_size} tokens."
    )
    for name, (pairs, _) in prepared.others.items():
        screen.say(f"Of {name} {len(pairs)} more to validate.")
    if prepared.train.left_out:
        screen.warn(
            f"{prepared.train.left_out} training pairs are longer than {training.sequence_length} "
            "tokens and are left out; raise --sequence-length to keep them."
        )
    if prepared.valid.left_out:
        screen.warn(
            f"{prepared.valid.left_out} validation pairs are longer, too, and are left out of the "
            "validation loss."
        )
    references = [target for _, target in corpus.test]
    if doubt := doubt_of_tokenizer(references, config.data.bleu_tokenizer):
        screen.warn(doubt)
    epochs = " and ".join(f"{n:.1f}" for n in prepared.train.epochs(training.steps))
    screen.say(
        f"{training.steps} steps of {training.batch_size} rows of {training.sequence_length} "
        f"tokens: {epochs} epochs."
    )
    for remark in remarks:
        screen.say(remark)


def _show_data(prepared: Prepared, screen: Screen) -> None:
    """A sample, as the model reads it."""
    screen.headline("Data")
    for pair in prepared.corpus.train[:3]:
        for side, ids in zip(("source", "target"), prepared.tokenizer.encode(pair), strict=True):
            screen.say(f"  {side}  {' '.join(prepared.tokenizer.pieces(ids.tolist()))}")
    batch = prepared.train.batch(0)
    for name, array in batch._asdict().items():
        screen.say(f"  batch.{name:<18} {array.dtype} {list(array.shape)}")
    share = float((batch.target_segment_ids != 0).mean())
    screen.say(f"  share of target cells that are tokens: {share:.1%}")


def _normalized(config: RunConfig, prepared: Prepared, screen: Screen) -> RunConfig:
    """The configuration with the normalisation that the tokenizer has, whoever made it."""
    how = prepared.tokenizer.normalization
    if how != config.data.normalization:
        screen.say(f"Text is normalised as the tokenizer has it: --normalization {how}.")
    return dataclasses.replace(config, data=dataclasses.replace(config.data, normalization=how))


def _with_kept_limit(config: RunConfig) -> RunConfig:
    """The configuration with the limit of translations that was chosen when the run began."""
    with contextlib.suppress(ValueError, OSError):  # told of when the folder is checked
        kept = kept_run(Path(config.output), RULES)
        if kept is not None and config.decoding.max_ratio is None:
            ratio = kept.config.decoding.max_ratio
            decoding = dataclasses.replace(config.decoding, max_ratio=ratio)
            return dataclasses.replace(config, decoding=decoding)
    return config


def _limited(
    config: RunConfig, lengths: Mapping[tuple[int, int], int], screen: Screen
) -> RunConfig:
    """The configuration with the limit of translations chosen, if it is not given.

    Args:
      lengths: how often a training pair has so many tokens on either side.
    """
    decoding = config.decoding
    if decoding.max_ratio is None:
        decoding = dataclasses.replace(decoding, max_ratio=choose_ratio(lengths))
        if decoding.max_ratio != MAX_RATIO:
            screen.say(
                f"Translations may have {decoding.max_ratio:g} tokens for each of the source, and "
                f"{EXTRA} more, since the training targets are that long: --max-ratio."
            )
        return dataclasses.replace(config, decoding=decoding)
    if (share := share_longer(lengths, decoding.max_ratio)) > LONGER:
        screen.warn(
            f"{share:.1%} of the training targets are longer than translations may be: "
            f"{decoding.max_ratio:g} tokens for each of the source, and {EXTRA} more. Without "
            "--max-ratio it is chosen to fit them."
        )
    return config
