"""The attention explorer in a real browser: what is shown, what is done, nothing from elsewhere."""

import jax.numpy as jnp
import numpy as np
import pytest
from browser import opened

from flaxattn import attention_weights, causal
from flaxattn.explorer import Attention, Hypothesis, Sentence, Written, page

N, T, S, LAYERS = 3, 7, 40, 2  # S: more than a phone has room for
TARGET = ["<s>", "▁Der", "</script>", "<b>fett</b>", "▁", "好", "$x$"]
WRITES = [*TARGET[1:], "</s>"]
SOURCE = [f"▁s{i}" for i in range(S)]
PHONE = {"viewport": {"width": 390, "height": 844}, "device_scale_factor": 2, "has_touch": True}
DESK = {"viewport": {"width": 1300, "height": 1000}}


def weights_of(seed, q_len, kv_len, mask=None):
    rng = np.random.default_rng(seed)
    query, key = (
        jnp.asarray(3 * rng.normal(size=(1, n, N, 4)), jnp.float32) for n in (q_len, kv_len)
    )
    return np.asarray(attention_weights(query, key, mask)[0])


SEEN = [
    *(Attention(f"encoder/layer_{i}", SOURCE, SOURCE, weights_of(i, S, S), None, "Encoder", i)
      for i in range(LAYERS)),
    *(Attention(f"decoder/layer_{i}", TARGET, TARGET, weights_of(10 + i, T, T, causal()),
                np.asarray(causal().dense(T, T)), "Decoder", i, WRITES) for i in range(LAYERS)),
    *(Attention(f"cross/layer_{i}", TARGET, SOURCE, weights_of(20 + i, T, S), None, "Cross", i,
                WRITES) for i in range(LAYERS)),
]  # fmt: skip
SENTENCES = [
    Sentence(
        "A <i>source</i> & more",
        SEEN,
        "Eine Übersetzung",
        [Written(token, 0.5, [("▁Die", 0.25), ("ein", 1e-7)]) for token in WRITES],
        [Hypothesis("Eine Übersetzung", -0.25, -0.5), Hypothesis("Seine Übersetzung", -1.5, -3.0)],
    ),
    Sentence("Alone", [Attention("mine", ["a", "b"], ["a", "b"], np.full((1, 2, 2), 0.5))]),
]  # fmt: skip


def seen(kind, layer):
    return next(x for x in SEEN if (x.kind, x.layer) == (kind, layer))


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    path = tmp_path_factory.mktemp("explorer") / "page.html"
    path.write_text(page(SENTENCES), encoding="utf-8")
    return path.as_uri()


@pytest.fixture
def shown(browser, url):
    """The page; after the test it must have had no trouble and asked for nothing but itself."""
    with opened(browser, url, **DESK) as (shown, troubles):
        yield shown
        assert troubles.errors == []
        assert troubles.requests == [url]


def point(shown, q, k, press=False):
    """Moves the mouse over a cell of the map, and clicks it."""
    box = shown.locator("#map").bounding_box()
    rows, columns = shown.locator("#rows > li").count(), shown.locator("#columns > li").count()
    x, y = (k + 0.5) * box["width"] / columns, (q + 0.5) * box["height"] / rows
    shown.mouse.move(box["x"] + x, box["y"] + y)
    if press:
        shown.mouse.click(box["x"] + x, box["y"] + y)


def text_of(shown, selector):
    return shown.locator(selector).inner_text().strip()


def choose(shown, kind, layer, head):
    shown.get_by_role("button", name=kind, exact=True).click()
    shown.get_by_role("button", name=f"layer {layer}, head {head}", exact=True).click()


@pytest.mark.parametrize(
    "kind, layer, head, cells",
    [
        ("Encoder", 0, 0, [(0, 0), (39, 39), (3, 8)]),
        ("Decoder", 1, 2, [(0, 0), (6, 0), (6, 6), (4, 2)]),
        ("Cross", 1, 1, [(0, 39), (6, 0), (2, 5)]),
    ],
)
def test_pointing_at_a_cell_shows_its_tokens_and_its_weight(shown, kind, layer, head, cells):
    choose(shown, kind, layer, head)
    here = seen(kind, layer)
    for q, k in cells:
        point(shown, q, k)
        assert float(text_of(shown, "#weight")) == pytest.approx(here.weights[head, q, k], abs=6e-5)
        assert here.q_tokens[q] in text_of(shown, "#query")
        assert text_of(shown, "#key") == f"{here.kv_tokens[k]} at {k}"
        assert float(text_of(shown, "#tip b")) == pytest.approx(here.weights[head, q, k], abs=6e-5)


def test_what_the_mask_hides_is_said_and_drawn(shown):
    choose(shown, "Decoder", 0, 0)
    point(shown, 2, 5)
    assert text_of(shown, "#weight") == "0.0000 hidden by the mask"
    assert "hidden" in text_of(shown, "#tip b")
    assert "sees 3 of 7 keys" in text_of(shown, "#row-says")
    assert shown.locator("#looks .hidden").count() == 4
    assert shown.locator("#hidden-key").is_visible()
    colours = [colours_of_cell(shown, 5, 6), colours_of_cell(shown, 6, 5)]
    assert len(colours[0]) > 1  # hatched
    assert len(colours[1]) == 1  # seen
    choose(shown, "Cross", 0, 0)
    assert not shown.locator("#hidden-key").is_visible()


def colours_of_cell(shown, q, k):
    """The colours within a cell, less its edges."""
    return shown.evaluate(
        """([q, k]) => {
            const map = document.getElementById("map");
            const [w, h] = [map.width / document.getElementById("columns").children.length,
                map.height / document.getElementById("rows").children.length];
            const box = [k * w + 3, q * h + 3, w - 6, h - 6].map(Math.round);
            const copy = document.createElement("canvas");
            Object.assign(copy, { width: map.width, height: map.height });
            const pen = copy.getContext("2d", { willReadFrequently: true });
            pen.drawImage(map, 0, 0);
            const { data } = pen.getImageData(...box);
            const seen = new Set();
            for (let i = 0; i < data.length; i += 4) seen.add([...data.slice(i, i + 4)].join());
            return [...seen];
        }""",
        [q, k],
    )


def test_heads_and_layers_switch_by_thumbnails_lists_and_keys(shown):
    choose(shown, "Decoder", 0, 1)
    point(shown, 6, 1, press=True)
    path, weight = text_of(shown, "#path"), float(text_of(shown, "#weight"))
    assert path == "decoder/layer_0"
    assert weight == pytest.approx(seen("Decoder", 0).weights[1, 6, 1], abs=6e-5)
    for act, layer, head in (
        (lambda: shown.keyboard.press("]"), 0, 2),
        (lambda: shown.keyboard.press("l"), 1, 2),
        (lambda: shown.keyboard.press("["), 1, 1),
        (lambda: shown.keyboard.press("H"), 1, 0),
        (lambda: shown.keyboard.press("H"), 1, 0),
        (lambda: shown.select_option("#head", "2"), 1, 2),
        (lambda: shown.select_option("#layer", "0"), 0, 2),
    ):
        act()
        wanted = seen("Decoder", layer).weights[head, 6, 1]
        assert float(text_of(shown, "#weight")) == pytest.approx(wanted, abs=6e-5)
        chosen = shown.locator('#overview [aria-pressed="true"]')
        assert chosen.get_attribute("aria-label") == f"layer {layer}, head {head}"


def test_the_overview_has_every_head_and_arrows_go_through_it(shown):
    assert shown.locator("#overview button").count() == LAYERS * N
    shown.locator('#overview [aria-pressed="true"]').focus()
    for key in ("ArrowRight", "ArrowDown", "ArrowRight", "ArrowRight"):
        shown.keyboard.press(key)
    focused = shown.evaluate("document.activeElement.getAttribute('aria-label')")
    assert focused == f"layer 1, head {N - 1}"


def test_arrow_keys_move_the_cell_and_escape_lets_it_go(shown):
    choose(shown, "Encoder", 0, 0)
    shown.locator("#map").focus()
    for key in ("ArrowDown", "ArrowDown", "ArrowRight", "ArrowDown", "ArrowLeft", "End"):
        shown.keyboard.press(key)
    wanted = f"{SEEN[0].weights[0, 2, S - 1]:.4f}"
    assert float(text_of(shown, "#weight")) == pytest.approx(float(wanted), abs=6e-5)
    assert text_of(shown, "#said").startswith("▁s2 to ▁s39: ")
    shown.keyboard.press("Escape")
    assert shown.locator("#found").is_hidden()


def test_a_click_pins_a_cell_and_a_second_click_unpins_it(shown):
    choose(shown, "Encoder", 1, 0)
    point(shown, 4, 2, press=True)
    pinned = text_of(shown, "#weight")
    point(shown, 8, 8)
    assert text_of(shown, "#weight") == pinned and shown.locator("#unpin").is_visible()
    shown.mouse.move(1, 1)
    assert text_of(shown, "#weight") == pinned
    point(shown, 4, 2, press=True)
    point(shown, 8, 8)
    assert float(text_of(shown, "#weight")) == pytest.approx(SEEN[1].weights[0, 8, 8], abs=6e-5)
    shown.mouse.move(1, 1)
    assert shown.locator("#found").is_hidden()


def test_tokens_stay_text(shown):
    choose(shown, "Decoder", 0, 0)
    assert text_of(shown, "#text") == "A <i>source</i> & more"
    labels = shown.locator("#columns > li").all_inner_texts()
    assert [label.strip() for label in labels] == TARGET
    assert shown.locator("main b, main i:not(.bar i)").count() == shown.locator("#tip b").count()


def test_probabilities_alternatives_and_hypotheses_are_listed(shown):
    rows = shown.locator("#written tr")
    assert rows.count() == T
    assert "0.5000" in rows.nth(0).inner_text() and "▁Die 0.2500" in rows.nth(0).inner_text()
    assert "ein < 0.0001" in rows.nth(0).inner_text()
    found = shown.locator("#hypotheses li")
    assert found.count() == 2 and "score −1.5000" in found.nth(1).inner_text()
    assert found.locator("mark").all_inner_texts() == ["Seine"]
    rows.nth(3).get_by_role("button").click()
    assert "→" in text_of(shown, "#query") and TARGET[3] in text_of(shown, "#query")
    assert rows.nth(3).get_attribute("class") == "on"


def test_another_sentence_may_lack_everything_but_weights(shown):
    shown.select_option("#sentence", "1")
    assert text_of(shown, "#text") == "Alone"
    for part in ("#translation", "#written-part", "#hypotheses-part", "#writes-key"):
        assert shown.locator(part).is_hidden()
    point(shown, 1, 0)
    assert text_of(shown, "#weight") == "0.5000"


def test_colours_may_go_up_to_the_largest_weight(shown):
    shown.select_option("#sentence", "1")
    before = colours_of_cell(shown, 0, 0)
    shown.keyboard.press("m")
    assert text_of(shown, "#top") == "0.5000"
    assert colours_of_cell(shown, 0, 0) != before


def theme_once_reloaded(shown, wanted):
    """The theme of the page loaded anew; what it stored may reach the next one a little later."""
    for pause in (0, 100, 1000, 5000):
        shown.wait_for_timeout(pause)
        shown.reload()
        if (theme := shown.evaluate("document.documentElement.dataset.theme")) == wanted:
            break
    return theme


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_theme_is_the_systems_and_can_be_changed(browser, url, scheme):
    other = {"light": "dark", "dark": "light"}[scheme]
    with opened(browser, url, color_scheme=scheme, **DESK) as (shown, troubles):
        grounds = [shown.evaluate("getComputedStyle(document.body).backgroundColor")]
        cells = [colours_of_cell(shown, 0, 0)]
        shown.locator("#theme").click()
        grounds.append(shown.evaluate("getComputedStyle(document.body).backgroundColor"))
        cells.append(colours_of_cell(shown, 0, 0))
        bright = [int(ground.split("(")[1].split(",")[0]) > 128 for ground in grounds]
        assert bright == [scheme == "light", other == "light"]
        assert cells[0] != cells[1]
        assert shown.evaluate("document.documentElement.dataset.theme") == other
        assert theme_once_reloaded(shown, other) == other
        shown.keyboard.press("t")
        assert shown.evaluate("document.documentElement.dataset.theme") == scheme
        assert troubles.errors == []


def test_a_phone_needs_no_scrolling_sideways_and_a_tap_pins(browser, url):
    with opened(browser, url, **PHONE) as (shown, troubles):
        for kind in ("Encoder", "Decoder", "Cross"):
            choose(shown, kind, 1, 1)
            assert shown.evaluate("document.documentElement.scrollWidth") <= 390
        box = shown.locator("#map").bounding_box()
        shown.touchscreen.tap(box["x"] + 4, box["y"] + 4)
        wanted = seen("Cross", 1).weights[1, 0, 0]
        assert float(text_of(shown, "#weight")) == pytest.approx(wanted, abs=6e-5)
        sharp = shown.evaluate("map.width / map.clientWidth")
        assert sharp == pytest.approx(2, abs=0.02)
        assert troubles.errors == []


@pytest.mark.thorough
def test_everything_that_can_be_operated_has_a_name_and_shows_the_focus(shown):
    nameless = shown.evaluate(
        """() => [...document.querySelectorAll("button, select, canvas[tabindex]")].filter(
            (e) => !(e.innerText || e.ariaLabel || e.labels?.length || e.hidden)).length"""
    )
    assert nameless == 0
    shown.keyboard.press("Tab")
    outline = "getComputedStyle(document.activeElement).outlineStyle"
    assert shown.evaluate(outline) == "solid"
