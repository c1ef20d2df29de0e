"""The person's screen: lines and progress, on streams whose failures end nothing."""

import contextlib
import io
import os
import sys
import unicodedata
import warnings
from collections.abc import Callable, Iterator
from typing import TextIO

import rich.console
import rich.progress
import rich.text

__all__ = [
    "Progress",
    "Screen",
    "SturdyStream",
    "Tell",
    "duration",
    "printable",
    "sturdy_streams",
    "warnings_told",
]

Tell = Callable[[str], None]
"""What readers are given for what a person should know of their files: `Screen.say`, say."""


class Screen:
    """Lines for a person, and a progress bar where there is a terminal.

    What is said may be text of any origin: control characters in it are shown, not sent.

    Args:
      error: speak on standard error, where standard output is for what was asked for.
      speaker: the name before every line, where others may speak there, too.
      silent: say nothing, where another process says it.
    """

    def __init__(self, *, error: bool = False, speaker: str = "", silent: bool = False) -> None:
        self._start = f"{speaker}: " if speaker else ""
        self._console = rich.console.Console(
            stderr=error, soft_wrap=True, highlight=False, markup=False, emoji=False, quiet=silent
        )

    @property
    def is_terminal(self) -> bool:
        """Whether a person is looking, rather than a file."""
        return self._console.is_terminal

    def say(self, text: str) -> None:
        """Lines of text, above the progress bar if there is one."""
        self._console.print(self._start + printable(text))

    def headline(self, text: str) -> None:
        """A line that stands out."""
        text = printable(text)
        if self.is_terminal and len(text) + 4 <= self._console.width:  # a rule would cut it off
            self._console.rule(rich.text.Text(text, style="bold"))
        else:
            self.say(f"== {text} ==")

    def warn(self, text: str) -> None:
        """A line that warns."""
        word = rich.text.Text("Warning:", style="bold yellow")
        self._console.print(rich.text.Text(self._start) + word, printable(text))

    @contextlib.contextmanager
    def progress(self, task: str, total: int, done: int = 0) -> Iterator["Progress"]:
        """A bar for `total` units of work, of which `done` are done already."""
        columns = (
            rich.progress.TextColumn("{task.description}"),
            rich.progress.BarColumn(),
            rich.progress.MofNCompleteColumn(),
            rich.progress.TimeElapsedColumn(),
            rich.progress.TimeRemainingColumn(),
            rich.progress.TextColumn("{task.fields[status]}"),
        )
        with rich.progress.Progress(
            *columns, console=self._console, disable=not self.is_terminal
        ) as bar:
            handle = bar.add_task(task, total=total, completed=done, status="")
            yield Progress(self, bar, handle)


@contextlib.contextmanager
def warnings_told(screen: Screen) -> Iterator[None]:
    """While the block runs, what Python warns of is told on the screen, as all else is."""
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: screen.warn(str(message))
        yield


class Progress:
    """How far one piece of work is: a bar on a terminal, plain lines elsewhere."""

    def __init__(
        self, screen: Screen, bar: rich.progress.Progress, handle: rich.progress.TaskID
    ) -> None:
        self._screen, self._bar, self._handle = screen, bar, handle

    def advance(self, count: int = 1) -> None:
        """`count` more units are done."""
        self._bar.advance(self._handle, count)

    def show(self, done: int, status: str, remaining: str = "") -> None:
        """What there is to say after `done` units; a bar tells the time remaining by itself."""
        if self._screen.is_terminal:
            self._bar.update(self._handle, status=printable(status))
        else:
            self._screen.say("  ".join(filter(None, (f"step {done:>6}", status, remaining))))


def duration(seconds: float) -> str:
    """A time in words, no finer than one plans by.

    >>> duration(42), duration(150), duration(4000)
    ('42 s', '2 min', '1 h 07 min')
    """
    minutes = round(seconds / 60)
    if minutes < 2:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"


def printable(text: str) -> str:
    r"""`text` with an escape for each character that would steer a terminal, but for line breaks.

    Those are control characters, and format characters that turn the direction of what follows.

    >>> printable("red: \x1b[31m\tand a tab\n")
    'red: \\x1b[31m and a tab\n'
    """
    return "".join(map(_shown, text))


def _shown(character: str) -> str:
    if character.isprintable() or character == "\n":
        return character
    if character == "\t":
        return " "
    category = unicodedata.category(character)
    steers = category in ("Cc", "Cs", "Zl", "Zp") or (category == "Cf" and _turns(character))
    return character.encode("unicode_escape").decode() if steers else character


def _turns(character: str) -> bool:
    """Whether a format character changes the direction of text (Unicode Annex 9)."""
    return "\u202a" <= character <= "\u202e" or "\u2066" <= character <= "\u2069"


@contextlib.contextmanager
def sturdy_streams(*, output: bool) -> Iterator[None]:
    """While the block runs, standard error, and output if asked for, take anything, or lose it.

    A screen that is full, closed or gone ends nothing, and is never taken for the disk of a run.
    Streams that were closed before the process began are opened to nowhere, so that no file takes
    their number and is written to as if it were the screen.

    Args:
      output: whether standard output is for a person too, not for what was asked for.
    """
    for number in range(3):
        # What was asked for must not be lost in silence: there writing fails.
        _open_if_closed(number, os.O_RDONLY if number == 1 and not output else os.O_RDWR)
    former = sys.stdin, sys.stdout, sys.stderr
    sys.stdin, sys.stdout, sys.stderr = (
        _reopened(stream, number) for number, stream in enumerate(former)
    )
    if output:
        sys.stdout = SturdyStream(sys.stdout)
    sys.stderr = SturdyStream(sys.stderr)
    try:
        yield
    finally:
        for number, stream in ((1, sys.stdout), (2, sys.stderr)):
            _settle(stream, number)
        sys.stdin, sys.stdout, sys.stderr = former


class SturdyStream(io.TextIOBase):
    """A text stream that never fails: what cannot be written is lost, or escaped.

    >>> broken = io.StringIO()
    >>> broken.close()
    >>> SturdyStream(broken).write("lost")
    4
    """

    def __init__(self, stream: TextIO) -> None:
        self.beneath = stream

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return getattr(self.beneath, "encoding", None) or "utf-8"

    def write(self, text: str) -> int:
        encoded = text.encode(self.encoding, "backslashreplace")
        with contextlib.suppress(OSError, ValueError):
            self.beneath.write(encoded.decode(self.encoding))
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self.beneath.flush()

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        try:
            return self.beneath.isatty()
        except ValueError:  # closed
            return False

    def fileno(self) -> int:
        return self.beneath.fileno()


def _open_if_closed(number: int, flags: int) -> None:
    try:
        os.fstat(number)
    except OSError:
        os.open(os.devnull, flags)  # takes the lowest number that is free: this one


def _reopened(stream: TextIO | None, number: int) -> TextIO:
    """The stream; one that Python has not, since it was closed, holds nothing, or goes nowhere."""
    return stream or open(number, "w" if number else "r", encoding="utf-8", closefd=False)


def _settle(stream: TextIO | SturdyStream, number: int) -> None:
    """Flushes; what cannot be, is sent nowhere, lest Python fail of it while it ends."""
    beneath = stream.beneath if isinstance(stream, SturdyStream) else stream
    try:
        beneath.flush()
    except (OSError, ValueError):
        with contextlib.suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, number)
            os.close(nowhere)
