"""What the engine promises, for every task: to resume, to tell damage, to spread, to be used."""

import contextlib
import io
import json
import signal
import sys

import jax
import numpy as np
import pytest

import flaxattn.training.run as run_module
from configs import TASKS
from flaxattn.__main__ import main as commands
from flaxattn.tasks.classification import classify
from flaxattn.tasks.config import SamplingConfig
from flaxattn.tasks.denoising import DenoisingTask
from flaxattn.tasks.explaining import explain
from flaxattn.tasks.generating import generate
from flaxattn.tasks.labelling import label
from flaxattn.tasks.storing import load
from flaxattn.tasks.training import main
from flaxattn.text.supply import PackedPairs
from flaxattn.training.report import write_page
from flaxattn.translation import load as load_translator

INTERRUPTED, REFUSED = 75, 2
SMALL = """--builtin-texts 120 --held-out 12 --vocab-size 420 --features 16 --ff-features 16
--num-heads 2 --sequence-length 64 --batch-size 4 --steps 6 --valid-every 3 --log-every 2
--samples 1 --warmup-steps 2 --cooldown-steps 2""".split()
DEPTH = ["--num-layers", "1"]
PRESETS = {
    "language": ("language", ["tiny", *DEPTH]),
    "labelling": ("labelling", ["tiny", *DEPTH]),
    "classification": ("classification", ["tiny", *DEPTH]),
    "denoising": ("denoising", ["tiny", *DEPTH]),
    "spans": ("denoising", ["spans", "--encoder-layers", "1", "--decoder-layers", "1"]),
}
every_task = pytest.mark.parametrize("name", PRESETS)


@pytest.fixture(autouse=True)
def _as_users_have_it(standard_promotion):
    """optax raises floats to int32 powers."""
    jax.config.update("jax_numpy_rank_promotion", "allow")
    yield
    jax.config.update("jax_numpy_rank_promotion", "raise")


def train(name, folder, *words):
    task, preset = PRESETS[name]
    return main(task, TASKS[task], [*preset, *SMALL, "--output", str(folder), *map(str, words)])


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """A run of each task, trained when first asked for, silently: tests read what is printed."""
    folders = {}

    def run(name):
        if name not in folders:
            folder = tmp_path_factory.mktemp("tasks") / name
            with (
                jax.numpy_dtype_promotion("standard"),
                jax.numpy_rank_promotion("allow"),
                contextlib.redirect_stdout(io.StringIO()),
            ):
                assert train(name, folder) == 0
            folders[name] = folder
        return folders[name]

    return run


def log_of(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


@pytest.mark.thorough(quick=3)
@every_task
def test_a_run_that_was_interrupted_goes_on_to_the_same_bytes(ended, tmp_path, monkeypatch, name):
    whole, batch = ended(name), PackedPairs.batch

    def interrupting(self, step):
        if step == 4:
            signal.raise_signal(signal.SIGTERM)
        return batch(self, step)

    with monkeypatch.context() as patch:
        patch.setattr(PackedPairs, "batch", interrupting)
        assert train(name, tmp_path / name) == INTERRUPTED
    assert train(name, tmp_path / name) == 0
    assert log_of(tmp_path / name) == log_of(whole)
    weights = "model/model.safetensors"
    assert (tmp_path / name / weights).read_bytes() == (whole / weights).read_bytes()


@pytest.mark.thorough(quick=2)
@every_task
def test_a_run_on_a_mesh_is_that_of_one_device(ended, tmp_path, name):
    assert train(name, tmp_path / name, "--mesh", "fsdp=2,data=2") == 0
    one, spread = (
        [row["loss"] for row in log_of(folder) if "loss" in row]
        for folder in (ended(name), tmp_path / name)
    )
    np.testing.assert_allclose(spread, one, rtol=2e-4)


@every_task
def test_a_damaged_model_is_told(ended, tmp_path, capsys, name):
    import shutil

    folder = tmp_path / "model"
    shutil.copytree(ended(name) / "model", folder)
    read = load_translator if name == "spans" else load
    read(folder)
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-3] ^= 1
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match="damaged"):
        read(folder)


@every_task
def test_other_settings_and_other_texts_are_refused(ended, tmp_path, capsys, name):
    folder = ended(name)
    assert train(name, folder, "--features", "32") == REFUSED
    assert "other settings (features)" in capsys.readouterr().err
    assert train(name, folder, "--builtin-texts", "130") == REFUSED
    assert "other train data (builtin_texts changed)" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["language", "labelling", "classification", "denoising"])
def test_the_model_of_a_run_is_that_which_it_exported(ended, tmp_path, name):
    import shutil

    shutil.copytree(ended(name), tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "model")
    kept, exported = load(tmp_path / "run"), load(ended(name))
    assert kept[:2] == exported[:2] and kept[4:] == exported[4:]
    jax.tree.map(np.testing.assert_array_equal, kept.params, exported.params)


def test_a_model_is_exported_by_the_command_as_by_the_run(ended, tmp_path):
    assert commands(["export", str(ended("labelling")), str(tmp_path / "model")]) == 0
    for path in (ended("labelling") / "model").iterdir():
        assert (tmp_path / "model" / path.name).read_bytes() == path.read_bytes()


def test_a_model_of_hidden_spans_is_one_of_translation_already(ended, tmp_path, capsys):
    assert commands(["export", str(ended("spans")), str(tmp_path / "model")]) == REFUSED
    assert "is an exported model already" in capsys.readouterr().err


def test_what_is_written_depends_on_the_seed_alone_and_comes_in_pieces(ended, capsys):
    loaded = load(ended("language"))
    texts = [
        "".join(generate(loaded, "The old", SamplingConfig(20, sampling_seed=s))) for s in (0, 0, 1)
    ]
    assert texts[0] == texts[1] != texts[2]
    first = "".join(generate(loaded, "The old", SamplingConfig(5)))
    assert texts[0].startswith(first)
    assert commands(["generate", str(ended("language")), "The old", "--max-tokens", "20"]) == 0
    assert capsys.readouterr().out == f"The old{texts[0]}\n"


def test_generated_tokens_are_the_likeliest_of_the_whole_text(ended):
    """Step by step with a cache as all at once without one."""
    loaded = load(ended("language"))
    written = "".join(generate(loaded, "The old", SamplingConfig(12, temperature=0)))
    tokenizer, module = loaded.tokenizer, loaded.module
    ids = tokenizer.encode(["The old"])[0][:-1].tolist()
    apply = jax.jit(
        lambda tokens: module.apply({"params": loaded.params}, tokens, deterministic=True)
    )
    for _ in range(12):
        tokens = np.zeros((1, 32), np.int32)
        tokens[0, : len(ids) + 1] = [tokenizer.bos_id, *ids]
        best = int(apply(tokens)[0, len(ids)].argmax())
        if best == tokenizer.eos_id:
            break
        ids.append(best)
    assert tokenizer.decode([ids])[0] == f"The old{written}"


def test_labels_are_the_same_however_sentences_are_batched(ended, capsys, tmp_path):
    loaded = load(ended("labelling"))
    sentences = [text.split() for text in ("Jordan swims .", "x " * 90, "In Paris it rains .")]
    together = label(loaded, sentences)
    assert together == [label(loaded, [words])[0] for words in sentences]
    assert [len(tags) for tags in together] == [3, 90, 5]  # also of one that fits no row
    path = tmp_path / "in.txt"
    path.write_text("Jordan swims .\n")
    assert commands(["label", str(ended("labelling")), "--input", str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == [f"{w}\t{t}" for w, t in zip(sentences[0], together[0], strict=True)] + [""]


def test_classes_are_the_same_however_texts_are_batched(ended, capsys):
    loaded = load(ended("classification"))
    texts = ["As for the soup: it was cold.", "", "As for the bed: " + "it was old and " * 60]
    together = classify(loaded, texts)
    for found, text in zip(together, texts, strict=True):
        (alone,) = classify(loaded, [text])
        assert found == pytest.approx(alone, abs=1e-5) and sum(found.values()) == pytest.approx(1)
    assert commands(["classify", str(ended("classification")), texts[0]]) == 0
    name, share = capsys.readouterr().out.rstrip("\n").split("\t")
    assert float(share) == pytest.approx(max(together[0].values()), abs=1e-4)
    assert together[0][name] == max(together[0].values())


def test_what_a_language_model_sees_and_tells_is_explained(ended, tmp_path, capsys):
    loaded, page = load(ended("language")), tmp_path / "seen.html"
    sentence = explain(loaded, "The old")
    (seen,), rows = sentence.attentions, sentence.written
    ids = loaded.tokenizer.encode(["The old"])[0][:-1]
    assert list(seen.q_writes) == loaded.tokenizer.pieces(ids.tolist()) == [x.token for x in rows]
    assert list(seen.q_tokens)[1:] == list(seen.q_writes)[:-1]
    assert (seen.mask == np.tril(np.ones((len(ids), len(ids)), bool))).all()
    np.testing.assert_allclose(seen.weights.sum(axis=-1), 1, atol=1e-5)
    assert not seen.weights[:, ~seen.mask].any()
    tokens = np.array([[loaded.tokenizer.bos_id, *ids]], np.int32)
    logits = loaded.module.apply({"params": loaded.params}, tokens, deterministic=True)
    shares = np.asarray(jax.nn.softmax(logits[0]))[np.arange(len(ids)), ids]
    assert [x.probability for x in rows] == pytest.approx(shares.tolist(), abs=1e-5)
    words = ["The old", "--max-tokens", "9", "--explain", str(page)]
    capsys.readouterr()
    assert commands(["generate", str(ended("language")), *words]) == 0
    shown = json.dumps(capsys.readouterr().out[:-1], ensure_ascii=False).replace("<", "\\u003c")
    assert f'"text":{shown}' in page.read_text(encoding="utf-8")
    assert commands(["generate", str(ended("language")), "a", "--explain", "a.txt"]) == REFUSED
    assert "expected .html" in capsys.readouterr().err


def test_tags_stand_beside_their_tokens(ended, tmp_path):
    loaded, page = load(ended("labelling")), tmp_path / "seen.html"
    text = "Jordan swims in Lisbon ."
    sentence = explain(loaded, text)
    (seen,) = sentence.attentions
    told = [tag for tag in seen.q_writes if not tag.startswith("(")]
    assert told == label(loaded, [text.split()])[0] and len(told) < len(seen.q_writes)
    assert seen.mask.all() and seen.weights[0, 0, -1] > 0
    assert commands(["label", str(ended("labelling")), text, "--explain", str(page)]) == 0
    assert text in page.read_text()


def test_a_classifier_tells_its_label_before_the_text(ended, tmp_path):
    loaded, page = load(ended("classification")), tmp_path / "seen.html"
    text = "The soup was cold."
    sentence = explain(loaded, text)
    (seen,), (told,) = sentence.attentions, sentence.written
    (found,) = classify(loaded, [text])
    assert told.probability == pytest.approx(max(found.values()), abs=1e-5)
    assert found[told.token] == max(found.values()) and seen.q_writes[:2] == [told.token, ""]
    assert commands(["classify", str(ended("classification")), text, "--explain", str(page)]) == 0
    assert text in page.read_text()


def test_every_seventh_token_is_hidden_where_hidden_ones_are_told(ended):
    loaded = load(ended("denoising"))
    sentence = explain(loaded, "The man who goes into the park sees the old house there.")
    tokens, ids = sentence.attentions[0].q_tokens, loaded.tokenizer.mask_id
    hidden = [i for i, x in enumerate(tokens) if x == loaded.tokenizer.pieces([ids])[0]]
    assert hidden == list(range(len(tokens) % 7, len(tokens), 7)) and len(hidden) > 1


@pytest.mark.thorough
@every_task
def test_the_page_on_a_run_has_what_it_attends_to(ended, tmp_path, monkeypatch, name):
    import shutil

    shutil.copytree(ended(name), tmp_path / name)
    monkeypatch.setattr(run_module, "write_page", write_page)
    assert train(name, tmp_path / name) == 0
    page = (tmp_path / name / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/svg") == (name != "spans")


@pytest.mark.parametrize("command, name", [("generate", "labelling"), ("label", "language")])
def test_a_model_of_another_task_is_refused(ended, capsys, command, name):
    assert commands([command, str(ended(name)), "a b"]) == REFUSED
    assert f"its model is of the task {name}" in capsys.readouterr().err


@pytest.mark.parametrize("static", [False, True])
def test_masks_are_drawn_anew_in_each_epoch_or_never(ended, tmp_path, monkeypatch, static):
    """Of a text that comes again the same tokens are hidden, only if so asked."""
    tasks, init = [], DenoisingTask.__init__
    monkeypatch.setattr(
        DenoisingTask, "__init__", lambda self, *a: (init(self, *a), tasks.append(self))[0]
    )
    flag = ["--static-masks"] if static else []
    assert train("denoising", tmp_path / "run", *flag, "--dry-run") == 0
    task, hidden = tasks[0], {}
    for step in range(3 * task.prepared.train.batches_per_epoch):
        rows = task.batch(step)
        assert all((a == b).all() for a, b in zip(rows, task.batch(step), strict=True))
        for tokens, segments, labels in zip(*rows, strict=True):
            for segment in range(1, segments.max() + 1):
                told = labels[segments == segment]
                text = np.where(told > 0, told - 1, tokens[segments == segment])
                hidden.setdefault(text.tobytes(), set()).add(told.tobytes())
    assert len(hidden) > 50
    several = [len(found) > 1 for found in hidden.values()]
    assert not any(several) if static else np.mean(several) > 0.9


def test_what_read_much_text_is_where_labelling_begins(ended, tmp_path, capsys):
    start = load(ended("denoising"))
    folder = tmp_path / "labelling"
    words = ["--init-from", ended("denoising"), "--learning-rate", "1e-9", "--steps", "1"]
    assert train("labelling", folder, *words) == 0
    found = load(folder)
    assert found.tokenizer.model == start.tokenizer.model
    near = lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6)  # noqa: E731
    jax.tree.map(near, found.params["text"], start.params["text"])
    assert train("language", tmp_path / "no", "--init-from", ended("denoising")) == REFUSED
    assert "of which language has no use" in capsys.readouterr().err
    assert train("labelling", tmp_path / "no", *words, "--lora", "2") == REFUSED
    assert "has nothing that tells these labels" in capsys.readouterr().err


def test_a_translator_begins_with_what_wrote_hidden_spans(ended, tmp_path):
    from configs import PRESETS as TRANSLATION
    from flaxattn.translation.cli import main as translate

    words = f"--init-from {ended('spans')} --output {tmp_path / 'run'} --builtin-pairs 60 --steps 1"
    words += " --batch-size 4 --held-out 4 --samples 0 --learning-rate 1e-9"
    assert translate(TRANSLATION, words.split()) == 0
    start, found = load_translator(ended("spans")), load_translator(tmp_path / "run")
    near = lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6)  # noqa: E731
    jax.tree.map(near, found.params, start.params)


def test_words_that_hold_a_space_once_they_are_normalised_keep_their_tags(tmp_path):
    path = tmp_path / "my.conll"
    path.write_text("".join(f"a\u00a0{i} B-X\nb\u00a0 O\n\u00a0 O\n\n" for i in range(60)))
    words = ["--train", path, "--normalization", "nfkc"]
    assert train("labelling", tmp_path / "run", *words) == 0
    assert json.loads((tmp_path / "run" / "labels.json").read_text()) == ["O", "B-X"]


def test_files_of_ones_own_are_read_and_told(tmp_path, capsys):
    path = tmp_path / "my.tsv"
    path.write_text(
        "".join(f"{'ab'[i % 2]}\tthe text number {i} is {'xy'[i % 2]}\n" for i in range(60))
    )
    assert train("classification", tmp_path / "run", "--train", path) == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["classes"].keys() <= {"a", "b", "mean"}
    path.write_text("no tab\n")
    assert train("classification", tmp_path / "other", "--train", path) == REFUSED
    assert f"{path}, line 1" in capsys.readouterr().err
    missing = tmp_path / "mi.tsv"
    assert train("classification", tmp_path / "other", "--train", missing) == REFUSED
    assert "Did you mean 'my.tsv'?" in capsys.readouterr().err


def test_a_task_that_is_misspelt_and_a_text_in_one_piece_are_told(tmp_path, capsys):
    assert commands(["train", "langauge"]) == REFUSED
    assert "Did you mean 'language'?" in capsys.readouterr().err
    path = tmp_path / "my.txt"
    path.write_text("A line.\nAnother line.\n" * 40)
    assert train("language", tmp_path / "run", "--train", path) == REFUSED
    assert "only 1 texts found" in (err := capsys.readouterr().err) and "--documents lines" in err


if __name__ == "__main__":
    sys.exit(train(*sys.argv[1:]))
