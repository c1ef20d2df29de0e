"""Bad input: refused before any long work, by an error that says what and where, traceless."""

import dataclasses
import errno
import os
import re
import shutil
import sys
import tracemalloc

import numpy as np
import pytest
from run_cases import SMALL, contents, own_pairs, prepared_by, tiny, write_pairs

import flaxattn.training.run as run_module
from configs import PRESETS
from flaxattn.text.tokenizer import Tokenizer
from flaxattn.training import run_folder
from flaxattn.training.interruption import InterruptedRun
from flaxattn.training.metrics import DivergedError
from flaxattn.training.storage import files
from flaxattn.training.storage.files import SaveError
from flaxattn.translation.cli import main
from flaxattn.translation.config import DataConfig
from flaxattn.translation.decoding.translator import Translator
from flaxattn.translation.preparation import prepare


def refusal(capsys, command, *arguments):
    """What a command that must fail says on stderr; its exit code and what it wrote."""
    try:
        code = command(*arguments)
    except SystemExit as stop:
        code = stop.code
    error = capsys.readouterr().err
    assert code not in (0, None)
    assert error and "Traceback" not in error
    return code, error


@pytest.fixture
def refused(tmp_path, monkeypatch, capsys):
    """Runs the shrunk preset with options that must be refused; gives the message."""

    def run_refused(options):
        monkeypatch.chdir(tmp_path)
        before = contents(tmp_path)
        code, error = refusal(capsys, tiny, "run", options)
        assert code == 2
        assert contents(tmp_path) == before
        assert not (tmp_path / "run").exists()
        return error

    return run_refused


def test_a_missing_file_is_refused_by_name(refused):
    assert "missing.en" in refused({"--train": ("missing.en", "missing.de")})


def test_different_line_counts_are_refused_with_both_files_and_counts(refused, tmp_path):
    write_pairs(tmp_path, "train", own_pairs())
    (tmp_path / "short.de").write_text("kurz\n" * 50)
    error = refused({"--train": ("train.en", "short.de")})
    for word in ("train.en", "short.de", "72", "50"):
        assert word in error


def test_invalid_utf8_is_refused_with_file_and_line(refused, tmp_path):
    (tmp_path / "old.tsv").write_bytes("big\tgroß\nbigger\tgrößer\n".encode("latin-1"))
    assert re.search(r"old\.tsv.*\b1\b", refused({"--train": ("old.tsv",)}))


def test_too_few_pairs_to_hold_out_are_refused(refused, tmp_path):
    files = write_pairs(tmp_path, "few", own_pairs()[:9])
    error = refused({"--train": files})
    assert "--valid" in error and "--test" in error


def test_three_files_for_a_split_are_refused(refused):
    assert "--train" in refused({"--train": ("a", "b", "c")})


def test_rows_that_microbatches_do_not_divide_are_refused(refused):
    assert "--batch-size" in refused({"--microbatches": 3})


def test_rows_that_devices_do_not_divide_are_refused(refused):
    error = refused({"--batch-size": 6})
    assert "--batch-size" in error and "4 devices" in error
    assert "--batch-size" in refused({"--batch-size": 6, "--mesh": "fsdp=4"})


def test_a_mesh_that_the_devices_are_not_is_refused(refused):
    assert "--mesh data=3: is of 3 devices; there are 4" in refused({"--mesh": "data=3"})
    assert "--mesh has 'rows=2'; expected" in refused({"--mesh": "rows=2"})


def test_processes_of_which_only_a_part_is_told_are_refused(refused):
    assert "--coordinator is ''" in refused({"--processes": 2, "--process": 0})
    assert "--processes is 0" in refused({"--coordinator": "host:1234"})
    missing = {"--coordinator": "host:1234", "--processes": 2}
    assert "--process is -1; expected" in refused(missing)
    assert "--process is 2; expected" in refused(missing | {"--process": 2})
    for place in ("host", "host:", "host:0", "host:99999", ":1234"):
        assert "host:port" in refused(missing | {"--coordinator": place, "--process": 0})


def test_features_that_heads_do_not_divide_are_refused(refused):
    assert "--features" in refused({"--num-heads": 3})


def test_a_vocabulary_that_is_too_small_is_refused(refused):
    assert "--vocab-size" in refused({"--vocab-size": 100})


def test_rows_too_short_for_any_pair_are_refused(refused):
    assert "--sequence-length" in refused({"--sequence-length": 3})


@pytest.mark.parametrize(
    "option, value",
    [
        ("--batch-size", 0),
        ("--steps", 0),
        ("--microbatches", 0),
        ("--num-heads", 0),
        ("--log-every", 0),
        ("--valid-every", 0),
        ("--builtin-pairs", 0),
        ("--held-out", 0),
        ("--held-out", -1),
        ("--seed", -1),
        ("--bleu-tokenizer", "nonsense"),
        ("--average", 0),
        ("--patience", -1),
        ("--samples", -1),
        ("--r-drop", -0.5),
        ("--ema-decay", 1.0),
        ("--subword-dropout", 1.5),
        ("--metric", "wer"),
        ("--select", "worst"),
    ],
)
def test_a_senseless_value_is_refused_by_the_name_of_its_option(refused, option, value):
    assert option[2:] in refused({option: value}).replace("_", "-")


def test_r_drop_without_dropout_is_refused(refused):
    error = refused({"--dropout-rate": 0.0})
    assert "--r-drop" in error and "--dropout-rate" in error


def test_a_bleu_tokenizer_without_its_package_is_refused_before_training(refused, monkeypatch):
    def never(*arguments):
        raise AssertionError("training begins")

    monkeypatch.setattr(run_module, "train", never)
    monkeypatch.setitem(sys.modules, "MeCab", None)
    monkeypatch.delitem(sys.modules, "sacrebleu.tokenizers.tokenizer_ja_mecab", raising=False)
    assert "--bleu-tokenizer" in refused({"--bleu-tokenizer": "ja-mecab"})


def test_a_negative_number_of_pairs_to_hold_out_of_files_is_refused(refused, tmp_path):
    files = write_pairs(tmp_path, "train", own_pairs())
    assert "--held-out" in refused({"--train": files, "--held-out": -3})


def test_a_misspelt_preset_suggests_the_nearest(capsys):
    code, error = refusal(capsys, main, PRESETS, ["multi30"])
    assert code == 2
    assert "'multi30'" in error and "'multi30k'" in error


def test_an_unknown_preset_is_answered_with_all_there_are(capsys):
    code, error = refusal(capsys, main, PRESETS, ["qqqq"])
    assert code == 2
    assert all(name in error for name in PRESETS)


def test_a_misspelt_option_suggests_the_nearest(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, error = refusal(capsys, main, PRESETS, ["tiny", "--output", "run", "--warmup-stepz", "4"])
    assert "--warmup-stepz" in error and re.search(r"--warmup-steps\b", error)
    assert list(tmp_path.iterdir()) == []


def test_debug_shows_the_whole_error(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"missing\.en"):
        tiny("run", {"--train": ("missing.en", "missing.de")}, "--debug")


def test_help_names_every_preset_and_option(capsys):
    with pytest.raises(SystemExit) as stop:
        main(PRESETS, ["--help"])
    text = capsys.readouterr().out
    assert stop.value.code == 0
    for word in [*PRESETS, *SMALL, "--data-dir", "--train", "--test", "--dry-run"]:
        assert word in text


# ---- Text ------------------------------------------------------------------------------------


def test_a_missing_file_suggests_the_one_that_is_called_almost_the_same(refused, tmp_path):
    write_pairs(tmp_path, "train", own_pairs())
    assert "Did you mean 'train.en'?" in refused({"--train": ("trian.en", "train.de")})
    assert "nor is there a folder nowhere" in refused(
        {"--train": ("a.en", "a.de"), "--data-dir": "nowhere"}
    )


@pytest.mark.parametrize(
    "line, what", [(b"gr\xf6\xdfer", "invalid UTF-8 at byte 2"), (b"a\0b", "NUL at byte 1")]
)
def test_a_line_that_is_no_text_is_named_or_left_out_with_its_pair_and_counted(
    refused, tmp_path, monkeypatch, capsys, line, what
):
    pairs = own_pairs()
    files = write_pairs(tmp_path, "train", pairs)
    lines = (tmp_path / files[1]).read_bytes().split(b"\n")
    lines[4] = line
    (tmp_path / files[1]).write_bytes(b"\n".join(lines))
    error = refused({"--train": files})
    assert re.search(rf"train\.de, line 5: {what}", error) and "--invalid-lines skip" in error
    options = {"--train": files, "--data-dir": tmp_path, "--invalid-lines": "skip"}
    corpus = prepared_by(monkeypatch, tmp_path / "run", options).corpus
    assert sorted(p for split in corpus for p in split) == sorted(pairs[:4] + pairs[5:])
    assert "left out 1 pairs that are not valid UTF-8" in capsys.readouterr().out


@pytest.mark.thorough
@pytest.mark.parametrize(
    "long",
    ["word " * 2_000_000, "a" * 10_000_000, "ä\u2028" * 3_000_000, "the " * 1_000_000 + "x"],
    ids=["10 MB of words", "10 MB without a space", "10 MB of odd characters", "a word repeated"],
)
def test_a_huge_line_costs_little_and_is_left_out_and_counted(tmp_path, monkeypatch, capsys, long):
    pairs = [*own_pairs(), (long, "kurz")]
    files = write_pairs(tmp_path, "train", pairs)
    valid = write_pairs(tmp_path, "valid", own_pairs()[:3])
    options = {"--train": files, "--valid": valid, "--test": valid, "--data-dir": tmp_path}
    tracemalloc.start()
    prepared = prepared_by(monkeypatch, tmp_path / "run", options)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert prepared.train.left_out == 1
    assert "1 training pairs are longer than 64 tokens" in capsys.readouterr().out
    assert peak < 30 * len(long)


def test_validation_pairs_that_are_too_long_are_counted(tmp_path, monkeypatch, capsys):
    options = {"--train": write_pairs(tmp_path, "train", own_pairs()), "--data-dir": tmp_path}
    long = [("dog " * 90, "Hund")] * 2
    options |= {"--valid": write_pairs(tmp_path, "valid", own_pairs()[:3] + long)}
    options |= {"--test": options["--valid"]}
    assert prepared_by(monkeypatch, tmp_path / "run", options).valid.left_out == 2
    assert "2 validation pairs are longer" in capsys.readouterr().out


@pytest.mark.thorough(quick=1)
@pytest.mark.parametrize("how", ["none", "nfc"])
def test_a_tokenizer_that_is_there_decides_how_texts_are_normalised(tmp_path, monkeypatch, how):
    pairs = [(f"{source} e\u0301", f"{target} e\u0301") for source, target in own_pairs()]
    learned = Tokenizer.train([text for p in pairs for text in p], 400, normalization=how)
    learned.save(tmp_path / "tokenizer.model")
    (tmp_path / "config.json").touch()  # a run has begun there
    data = DataConfig(data_dir=str(tmp_path), train=write_pairs(tmp_path, "train", pairs))
    prepared = prepare(dataclasses.replace(PRESETS["tiny"], data=data), print, tmp_path)
    assert all(("é" in text) == (how == "nfc") for pair in prepared.corpus.train for text in pair)


def test_runs_of_spaces_make_no_line_too_long(tmp_path, monkeypatch):
    pairs = [*own_pairs(), (f"a{' ' * 100_000}b", "c")]
    options = {"--train": write_pairs(tmp_path, "train", pairs), "--data-dir": tmp_path}
    options |= {"--valid": write_pairs(tmp_path, "valid", own_pairs()[:3])}
    options |= {"--test": options["--valid"]}
    assert prepared_by(monkeypatch, tmp_path / "run", options).train.left_out == 0


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train([text for pair in own_pairs() for text in pair], 350)


def test_of_a_huge_source_the_beginning_is_read_and_the_person_told(tokenizer):
    translator = object.__new__(Translator)
    translator._tokenizer, translator._config = tokenizer, PRESETS["tiny"].decoding
    most = PRESETS["tiny"].decoding.max_source_length
    with pytest.warns(UserWarning, match=rf"text 8 has more than {most} tokens") as told:
        sources = translator._encode(["a dog", "a dog " * 2_000_000], 6)
    assert len(told) == 1
    assert sources[0].tolist() == tokenizer.encode(["a dog"])[0].tolist()
    start = tokenizer.encode(["a dog " * 3000])[0]
    assert sources[1].tolist() == [*start[: most - 1].tolist(), tokenizer.eos_id]


@pytest.mark.parametrize("length", [1, 2, 5, 9])
def test_the_beginning_of_a_text_is_that_of_its_ids(tokenizer, length):
    text = "a dog sees number 5"
    (ids,) = tokenizer.encode([text])
    start, is_cut = tokenizer.encode_start(text, length)
    assert is_cut == (len(ids) > length)
    assert start.tolist() == [*ids[: min(length, len(ids)) - 1].tolist(), tokenizer.eos_id]


def test_text_written_like_a_special_token_is_text(tmp_path, monkeypatch):
    pairs = [(f"{s} </s> <pad> <s> <unk>", t) for s, t in own_pairs()]
    options = {"--train": write_pairs(tmp_path, "train", pairs), "--data-dir": tmp_path}
    prepared = prepared_by(monkeypatch, tmp_path / "run", options)
    (ids,) = prepared.tokenizer.encode([pairs[0][0]])
    assert ids[-1] == 2 and not set(ids[:-1].tolist()) & {0, 1, 2, 3}
    assert prepared.tokenizer.decode([ids]) == [pairs[0][0]]


def test_fewer_pairs_than_rows_and_devices_are_learned_from(tmp_path, monkeypatch):
    files = write_pairs(tmp_path, "train", own_pairs()[:1])
    options = {"--train": files, "--valid": files, "--test": files, "--data-dir": tmp_path}
    batch = prepared_by(monkeypatch, tmp_path / "run", options).train.batch(3)
    assert batch.target.shape == (8, 64) and batch.target_segment_ids.max() == 1
    assert np.count_nonzero(batch.target_segment_ids.any(axis=1)) == 1


# ---- The folder ------------------------------------------------------------------------------


@pytest.fixture
def begun(tmp_path, monkeypatch):
    """A run of files of one's own, in the folder "run", that was stopped before its first step."""
    monkeypatch.chdir(tmp_path)
    options = {"--train": write_pairs(tmp_path, "train", own_pairs())}

    def train(*_):
        raise InterruptedRun(0)

    monkeypatch.setattr(run_module, "train", train)

    def begin(*flags, **more):
        return tiny("run", options | more, *flags)

    assert begin() == 75
    return begin


def test_a_run_begun_may_go_on(begun):
    assert begun() == 75


def test_data_that_has_changed_is_refused_by_split_unless_accepted(begun, tmp_path, capsys):
    lines = (tmp_path / "train.de").read_text().replace("Esel", "Pferd")
    (tmp_path / "train.de").write_text(lines)
    kept = (tmp_path / "run" / "data.json").read_bytes()
    assert begun() == 2
    error = capsys.readouterr().err
    assert "run holds a run that began with other train" in error
    assert "--accept-changed-data" in error
    assert (tmp_path / "run" / "data.json").read_bytes() == kept
    assert begun("--accept-changed-data") == 75
    assert (tmp_path / "run" / "data.json").read_bytes() != kept
    assert begun() == 75


def test_the_same_data_written_otherwise_has_not_changed(begun, tmp_path):
    for side in ("en", "de"):
        content = (tmp_path / f"train.{side}").read_bytes()
        (tmp_path / f"train.{side}").write_bytes(b"\xef\xbb\xbf" + content.replace(b"\n", b"\r\n"))
    assert begun() == 75


def test_a_damaged_tokenizer_is_refused(begun, tmp_path, capsys):
    path = tmp_path / "run" / "tokenizer.model"
    content = bytearray(path.read_bytes())
    content[-9] ^= 4
    path.write_bytes(content)
    assert begun() == 2
    assert re.search(r"tokenizer\.model: damaged; its SHA-256", capsys.readouterr().err)


@pytest.mark.thorough(quick=4)
@pytest.mark.parametrize("content", ["", "[]", "{}", '{"output": 1}', "not JSON"])
def test_a_damaged_configuration_is_refused(begun, tmp_path, capsys, content):
    (tmp_path / "run" / "config.json").write_text(content)
    assert begun() == 2
    assert "config.json" in capsys.readouterr().err


def test_a_second_run_in_the_same_folder_is_refused(begun, tmp_path, capsys):
    with run_folder._held(tmp_path / "run"):
        assert begun() == 2
    error = capsys.readouterr().err
    assert f"run: process {os.getpid()} is at work there" in error
    assert begun() == 75


@pytest.mark.parametrize("place", ["file", "file/run", "/dev/null/run"])
def test_a_place_that_cannot_be_written_to_is_refused(tmp_path, monkeypatch, capsys, place):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("mine")
    code, error = refusal(capsys, tiny, place)
    assert code == 2 and "--output" in error and re.search("file|null", error)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_disk_without_room_for_the_checkpoints_is_refused(tmp_path, monkeypatch, capsys):
    free = shutil.disk_usage(tmp_path)._replace(free=100_000)
    monkeypatch.setattr(files.shutil, "disk_usage", lambda _: free)
    code, error = refusal(capsys, tiny, tmp_path / "run")
    assert code == 2 and re.search(r"models; \d{6}|models; 1\d\d,\d{3} are free", error)
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize("kind", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_fills_up_is_told_with_place_and_bytes(tmp_path, monkeypatch, capsys, kind):
    def full(path, content):
        raise OSError(kind, os.strerror(kind), str(path))

    monkeypatch.setattr(run_folder, "write_sealed", full)
    code, error = refusal(capsys, tiny, tmp_path / "run")
    assert code == 1
    assert f"{tmp_path / 'run' / 'data.json'}: could not be written: {os.strerror(kind)}" in error
    assert re.search(r"; [\d,]+ bytes are free there", error)


# ---- Ends that are no success ----------------------------------------------------------------


@pytest.mark.parametrize(
    "raised, code, said",
    [
        (InterruptedRun(7), 75, "Interrupted after step 7"),
        (KeyboardInterrupt(), 130, "Interrupted"),
        (SaveError("12: could not be written"), 1, "error: 12: could not"),
        (DivergedError("steps 1 to 5"), 1, "error: steps 1 to 5"),
        (ValueError("what"), 2, "error: what"),
        (OSError("where"), 2, "error: where"),
    ],
    ids=lambda x: type(x).__name__ if isinstance(x, BaseException) else None,
)
def test_every_end_has_its_exit_code_and_no_traceback(
    tmp_path, monkeypatch, capsys, raised, code, said
):
    def run(*_, **__):
        raise raised

    monkeypatch.setattr("flaxattn.translation.cli.run", run)
    assert tiny(tmp_path / "run") == code
    error = capsys.readouterr().err
    assert said in error and "Traceback" not in error


def test_the_exit_codes_are_documented(capsys):
    with pytest.raises(SystemExit):
        main(PRESETS, ["--help"])
    text = " ".join(capsys.readouterr().out.split())
    for word in ("0 done", "1 failed", "2 wrong input", "75 interrupted", "130 interrupted"):
        assert word in text
