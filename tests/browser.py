"""A real browser without a screen, for the tests of what people open in one."""

import contextlib
import dataclasses
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@contextlib.contextmanager
def launched() -> Iterator[Any]:
    """Chromium; the test is skipped where there is none."""
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.skip(f"no browser: none of {', '.join(NAMES)} is installed")
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(ARGUMENTS))
        yield browser
        browser.close()


@dataclasses.dataclass
class Troubles:
    """What a page did that it should not, and everything that it asked the network for."""

    errors: list[str] = dataclasses.field(default_factory=list)
    requests: list[str] = dataclasses.field(default_factory=list)


@contextlib.contextmanager
def opened(browser: Any, url: str, **context: Any) -> Iterator[tuple[Any, Troubles]]:
    """A page at `url` and its troubles, in a context of its own, e.g. with a `viewport`."""
    troubles = Troubles()
    with contextlib.closing(browser.new_context(**context)) as fresh:
        page = fresh.new_page()
        page.on(
            "console", lambda m: m.type in ("error", "warning") and troubles.errors.append(m.text)
        )
        page.on("pageerror", lambda error: troubles.errors.append(str(error)))
        page.on("request", lambda request: troubles.requests.append(request.url))
        page.goto(url)
        yield page, troubles
