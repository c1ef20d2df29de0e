"""The documentation site in a real browser, if it has been built: docs/_build."""

from pathlib import Path

import pytest
from browser import opened

SITE = Path(__file__).parents[1] / "docs" / "_build"
BUILD = "uv run --group docs sphinx-build -W -n docs docs/_build"
VIEWS = {
    "desk": {"viewport": {"width": 1300, "height": 900}, "color_scheme": "light"},
    "phone": {"viewport": {"width": 390, "height": 844}, "color_scheme": "dark"},
}
CUT_OFF = """[...document.querySelectorAll("article .table-wrapper")]
  .filter((box) => box.scrollWidth > box.clientWidth).length"""
BACKGROUND = "getComputedStyle(document.body).backgroundColor"


@pytest.fixture(scope="module")
def pages():
    if not (SITE / "index.html").exists():
        pytest.skip(f"the site has not been built: {BUILD}")
    return sorted(p for p in SITE.rglob("*.html") if p.name not in ("genindex.html", "search.html"))


@pytest.fixture(scope="module", params=VIEWS)
def visits(browser, pages, request):
    """By page: troubles, width beyond the screen's, headings, background, tables cut off."""
    found = {}
    for path in pages:
        with opened(browser, path.as_uri(), **VIEWS[request.param]) as (page, troubles):
            found[path.relative_to(SITE).as_posix()] = (
                troubles,
                page.evaluate("document.documentElement.scrollWidth - innerWidth"),
                page.locator("h1").all_inner_texts(),
                page.evaluate(BACKGROUND),
                page.evaluate(CUT_OFF),
            )
    return request.param, found


def test_pages_have_no_trouble_and_ask_for_nothing_from_elsewhere(visits):
    for name, (troubles, *_) in visits[1].items():
        assert not troubles.errors, name
        assert all(url.startswith(("file:", "data:")) for url in troubles.requests), name


def test_pages_fit_the_screen_and_say_what_they_are(visits):
    assert {name: wide for name, (_, wide, *_) in visits[1].items() if wide > 0} == {}
    assert all(len(headings) == 1 for _, _, headings, *_ in visits[1].values())


def test_no_table_is_cut_off_on_a_desk(visits):
    view, found = visits
    if view == "desk":
        assert {name: cut for name, (*_, cut) in found.items() if cut} == {}


def test_pages_are_light_or_dark_as_the_reader_prefers(visits):
    view, found = visits
    for _, _, _, color, _ in found.values():
        brightness = [int(part.strip("rgba() ")) for part in color.split(",")[:3]]
        assert (min(brightness) > 200) if view == "desk" else (max(brightness) < 60)


def test_all_pages_are_reached_from_the_first_one(browser, pages):
    with opened(browser, (SITE / "index.html").as_uri(), **VIEWS["desk"]) as (page, _):
        links = page.eval_on_selector_all(".sidebar-tree a", "all => all.map(a => a.href)")
    reached = {link.partition("#")[0] for link in links}
    assert {path.as_uri() for path in pages if path.name != "index.html"} <= reached
    assert len(pages) > 10
