"""Exported models: what is written, that it comes back bit by bit, what is refused, and how."""

import contextlib
import dataclasses
import functools
import io
import json
import os
import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export as jax_export

import flaxattn.translation.trained.exporting as exporting
from flaxattn import EncoderDecoder, EncoderDecoderConfig
from flaxattn.__main__ import main
from flaxattn.text.tokenizer import Tokenizer
from flaxattn.training.config import to_json
from flaxattn.training.storage.checkpoints import Models
from flaxattn.training.storage.manifest import seal
from flaxattn.translation.config import DataConfig, DecodingConfig, RunConfig
from flaxattn.translation.decoding.translator import Translator
from flaxattn.translation.trained.card import model_card
from flaxattn.translation.trained.exporting import export
from flaxattn.translation.trained.loading import Loaded, load, load_run

WORDS = "the small cat sleeps on a red mat and dogs run over long bridges".split()
TEXTS = [" ".join(WORDS[i : i + 3]) for i in range(3)]
FILES = [
    *("README.md", "config.json", "manifest.json", "model.safetensors"),
    *("stablehlo", "tokenizer.model"),
]
DECODING = DecodingConfig(beam_size=2, max_ratio=1.25)


@functools.cache
def tokenizer():
    return Tokenizer.train([" ".join(WORDS), *WORDS] * 5, 310)


@functools.cache
def loaded(seed=7, **changes):
    """A model of random parameters, so large that its translations differ."""
    config = EncoderDecoderConfig(
        vocab_size=tokenizer().vocab_size,
        features=8,
        ff_features=12,
        num_heads=2,
        encoder_layers=1,
        decoder_layers=1,
        tie_embeddings="none",
        dropout_rate=0.3,
    )
    model = EncoderDecoder(dataclasses.replace(config, **changes))

    def init(key):
        tokens = jnp.ones((1, 2), jnp.int32)
        return model.init(key, tokens, tokens, deterministic=True)["params"]

    rng = np.random.default_rng(seed)
    params = jax.tree.map(
        lambda x: jnp.asarray(rng.normal(0.0, 0.7, x.shape), x.dtype),
        jax.eval_shape(init, jax.random.key(0)),
    )
    return Loaded(model, params, tokenizer(), DECODING)


RESULT = {
    "config": "0123456789ab",
    "parameters": 8840,
    "hardware": "CPU (of some kind, 2 cores), jax 0.10.2",
    "steps": 12,
    "scores": {
        "bleu": {"value": 41.25, "signature": "nrefs:1|case:mixed|tok:13a|version:2.6.0"},
        "chrf": {"value": 61.5, "signature": "nrefs:1|case:mixed|nc:6|version:2.6.0"},
    },
}


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """The folder of a run as training leaves it, before it has exported its model."""
    folder, (model, params, *_) = tmp_path_factory.mktemp("runs") / "mine", loaded()
    folder.mkdir()
    names = ("/secret/place/train.en", "/secret/place/train.de")
    data = DataConfig(data_dir="/secret/data", train=names)
    config = RunConfig(output=str(folder), model=model.config, data=data, decoding=DECODING)
    (folder / "config.json").write_text(json.dumps(to_json(config)))
    (folder / "result.json").write_text(json.dumps(RESULT))
    tokenizer().save(folder / "tokenizer.model")
    with Models(folder / "models") as models:
        models.save(1, params, 0.0)
    for name in ("hypothesis", "reference"):
        (folder / f"test.{name}").write_text("\n".join([*TEXTS, " ".join(WORDS)]) + "\n")
    return folder


@pytest.fixture(scope="module")
def exported(run_folder, tmp_path_factory):
    """What `flaxattn export` makes of it."""
    folder = tmp_path_factory.mktemp("exported") / "model"
    with contextlib.redirect_stderr(io.StringIO()):
        assert main(["export", str(run_folder), str(folder)]) == 0
    return folder


@pytest.fixture
def copy(exported, tmp_path):
    return shutil.copytree(exported, tmp_path / "copy")


def bits(params):
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {jax.tree_util.keystr(p): (str(x.dtype), np.asarray(x).tobytes()) for p, x in leaves}


def contents(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# ---- There and back --------------------------------------------------------------------------


@pytest.mark.thorough(quick=1)
@pytest.mark.parametrize("param_dtype", ["float32", "bfloat16"])
@pytest.mark.usefixtures("standard_promotion")
def test_a_model_comes_back_bit_by_bit(tmp_path, monkeypatch, param_dtype):
    programs = exporting.programs(loaded().model, 1)
    monkeypatch.setattr(exporting, "programs", lambda *_: programs)  # those have tests below
    before = loaded(param_dtype=param_dtype)
    before.params["encoder"]["final_norm"]["scale"] = jnp.asarray(
        [0.0, -0.0, 3.38e38, -3.38e38, 1e-38, 1e-40, 3.0, -1.5], param_dtype
    )
    export(tmp_path / "model", before)
    after = load(tmp_path / "model")
    assert after.model == before.model and after.decoding == before.decoding
    assert {dtype for dtype, _ in bits(after.params).values()} == {param_dtype}
    assert bits(after.params) == bits(before.params)
    assert jax.tree.structure(after.params) == jax.tree.structure(before.params)
    assert after.tokenizer.model == before.tokenizer.model


@pytest.mark.thorough
def test_the_exported_model_of_a_run_is_the_one_it_kept(run_folder, exported):
    assert sorted(path.name for path in exported.iterdir()) == FILES
    assert bits(load(exported).params) == bits(load_run(run_folder).params)
    texts = [
        Translator(*model).translate(TEXTS, n_best=2)
        for model in (load(exported), load(run_folder))
    ]
    assert texts[0] == texts[1]
    assert len({best[0].text for best in texts[0]}) > 1


def test_a_run_gives_the_model_that_it_exported(run_folder, tmp_path):
    folder = shutil.copytree(run_folder, tmp_path / "run")
    (folder / "models").rename(tmp_path / "away")
    with pytest.raises(FileNotFoundError, match="models"):
        load(folder)
    export(folder / "model", loaded())
    assert bits(load(folder).params) == bits(loaded().params)


def test_the_names_of_the_arrays_are_their_paths(exported):
    names = arrays_of(exported / "model.safetensors")
    assert "encoder.layer_0.self_attention.query.kernel" in names
    assert names["target_embedding.embedding"].shape == (tokenizer().vocab_size, 8)


def test_everyone_may_read_what_the_folder_lets_them_read(exported):
    modes = {path.stat().st_mode & 0o777 for path in exported.rglob("*") if path.is_file()}
    assert len(modes) == 1


def test_the_same_model_is_the_same_bytes(exported, run_folder, tmp_path):
    assert main(["export", str(run_folder), str(tmp_path / "again")]) == 0
    assert contents(tmp_path / "again") == contents(exported)


# ---- StableHLO, with jax and numpy alone -----------------------------------------------------


DTYPES = {"F32": "<f4", "BF16": jnp.bfloat16}


def arrays_of(path):
    """The arrays of a safetensors file, read as its format is described."""
    data = path.read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    header, body = json.loads(data[8 : 8 + size]), data[8 + size :]
    header.pop("__metadata__", None)
    return {
        name: np.frombuffer(body[slice(*entry["data_offsets"])], DTYPES[entry["dtype"]]).reshape(
            entry["shape"]
        )
        for name, entry in header.items()
    }


@functools.cache
def program(folder, name):
    exported = jax_export.deserialize(bytearray((folder / "stablehlo" / name).read_bytes()))
    assert exported.platforms == ("cpu", "cuda", "tpu")
    return jax.jit(exported.call)


def run_programs(folder, source, target):
    """The encoded source, and the logits after each token of `target`."""
    weights = arrays_of(folder / "model.safetensors")
    encode, decode_step = (program(folder, name) for name in ("encode.bin", "decode_step.bin"))
    encoded, state = encode(weights, source)
    logits = []
    for index in range(target.shape[1]):
        found, state = decode_step(weights, state, target[:, index], np.int32(index))
        logits.append(found)
    return encoded, np.stack(logits, 1), state


def teacher_forced(model, params, source, target):
    ids = {"source_segment_ids": (source != 0).astype(np.int32)}
    ids["target_segment_ids"] = np.ones_like(target)
    return model.apply({"params": params}, source, target, **ids, deterministic=True)


def tokens_of(shape, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(4, tokenizer().vocab_size, shape).astype(np.int32)


@pytest.mark.thorough
def test_the_programs_give_the_numbers_of_the_model(exported):
    model, params, *_ = loaded()
    source, target = tokens_of((3, 7)), tokens_of((3, 5), 1)
    source[-1, 1:] = 0
    encoded, logits, _ = run_programs(exported, source, target)
    ids = (source != 0).astype(np.int32)
    want = model.apply({"params": params}, source, ids, deterministic=True, method="encode")
    np.testing.assert_allclose(encoded[ids == 1], want[ids == 1], rtol=1e-5, atol=1e-5)
    want = teacher_forced(model, params, source, target)
    assert np.abs(want).max() > 1
    np.testing.assert_allclose(logits, want, rtol=1e-4, atol=1e-4)


@pytest.mark.thorough
def test_the_programs_have_room_for_as_many_tokens_as_promised_and_nan_for_more(exported):
    model, params, *_ = loaded()
    source, target = tokens_of((1, 2)), tokens_of((1, 13), 1)
    _, logits, state = run_programs(exported, source, target)
    want = teacher_forced(model, params, source, target)
    np.testing.assert_allclose(logits[:, :12], want[:, :12], rtol=1e-4, atol=1e-4)
    assert np.isnan(logits[:, 12]).all()
    assert {len(x) for x in jax.tree.leaves(state)} == {1}


@pytest.mark.thorough
@pytest.mark.usefixtures("standard_promotion")
def test_the_programs_of_a_half_precision_model_with_rotary_positions_and_more_room(tmp_path):
    changes = {"dtype": "bfloat16", "param_dtype": "bfloat16", "positions": "rotary"}
    half = loaded(**changes, num_kv_heads=1)._replace(decoding=DecodingConfig(max_ratio=3.5))
    export(tmp_path / "model", half)
    assert "range(4 * source.shape[1] + 8)" in (tmp_path / "model" / "README.md").read_text()
    source, target = tokens_of((2, 4)), tokens_of((2, 25), 1)
    _, found, _ = run_programs(tmp_path / "model", source, target)
    assert np.isfinite(found[:, :24]).all() and np.isnan(found[:, 24]).all()
    logits, want = found[:, :2], teacher_forced(half.model, half.params, source, target[:, :2])
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, want, rtol=0.05, atol=0.05 * np.abs(want).max())


def test_nothing_exported_tells_of_the_machine(exported, run_folder):
    for path, data in contents(exported).items():
        for secret in (b"/secret", b"site-packages", b".py\x00", os.sep.encode() + b"tmp"):
            assert secret not in data, (path, secret)
        assert str(run_folder).encode() not in data


# ---- The card --------------------------------------------------------------------------------


def test_the_card_tells_the_scores_the_data_and_the_settings(exported):
    card = (exported / "README.md").read_text()
    header, text = re.fullmatch(r"---\n(.*?)\n---\n(.*)", card, flags=re.DOTALL).groups()
    assert {"library_name: flaxattn", "- bleu", "- chrf"} <= set(header.splitlines())
    assert "language" not in header  # of one's own files nobody knows it
    assert re.search(r"^# .*mine$", text, flags=re.MULTILINE)
    for value in ("41.25", "61.50", "0123456789ab", "of some kind", "`train.en` to `train.de`"):
        assert value in text
    for score in RESULT["scores"].values():
        assert score["signature"].replace("|", "\\|") in text
    assert "| learning_rate | 0.002 |" in text and "| beam_size" not in header


def test_a_card_says_nothing_that_is_not_known(tmp_path):
    export(tmp_path / "model", loaded())
    card = (tmp_path / "model" / "README.md").read_text()
    for word in ("Scores", "Training", "metrics", "None\n", "was trained on", "language:"):
        assert word not in card, word


@pytest.mark.thorough
def test_the_program_in_the_card_translates_as_greedy_search_does(exported, tmp_path, monkeypatch):
    shutil.copytree(exported, tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "flaxattn", None)  # it is to do without
    blocks = re.findall(r"```python\n(.*?)```", (exported / "README.md").read_text(), re.DOTALL)
    (alone,) = [block for block in blocks if "flaxattn" not in block]
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(alone.replace("A text.", TEXTS[0]), {})
    greedy = DecodingConfig(beam_size=1, max_ratio=2.0)
    ((best,),) = Translator(*load(exported)[:3], greedy).translate([TEXTS[0]])
    found = " ".join(printed.getvalue().split())
    assert len(best.text) > 5 and found.startswith(best.text)  # whose last token must be the end


def test_the_card_tells_how_texts_were_normalised(tmp_path):
    learned = Tokenizer.train([" ".join(WORDS), *WORDS] * 5, 310, normalization="nfkc")
    assert 'unicodedata.normalize("NFKC"' in model_card(
        loaded()._replace(tokenizer=learned), {}, {}
    )
    assert "unicodedata" not in model_card(loaded(), {}, {})


# ---- Damaged folders -------------------------------------------------------------------------


def edit(name, change):
    """Damages the JSON in a file."""

    def damage(folder):
        data = json.loads((folder / name).read_text())
        change(data)
        (folder / name).write_text(json.dumps(data))

    return damage


def rewrite(change):
    """Damages the weights."""

    def damage(folder):
        from safetensors.flax import load_file, save

        arrays = load_file(folder / "model.safetensors")
        change(arrays)
        (folder / "model.safetensors").write_bytes(save(arrays))

    return damage


def cut(name, size):
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:size])


NORM = "encoder.final_norm.scale"
DAMAGES = {
    "no weights": (lambda f: (f / "model.safetensors").unlink(), r"no model\.safetensors"),
    "no tokenizer": (lambda f: (f / "tokenizer.model").unlink(), r"no tokenizer\.model"),
    "an array too many": (
        rewrite(lambda a: a.update(odd=jnp.ones(3))),
        r"model\.safetensors.*odd is of no use",
    ),
    "an array too few": (rewrite(lambda a: a.pop(NORM)), rf"{NORM} is missing"),
    "another shape": (
        rewrite(lambda a: a.update({NORM: jnp.ones(9)})),
        rf"{NORM} is float32 \[9\], expected float32 \[8\]",
    ),
    "another dtype": (
        rewrite(lambda a: a.update({NORM: jnp.ones(8, jnp.bfloat16)})),
        rf"{NORM} is bfloat16 \[8\], expected float32 \[8\]",
    ),
    "cut weights": (cut("model.safetensors", 5000), r"model\.safetensors: not a whole"),
    "empty weights": (cut("model.safetensors", 0), r"model\.safetensors: not a whole"),
    "cut tokenizer": (cut("tokenizer.model", 900), r"tokenizer\.model"),
    "cut configuration": (cut("config.json", 90), r"config\.json: expected JSON"),
    "unknown field": (
        edit("config.json", lambda c: c["architecture"].update(depth=3)),
        r"config\.json, architecture: unknown field depth",
    ),
    "missing field": (
        edit("config.json", lambda c: c["architecture"].pop("vocab_size")),
        r"config\.json, architecture: missing field vocab_size",
    ),
    "unknown part": (edit("config.json", lambda c: c.update(code="x")), r"unknown field code"),
    "another type": (
        edit("config.json", lambda c: c["architecture"].update(features="8")),
        r"architecture: features is '8'; expected int",
    ),
    "not one of the choices": (
        edit("config.json", lambda c: c["architecture"].update(positions="../../etc")),
        r"architecture: positions is '\.\./\.\./etc'",
    ),
    "heads that do not divide": (
        edit("config.json", lambda c: c["architecture"].update(num_heads=3)),
        r"config\.json, architecture: .*num_heads|config\.json, architecture: .*heads",
    ),
    "features that no position fits": (
        edit("config.json", lambda c: c["architecture"].update(features=9, num_heads=3)),
        r"config\.json, architecture: features is 9; expected a multiple of 2",
    ),
    "another vocabulary": (
        edit("config.json", lambda c: c["architecture"].update(vocab_size=311)),
        r"tokenizer\.model has \d+ tokens; .*311",
    ),
    "other special ids": (
        edit("config.json", lambda c: c["special_ids"].update(eos_id=9)),
        r"special_ids",
    ),
    "newer format": (
        edit("config.json", lambda c: c.update(format_version=3)),
        r"format version 3; .* reads 1 to 2",
    ),
    "another format": (edit("config.json", lambda c: c.update(format="other")), r'"format"'),
}


@pytest.mark.thorough(quick=13)
@pytest.mark.parametrize("damage, error", DAMAGES.values(), ids=DAMAGES)
def test_what_does_not_fit_is_refused_by_name_though_its_checksums_do(copy, damage, error, capsys):
    damage(copy)
    seal(copy, {}, ["README.md"])
    with pytest.raises((ValueError, FileNotFoundError), match=error) as found:
        load(copy)
    assert str(copy) in str(found.value)
    assert main(["translate", str(copy), "a cat"]) == 2
    assert capsys.readouterr().err.count("error: ") == 1


# ---- Writing ---------------------------------------------------------------------------------


def test_a_folder_that_holds_anything_else_is_refused_and_left_alone(copy, run_folder, capsys):
    (copy / "notes.txt").write_text("mine")
    before = contents(copy)
    assert main(["export", str(run_folder), str(copy)]) == 2
    assert "notes.txt" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"notes\.txt"):
        export(copy, loaded())
    assert main(["export", str(run_folder), str(copy / "notes.txt")]) == 2
    assert contents(copy) == before


def test_an_exported_model_and_an_empty_folder_are_replaced(copy, tmp_path):
    other = loaded(seed=8)
    (tmp_path / "empty").mkdir()
    for folder in (copy, tmp_path / "empty"):
        export(folder, other)
        assert bits(load(folder).params) == bits(other.params) != bits(loaded().params)
    assert {path.name for path in tmp_path.iterdir()} == {"copy", "empty"}


def test_a_failure_leaves_what_was_there_and_nothing_half_written(copy, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("disk full")

    before = contents(copy)
    monkeypatch.setattr(exporting, "model_card", fail)
    for folder in (copy, tmp_path / "new"):
        with pytest.raises(OSError, match="disk full"):
            export(folder, loaded())
    assert contents(copy) == before
    assert {path.name for path in tmp_path.iterdir()} == {"copy"}


def test_an_exported_model_is_not_exported_again(exported, tmp_path, capsys):
    assert main(["export", str(exported), str(tmp_path / "again")]) == 2
    assert "copy it" in capsys.readouterr().err


# ---- Commands --------------------------------------------------------------------------------


@pytest.mark.thorough
def test_translate_answers_from_the_exported_folder_as_from_the_run(exported, run_folder, capsys):
    answers = []
    for folder in (exported, run_folder):
        assert main(["translate", str(folder), *TEXTS, "--scores"]) == 0
        answers.append(capsys.readouterr().out)
    wanted = Translator(*loaded()).translate(TEXTS)
    assert answers[0] == answers[1]
    assert answers[0].splitlines() == [f"{best.score:.4f}\t{best.text}" for (best,) in wanted]


@pytest.mark.thorough
def test_how_a_model_is_decoded_is_its_own_unless_said_otherwise(exported, capsys):
    for words, config in (
        ([], DECODING),
        (["--beam-size", "5"], dataclasses.replace(DECODING, beam_size=5)),
    ):
        assert main(["translate", str(exported), *TEXTS, "--scores", *words]) == 0
        wanted = Translator(*loaded()[:3], config).translate(TEXTS)
        found = capsys.readouterr().out.splitlines()
        assert found == [f"{best.score:.4f}\t{best.text}" for (best,) in wanted]


def test_score_of_a_run(run_folder, capsys):
    assert main(["score", str(run_folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["bleu"]["value"] == pytest.approx(100)


@pytest.mark.thorough
def test_translating_from_an_exported_folder_loads_no_package_of_training(exported):
    code = (
        "import sys; from flaxattn.__main__ import main; "
        f"assert main(['translate', {str(exported)!r}, ' ']) == 0; "
        "print(*{name.split('.')[0] for name in sys.modules}, file=sys.stderr)"
    )
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    loaded_packages = set(done.stderr.splitlines()[-1].split())
    assert "safetensors" in loaded_packages
    assert not loaded_packages & {"matplotlib", "tensorboardX", "orbax", "sacrebleu"}
