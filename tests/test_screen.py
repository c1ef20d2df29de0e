"""What a person is told, on screens that fail and with text that would steer them."""

import io
import subprocess
import sys

import pytest

from flaxattn.__main__ import main
from flaxattn.training.ending import exit_code
from flaxattn.training.interruption import InterruptedRun
from flaxattn.training.metrics import DivergedError
from flaxattn.training.screen import Screen, SturdyStream, duration, printable, sturdy_streams
from flaxattn.training.storage.files import SaveError

SPEAK = """
import sys
from flaxattn.training.screen import Screen, sturdy_streams
with sturdy_streams(output=True):
    screen = Screen()
    screen.headline("Device: Žižkov ×")
    screen.warn("→ ▁a" * 2000)
    with screen.progress("training", 3) as progress:
        progress.show(1, "loss 1")
        progress.advance()
    print("done", file=sys.stderr)
    assert not sys.stdin.read()
    with open(sys.argv[1], "w") as file:  # takes the lowest number that is free
        file.write("kept")
        print("on the screen")
"""


@pytest.mark.thorough(quick=1)
@pytest.mark.parametrize(
    "screen",
    [">/dev/full", ">/dev/full 2>/dev/full", ">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-", "| true"],
)
def test_a_screen_that_fails_ends_nothing_and_is_no_file_of_ours(screen, tmp_path):
    command = f'set -o pipefail; "$0" -c "$1" "$2" {screen}'
    words = ["bash", "-c", command, sys.executable, SPEAK, tmp_path / "file"]
    ended = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "file").read_text() == "kept"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_what_an_encoding_has_not_is_escaped(encoding):
    written = io.BytesIO()
    stream = SturdyStream(io.TextIOWrapper(written, encoding=encoding))
    stream.write("é → ▁a")
    stream.flush()
    expected = {"ascii": "\\xe9 \\u2192", "latin-1": "é \\u2192", "utf-8": "é → ▁a"}[encoding]
    assert written.getvalue().decode(encoding).startswith(expected)


STEERING = [*map(chr, range(32)), "\x7f", "\x9b", "\u202e", "\u2066", "\u2028", "\ud800"]


def test_no_character_of_text_steers_a_terminal(capsys):
    steering = "".join(c for c in STEERING if c != "\n")
    screen = Screen()
    screen.say(steering)
    screen.warn(steering)
    screen.headline(steering)
    code = exit_code(lambda: (_ for _ in ()).throw(ValueError(steering)))
    told = "".join(capsys.readouterr())
    assert code == 2 and not set(told) & set(steering)
    assert told.count("\\x1b") == 4


@pytest.mark.parametrize("text", ["Žluťoučký → kůň", "语言 ▁a", "a\nb", "👩\u200d🔬", "שלום"])
def test_other_text_is_shown_as_it_is(text):
    assert printable(text) == text


def test_a_headline_is_whole_on_a_narrow_terminal(monkeypatch):
    shown = io.StringIO()
    shown.isatty = lambda: True
    monkeypatch.setattr(sys, "stdout", shown)
    monkeypatch.setenv("COLUMNS", "20")
    monkeypatch.setenv("TERM", "xterm")
    Screen().headline("Device: a processor of a long name")
    assert "Device: a processor of a long name" in shown.getvalue()


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InterruptedRun(7), 75),
        (KeyboardInterrupt(), 130),
        (BrokenPipeError(), 141),
        (DivergedError("no"), 1),
        (SaveError("no"), 1),
        (OSError(28, "No space left on device"), 1),
        (OSError("no folder"), 2),
        (ValueError("no"), 2),
    ],
    ids=repr,
)
def test_every_end_has_its_code(error, code, capsys):
    def command():
        raise error

    assert exit_code(command) == code
    assert capsys.readouterr().err.count("\n") == (code != 141)


@pytest.mark.thorough
def test_output_that_was_asked_for_is_not_lost_in_silence(tmp_path):
    for name in "ab":
        (tmp_path / name).write_text("A house .\n")
    for screen, told in ((">/dev/full", "No space left on device"), (">&-", "Bad file descriptor")):
        command = f'"$0" -m flaxattn score a b {screen}'
        words = ["bash", "-c", command, sys.executable]
        ended = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert ended.returncode == 1 and ended.stderr.endswith(f"{told}\n")


def test_streams_are_the_former_ones_afterwards():
    former = sys.stdout, sys.stderr
    with sturdy_streams(output=True):
        assert (sys.stdout, sys.stderr) != former
    assert (sys.stdout, sys.stderr) == former
    assert main(["score"]) == 2
    assert (sys.stdout, sys.stderr) == former


def test_durations_are_no_finer_than_one_plans_by():
    assert [*map(duration, (0.4, 59, 89, 121, 3570, 3600, 90_000))] == [
        *("0 s", "59 s", "89 s", "2 min", "1 h 00 min", "1 h 00 min", "25 h 00 min")
    ]
