"""The README in Chinese says what the one in English says: the same code, figures and places."""

import re
from pathlib import Path

import pytest
from pages import blocks_of

ROOT = Path(__file__).parent.parent
ENGLISH, CHINESE = ((ROOT / f"README{end}.md").read_text("utf-8") for end in ("", ".zh"))


def code(text):
    """The blocks of code without comments; of the house, whose fence is bare, the first column."""
    comments = {"": r"\s{3,}.*"}
    return [
        [re.sub(comments.get(block.info, r"\s+#.*"), "", line) for line in block.text.split("\n")]
        for block in blocks_of(text)
    ]


def links(text):
    return [link for link in re.findall(r"\]\(([^)]+)\)", text) if not link.startswith("README")]


def table_figures(text):
    """Row by row, the cells of tables that are figures."""
    rows = [line.strip("|").split("|") for line in text.split("\n") if line.startswith("|")]
    return [
        [c.strip() for c in row[1:] if re.match(r"\s*[\d.]+\s*([\d(M]|s|min|$)", c)] for row in rows
    ]


@pytest.mark.parametrize("part", [code, links, table_figures], ids=lambda part: part.__name__)
def test_both_say_the_same(part):
    assert len(part(ENGLISH)) > 3
    assert part(ENGLISH) == part(CHINESE)


def test_both_have_the_same_sections_and_points():
    for mark in ("## ", "- ", "|", "```"):
        counts = [sum(line.startswith(mark) for line in t.split("\n")) for t in (ENGLISH, CHINESE)]
        assert counts[0] == counts[1] > 0, mark
