"""The page on a run that has ended: what stands on it is what the run logged, found and saw."""

import html
import json
import re
import shutil

import numpy as np
import pytest
from run_cases import tiny

import flaxattn.training.run as run_module
import flaxattn.training.task as task_module
from flaxattn.training.report import write_page
from flaxattn.training.report.curves import curves_of, drawn
from flaxattn.training.screen import Screen
from flaxattn.training.task import Picture


@pytest.fixture(scope="module")
def ended(finished, tmp_path_factory):
    """The folder of a run that was called once more after its end, with its page."""
    folder = tmp_path_factory.mktemp("pages") / "my <run>"
    shutil.copytree(finished.folder, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_module, "write_page", write_page)
        assert tiny(folder) == 0
    return folder


def rows_of(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_the_page_tells_what_the_run_logged_and_found(ended):
    page = (ended / "report.html").read_text(encoding="utf-8")
    scores = json.loads((ended / "result.json").read_text())["scores"]
    assert f"<h1>bleu {scores['bleu']['value']:.2f}, " in page and "<p>my &lt;run&gt;</p>" in page
    rows = rows_of(ended)
    last = {row["kind"]: row for row in rows if row["kind"] in ("train", "valid")}
    for kind, said in (("train", "training"), ("valid", "validation")):
        assert f'<span class="{kind}">{said} {last[kind]["loss"]:.4g}</span>' in page
    for row in rows:
        if row["kind"] == "sample":
            assert all(html.escape(row[x]) in page for x in ("source", "reference", "translation"))
    assert "<dt>scores, chrf, value</dt>" in page


def test_the_page_shows_attention_and_stands_alone(ended):
    page = (ended / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/svg+xml;base64,") == 1
    assert page.count("<svg") == len(re.findall(r"<figcaption><b>", page)) >= 3
    source = (ended / "test.source").read_text().splitlines()
    assert any(f"<figcaption>{html.escape(text)} →" in page for text in source)
    outside = re.findall(r'(?:src|href|xlink:href)="(?!data:|#)[^"]*"', page)
    assert not outside and "<script" not in page and "@import" not in page


def test_curves_are_what_was_logged_under_one_name():
    rows = [
        {"kind": "train", "step": 2, "loss": 3.0, "nll": 3.0, "tokens": 7.0, "skipped": 0},
        {"kind": "valid", "step": 2, "loss": 4.0, "nll": 4.0, "bleu": 1.0},
        {"kind": "sample", "step": 2, "source": "a"},
        {"kind": "train", "step": 4, "loss": 2.0, "nll": 2.0, "tokens": 9.0, "skipped": 1},
    ]
    loss, bleu = curves_of(rows, "tokens")  # nll is the same as loss
    assert loss == ("loss", {"train": ([2, 4], [3.0, 2.0]), "valid": ([2], [4.0])})
    assert bleu == ("bleu", {"valid": ([2], [1.0])})
    svg = drawn(loss)
    assert svg == drawn(loss) and "var(--first)" in svg and "var(--second)" in svg
    assert not re.search("#0[1-9a]0", svg)  # no colour is left that stands for another


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0, -3.0])
def test_values_that_no_scale_has_are_drawn_as_well(value):
    rows = [{"kind": "train", "step": i, "loss": x} for i, x in enumerate([1e-9, value, 1e9])]
    assert "<svg" in drawn(*curves_of(rows, "tokens"))


def test_a_page_that_cannot_be_drawn_takes_nothing_with_it(finished, tmp_path, capsys):
    def broken():
        raise RuntimeError("no ink")

    shutil.copy(finished.folder / "log.jsonl", tmp_path)
    tested = task_module.Tested({}, headline="well", pictures=broken)
    write_page(tmp_path, "target_tokens", tested, {}, Screen())
    assert "report.html was not written: RuntimeError('no ink')" in capsys.readouterr().out
    assert not (tmp_path / "report.html").exists()


def test_captions_and_lines_are_text_whatever_they_hold(finished, tmp_path):
    shutil.copy(finished.folder / "log.jsonl", tmp_path)
    mark = '<script>alert("1")</script>'
    tested = task_module.Tested({}, {}, mark, [mark], lambda: [Picture(mark, b"<svg/>")])
    write_page(tmp_path, "target_tokens", tested, {mark: mark}, Screen(silent=True))
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert mark not in page and page.count(html.escape(mark)) == 7
