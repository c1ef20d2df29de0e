"""The page of `flaxattn serve` in a real browser: typing, pointing, keys, phones, both themes."""

import re

import pytest

pytest.importorskip("starlette")

from browser import opened
from serving_cases import Shouting, running

from flaxattn.translation.serving.app import Limits

PHONE = {"viewport": {"width": 320, "height": 640}, "has_touch": True}
THEMES = ["light", "dark"]
TEXT = "The <b>old</b> man"


@pytest.fixture(scope="module")
def shouting():
    return Shouting()


@pytest.fixture(scope="module")
def url(shouting):
    with running(shouting, Limits(max_characters=100)) as port:
        yield f"http://127.0.0.1:{port}/"


@pytest.fixture
def shown(browser, url):
    """The page; after the test it must have had no trouble and asked for nothing elsewhere."""
    with opened(browser, url, viewport={"width": 1100, "height": 800}) as (shown, troubles):
        yield shown
        assert troubles.errors == []
        assert all(request.startswith((url, "data:")) for request in troubles.requests)


def until(shown, true):
    """Waits; the page's policy forbids `wait_for_function` to evaluate text by itself."""
    for _ in range(1500):
        if shown.evaluate(true):
            return
        shown.wait_for_timeout(20)
    raise AssertionError(true)


def written(shown):
    return shown.locator(".written").all_inner_texts()


def type_in(shown, text):
    """Types and waits for the answer."""
    with shown.expect_response("**/translate"):
        shown.locator("#source").fill(text)
    until(shown, "document.querySelector('#target').ariaBusy === 'false'")


def lit(shown, line):
    return shown.locator(f"{line} .lit").all_inner_texts()


def test_what_is_typed_is_translated_once_it_rests_and_stays_text(shown, shouting):
    before = len(shouting.batches)
    with shown.expect_response("**/translate"):
        shown.keyboard.type(f"{TEXT}\n\nb\u00e4r")  # the text has the focus from the start
    until(shown, "document.querySelectorAll('.written').length === 2")
    assert written(shown) == ["MAN <B>OLD</B> THE", "B\u00c4R"]
    assert len(shouting.batches) - before < 5  # not one for each key
    shown.locator("#source").fill("")
    until(shown, "document.querySelectorAll('.written').length === 0")


def test_the_latest_wins(shown, shouting):
    shouting.go.clear()
    with shown.expect_request("**/translate"):
        shown.locator("#source").fill("first")
    with shown.expect_request("**/translate"):
        shown.locator("#source").fill("second")
    shouting.go.set()
    until(shown, "document.querySelectorAll('.written').length === 1")
    shown.wait_for_timeout(200)
    assert written(shown) == ["SECOND"]


def test_pointing_at_a_word_lights_what_it_belongs_to(shown):
    type_in(shown, TEXT)
    shown.locator(".written .word").first.hover()
    assert (lit(shown, ".written"), lit(shown, ".read")) == (["MAN"], ["man"])
    shown.locator(".read .word").nth(1).hover()
    assert (lit(shown, ".written"), lit(shown, ".read")) == (["<B>OLD</B>"], ["<b>old</b>"])
    shown.locator("h1").hover()
    assert lit(shown, "main") == []


def test_all_can_be_done_by_keyboard(shown):
    type_in(shown, TEXT)
    assert shown.evaluate("document.activeElement.id") == "source"
    shown.keyboard.press("Tab")
    assert lit(shown, ".read") == ["man"]
    for _ in range(3):  # to the end of the translation, and on to the text
        shown.keyboard.press("ArrowRight")
    assert (lit(shown, ".read"), lit(shown, ".written")) == (["The"], ["THE"])
    shown.keyboard.press("ArrowLeft")
    assert (lit(shown, ".written"), lit(shown, ".read")) == (["THE"], ["The"])
    outline = "getComputedStyle(document.activeElement).outlineStyle"
    assert shown.evaluate(outline) == "solid"
    shown.keyboard.press("Tab")
    assert shown.evaluate(outline) == "solid"
    shown.keyboard.press("Enter")
    shown.wait_for_url("**/explain?text=*")
    assert "THE <B>OLD</B> MAN" in shown.locator("#translation").inner_text()


def test_what_is_refused_is_told_and_typing_goes_on(browser, url):
    with opened(browser, url) as (shown, troubles):
        type_in(shown, "x" * 101)
        until(shown, "document.querySelector('#says').textContent")
        assert "has 101 characters; expected at most 100" in shown.locator("#says").inner_text()
        assert shown.locator("#says").get_attribute("role") == "status"
        type_in(shown, "a")
        until(shown, "document.querySelector('.written')?.textContent === 'A'")
        assert shown.locator("#says").inner_text() == ""
        assert all("413" in error for error in troubles.errors)


def luminance(colour):
    parts = [int(x) / 255 for x in re.findall(r"\d+", colour)[:3]]
    parts = [x / 12.92 if x <= 0.03928 else ((x + 0.055) / 1.055) ** 2.4 for x in parts]
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]


def contrast(shown, selector, ground):
    """Between the colour of an element and that behind it, as WCAG has it."""
    colour = shown.eval_on_selector(selector, "x => getComputedStyle(x).color")
    behind = shown.eval_on_selector(ground, "x => getComputedStyle(x).backgroundColor")
    light, dark = sorted(map(luminance, (colour, behind)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("theme", THEMES)
def test_it_fits_a_phone_and_is_legible_in_both_themes(browser, url, theme):
    with opened(browser, url, color_scheme=theme, **PHONE) as (shown, troubles):
        type_in(shown, f"{TEXT} {'x' * 60}")
        assert shown.evaluate("document.documentElement.scrollWidth") <= 320
        ground = shown.eval_on_selector("body", "x => getComputedStyle(x).backgroundColor")
        assert (luminance(ground) > 0.5) == (theme == "light")
        shown.locator(".written .word").last.tap()
        assert lit(shown, ".read") == ["The"]
        for selector, behind in {
            "h1": "body", "label": "body", "#hint": "body", "#source": "#source",
            ".written .word": "#target", ".read .word": "#target", "a": "#target", ".lit": ".lit",
        }.items():  # fmt: skip
            assert contrast(shown, selector, behind) >= 4.5, selector
        assert troubles.errors == []
