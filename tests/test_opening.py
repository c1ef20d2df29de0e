"""Text in files and pipes, plain and compressed, whatever they are called."""

import bz2
import gzip
import importlib.util
import lzma
import os
import threading
from pathlib import Path

import pytest

from flaxattn.text.lines import read_lines
from flaxattn.text.opening import opened_text, read_text
from flaxattn.text.streaming import chunks
from flaxattn.translation.config import DataConfig
from flaxattn.translation.text.corpus import read_pairs

TEXT = "".join(f"Größe {i}\t大小 {i}\n" for i in range(3000)).encode()
PACKED = {"gz": gzip.compress, "xz": lzma.compress, "bz2": bz2.compress}
ZSTANDARD = bytes.fromhex("28b52ffd0458110000610a55c8cc1e")  # of "a\n"
NAMES = ["text.{}", "text.tsv", "text.en", "text"]


@pytest.mark.parametrize("kind", PACKED)
@pytest.mark.parametrize("name", NAMES)
def test_compressed_text_is_read_under_any_name(tmp_path, kind, name):
    path = tmp_path / name.format(kind)
    path.write_bytes(PACKED[kind](TEXT))
    assert read_text(path) == TEXT
    with opened_text(path) as stream:
        assert [line for piece in chunks(stream, "x") for line in piece] == read_lines(path)
    assert [*read_pairs([path], DataConfig(), print)][2999] == ("Größe 2999", "大小 2999")


@pytest.mark.parametrize("kind", PACKED)
def test_an_empty_text_is_empty_when_compressed_too(tmp_path, kind):
    (tmp_path / "text").write_bytes(PACKED[kind](b""))
    assert read_lines(tmp_path / "text") == []


def test_compressed_texts_one_after_another_are_one(tmp_path):
    for kind, pack in PACKED.items():
        (tmp_path / kind).write_bytes(pack(b"a\n") + pack(b"b\n"))
        assert read_lines(tmp_path / kind) == ["a", "b"]


@pytest.mark.parametrize("text", [b"BZh9 is no compressed text\n", b"PK\n", b"\xfd\n", b""])
def test_text_that_starts_almost_like_a_compressed_one_is_read_as_it_is(tmp_path, text):
    (tmp_path / "text").write_bytes(text)
    assert read_text(tmp_path / "text") == text


@pytest.mark.parametrize("kind", PACKED)
def test_damaged_compressed_text_is_refused_by_name(tmp_path, kind):
    packed, path = PACKED[kind](TEXT), tmp_path / "text.tsv"
    flipped = bytearray(packed)
    flipped[len(packed) // 2] ^= 8
    for damaged in (packed[:-9], packed[:100], bytes(flipped)):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"text\.tsv: damaged; it cannot be unpacked"):
            list(read_pairs([path], DataConfig(), print))
        with pytest.raises(ValueError, match=r"text\.tsv"), opened_text(path) as stream:
            list(chunks(stream, str(path)))


@pytest.mark.parametrize(
    "start, what",
    [(b"PK\x03\x04", "ZIP"), (b"7z\xbc\xaf\x27\x1c", "7z"), (b"\x04\x22\x4d\x18", "LZ4")],
)
def test_an_archive_is_called_one(tmp_path, start, what):
    (tmp_path / "text.en").write_bytes(start + bytes(90))
    with pytest.raises(ValueError, match=rf"text\.en is .*{what}.*unpack it"):
        read_text(tmp_path / "text.en")


def test_zstandard_is_read_where_python_can_and_else_the_error_says_what_to_do(tmp_path):
    (tmp_path / "text.en").write_bytes(ZSTANDARD)
    if importlib.util.find_spec("compression"):
        assert read_text(tmp_path / "text.en") == b"a\n"
    else:
        with pytest.raises(ValueError, match=r"text\.en .*Zstandard.*zstdcat"):
            read_text(tmp_path / "text.en")


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_a_pipe_is_read_as_process_substitution_gives_it(pack):
    reading, writing = os.pipe()

    def write():
        with os.fdopen(writing, "wb") as pipe:
            pipe.write(pack(TEXT))

    writer = threading.Thread(target=write)
    writer.start()
    assert read_text(Path(f"/dev/fd/{reading}")) == TEXT
    writer.join()
    os.close(reading)


@pytest.mark.parametrize("place, what", [("/dev/zero", "device"), ("/dev/null", "device")])
def test_a_device_is_refused_at_once(place, what):
    with pytest.raises(ValueError, match=what):
        read_text(Path(place))


def test_a_folder_is_called_one(tmp_path):
    with pytest.raises(FileNotFoundError, match="is a folder"):
        read_text(tmp_path)
