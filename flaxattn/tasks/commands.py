"""What one does with the model of a task on the command line: let it write."""

import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from flaxattn.tasks.config import SamplingConfig
from flaxattn.training.screen import Screen, printable

if TYPE_CHECKING:
    from flaxattn.tasks.storing import Loaded

__all__ = ["Generate"]

SCREEN = Screen(error=True, speaker="flaxattn")  # since standard output has what was asked for


@dataclasses.dataclass(frozen=True)
class Generate:
    """Goes on with a text, token by token as a language model writes it.

    $ flaxattn generate runs/language "The old"
    $ flaxattn generate runs/language "The old" --temperature 0.7 --top-p 0.9
    $ echo "The old" | flaxattn generate runs/language
    """

    folder: tyro.conf.Positional[Path]
    """The folder of a run of the task language, or of its exported model."""
    text: tyro.conf.Positional[str | None] = None
    """The beginning. None: standard input, each line a beginning of its own."""
    sampling: Annotated[SamplingConfig, tyro.conf.arg(name="")] = SamplingConfig()

    def run(self) -> None:
        """Writes the beginning and what follows it."""
        loaded = loaded_for("language", self.folder)
        from flaxattn.tasks.generating import generate

        texts = [self.text] if self.text is not None else (line.rstrip("\n") for line in sys.stdin)
        show = printable if sys.stdout.isatty() else str
        for text in texts:
            sys.stdout.write(show(text))
            for piece in generate(loaded, text, self.sampling):
                sys.stdout.write(show(piece))
                sys.stdout.flush()
            sys.stdout.write("\n")


def loaded_for(task: str, folder: Path) -> "Loaded":
    """The model of a task in a folder.

    Raises:
      ValueError or FileNotFoundError if there is none, it is damaged, or of another task.
    """
    SCREEN.say(f"loading {folder}")
    from flaxattn.memory import keep_freed_memory
    from flaxattn.tasks.storing import load  # so late that help and errors come at once
    from flaxattn.training.devices import describe_devices

    keep_freed_memory()
    loaded = load(folder)
    if loaded.task != task:
        raise ValueError(f"{folder}: its model is of the task {loaded.task}; expected {task}.")
    SCREEN.say(f"on {describe_devices()}; the first text is compiled for")
    return loaded
