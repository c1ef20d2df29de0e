"""The command line: a preset, every field of which can be changed."""

import sys
from collections.abc import Mapping, Sequence

from flaxattn.text.arguments import check_words
from flaxattn.training.asking import asked
from flaxattn.training.ending import exit_code
from flaxattn.training.screen import Screen, sturdy_streams, warnings_told
from flaxattn.translation.config import RunConfig, check_sampling
from flaxattn.translation.options import completed
from flaxattn.translation.run import run

__all__ = ["main"]

ABOUT = """Trains a translator from sentence pairs, scores it, and keeps everything in a folder.

usage: {prog} [PRESET] [OPTIONS]

  {prog}                                        the built-in English-German corpus
  {prog} small --train my.en my.de              your own two aligned files
  {prog} small --train my.tsv --test a.en a.de  a TSV file, and a test set of your own
  {prog} multi30k --data-dir ~/multi30k         a preset and the folder its files are in
  {prog} small --train my.tsv --steps 500       fewer steps; what counts steps scales with them
  {prog} small --train my.tsv --dry-run         show what would be done, and stop
  {prog} --coordinator host:1234 --processes 2 --process 0    one of two that train together
"""


def main(
    presets: Mapping[str, RunConfig],
    arguments: Sequence[str] | None = None,
    *,
    prog: str = "train.py",
    tasks: Sequence[str] = (),
) -> int:
    """Runs what the command line says; returns the exit code.

    Args:
      presets: by name; the first is the default.
      arguments: default: those of the process.
      prog: what the command is called.
      tasks: the names of others that it knows.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    with sturdy_streams(output=True), warnings_told(Screen()):
        return exit_code(lambda: _train(presets, words, prog, tasks), debug="--debug" in words)


def _train(
    presets: Mapping[str, RunConfig], words: list[str], prog: str, tasks: Sequence[str]
) -> None:
    check_words(words)
    command = asked(presets, words, prog=prog, about=ABOUT, others=tasks)
    check_sampling(command.config.decoding, command.preset.decoding)
    config, remarks = completed(command.config, command.preset, command.given)
    run(config, remarks=remarks, **command.how.options())
