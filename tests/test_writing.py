"""What commands write: whole or not at all, never over what they read, nowhere but where asked."""

import errno
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from run_cases import contents, decode_to, own_pairs, tiny, write_pairs

import flaxattn.translation.trained.exporting as exporting
from flaxattn.__main__ import main
from flaxattn.text.tokenizer import Tokenizer
from flaxattn.training.storage.files import SaveError, beside, replacing, write_whole
from flaxattn.translation.decoding import explaining, explanation
from flaxattn.translation.decoding.translator import Translator
from flaxattn.translation.trained.stablehlo import Programs

KEPT = Path(__file__).parent / "kept" / "1"

# ---- One file --------------------------------------------------------------------------------

LONG = "ü" * 127 + "x"  # 255 bytes, as long as names can be


@pytest.mark.parametrize("name", ["file", LONG, "y" * 255, "z" * 250])
def test_a_file_of_any_name_is_written_and_nothing_is_left_beside_it(tmp_path, name):
    for content in (b"old", b"new"):
        write_whole(tmp_path / name, content)
        assert contents(tmp_path) == {Path(name): content}


def test_names_beside_are_as_different_as_the_names(tmp_path):
    names = ["a", "b", LONG, "ü" * 127 + "y", "y" * 255, "y" * 254]
    found = [beside(tmp_path / name) for name in names]
    assert len(set(found)) == len(names)
    assert all(len(os.fsencode(path.name)) <= 255 for path in found)
    assert found[0].name == "a.partial"


@pytest.mark.parametrize("mode", [0o600, 0o644, 0o660, 0o755])
def test_a_file_keeps_its_mode(tmp_path, mode):
    (tmp_path / "file").touch()
    (tmp_path / "file").chmod(mode)
    write_whole(tmp_path / "file", "new")
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == mode


def test_a_new_file_has_the_mode_of_any_new_file(tmp_path):
    (tmp_path / "other").touch()
    write_whole(tmp_path / "file", "new")
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "other").stat().st_mode


@pytest.mark.parametrize("there", [True, False], ids=["a file", "nothing"])
@pytest.mark.parametrize("links", [1, 3])
def test_links_stay_and_what_they_lead_to_is_written(tmp_path, there, links):
    (tmp_path / "far").mkdir()
    target = tmp_path / "far" / "file"
    if there:
        target.write_text("old")
    (tmp_path / "link0").symlink_to(Path("far") / "file")
    for i in range(1, links):
        (tmp_path / f"link{i}").symlink_to(f"link{i - 1}")
    write_whole(tmp_path / f"link{links - 1}", "new")
    assert target.read_text() == "new" and (tmp_path / "link0").is_symlink()
    assert [path.name for path in target.parent.iterdir()] == ["file"]


def test_links_in_a_circle_are_refused(tmp_path):
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(OSError, match="links"):
        write_whole(tmp_path / "a", "new")


@pytest.mark.parametrize("plant", [Path.symlink_to, Path.hardlink_to])
def test_a_link_planted_beside_is_not_written_through(tmp_path, plant):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    plant(beside(tmp_path / "file"), victim)
    write_whole(tmp_path / "file", "new")
    assert contents(tmp_path) == {Path("victim"): b"precious", Path("file"): b"new"}
    assert not (tmp_path / "file").is_symlink()


def test_two_that_write_the_same_file_are_told(tmp_path):
    with replacing(tmp_path / "file") as one:
        one.write(b"one")
        with pytest.raises(OSError, match="another process"), replacing(tmp_path / "file"):
            pass
    assert contents(tmp_path) == {Path("file"): b"one"}


def test_what_a_killed_process_left_is_no_obstacle(tmp_path):
    beside(tmp_path / "file").write_text("half")
    write_whole(tmp_path / "file", "new")
    assert contents(tmp_path) == {Path("file"): b"new"}


@pytest.mark.parametrize("written", [b"", b"half"])
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, OSError])
def test_where_a_block_fails_the_old_file_stays_and_what_was_written_is_told(
    tmp_path, written, error
):
    (tmp_path / "file").write_bytes(b"old")
    told = []
    for kept in (None, told.append):
        with pytest.raises(error), replacing(tmp_path / "file", kept) as file:
            file.write(written)
            raise error
        assert (tmp_path / "file").read_bytes() == b"old"
    partial = beside(tmp_path / "file")
    assert told == ([partial] if written else [])
    assert (partial.read_bytes() if written else b"") == written
    assert partial.exists() == bool(written)


@pytest.mark.parametrize("kind", [errno.ENOSPC, errno.EDQUOT])
def test_no_room_is_told_by_the_name_of_the_file(tmp_path, kind):
    with pytest.raises(SaveError, match=rf"file: could not.*{os.strerror(kind)}"):
        with replacing(tmp_path / "file"):
            raise OSError(kind, os.strerror(kind))


def test_a_device_without_room_is_told(tmp_path):
    with pytest.raises(SaveError, match="/dev/full: could not be written: No space"):
        write_whole(Path("/dev/full"), "new")


def test_pipes_and_devices_are_written_straight(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    found = []
    reader = threading.Thread(target=lambda: found.append((tmp_path / "pipe").read_bytes()))
    reader.start()
    write_whole(tmp_path / "pipe", "new")
    reader.join(10)
    write_whole(Path("/dev/null"), "new")
    assert found == [b"new"] and [path.name for path in tmp_path.iterdir()] == ["pipe"]


@pytest.mark.thorough(quick=1)
@pytest.mark.parametrize("path", ["/dev/stdout", "/proc/self/fd/1", "link"])
def test_standard_output_by_name_is_that_of_the_process(tmp_path, path):
    (tmp_path / "link").symlink_to("/dev/stdout")
    code = (
        "from pathlib import Path; import sys; from flaxattn.training.storage import files;"
        "files.write_whole(Path(sys.argv[1]), 'new')"
    )
    (tmp_path / "log").write_text("before ")
    with (tmp_path / "log").open("a") as log:  # as in a shell: >> log
        subprocess.run([sys.executable, "-c", code, path], stdout=log, cwd=tmp_path, check=True)
    assert (tmp_path / "log").read_text() == "before new"


def test_what_may_not_be_written_is_refused_before_anything_is_done(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setattr(os, "access", lambda *_: False)
    for path in ("file", ".", "nowhere/file"):
        with pytest.raises(OSError), replacing(tmp_path / path):
            raise AssertionError("too late")


# ---- Every command ---------------------------------------------------------------------------


@pytest.fixture
def texts(tmp_path, monkeypatch):
    """The place of the commands, with a file of texts and one whose last line is bad."""
    decode_to(monkeypatch, [5, 6, Tokenizer.eos_id])
    monkeypatch.setattr(exporting, "programs", lambda *_: Programs(b"encode", b"decode"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "good.en").write_text("the dog\nthe cat\n")
    (tmp_path / "bad.en").write_bytes(b"the dog\n\xff\n")
    return tmp_path


TRANSLATE = ["translate", str(KEPT / "model"), "--batch-size", "1"]
WRITING = {  # a command, less its target; where what it had done until it failed is to be found
    "--output": ([*TRANSLATE, "--input", "good.en", "--output"], "target.partial"),
    "--explain": ([*TRANSLATE, "--input", "good.en", "--explain"], None),
    "export": (["export", str(KEPT)], None),
}


def fail(error):
    def failing(*_, **__):
        raise error

    return failing


FAILURES = {
    "a missing input": lambda words, _: ["missing.en" if x == "good.en" else x for x in words],
    "a bad line": lambda words, _: ["bad.en" if x == "good.en" else x for x in words],
    "a model that is not there": lambda words, _: [words[0], "missing", *words[2:]],
    "a failure at work": lambda words, set_to: set_to(ValueError("what")) or words,
    "no room": lambda words, set_to: set_to(OSError(errno.ENOSPC, "No space")) or words,
    "Ctrl-C": lambda words, set_to: set_to(KeyboardInterrupt()) or words,
}


@pytest.mark.thorough(quick=14)
@pytest.mark.parametrize("name", WRITING)
@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.parametrize("exists", [True, False])
def test_a_command_that_fails_leaves_what_was_there(
    texts, monkeypatch, capsys, name, failure, exists
):
    if name == "export" and ("line" in failure or "input" in failure):
        pytest.skip("it has no input of lines")
    words, partial = WRITING[name]
    target = {"--explain": "target.html"}.get(name, "target")
    if exists and name == "export":
        assert main([*words, target]) == 0
    elif exists:
        Path(target).write_text("old")
    before = contents(texts)

    def set_to(error):
        monkeypatch.setattr(Translator, "translate", fail(error))
        monkeypatch.setattr(exporting, "model_card", fail(error))

    capsys.readouterr()
    code = main([*FAILURES[failure](words, set_to), target])
    assert code in (1, 2, 130)
    if name == "--output":
        assert code == {"no room": 1, "Ctrl-C": 130}.get(failure, 2)
    after, error = contents(texts), capsys.readouterr().err
    kept = after.pop(Path(partial), None) if partial else None
    assert after == before and "Traceback" not in error
    if failure == "a bad line" and partial:
        assert kept.count(b"\n") == 1 and f"kept in {partial}" in error
    else:
        assert kept is None


@pytest.mark.parametrize("name", WRITING)
def test_a_command_that_succeeds_leaves_nothing_beside(texts, monkeypatch, name):
    words, _ = WRITING[name]
    monkeypatch.setattr(explaining, "explain_translations", lambda *_: ["a sentence"])
    monkeypatch.setattr(explanation, "page", lambda _: "a page")
    target = {"--explain": "target.html"}.get(name, "target")
    for _ in range(2):
        assert main([*words, target]) == 0
        assert {path.name for path in texts.iterdir()} == {"good.en", "bad.en", target}


def itself(path):
    return path


def symbolic(path):
    Path("other.html").symlink_to(path)
    return "other.html"


def hard(path):
    Path("other.html").hardlink_to(path)
    return "other.html"


def roundabout(path):
    return f"../{Path.cwd().name}/./{path}"


@pytest.mark.thorough(quick=31)
@pytest.mark.parametrize("guise", [itself, symbolic, hard, roundabout])
@pytest.mark.parametrize("written", ["--output", "--explain"])
@pytest.mark.parametrize("read", ["--input", "the model", "standard input", "the other"])
def test_what_is_read_is_not_written_under_any_name(
    texts, monkeypatch, capsys, guise, written, read
):
    Path("good.en").rename("mine.html")
    words = [*TRANSLATE, written]
    if read == "--input":
        words += [guise("mine.html"), "--input", "mine.html"]
    elif read == "the model":
        (texts / "model").mkdir()
        for path in (KEPT / "model").iterdir():
            (texts / "model" / path.name).write_bytes(path.read_bytes())
        (texts / "mine.html").unlink()
        target = guise("model/config.json")
        if written == "--explain" and not target.endswith(".html"):
            return  # refused by its ending
        words = ["translate", "model", "the dog", written, target]
    elif read == "the other":
        other = {"--output": "--explain", "--explain": "--output"}[written]
        words += [guise("mine.html"), other, "mine.html", "--input", "bad.en"]
    else:
        words += [guise("mine.html")]
        monkeypatch.setattr(
            "flaxattn.translation.commands.translate.STDIN", os.open("mine.html", os.O_RDONLY)
        )
    before = contents(texts)
    assert main(words) == 2
    assert "is the same file as" in capsys.readouterr().err
    assert contents(texts) == before


def test_a_run_does_not_write_over_its_data(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_pairs(tmp_path, "train", own_pairs())
    (tmp_path / "run").mkdir()
    for name, link in (("test.source", Path.symlink_to), ("test.reference", Path.hardlink_to)):
        link(tmp_path / "run" / name, tmp_path / "train.en")
        before = contents(tmp_path)
        assert tiny("run", {"--train": ("train.en", "train.de")}) == 2
        error = capsys.readouterr().err
        assert "--train: train.en is a file that the run in run writes" in error
        assert contents(tmp_path) == before
        (tmp_path / "run" / name).unlink()
