"""Starting from a run's model, and leaving parts of a model as they are."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from run_cases import SMALL, contents, decode_to, prepared_by, record_states, tiny

import flaxattn.training.run as run_module
from flaxattn.text.tokenizer import Tokenizer
from flaxattn.training.architecture import check_architecture
from flaxattn.training.interruption import InterruptedRun
from flaxattn.training.optimizer import make_optimizer
from flaxattn.training.parameters.freezing import held, labels, path_of
from flaxattn.training.storage.adapter import with_adapter
from flaxattn.training.storage.layout import ADAPTER
from flaxattn.translation.config import TranslationTraining
from flaxattn.translation.text import builtin
from flaxattn.translation.trained.exporting import export
from flaxattn.translation.trained.loading import load, load_run

# ---- Frozen parameters -----------------------------------------------------------------------

SHAPES = {
    "encoder": {"layer_0": {"wi": (2, 3), "norm": (5,)}, "layer_1": {"wi": (2, 3)}},
    "decoder": {"layer_0": {"wi": (3, 7)}},
    "decoder_embedding": (11, 2),
}
PARAMS = jax.tree.map(
    lambda shape: jnp.full(shape, 0.5), SHAPES, is_leaf=lambda x: isinstance(x, tuple)
)


def frozen(*patterns):
    leaves = jax.tree_util.tree_leaves_with_path(labels(PARAMS, patterns))
    return {path_of(path) for path, label in leaves if label == "frozen"}


ENCODER = {"encoder/layer_0/wi", "encoder/layer_0/norm", "encoder/layer_1/wi"}


@pytest.mark.parametrize(
    "patterns, expected",
    [
        ((), set()),
        (("encoder",), ENCODER),
        (("encoder/",), ENCODER),
        (("encoder/*",), ENCODER),
        (("decoder",), {"decoder/layer_0/wi"}),  # and not decoder_embedding
        (("decoder*",), {"decoder/layer_0/wi", "decoder_embedding"}),
        (("*/wi",), ENCODER - {"encoder/layer_0/norm"} | {"decoder/layer_0/wi"}),
        (("*/layer_0",), ENCODER - {"encoder/layer_1/wi"} | {"decoder/layer_0/wi"}),
        (("encoder/layer_1", "decoder_embedding"), {"encoder/layer_1/wi", "decoder_embedding"}),
    ],
)
def test_patterns_name_whole_steps_of_a_path_and_all_below(patterns, expected):
    assert frozen(*patterns) == expected


@pytest.mark.parametrize("pattern", ["", "enc", "layer_0", "Encoder", "encoder/layer_2"])
def test_a_pattern_that_matches_nothing_is_an_error(pattern):
    with pytest.raises(ValueError, match=r"--freeze.*paths begin with decoder, .*--dry-run") as e:
        labels(PARAMS, ["decoder", pattern])
    assert repr(pattern) in str(e.value)


@pytest.mark.parametrize("patterns", [["*"], ["encoder", "decoder*"]])
def test_nothing_left_to_train_is_an_error(patterns):
    with pytest.raises(ValueError, match=r"--freeze: nothing would be left"):
        labels(PARAMS, patterns)


def test_frozen_parameters_have_no_gradients():
    total = lambda params: sum(x.sum() for x in jax.tree.leaves(held(params, ["encoder"])))  # noqa: E731
    gradients = jax.grad(total)(PARAMS)
    found = {path_of(path) for path, x in jax.tree_util.tree_leaves_with_path(gradients) if x.any()}
    assert found == {"decoder/layer_0/wi", "decoder_embedding"}


@pytest.mark.thorough
@pytest.mark.usefixtures("standard_promotion")  # optax raises floats to int32 powers
def test_frozen_parameters_do_not_move_and_have_no_moments():
    config = TranslationTraining(learning_rate=0.1, warmup_steps=1, weight_decay=0.1)
    frozen = TranslationTraining(**vars(config) | {"freeze": ("encoder",)})
    gradients = jax.tree.map(jnp.ones_like, PARAMS)
    trained = {name: x for name, x in PARAMS.items() if name != "encoder"}
    found, sizes = {}, {}
    for name, params, settings in (("all", PARAMS, frozen), ("alone", trained, config)):
        optimizer = make_optimizer(settings, params)
        state = optimizer.init(params)
        sizes[name] = sum(x.size for x in jax.tree.leaves(state))
        for _ in range(2):
            part = {key: gradients[key] for key in params}
            updates, state = optimizer.update(part, state, params)
            params = optax.apply_updates(params, updates)
        found[name] = params
    jax.tree.map(np.testing.assert_array_equal, found["all"]["encoder"], PARAMS["encoder"])
    assert sizes["all"] == sizes["alone"]
    for name in trained:  # as if the frozen ones did not exist: nor do they count in clipping
        jax.tree.map(np.testing.assert_array_equal, found["all"][name], found["alone"][name])
        jax.tree.map(
            lambda x, y: np.testing.assert_array_less(x, y), found["all"][name], trained[name]
        )


def test_a_wrong_pattern_leaves_no_folder_behind(tmp_path, capsys):
    assert tiny(tmp_path / "run", {"--freeze": "nonsense"}) == 2
    assert "--freeze" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


# ---- Starting from a run ---------------------------------------------------------------------


@pytest.mark.thorough
def test_a_start_is_exactly_the_model_and_tokenizer_of_that_run(finished, tmp_path, monkeypatch):
    options = {"--init-from": finished.folder, "--seed": 5}
    prepared = prepared_by(monkeypatch, tmp_path / "run", options)
    jax.tree.map(np.testing.assert_array_equal, prepared.params, finished.trained.params)
    kept = (finished.folder / "tokenizer.model").read_bytes()
    assert prepared.tokenizer.model == kept
    assert prepared.model.config.vocab_size == SMALL["--vocab-size"]


@pytest.mark.thorough
def test_a_run_starts_from_another_and_leaves_frozen_parts_as_they_were(
    finished, tmp_path, monkeypatch, capsys
):
    states = record_states(monkeypatch)
    decode_to(monkeypatch, [Tokenizer.eos_id])
    options = {"--init-from": finished.folder, "--freeze": ("encoder", "*/layer_0/*/bias")}
    options |= {"--steps": 2, "--metric": "nll", "--samples": 0, "--seed": 3}
    assert tiny(tmp_path / "run", options) == 0
    start = load_run(finished.folder)
    before = jax.tree_util.tree_leaves_with_path(start.params)
    after = map(jax.tree.leaves, (states[2].params, states[2].ema))
    moves = {
        path_of(path): [np.abs(x - old).max() for x in new]
        for (path, old), *new in zip(before, *after, strict=True)
    }
    still = {
        path
        for path in moves
        if path.startswith("encoder/") or ("/layer_0/" in path and path.endswith("/bias"))
    }
    assert {path for path, move in moves.items() if move == [0, 0]} == still
    assert len({path.split("/")[0] for path in still}) == 2
    assert all(0 < min(moves[path]) < 0.05 for path in moves.keys() - still)
    kept = (finished.folder / "tokenizer.model").read_bytes()
    assert (tmp_path / "run" / "tokenizer.model").read_bytes() == kept
    assert tiny(tmp_path / "run", options | {"--init-from": tmp_path / "other"}) == 2
    assert "init_from" in capsys.readouterr().err


@pytest.mark.parametrize(
    "option, value, other", [("--features", 32, 16), ("--positions", "rotary", "sinusoidal")]
)
def test_another_architecture_is_refused_with_what_it_must_be(
    finished, tmp_path, capsys, option, value, other
):
    options = {option: value, "--init-from": finished.folder}
    assert tiny(tmp_path / "run", options) == 2
    error = capsys.readouterr().err
    assert f"{option} is {value}" in error
    assert f"--init-from {finished.folder} has {option} {other}" in error
    assert not (tmp_path / "run").exists()


def test_the_parameters_are_compared_with_the_model_whoever_asks(finished):
    start = load_run(finished.folder).model.config
    check_architecture(start, dataclasses.replace(start, dropout_rate=0.3, dtype="bfloat16"))
    with pytest.raises(ValueError, match=r"--init-from.*--features 16 \(here 32\)"):
        check_architecture(start, dataclasses.replace(start, features=32))


def test_other_dropout_is_no_other_architecture(finished, tmp_path, monkeypatch):
    options = {"--init-from": finished.folder, "--dropout-rate": 0.3, "--dtype": "bfloat16"}
    prepared = prepared_by(monkeypatch, tmp_path / "run", options)
    assert prepared.model.config.dropout_rate == 0.3


@pytest.mark.parametrize("left", [(), ("config.json",), ("config.json", "tokenizer.model")])
def test_a_folder_without_a_run_is_refused_by_name(finished, tmp_path, capsys, left):
    start = tmp_path / "start"
    start.mkdir()
    for name in left:
        (start / name).write_bytes((finished.folder / name).read_bytes())
    before = sorted(start.iterdir())
    assert tiny(tmp_path / "run", {"--init-from": start}) == 2
    error = capsys.readouterr().err
    assert "--init-from" in error and str(start) in error and "validated" in error
    assert sorted(start.iterdir()) == before and not (tmp_path / "run").exists()


def test_adapters_are_trained_beside_the_parameters_of_a_run(
    finished, tmp_path, monkeypatch, capsys
):
    decode_to(monkeypatch, [Tokenizer.eos_id])
    folder, start = tmp_path / "run", load_run(finished.folder).params
    options = {"--lora": 2, "--lora-on": "query|value", "--steps": 2, "--metric": "nll"}
    assert tiny(folder, options) == 2
    assert "--lora is 2; expected init_from" in capsys.readouterr().err
    options |= {"--init-from": finished.folder, "--samples": 0}
    assert tiny(folder, options) == 0
    exported = load(folder).params
    jax.tree.map(np.testing.assert_array_equal, with_adapter(start, folder / ADAPTER), exported)
    jax.tree.map(np.testing.assert_array_equal, load_run(folder).params, exported)
    changed = jax.tree.map(lambda x, y: bool((x != y).any()), start, exported)
    found = {path_of(path) for path, x in jax.tree_util.tree_leaves_with_path(changed) if x}
    assert found and all(path.endswith(("query/kernel", "value/kernel")) for path in found)
    assert len(found) == 6


# ---- Going on --------------------------------------------------------------------------------


@pytest.fixture
def started(finished, tmp_path, monkeypatch):
    """The folder of a run that started from another, which was stopped, that other, the options."""
    start = shutil.copytree(finished.folder, tmp_path / "start")
    decode_to(monkeypatch, [Tokenizer.eos_id])
    options = {"--init-from": start, "--steps": 2, "--metric": "nll", "--samples": 0}

    def stop(*_):
        raise InterruptedRun(0)

    with monkeypatch.context() as context:
        context.setattr(run_module, "train", stop)
        assert tiny(tmp_path / "run", options) == 75
    return tmp_path / "run", start, options


def gone(start):
    shutil.rmtree(start)


def changed(start):
    """The other run has become another: tokenizer, parameters and architecture."""
    texts = [f"{i} other words altogether" for i in range(300)]
    (start / "tokenizer.model").write_bytes(Tokenizer.train(texts, 320).model)
    shutil.rmtree(start / "model")
    shutil.rmtree(start / "models")


@pytest.mark.thorough
@pytest.mark.parametrize("happen", [gone, changed])
def test_a_run_goes_on_from_what_it_began_with_whatever_became_of_it(
    finished, started, monkeypatch, happen
):
    folder, start, options = started
    kept = (finished.folder / "tokenizer.model").read_bytes()
    happen(start)
    before = contents(folder)
    found = []
    with monkeypatch.context() as context:
        context.setattr(run_module, "train", lambda task, *_: found.append(task.prepared) or 1 / 0)
        with pytest.raises(ZeroDivisionError):
            tiny(folder, options)
    (prepared,) = found
    jax.tree.map(np.testing.assert_array_equal, prepared.params, finished.trained.params)
    assert prepared.tokenizer.model == kept
    names = {path.name for path, content in contents(folder).items() if before[path] != content}
    assert names <= {"lock"}  # which holds the number of the process
    assert tiny(folder, options) == 0


@pytest.mark.parametrize("name", ["tokenizer.model", "start.safetensors"])
def test_what_a_run_began_with_is_refused_where_it_has_changed(started, capsys, name):
    folder, _, options = started
    content = bytearray((folder / name).read_bytes())
    content[-3] ^= 1
    (folder / name).write_bytes(content)
    before = contents(folder)
    assert tiny(folder, options) == 2
    assert f"{name}: damaged" in capsys.readouterr().err
    assert contents(folder).keys() == before.keys()


def test_a_run_of_an_older_version_refuses_a_start_with_another_tokenizer(started, capsys):
    folder, start, options = started
    (folder / "start.safetensors").unlink()
    for name, fields in (("data.json", ["start", "sha256"]), ("config.json", ["run", "sha256"])):
        data = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({k: v for k, v in data.items() if k not in fields}))
    before = (folder / "data.json").read_bytes()
    texts = [text for pair in builtin.pairs("train", 250) for text in pair]
    other = Tokenizer.train(texts, 400)
    loaded = load_run(start)._replace(tokenizer=other)
    export(start / "model", loaded)
    assert tiny(folder, options) == 2
    assert "has another tokenizer" in capsys.readouterr().err
    assert (folder / "data.json").read_bytes() == before
