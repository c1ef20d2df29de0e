"""Lines that come in their own time, and the commands that read them."""

import dataclasses
import gzip
import io
import json
import os
import re
import signal
import threading

import pytest

from configs import PRESETS
from flaxattn.__main__ import main
from flaxattn.text import streaming
from flaxattn.text.streaming import chunks
from flaxattn.training.config import to_json
from flaxattn.translation.config import DataConfig


def lines_of(data):
    return [line for piece in chunks(io.BytesIO(data), "standard input") for line in piece]


@pytest.mark.parametrize(
    "data, lines",
    [
        (b"", []),
        (b"\n", [""]),
        (b"one\ntwo\n", ["one", "two"]),
        (b"one\n\n two", ["one", "", " two"]),
        (b"\xef\xbb\xbfone\r\ntwo\r\n", ["one", "two"]),
        ("a\u2028b\x0cc\rd\u0085e\n".encode(), ["a\u2028b\x0cc\rd\u0085e"]),
    ],
)
def test_lines_break_at_newlines_alone(data, lines):
    assert lines_of(data) == lines


def test_a_long_stream_comes_in_pieces_of_bounded_size_and_whole():
    data = "".join(f"{i}\n" for i in range(5 * streaming.PIECE + 3)).encode()
    pieces = list(chunks(io.BytesIO(data), "x"))
    assert max(map(len, pieces)) <= streaming.PIECE
    assert [int(line) for piece in pieces for line in piece] == list(range(5 * streaming.PIECE + 3))


def test_a_line_is_given_before_the_next_one_is_written():
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as stream, os.fdopen(writing, "wb", buffering=0) as pipe:
        pieces = chunks(stream, "x")
        for text in ("first", "", "third"):
            pipe.write(f"{text}\n".encode())
            assert next(pieces) == [text]
        pipe.close()
        assert list(pieces) == []


def test_invalid_utf8_is_told_by_its_line_after_the_lines_before_it():
    pieces = chunks(io.BytesIO(b"good\nalso\nb\xffd\nnever\n"), "standard input")
    seen = []
    with pytest.raises(ValueError, match=r"standard input, line 3: invalid UTF-8 at byte 1"):
        for piece in pieces:
            seen += piece
    assert seen == ["good", "also"]


def test_an_error_of_the_stream_is_raised_and_nothing_hangs():
    class Broken(io.BytesIO):
        def read1(self, *_):
            raise OSError("the cable was pulled")

    with pytest.raises(OSError, match="the cable was pulled"):
        list(chunks(Broken(), "x"))


@pytest.fixture
def pipe():
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as stream, os.fdopen(writing, "wb", buffering=0) as pipe:
        yield stream, pipe


def test_lines_written_together_come_together_and_half_a_line_is_waited_for(pipe):
    stream, writing = pipe
    writing.write(b"one\ntwo\nthr")
    pieces = chunks(stream, "x")
    assert next(pieces) == ["one", "two"]
    writing.write(b"ee\n")
    assert next(pieces) == ["three"]


def test_a_bad_byte_ends_it_although_the_stream_stays_open(pipe):
    stream, writing = pipe
    writing.write(b"good\nb\xffd\n")
    pieces = chunks(stream, "x")
    assert next(pieces) == ["good"]
    with pytest.raises(ValueError, match="x, line 2"):
        next(pieces)


@pytest.fixture
def heeding_control_c():
    """As from a terminal: what a shell starts in the background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heeding_control_c")
def test_control_c_while_a_line_is_waited_for_ends_it_and_leaves_the_stream_free(pipe):
    threads = threading.active_count()
    alarm = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT))
    alarm.start()
    with pytest.raises(KeyboardInterrupt):
        next(chunks(pipe[0], "x"))
    alarm.join()
    assert threading.active_count() == threads
    pipe[1].write(b"after\n")
    assert pipe[0].readline() == b"after\n"  # nobody holds its lock


def test_a_compressed_stream_comes_in_pieces_too():
    data = gzip.compress(b"x\n" * (2 * streaming.PIECE + 1))
    pieces = list(chunks(gzip.GzipFile(fileobj=io.BytesIO(data)), "x"))
    assert list(map(len, pieces)) == [streaming.PIECE, streaming.PIECE, 1]


def test_a_line_of_many_reads_is_one_line():
    line = "ä" * (3 * streaming.READ)
    assert lines_of(f"{line}\nshort\n{line}".encode()) == [line, "short", line]


# ---- score -----------------------------------------------------------------------------------


@pytest.fixture
def two_files(tmp_path):
    (tmp_path / "hypothesis").write_text("Das ist gut so .\nEin Hund läuft dort .\n", "utf-8")
    (tmp_path / "reference").write_text("Das ist gut so .\nEin Hund rennt hier .\n", "utf-8")
    return str(tmp_path / "hypothesis"), str(tmp_path / "reference")


def test_score_needs_two_files_and_no_model(two_files, capsys):
    assert main(["score", *two_files]) == 0
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert names == ["bleu", "bleu_lc", "chrf"]
    assert main(["score", two_files[0], two_files[0], "--json"]) == 0
    assert '"bleu": {"value": 100.0' in capsys.readouterr().out.replace(
        "100.00000000000004", "100.0"
    )


def test_score_reads_what_a_run_kept_with_its_tokenizer(tmp_path, two_files, capsys):
    for name in ("hypothesis", "reference"):
        (tmp_path / name).rename(tmp_path / f"test.{name}")
    kept = to_json(dataclasses.replace(PRESETS["tiny"], data=DataConfig(bleu_tokenizer="char")))
    (tmp_path / "config.json").write_text(json.dumps(kept))
    assert main(["score", str(tmp_path)]) == 0
    assert "tok:char" in capsys.readouterr().out


def test_score_doubts_a_tokenizer_and_reads_compressed_files(tmp_path, capsys):
    (tmp_path / "text.zh").write_bytes(gzip.compress("我喜欢猫。\n".encode()))
    assert main(["score", *[str(tmp_path / "text.zh")] * 2]) == 0
    assert "--bleu-tokenizer 13a does not split Chinese" in capsys.readouterr().err


def test_score_of_two_empty_files_names_them(tmp_path, capsys):
    for name in ("a", "b"):
        (tmp_path / name).touch()
    assert main(["score", str(tmp_path / "a"), str(tmp_path / "b")]) == 2
    assert re.search(r"a and .*b are empty", capsys.readouterr().err)


def test_score_refuses_what_does_not_fit(tmp_path, two_files, capsys):
    hypothesis, reference = two_files
    (tmp_path / "longer").write_text("a\nb\nc\n")
    for words, message in [
        ([hypothesis, str(tmp_path / "longer")], "has 2 lines and"),
        ([hypothesis, str(tmp_path / "none")], "no such file"),
        ([hypothesis], "the folder of a run, or files"),
        ([hypothesis, reference, "--bleu-tokenizer", "latin"], "latin"),
    ]:
        assert main(["score", *words]) == 2
        assert message in capsys.readouterr().err


# ---- translate -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words, message",
    [
        (["--n-best", "0"], "--n-best"),
        (["--beam-size", "0"], "--beam-size"),
        (["--top-p", "1.5"], "--top-p"),
        (["text", "--input", "file"], "--input"),
    ],
)
def test_translate_refuses_senseless_options_before_loading(tmp_path, capsys, words, message):
    try:
        code = main(["translate", str(tmp_path / "nothing"), *words])
    except SystemExit as exit:  # the parser of older versions of tyro leaves by itself
        code = exit.code
    assert code == 2
    assert message in "".join(capsys.readouterr())


def test_translate_names_a_folder_without_a_model(tmp_path, capsys):
    assert main(["translate", str(tmp_path / "nothing"), "a text"]) == 2
    error = capsys.readouterr().err
    assert "error: " in error and "nothing" in error and "expected" in error
