"""Files of any content: what reads them gives its result or an error of ours, and nothing else.

`pytest tests/test_fuzz.py --hypothesis-profile fuzz` runs 10,000 cases instead of a few hundred.
"""

import contextlib
import dataclasses
import io
import json
import shutil
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, given, settings

from configs import PRESETS
from flaxattn.training.run_folder import check_folder
from flaxattn.training.storage.manifest import DamagedError, seal, verify
from flaxattn.translation.commands.translate import kept_decoding
from flaxattn.translation.config import DataConfig
from flaxattn.translation.rules import RULES
from flaxattn.translation.text.corpus import read_pairs
from flaxattn.translation.trained.loading import load_exported, load_run

KEPT = Path(__file__).parent / "kept" / "1"

pieces = st.one_of(
    st.binary(max_size=12),
    st.text(max_size=12).map(str.encode),
    st.sampled_from(
        [b"\n", b"\r\n", b"\r", b"\t", b"\0", b"\xef\xbb\xbf", b"\xff\xfe", "\u2028\u0085".encode()]
    ),
)
contents = st.lists(pieces, max_size=20).map(b"".join)
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=5),
    st.just("1"),
    st.just(-1),
    st.just(10**30),
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=5,
)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


def fuzzed(test):
    """Runs a test with as many cases as the profile says, whatever their time."""
    return settings(deadline=None, suppress_health_check=list(HealthCheck), database=None)(test)


def read(function, *arguments):
    """The result, or None if there was an error of ours: it has a message, and names a file."""
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            return function(*arguments)
        except (ValueError, OSError) as error:
            assert str(error)
            return None


def all_pairs(paths, config):
    return list(read_pairs(paths, config, print))


def changed(data, path, value):
    """JSON-able data with another value at a path, taken modulo what is there."""
    if not path or not isinstance(data, dict) or not data:
        return value
    name = sorted(data)[path[0] % len(data)]
    return data | {name: changed(data[name], path[1:], value)}


TAKEN = {skip: DataConfig(invalid_lines="skip" if skip else "error") for skip in (True, False)}


@fuzzed
@given(source=contents, target=contents, skip=st.booleans())
def test_aligned_files(place, source, target, skip):
    paths = [place / "text.en", place / "text.de"]
    for path, content in zip(paths, (source, target), strict=True):
        path.write_bytes(content)
    pairs = read(all_pairs, paths, TAKEN[skip])
    lines = [content.removeprefix(b"\xef\xbb\xbf").split(b"\n") for content in (source, target)]
    counts = {len(side) - (side[-1] == b"") for side in lines}
    assert pairs is None or (len(counts) == 1 and 0 < len(pairs) <= max(counts))
    for pair in pairs or []:
        assert all(text.strip() == text != "" and "\0" not in text for text in pair)


@fuzzed
@given(content=contents, skip=st.booleans())
def test_tsv_files(place, content, skip):
    (place / "text.tsv").write_bytes(content)
    for pair in read(all_pairs, [place / "text.tsv"], TAKEN[skip]) or []:
        assert all(text.strip() == text != "" and "\n" not in text for text in pair)


@fuzzed
@given(path=st.lists(st.integers(0, 30), max_size=3), value=values, raw=st.none() | contents)
def test_configurations_of_runs(place, path, value, raw):
    folder = place / "run"
    folder.mkdir(exist_ok=True)
    for name in ("tokenizer.model", "data.json"):
        shutil.copy(KEPT / name, folder)
    (folder / "models").mkdir(exist_ok=True)
    config = json.loads((KEPT / "config.json").read_text())
    text = json.dumps(changed(config, path, value)).encode() if raw is None else raw
    (folder / "config.json").write_bytes(text)
    read(kept_decoding, folder)
    read(load_run, folder)
    read(check_folder, dataclasses.replace(PRESETS["tiny"], output=str(folder)), RULES)


@fuzzed
@given(
    path=st.lists(st.integers(0, 30), min_size=1, max_size=3),
    value=values,
    name=st.sampled_from(["config.json", "tokenizer.model", "model.safetensors"]),
    raw=st.none() | contents,
    at=st.integers(0),
    bit=st.integers(0, 7),
)
def test_exported_models(place, path, value, name, raw, at, bit):
    whole = KEPT / "model"
    folder = place / "model"
    folder.mkdir(exist_ok=True)
    for each in ("config.json", "tokenizer.model", "model.safetensors"):
        shutil.copy(whole / each, folder)
    if raw is not None:
        content = raw
    elif name == "config.json":
        content = json.dumps(changed(json.loads((whole / name).read_text()), path, value)).encode()
    else:
        flipped = bytearray((whole / name).read_bytes())
        flipped[at % len(flipped)] ^= 1 << bit
        content = bytes(flipped)
    (folder / name).write_bytes(content)
    loaded = read(load_exported, folder)
    assert loaded is None or name == "config.json"


@fuzzed
@given(
    path=st.lists(st.integers(0, 30), min_size=1, max_size=3),
    value=values,
    raw=st.none() | contents,
)
def test_manifests(place, path, value, raw):
    folder = place / "sealed"
    folder.mkdir(exist_ok=True)
    (folder / "a").write_bytes(b"text")
    seal(folder, {"step": 7})
    manifest = folder / "manifest.json"
    content = json.loads(manifest.read_text())
    new = changed(content, path, value)
    manifest.write_bytes(json.dumps(new).encode() if raw is None else raw)
    if raw is None and new == content:
        return
    with pytest.raises(DamagedError):
        verify(folder)
