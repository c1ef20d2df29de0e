"""What a person asks of training on the command line: a preset, its fields, and how to run it."""

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Generic

from flaxattn.ranges import Range, check_fields
from flaxattn.training.command_line import given, parsed
from flaxattn.training.config import Config, at_home
from flaxattn.training.ending import EXIT_CODES
from flaxattn.training.processes import Rendezvous

__all__ = ["Asked", "HowToRun", "asked"]

AFTER_HELP = """Presets: {presets}. The options below show the values of preset "{preset}".
A run that was interrupted goes on when the same command is given again; one that has ended, when it
is given more --steps. With --init-from another run starts from its model.

Ctrl-C or SIGTERM ends training after the current step, with a checkpoint; a second one at once, if
it comes a second or more after the first.
{exit_codes}
"""


@dataclasses.dataclass(frozen=True)
class HowToRun:
    """What is said of a run besides its settings."""

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

    def options(self) -> dict[str, Any]:
        """The arguments of `flaxattn.training.run.run`."""
        return {
            "stop_before_training": self.dry_run,
            "accept_changed_data": self.accept_changed_data,
            "rendezvous": Rendezvous(self.coordinator, self.processes, self.process),
        }


@dataclasses.dataclass(frozen=True)
class Asked(Generic[Config]):
    """What was asked.

    Attributes:
      config: the preset with what was given.
      preset: it alone.
      given: the names of the fields that were given.
    """

    config: Config
    preset: Config
    given: frozenset[str]
    how: HowToRun


def asked(
    presets: Mapping[str, Config],
    words: Sequence[str],
    *,
    prog: str,
    about: str,
    others: Sequence[str] = (),
) -> Asked[Config]:
    """What the words say: the name of a preset, or none for the first, and options.

    Args:
      about: the beginning of the help, with `{prog}` in it.
      others: what else might have been meant in the place of a preset.

    Raises:
      ValueError that names the word or option at fault; SystemExit for help.
    """
    words = list(words)
    name = _take_preset(words, list(presets), others)
    preset = presets[name]
    told = {"prog": prog, "presets": ", ".join(presets), "preset": name, "exit_codes": EXIT_CODES}
    fields: list[Any] = [("config", type(preset)), ("how", HowToRun, HowToRun())]
    kind: Any = dataclasses.make_dataclass("Command", fields, frozen=True)
    kind.__doc__ = "What the command line gives."
    command = parsed(
        kind,
        words,
        prog=prog,
        description=f"{about}\n{AFTER_HELP}".format(**told),
        default=kind(preset),
    )
    return Asked(at_home(command.config), preset, given(words), command.how)


def _take_preset(words: list[str], names: list[str], others: Sequence[str]) -> str:
    if not words or words[0].startswith("-"):
        return names[0]
    name = words.pop(0)
    if name not in names:
        near = difflib.get_close_matches(name, [*names, *others], 1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"no preset is called {name!r}; there are {', '.join(names)}.{hint}")
    return name
