"""The results that are kept are those of today's presets and code, and can be scored again."""

import dataclasses
import json
import re

import numpy as np
import pytest
from first_steps import FILE, RESULTS, first_losses, kept_presets

from configs import PRESETS
from flaxattn.text.lines import read_lines
from flaxattn.translation.config import MAX_RATIO
from flaxattn.translation.rules import config_hash
from flaxattn.translation.text import builtin
from flaxattn.translation.text.scoring import score

AGAIN = "run it again, or say in results/README.md why it stands; then python tests/first_steps.py"


def row_of(name):
    return json.loads((RESULTS / name / "result.json").read_text())


@pytest.mark.parametrize("name", kept_presets())
def test_a_row_is_of_the_preset_as_it_is_today(name):
    decoding = dataclasses.replace(PRESETS[name].decoding, max_ratio=MAX_RATIO)  # what was chosen
    today = config_hash(dataclasses.replace(PRESETS[name], decoding=decoding))
    assert row_of(name)["config"] == today, f"the preset {name} has changed: {AGAIN}"


@pytest.mark.thorough
@pytest.mark.usefixtures("standard_promotion")
@pytest.mark.parametrize("name", kept_presets())
def test_the_code_still_learns_what_it_learned_when_the_row_was_made(name):
    kept = json.loads(FILE.read_text())[name]
    found = first_losses(name)
    np.testing.assert_allclose(found, kept, rtol=1e-3, err_msg=f"{name}: {AGAIN}")


def test_the_kept_translations_have_the_kept_score():
    hypotheses = read_lines(RESULTS / "tiny" / "test.hypothesis")
    references = [target for _, target in builtin.pairs("test", len(hypotheses))]
    for found in score(hypotheses, references):
        assert round(found.value, 2) == row_of("tiny")["scores"][found.name]["value"]


def test_the_readmes_tell_the_kept_scores():
    for name in kept_presets():
        scores = row_of(name)["scores"]
        values = [f"{scores[key]['value']:.2f}" for key in ("bleu", "bleu_lc", "chrf")]
        for page in ("README.md", "README.zh.md", "results/README.md"):
            text = (RESULTS.parent / page).read_text("utf-8")
            (line,) = re.findall(rf"^\| (?:`|\[){name}[`\]].*", text, re.MULTILINE)
            cells = [cell.strip() for cell in line.split("|")]
            assert [cell for cell in cells if cell in values] == values, page
