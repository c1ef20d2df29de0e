"""The pitfalls page: every section's code runs, and what it asserts of wrong and right holds."""

import pathlib
import re

import pytest
from pages import blocks_of, run_blocks

PAGE = pathlib.Path(__file__).parents[1] / "docs" / "pitfalls.md"
PITFALLS = [
    "Weights times the mask, after the softmax",
    "A mask added before the division by √d",
    "A soft cap after the mask",
    "A triangle turned the wrong way",
    "Dividing by the square root of the number of heads",
    "−inf added to the encoder's output",
    "−1e9 in float16",
    "Rows in which everything is hidden",
    "0 · NaN out of the padding",
    "Masking queries instead of keys",
    "Averaging the loss over padding",
    "A mean of per-device means",
    "A target that is not shifted",
    "Padding ids that are also words",
    "Packed documents that see one another",
    "Positions that count padding",
    "A static mask of the maximum length",
]


def sections():
    """What each heading is followed by; what stands before the first has none."""
    text = PAGE.read_text(encoding="utf-8")
    parts = re.split(r"^## (.*)\n", f"\n{text}", flags=re.MULTILINE)
    return {"": parts[0]} | dict(zip(parts[1::2], parts[2::2], strict=True))


def test_all_pitfalls_are_there():
    assert list(sections()) == ["", *PITFALLS]


@pytest.mark.thorough(quick=1)
@pytest.mark.parametrize("pitfall", PITFALLS)
def test_the_wrong_version_goes_wrong_and_ours_right(pitfall):
    page = sections()
    shown = list(blocks_of(page[pitfall]))
    assert any("assert " in block.text for block in shown)
    run_blocks(shown, f"{PAGE.name}: {pitfall}")
