"""The command line from end to end: what a run leaves behind, goes on from, and refuses."""

import contextlib
import dataclasses
import functools
import io
import json
import math
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from run_cases import (
    SMALL,
    contents,
    decode_to,
    lines_of,
    own_pairs,
    prepared_by,
    record_states,
    record_training,
    tiny,
    write_pairs,
)
from sacrebleu.metrics import BLEU, CHRF

from configs import PRESETS
from flaxattn import EncoderDecoder
from flaxattn.text.tokenizer import Tokenizer
from flaxattn.training.config import to_json
from flaxattn.training.log import RunLog
from flaxattn.training.run_folder import check_folder
from flaxattn.training.screen import Screen
from flaxattn.translation.config import DecodingConfig, RunConfig
from flaxattn.translation.decoding.translator import translate
from flaxattn.translation.rules import RULES, config_hash
from flaxattn.translation.task import TranslationTask
from flaxattn.translation.text import builtin
from flaxattn.translation.trained.loading import load_run
from flaxattn.translation.trained.record import read_run

# ---- What a run leaves behind ----------------------------------------------------------------


def test_a_run_keeps_all_that_was_promised(finished):
    assert finished.code == 0
    assert {path.name for path in finished.folder.iterdir()} == {
        "checkpoints",
        "config.json",
        "data.json",
        "lock",
        "log.jsonl",
        "model",
        "models",
        "result.json",
        "speed.jsonl",
        "tensorboard",
        "test.hypothesis",
        "test.reference",
        "test.source",
        "tokenizer.model",
    }
    assert sum(p.stat().st_size for p in (finished.folder / "tensorboard").iterdir()) > 500
    assert {p.name for p in (finished.folder / "checkpoints").iterdir()} >= {"6", "12"}
    assert Tokenizer.load(finished.folder / "tokenizer.model").vocab_size == 400


def test_the_configuration_kept_is_the_one_that_was_given(finished):
    kept = json.loads((finished.folder / "config.json").read_text())
    parts = ("data", "model", "training", "decoding")
    flat = {"output": kept["output"]} | {k: v for part in parts for k, v in kept[part].items()}
    for option, value in SMALL.items():
        assert flat[option[2:].replace("-", "_")] == value, option
    assert flat["output"] == str(finished.folder)
    assert flat["adam_b2"] == PRESETS["tiny"].training.adam_b2
    assert flat["max_ratio"] == 1.5  # chosen, since none was given, and kept with the model
    exported = json.loads((finished.folder / "model" / "config.json").read_text())
    assert exported["decoding"] == kept["decoding"]


def test_the_result_holds_every_field(finished):
    result = json.loads((finished.folder / "result.json").read_text())
    scores = result.pop("scores")
    assert re.fullmatch("[0-9a-f]{12}", result.pop("config"))
    assert result.pop("training_seconds") > 0
    assert result.pop("target_tokens_per_second") > 0
    assert result.pop("hardware") in finished.printed[0]
    assert result.pop("run") == json.loads((finished.folder / "data.json").read_text())["run"]
    assert {"test.source", "test.reference", "test.hypothesis"} == result.pop("files").keys()
    assert re.fullmatch("[0-9a-f]{64}", result.pop("sha256"))
    parameters = sum(x.size for x in jax.tree.leaves(finished.trained.params))
    assert result == {"seed": 0, "parameters": parameters, "steps": 12}
    assert list(scores) == ["bleu", "bleu_lc", "chrf"]
    for score in scores.values():
        assert 0 <= score["value"] <= 100 and "version:" in score["signature"]


def test_the_scores_can_be_computed_again_from_the_files(finished):
    scores = json.loads((finished.folder / "result.json").read_text())["scores"]
    hypotheses, references = (
        lines_of(finished.folder / f"test.{name}") for name in ("hypothesis", "reference")
    )
    metrics = {"bleu": BLEU(), "bleu_lc": BLEU(lowercase=True), "chrf": CHRF()}
    for name, metric in metrics.items():
        value = metric.corpus_score(hypotheses, [references]).score
        assert scores[name]["value"] == pytest.approx(value, abs=0.006)
        assert scores[name]["signature"] == str(metric.get_signature())


def test_the_translated_split_is_kept_line_by_line(finished):
    test = builtin.pairs("test", 8)
    assert lines_of(finished.folder / "test.source") == [source for source, _ in test]
    assert lines_of(finished.folder / "test.reference") == [target for _, target in test]
    assert len(lines_of(finished.folder / "test.hypothesis")) == 8


def log_of(finished):
    return [json.loads(line) for line in lines_of(finished.folder / "log.jsonl")]


def test_the_log_has_rows_of_finite_numbers(finished):
    rows = [row for row in log_of(finished) if row["kind"] != "sample"]
    steps = {kind: [r["step"] for r in rows if r["kind"] == kind] for kind in ("train", "valid")}
    assert steps == {"train": [4, 6, 8, 12], "valid": [6, 12]}
    for row in rows:
        values = {k: v for k, v in row.items() if k != "kind"}
        assert all(math.isfinite(value) for value in values.values())
        assert values.keys() >= {"loss", "nll", "perplexity", "accuracy"}
        assert 0 <= row["accuracy"] <= 1 and row["perplexity"] == pytest.approx(
            math.exp(row["nll"])
        )
        if row["kind"] == "valid":
            assert row["loss"] == pytest.approx(row["nll"])
    rates = [r["learning_rate"] for r in rows if r["kind"] == "train"]
    shares = [4 / 5, (5 / 6) ** 0.5, (5 / 8) ** 0.5, (5 / 12) ** 0.5]
    assert rates == pytest.approx([0.004 * share for share in shares])


def test_the_metric_is_logged_where_it_is_a_score(finished):
    values = [row["chrf"] for row in log_of(finished) if row["kind"] == "valid"]
    assert len(values) == 2 and all(0 <= value <= 100 for value in values)
    assert any(f"chrf {values[0]:.3f}" in line for line in finished.printed)


@pytest.mark.thorough
def test_the_first_validation_sentences_are_translated_for_the_log(finished):
    rows = [row for row in log_of(finished) if row["kind"] == "sample"]
    pairs = builtin.pairs("valid", 8)[:2]
    assert [row["step"] for row in rows] == [6, 6, 12, 12]
    assert [(row["source"], row["reference"]) for row in rows] == pairs * 2
    loaded = load_run(finished.folder)
    assert len(list((finished.folder / "models").glob("[0-9]*"))) == 2
    for row in rows:
        assert f"    {'translation':<12} {row['translation']}" in finished.printed
    last = rows[-2:]
    params = finished.states[12].ema
    sources, greedy = [source for source, _ in pairs], DecodingConfig(beam_size=1)
    translations = translate(loaded.model, params, loaded.tokenizer, sources, greedy)
    assert [row["translation"] for row in last] == translations


def test_nothing_is_compiled_any_more_after_the_first_validation(finished):
    rows = [json.loads(line) for line in lines_of(finished.folder / "speed.jsonl")]
    assert [row["step"] for row in rows] == [4, 6, 8, 12]
    assert all(row["time"] > 0 < row["target_tokens_per_second"] for row in rows)
    counts = [row["compilations"] for row in rows]
    assert 0 < counts[0] == counts[1] < counts[2] == counts[3]


def test_the_first_line_names_the_device_and_the_last_the_folder(finished):
    assert "Device" in finished.printed[0]
    assert jax.devices()[0].platform in finished.printed[0].lower()
    assert str(finished.folder) in finished.printed[-1]


def test_five_translations_are_shown(finished):
    printed = "\n".join(finished.printed)
    shown = re.findall(
        r"\n  source +(.*)\n  reference +(.*)\n  translation +(.*)", printed, flags=re.MULTILINE
    )
    names = ("source", "reference", "hypothesis")
    files = [lines_of(finished.folder / f"test.{name}") for name in names]
    kept = {tuple(line.strip() for line in lines) for lines in zip(*files, strict=True)}
    assert len(shown) == 5
    assert {tuple(text.strip() for text in triple) for triple in shown} <= kept


# ---- Going on --------------------------------------------------------------------------------


def bytes_of(tree):
    return [np.asarray(x).tobytes() for x in jax.tree.leaves(tree)]


@pytest.mark.thorough
def test_an_interrupted_run_goes_on_to_the_same_bytes(finished, tmp_path, monkeypatch):
    outcomes, write = record_training(monkeypatch), RunLog.write
    states = record_states(monkeypatch)

    def stop_at_step_8(log, kind, step, values):
        if step == 8:
            raise KeyboardInterrupt
        write(log, kind, step, values)

    with monkeypatch.context() as context:
        decode_to(context, [Tokenizer.eos_id])
        assert tiny(tmp_path / "run", {"--steps": 6}) == 0
    with monkeypatch.context() as context:
        context.setattr(RunLog, "write", stop_at_step_8)
        assert tiny(tmp_path / "run") == 130
    assert tiny(tmp_path / "run") == 0
    assert [outcome.steps for outcome in outcomes] == [6, 12]
    assert states[12].ema is not None
    assert bytes_of(states[12]) == bytes_of(finished.states[12])
    assert bytes_of(outcomes[-1].params) == bytes_of(finished.trained.params)
    loaded = [load_run(folder).params for folder in (tmp_path / "run", finished.folder)]
    assert bytes_of(loaded[0]) == bytes_of(loaded[1]) == bytes_of(outcomes[-1].params)
    assert outcomes[-1].units == finished.trained.units
    logs = [lines_of(folder / "log.jsonl") for folder in (tmp_path / "run", finished.folder)]
    train_rows = [[row for row in rows if '"kind": "train"' in row] for rows in logs]
    assert train_rows[0] == train_rows[1]
    for name in ("test.hypothesis", "tokenizer.model"):
        assert (tmp_path / "run" / name).read_bytes() == (finished.folder / name).read_bytes()


def copy_of(finished, folder):
    return shutil.copytree(finished.folder, folder / "copy")


@pytest.fixture(scope="module")
def given_again(finished, tmp_path_factory):
    """The folder of a finished run whose command was given again."""
    folder = copy_of(finished, tmp_path_factory.mktemp("again"))
    with contextlib.redirect_stdout(io.StringIO()):
        assert tiny(folder) == 0
    return folder


@pytest.mark.thorough
def test_a_finished_run_given_again_has_the_same_translations_and_scores(finished, given_again):
    for name in ("test.hypothesis", "test.reference", "test.source", "tokenizer.model"):
        assert (given_again / name).read_bytes() == (finished.folder / name).read_bytes()
    first, again = (
        json.loads((folder / "result.json").read_text())
        for folder in (finished.folder, given_again)
    )
    for name in ("config", "seed", "parameters", "hardware", "steps", "scores"):
        assert again[name] == first[name]


def test_a_finished_run_given_again_keeps_the_time_and_speed_of_its_training(finished, given_again):
    first, again = (
        json.loads((folder / "result.json").read_text())
        for folder in (finished.folder, given_again)
    )
    for name in ("training_seconds", "target_tokens_per_second"):
        assert first[name] / 2 < again[name] < first[name] * 2, name


def test_fewer_steps_than_were_made_are_refused(finished, capsys):
    before = contents(finished.folder)
    assert tiny(finished.folder, {"--steps": 6}) == 2
    error = capsys.readouterr().err
    assert "has made 12 steps" in error and "--steps is 6" in error
    assert contents(finished.folder) == before


def test_a_translation_with_a_line_break_stays_one_line_of_the_file(
    finished, tmp_path, monkeypatch
):
    folder = copy_of(finished, tmp_path)
    (ids,) = Tokenizer.load(folder / "tokenizer.model").encode(["one\ntwo\r\nthree"])
    decode_to(monkeypatch, ids)
    assert tiny(folder) == 0
    for name in ("hypothesis", "reference", "source"):
        assert len(lines_of(folder / f"test.{name}")) == 8, name


def read_config(folder):
    """The configuration that a run has kept."""
    return read_run(folder)


@pytest.mark.parametrize(
    "option, value",
    [
        ("--features", 32),
        ("--learning-rate", 0.5),
        ("--seed", 1),
        ("--builtin-pairs", 299),
        ("--metric", "nll"),
        ("--average", 3),
        ("--select", "last"),
        ("--ema-decay", 0.9),
        ("--freeze", "encoder"),
        ("--init-from", "elsewhere"),
    ],
)
def test_other_settings_in_the_same_folder_are_refused_by_name(finished, capsys, option, value):
    before = contents(finished.folder)
    assert tiny(finished.folder, {option: value}) == 2
    error = capsys.readouterr().err
    assert option[2:] in error.replace("_", "-") and str(finished.folder) in error
    assert contents(finished.folder) == before


def test_settings_that_change_no_model_may_change(finished):
    kept = read_config(finished.folder)
    others = {"keep_checkpoints": 5, "log_every": 3, "patience": 7, "samples": 0}
    other = dataclasses.replace(
        kept,
        data=dataclasses.replace(
            kept.data,
            data_dir="elsewhere",
            test=("a.tsv",),
            more_valid=("b.tsv",),
            bleu_tokenizer="char",
        ),
        training=dataclasses.replace(kept.training, **others),
        decoding=dataclasses.replace(kept.decoding, beam_size=2, length_penalty=0.5),
    )
    check_folder(other, RULES)
    with pytest.raises(ValueError, match=r"\(seed\)"):
        check_folder(
            dataclasses.replace(other, training=dataclasses.replace(other.training, seed=9)), RULES
        )


def test_a_dry_run_shows_the_settings_given_whatever_run_the_folder_holds(finished, monkeypatch):
    before = contents(finished.folder)
    prepared = prepared_by(monkeypatch, finished.folder, {"--vocab-size": 350})
    assert prepared.tokenizer.vocab_size == prepared.model.config.vocab_size == 350
    assert contents(finished.folder) == before


# ---- Files of one's own ----------------------------------------------------------------------


def write_tsv(folder, name, pairs):
    lines = [f"{source}\t{target}\tlicence\t{i}" for i, (source, target) in enumerate(pairs)]
    (folder / name).write_bytes(b"\xef\xbb\xbf" + "\n".join(lines).encode())
    return (name,)


def test_the_same_pairs_are_the_same_data_however_they_are_written(tmp_path, monkeypatch):
    writings = [
        write_pairs(tmp_path, "unix", own_pairs()),
        write_pairs(tmp_path, "windows", own_pairs(), newline="\r\n"),
        write_tsv(tmp_path, "all.tsv", own_pairs()),
    ]
    settings = {"--data-dir": tmp_path, "--sequence-length": 48}
    first, *others = (
        prepared_by(monkeypatch, tmp_path / "run", settings | {"--train": files})
        for files in writings
    )
    assert sorted(pair for split in first.corpus for pair in split) == sorted(own_pairs())
    for other in others:
        assert [[*split] for split in other.corpus] == [[*split] for split in first.corpus]
        assert other.tokenizer.model == first.tokenizer.model
        jax.tree.map(np.testing.assert_array_equal, other.train.batch(3), first.train.batch(3))


@pytest.mark.thorough
def test_a_tsv_file_is_learned_and_crlf_files_are_translated(tmp_path, capsys):
    splits = {name: own_pairs()[start::9] for start, name in enumerate(("valid", "test"))}
    files = {f"--{n}": write_pairs(tmp_path, n, p, newline="\r\n") for n, p in splits.items()}
    files["--train"] = write_tsv(tmp_path, "train.tsv", own_pairs())
    settings = {"--data-dir": tmp_path, "--steps": 1, "--sequence-length": 48}
    assert tiny(tmp_path / "run", files | settings) == 0
    assert "72 to train, 8 to validate, 8 to test" in capsys.readouterr().out
    assert lines_of(tmp_path / "run" / "test.source") == [source for source, _ in splits["test"]]
    assert lines_of(tmp_path / "run" / "test.reference") == [target for _, target in splits["test"]]
    assert len(lines_of(tmp_path / "run" / "test.hypothesis")) == 8


@pytest.mark.thorough(quick=1)
@pytest.mark.parametrize("metric", ["nll", "chrf"])
def test_more_validation_text_is_told_of_and_chooses_no_model(
    tmp_path, capsys, monkeypatch, metric
):
    # Words in common with the target, which a model of 12 steps has none of.
    guess = lambda self, params, texts: [f"{text} Größe" for text in texts]  # noqa: E731
    monkeypatch.setattr(TranslationTask, "_translate", guess)
    pairs = own_pairs()
    files = {"--train": write_pairs(tmp_path, "train", pairs[16:])}
    files["--valid"] = write_pairs(tmp_path, "valid", pairs[:8])
    files["--test"] = write_pairs(tmp_path, "test", pairs[8:16])
    tsv = write_tsv(tmp_path, "others.tsv", pairs[8:16])
    (tmp_path / "same").mkdir()
    same = tuple(f"same/{x}" for x in write_pairs(tmp_path / "same", "valid", pairs[:8]))
    files |= {"--data-dir": tmp_path, "--sequence-length": 48, "--metric": metric}
    assert tiny(tmp_path / "alone", files) == 0
    assert tiny(tmp_path / "more", files | {"--more-valid": (*tsv, *same)}) == 0
    assert "Of others.tsv 8 more to validate." in capsys.readouterr().out
    alone, more = (
        [r for r in map(json.loads, lines_of(tmp_path / x / "log.jsonl")) if r["kind"] == "valid"]
        for x in ("alone", "more")
    )
    assert len(alone) == 2
    for row, other in zip(alone, more, strict=True):
        assert row == {name: other.pop(name) for name in row}
        assert set(other) == {f"{m}/{x}" for m in {"nll", metric} for x in ("valid.en", *tsv)}
        for name in {"nll", metric}:
            np.testing.assert_allclose(other[f"{name}/valid.en"], row[name], rtol=1e-5)
            assert abs(other[f"{name}/others.tsv"] - row[name]) > 1e-3


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("a.en", "a.de", "b.en"), "a.en a.de b.en; expected for each corpus two aligned files"),
        (("a.en", "a.de", "new/a.en", "new/a.de"), "expected first files of different names"),
        (("gone.en", "gone.de"), "gone.en: no such file"),
    ],
)
def test_more_validation_text_that_is_not_there_is_named(tmp_path, capsys, names, message):
    files = {"--train": write_pairs(tmp_path, "train", own_pairs()), "--data-dir": tmp_path}
    assert tiny(tmp_path / "run", files | {"--more-valid": names}) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert "more-valid" in error.replace("_", "-") or names[0].startswith("gone")
    assert message in error
    assert not (tmp_path / "run").exists()


def spellings(packed, epoch):
    """The target ids of every pair of an epoch."""
    steps = range(epoch * packed.batches_per_epoch, (epoch + 1) * packed.batches_per_epoch)
    return {
        tuple(ids[segments == segment].tolist())
        for batch in map(packed.batch, steps)
        for ids, segments in zip(batch.target, batch.target_segment_ids, strict=True)
        for segment in range(1, segments.max() + 1)
    }


def test_subword_dropout_is_for_training_text_alone(tmp_path, monkeypatch):
    options = {"--subword-dropout": 0.5, "--sequence-length": 200}
    first, again = (prepared_by(monkeypatch, tmp_path / "run", options) for _ in range(2))
    encoded, texts = {}, {}
    for name in ("train", "valid"):
        targets = [target for _, target in getattr(first.corpus, name)]
        encoded[name] = {tuple(ids.tolist()) for ids in first.tokenizer.encode(targets)}
        texts[name] = set(targets)
    drawn = [spellings(first.train, epoch) for epoch in (0, 1)]
    for epoch in (0, 1):
        assert spellings(first.valid, epoch) == encoded["valid"]
        assert len(drawn[epoch] & encoded["train"]) < 0.1 * len(encoded["train"])
        assert set(first.tokenizer.decode(drawn[epoch])) <= texts["train"]
    assert len(drawn[0] & drawn[1]) < 0.1 * len(drawn[0])
    assert [spellings(again.train, epoch) for epoch in (1, 0)] == drawn[::-1]


# ---- Looking before training -----------------------------------------------------------------


def parameter_count(config):
    """The parameters of a model, without making them."""
    tokens = jax.ShapeDtypeStruct((1, 2), jnp.int32)
    init = functools.partial(EncoderDecoder(config).init, deterministic=True)
    shapes = jax.eval_shape(init, jax.random.key(0), tokens, tokens)
    return sum(x.size for x in jax.tree.leaves(shapes))


@pytest.mark.thorough
def test_a_dry_run_shows_shapes_and_parameters_and_writes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert tiny("run", None, "--dry-run") == 0
    printed = capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []
    assert "Device" in printed.splitlines()[0]
    assert printed.count("int32 [8, 64]") == 4
    model = dataclasses.replace(
        PRESETS["tiny"].model,
        vocab_size=400,
        features=16,
        ff_features=16,
        num_heads=2,
        encoder_layers=1,
        decoder_layers=1,
    )
    assert re.search(rf"total +{parameter_count(model):,}\n", printed)
    assert "source_embedding/embedding" in printed and "[400, 16]" in printed
    assert 0 < float(re.search(r"a step: ([\d.e-]+) s", printed)[1]) < 60
    in_all = re.search(r"steps and .*: about \d", printed)
    assert in_all.start() < printed.index("source_embedding/embedding")


def test_lines_of_steps_say_how_long_the_rest_will_take(finished):
    lines = [line for line in finished.printed if " tokens/s" in line]
    told = [bool(re.search(r"  \d+ (s|min) left$", line)) for line in lines]
    assert told == [False, *[True] * (len(lines) - 2), False]  # the first compiles, the last is all


@pytest.mark.thorough(quick=4)
@pytest.mark.parametrize("name", PRESETS)
def test_the_parameters_of_a_preset_are_those_of_the_formula(name):
    m = PRESETS[name].model
    attention = 4 * (m.features**2 + m.features)
    feed_forward = 2 * m.features * m.ff_features + m.ff_features + m.features
    norm = 2 * m.features
    encoder = m.encoder_layers * (attention + feed_forward + 2 * norm) + norm
    decoder = m.decoder_layers * (2 * attention + feed_forward + 3 * norm) + norm
    assert parameter_count(m) == m.vocab_size * m.features + encoder + decoder


@pytest.mark.parametrize("name", ["multi30k", "multi30k_quick"])
def test_the_multi30k_presets_have_at_most_three_million_parameters(name):
    assert parameter_count(PRESETS[name].model) <= 3_000_000


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_plain_data(name):
    preset = PRESETS[name]
    data = json.loads(json.dumps(to_json(preset)))
    assert isinstance(preset, RunConfig)
    assert data.keys() == {"output", "data", "model", "training", "decoding"}
    assert data["training"]["steps"] == preset.training.steps
    assert re.fullmatch("[0-9a-f]{12}", config_hash(preset))
    assert preset.training.sequence_length >= 2 and preset.training.batch_size % 8 == 0


def test_presets_differ_in_folder_and_hash_and_the_first_needs_no_files():
    presets = list(PRESETS.values())
    assert len({preset.output for preset in presets}) == len(presets)
    assert len({config_hash(preset) for preset in presets}) == len(presets)
    assert presets[0].data.train == ()


def test_the_hash_names_the_settings_wherever_data_and_output_lie():
    preset = PRESETS["multi30k"]
    data = dataclasses.replace(preset.data, data_dir="elsewhere")
    moved = dataclasses.replace(preset, output="elsewhere", data=data)
    slower = dataclasses.replace(preset.training, learning_rate=1e-9)
    assert config_hash(moved) == config_hash(preset)
    starts = ["", "/here/runs/a", "elsewhere/a/", "/here/runs/b"]
    hashes = [
        config_hash(
            dataclasses.replace(
                preset, training=dataclasses.replace(preset.training, init_from=start)
            )
        )
        for start in starts
    ]
    assert hashes[0] == config_hash(preset)
    assert hashes[1] == hashes[2] and len(set(hashes)) == 3
    assert config_hash(dataclasses.replace(preset, training=slower)) != config_hash(preset)


# ---- The screen ------------------------------------------------------------------------------

ODD = "pip install jax[cuda13] or [bold]jax[/bold] :cat: [/]"


@pytest.mark.parametrize("method", ["say", "warn", "headline"])
def test_the_screen_shows_text_as_it_stands(capsys, method):
    getattr(Screen(), method)(ODD)
    assert ODD in capsys.readouterr().out


def test_a_long_line_is_not_broken(capsys):
    Screen().say("word " * 100)
    assert len(capsys.readouterr().out.splitlines()) == 1
