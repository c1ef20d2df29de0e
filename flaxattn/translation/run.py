"""A run from text to score: prepare, train, translate the test split, score it, keep it all."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from flaxattn.training.continuing import continued
from flaxattn.training.devices import describe_devices, idle_accelerator, keep_memory, split_cpu
from flaxattn.training.home import Home
from flaxattn.training.loop import Trained, train
from flaxattn.training.run_folder import check_folder, opened
from flaxattn.training.schedule import describe, shortfall
from flaxattn.training.screen import Screen
from flaxattn.training.storage.files import SaveError, write_whole
from flaxattn.training.storage.layout import EXPORTED, RESULT, TEST
from flaxattn.training.storage.manifest import sha256, write_sealed
from flaxattn.translation.config import (
    MAX_RATIO,
    DecodingConfig,
    RunConfig,
    at_home,
    config_hash,
    to_json,
)
from flaxattn.translation.decoding.translator import Translator, check_translating
from flaxattn.translation.dry_run import dry_run
from flaxattn.translation.memory import check_training
from flaxattn.translation.preparation import Prepared, prepare
from flaxattn.translation.text.lengths import EXTRA, LONGER, choose_ratio, share_longer
from flaxattn.translation.text.scoring import Score, check_tokenizer, doubt_of_tokenizer, score
from flaxattn.translation.trained.exporting import export
from flaxattn.translation.trained.loading import Loaded

__all__ = ["run"]

SAMPLES = 5  # translations shown at the end


def run(
    config: RunConfig,
    *,
    stop_before_training: bool = False,
    accept_changed_data: bool = False,
    remarks: Sequence[str] = (),
) -> dict[str, Any] | None:
    """Trains and scores as `config` says, and returns the row of results.

    The run's folder then holds `config.json`, `data.json`, `tokenizer.model`, `checkpoints/`,
    `models/`, `log.jsonl`, `speed.jsonl`, `tensorboard/`, the test split as `test.source`,
    `test.reference` and `test.hypothesis`, `result.json`, and `model/`, the exported model. A run
    that was interrupted goes on from its latest whole checkpoint, to the same bytes as one that was
    not; one that has ended goes on if it is given more steps.

    Args:
      stop_before_training: prepare, show what would be trained, compile, write nothing, stop.
      accept_changed_data: take a run further although its data is not what it began with.
      remarks: what there is to say of how `config` came to be.

    Raises:
      ValueError or OSError that says what to change, before any long work; what `train` raises.
    """
    config = at_home(config)
    keep_memory()
    split_cpu(config.training.rows // config.training.microbatches)
    screen = _screen()
    check_tokenizer(config.data.bleu_tokenizer)
    check_training(config)
    config = continued(config)
    if not stop_before_training:
        check_folder(config)
    prepared = prepare(config, None if stop_before_training else Path(config.output), screen.say)
    config = _normalized(config, prepared, screen)
    _describe(prepared, config, remarks, screen)
    config = _limited(config, prepared.train.lengths, screen)
    check_translating(prepared.model, prepared.tokenizer, _sources(prepared), config.decoding)
    if stop_before_training:
        dry_run(prepared, config, screen)
        return None
    with opened(config, prepared, accept_changed_data=accept_changed_data) as home:
        trained = train(prepared, config, home, screen)
        hypotheses = _translate_test(prepared, trained, config.decoding, screen)
        return _finish(config, prepared, trained, hypotheses, home, screen)


def _screen() -> Screen:
    """The screen, on which the devices stand first."""
    screen = Screen()
    screen.headline(f"Device: {describe_devices()}")
    if warning := idle_accelerator():
        screen.warn(warning)
    return screen


def _describe(
    prepared: Prepared, config: RunConfig, remarks: Sequence[str], screen: Screen
) -> None:
    corpus, training = prepared.corpus, config.training
    screen.say(
        f"Sentence pairs: {len(corpus.train)} to train, {len(corpus.valid)} to validate, "
        f"{len(corpus.test)} to test; {prepared.tokenizer.vocab_size} tokens."
    )
    if prepared.train.left_out:
        screen.warn(
            f"{prepared.train.left_out} training pairs are longer than {training.row_length} "
            "tokens and are left out; raise --row-length to keep them."
        )
    if prepared.valid.left_out:
        screen.warn(
            f"{prepared.valid.left_out} validation pairs are longer, too, and are left out of the "
            "validation loss."
        )
    references = [target for _, target in corpus.test]
    if doubt := doubt_of_tokenizer(references, config.data.bleu_tokenizer):
        screen.warn(doubt)
    screen.say(
        f"{training.steps} steps of {training.rows} rows of {training.row_length} tokens: "
        f"{training.steps / prepared.train.batches_per_epoch:.1f} epochs."
    )
    for remark in remarks:
        screen.say(remark)
    screen.say(describe(training))
    if warning := shortfall(training):
        screen.warn(warning)


def _normalized(config: RunConfig, prepared: Prepared, screen: Screen) -> RunConfig:
    """The configuration with the normalisation that the tokenizer has, whoever made it."""
    how = prepared.tokenizer.normalization
    if how != config.data.normalization:
        screen.say(f"Text is normalised as the tokenizer has it: --normalization {how}.")
    return dataclasses.replace(config, data=dataclasses.replace(config.data, normalization=how))


def _limited(config: RunConfig, lengths: np.ndarray, screen: Screen) -> RunConfig:
    """The configuration with the limit of translations chosen, if it is not given.

    Args:
      lengths: of the training pairs, int [n, 2].
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


def _translate_test(
    prepared: Prepared, trained: Trained, decoding: DecodingConfig, screen: Screen
) -> list[str]:
    sources = _sources(prepared)
    screen.say(f"Translating the {len(sources)} sentences of the test split.")
    translator = Translator(prepared.model, trained.params, prepared.tokenizer, decoding)
    with screen.progress("translating", len(sources)) as progress:
        found = translator.translate(sources, progress=progress.advance)
    if cut := sum(best[0].at_limit for best in found):
        screen.warn(
            f"{cut} of {len(found)} test translations ended at the limit of their length: "
            f"--max-ratio {decoding.max_ratio:g}."
        )
    return [best[0].text for best in found]


def _sources(prepared: Prepared) -> list[str]:
    return [source for source, _ in prepared.corpus.test]


def _finish(
    config: RunConfig,
    prepared: Prepared,
    trained: Trained,
    hypotheses: list[str],
    home: Home,
    screen: Screen,
) -> dict[str, Any]:
    """Scores, keeps and shows the translations."""
    folder = home.path if home.is_whole() else home.made_anew({})
    sources, references = (list(side) for side in zip(*prepared.corpus.test, strict=True))
    scores = score(hypotheses, references, tokenizer=config.data.bleu_tokenizer)
    texts = {"source": sources, "reference": references, "hypothesis": hypotheses}
    for side, lines in texts.items():
        write_whole(folder / TEST[side], "".join(f"{line}\n" for line in lines))
    row = _result_row(config, trained, scores)
    files = {name: sha256(folder / name) for name in TEST.values()}
    write_sealed(folder / RESULT, row | {"run": home.run, "files": files})
    loaded = Loaded(prepared.model, trained.params, prepared.tokenizer, config.decoding)
    export(folder / EXPORTED, loaded, run=to_json(config), result=row, name=home.run)
    for i in range(0, len(sources), max(len(sources) // SAMPLES, 1))[:SAMPLES]:
        screen.say(f"\n  source       {sources[i]}")
        screen.say(f"  reference    {references[i]}\n  translation  {hypotheses[i]}")
    screen.headline(", ".join(f"{s.name} {s.value:.2f}" for s in scores))
    for s in scores:
        screen.say(f"{s.name:<8} {s.value:6.2f}  {s.signature}")
    if not home.is_whole():
        raise SaveError(
            f"{home.path} was deleted or moved while the test split was translated. Translations, "
            f"scores and the model are in {folder}; checkpoints and log are not."
        )
    screen.say(f"Trained {trained.seconds:.0f} s. Everything is in {folder}.")
    return row


def _result_row(config: RunConfig, trained: Trained, scores: list[Score]) -> dict[str, Any]:
    return {
        "config": config_hash(config),
        "seed": config.training.seed,
        "parameters": sum(x.size for x in jax.tree.leaves(trained.params)),
        "hardware": describe_devices(),
        "steps": trained.steps,
        "training_seconds": round(trained.seconds, 1),
        "target_tokens_per_second": round(trained.target_tokens / trained.seconds, 1),
        "scores": {s.name: {"value": round(s.value, 2), "signature": s.signature} for s in scores},
    }
