"""`flaxattn train TASK`: the command line of training for each task."""

import dataclasses
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from flaxattn.tasks import classification, denoising, labelling, language, spans
from flaxattn.tasks.config import TextRun
from flaxattn.tasks.rules import RULES
from flaxattn.tasks.storing import architecture
from flaxattn.text.arguments import check_words
from flaxattn.training.architecture import started
from flaxattn.training.asking import Asked, asked
from flaxattn.training.counts import fitted
from flaxattn.training.ending import exit_code
from flaxattn.training.run import run
from flaxattn.training.screen import Screen, sturdy_streams, warnings_told
from flaxattn.training.task import Task

__all__ = ["TASKS", "main"]

Prepare = Callable[[TextRun, Path | None, Screen], Task]


class Known(NamedTuple):
    """A task that can be trained."""

    prepare: Prepare
    about: str
    """Its help, less what all have in common."""


LANGUAGE = """Trains a language model on plain text: each token is told by those before it.

usage: {prog} [PRESET] [OPTIONS]

  {prog}                               the built-in grammar, whose entropy is known
  {prog} small --train my.txt          your own text, paragraphs as documents
  {prog} small --train *.txt --documents files --window 64
"""

LABELLING = """Trains a model that tags the words of sentences, e.g. names of persons and places.

usage: {prog} [PRESET] [OPTIONS]

  {prog}                                 the built-in sentences
  {prog} --train my.conll                your own: a word and its tag in each line
  {prog} --init-from runs/denoising      start from a model that has read much text
"""

CLASSIFICATION = """Trains a model that gives texts one of several labels.

usage: {prog} [PRESET] [OPTIONS]

  {prog}                                 the built-in texts
  {prog} --train my.tsv                  your own: a label, a tab and a text in each line
  {prog} --init-from runs/denoising      start from a model that has read much text
"""

DENOISING = """Trains a model that tells hidden tokens, from which other tasks can start.

usage: {prog} [PRESET] [OPTIONS]

  {prog}                                 the built-in texts
  {prog} --train my.txt                  your own text, paragraphs as documents
  {prog} spans --train my.txt            an encoder-decoder, from which translation can start
"""

TASKS = {
    "denoising": Known(denoising.prepared_task, DENOISING),
    "spans": Known(spans.prepared_task, DENOISING),
    "language": Known(language.prepared_task, LANGUAGE),
    "labelling": Known(labelling.prepared_task, LABELLING),
    "classification": Known(classification.prepared_task, CLASSIFICATION),
}


def main(
    task: str,
    presets: Mapping[str, TextRun],
    arguments: Sequence[str] | None = None,
    *,
    prog: str | None = None,
) -> int:
    """Trains as the command line says; returns the exit code.

    Args:
      presets: of the task, by name; the first is the default.
      arguments: default: those of the process.
      prog: what the command is called.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    prog = prog or f"flaxattn train {task}"
    with sturdy_streams(output=True), warnings_told(Screen()):
        return exit_code(lambda: _train(task, presets, words, prog), debug="--debug" in words)


def _train(task: str, presets: Mapping[str, TextRun], words: list[str], prog: str) -> None:
    check_words(words)
    command = asked(presets, words, prog=prog, about=TASKS[task].about)
    task = command.preset.task  # of an encoder-decoder it is another
    config, remarks = _completed(task, command)

    def prepare(config: TextRun, begun: Path | None, screen: Screen) -> Task:
        for remark in remarks:
            screen.say(remark)
        return TASKS[task].prepare(config, begun, screen)

    run(config, prepare, RULES[task], **command.how.options())


def _completed(task: str, command: Asked[TextRun]) -> tuple[TextRun, list[str]]:
    """The configuration in which what was not given fits what was."""
    config, remarks, kept = fitted(command.config, command.preset, command.given, RULES[task])
    start = config.training.init_from
    if not start:
        return config, remarks
    known = kept.config.model if kept else None
    model = started(config.model, architecture, start, kept=known, given=command.given)
    return dataclasses.replace(config, model=model), remarks
