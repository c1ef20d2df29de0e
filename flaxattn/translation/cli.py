"""The command line: a preset, every field of which can be changed."""

import dataclasses
import difflib
import sys
from collections.abc import Mapping, Sequence
from typing import Annotated

from flaxattn.ranges import Range, check_fields
from flaxattn.text.arguments import check_words
from flaxattn.training.command_line import given, parsed
from flaxattn.training.config import at_home
from flaxattn.training.ending import EXIT_CODES, exit_code
from flaxattn.training.processes import Rendezvous
from flaxattn.training.screen import Screen, sturdy_streams, warnings_told
from flaxattn.translation.config import RunConfig, check_sampling
from flaxattn.translation.options import completed
from flaxattn.translation.run import run

__all__ = ["Command", "main"]

HELP = """Trains a translator from sentence pairs, scores it, and keeps everything in a folder.

usage: {prog} [PRESET] [OPTIONS]

  {prog}                                        the built-in English-German corpus
  {prog} small --train my.en my.de              your own two aligned files
  {prog} small --train my.tsv --test a.en a.de  a TSV file, and a test set of your own
  {prog} multi30k --data-dir ~/multi30k         a preset and the folder its files are in
  {prog} small --train my.tsv --steps 500       fewer steps; what counts steps scales with them
  {prog} small --train my.tsv --dry-run         show what would be done, and stop
  {prog} --coordinator host:1234 --processes 2 --process 0    one of two that train together

Presets: {presets}. The options below show the values of preset "{preset}".
A run that was interrupted goes on when the same command is given again; one that has ended, when it
is given more --steps. With --init-from another run starts from its model.

Ctrl-C or SIGTERM ends training after the current step, with a checkpoint; a second one at once, if
it comes a second or more after the first.
{exit_codes}
"""


def main(
    presets: Mapping[str, RunConfig],
    arguments: Sequence[str] | None = None,
    *,
    prog: str = "train.py",
) -> int:
    """Runs what the command line says; returns the exit code.

    Args:
      presets: by name; the first is the default.
      arguments: default: those of the process.
      prog: what the command is called.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    with sturdy_streams(output=True), warnings_told(Screen()):
        return exit_code(lambda: _train(presets, words, prog), debug="--debug" in words)


def _train(presets: Mapping[str, RunConfig], words: list[str], prog: str) -> None:
    check_words(words)
    name = _take_preset(words, list(presets))
    command = _parse(name, presets, words, prog)
    check_sampling(command.config.decoding, presets[name].decoding)
    config, remarks = completed(at_home(command.config), presets[name], given(words))
    run(
        config,
        remarks=remarks,
        stop_before_training=command.dry_run,
        accept_changed_data=command.accept_changed_data,
        rendezvous=Rendezvous(command.coordinator, command.processes, command.process),
    )


def _take_preset(words: list[str], names: list[str]) -> str:
    if not words or words[0].startswith("-"):
        return names[0]
    name = words.pop(0)
    if name not in names:
        near = difflib.get_close_matches(name, names, 1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"no preset is called {name!r}; there are {', '.join(names)}.{hint}")
    return name


@dataclasses.dataclass(frozen=True)
class Command:
    """What the command line gives."""

    config: RunConfig
    dry_run: bool = False
    """Show shapes, parameters and a sample of the data, compile, and stop."""
    accept_changed_data: bool = False
    """Take a run further although its data is not what it began with."""
    coordinator: str = ""
    """Host and port of process 0, where several processes train together, each started with this
    command; with Slurm or on a TPU pod nothing need be given."""
    processes: Annotated[int, Range(0, 100_000)] = 0
    """How many processes there are."""
    process: Annotated[int, Range(-1, 99_999)] = -1
    """The number of this one, from 0."""
    debug: bool = False
    """Show the whole traceback of an error."""

    def __post_init__(self) -> None:
        check_fields(self)


def _parse(name: str, presets: Mapping[str, RunConfig], words: list[str], prog: str) -> Command:
    told = {"prog": prog, "presets": ", ".join(presets), "preset": name, "exit_codes": EXIT_CODES}
    return parsed(
        Command,
        words,
        prog=prog,
        description=HELP.format(**told),
        default=Command(presets[name]),
    )
