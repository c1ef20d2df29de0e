"""The pages in Chinese say what those in English say: the same code, figures and places."""

import re
from pathlib import Path

import pytest
from pages import blocks_of

ROOT = Path(__file__).parent.parent
PAGES = {
    name: [(ROOT / f"{name}{end}.md").read_text("utf-8") for end in ("", ".zh")]
    for name in ("README", "docs/quick_start")
}


def code(text):
    """The blocks of code without comments; of the layout, whose fence is bare, a column."""
    comments = {"": r"\s{3,}.*"}
    return [
        [re.sub(comments.get(block.info, r"\s+#.*"), "", line) for line in block.text.split("\n")]
        for block in blocks_of(text)
    ]


def links(text):
    """But for those from a language to the other."""
    found = [link.replace(".zh.md", ".md") for link in re.findall(r"\]\(([^)]+)\)", text)]
    return [link for link in found if link not in ("README.md", "quick_start.md")]


def table_figures(text):
    """Row by row, the cells of tables that are figures."""
    rows = [line.strip("|").split("|") for line in text.split("\n") if line.startswith("|")]
    return [
        [c.strip() for c in row[1:] if re.match(r"\s*[\d.]+\s*([\d(M]|s|min|$)", c)] for row in rows
    ]


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize("part", [code, links, table_figures], ids=lambda part: part.__name__)
def test_both_say_the_same(page, part):
    english, chinese = PAGES[page]
    assert len(part(english)) > 3 or (page, part) == ("docs/quick_start", table_figures)
    assert part(english) == part(chinese)


@pytest.mark.parametrize("page", PAGES)
def test_both_have_the_same_sections_and_points(page):
    for mark in ("## ", "- ", "|", "```"):
        counts = [sum(line.startswith(mark) for line in t.split("\n")) for t in PAGES[page]]
        assert counts[0] == counts[1], mark
    assert counts[0] > 3
