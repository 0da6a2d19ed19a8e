"""A real browser on the playground: what it requested and said is kept, so that a test can hold it to it."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from rheostat.gateway.backend import Ask, Piece, Usage
from rheostat.gateway.guard import Guarded
from rheostat.gateway.policy import Tenant
from rheostat.records import Scores

CHROMIUM = "/usr/bin/chromium"
DESKTOP = {"width": 1280, "height": 800}
PHONE = {"width": 360, "height": 740}
WAIT_MS = 30_000
"""How long a busy machine may take for what a test waits for."""


class Scorer:
    """Stands in for the rewards: an answer achieves its levels, drawn a little to the middle."""

    async def answer(self, ask: Ask, tenant: Tenant, note: Callable[[Piece | Usage], None]) -> Guarded:
        raise AssertionError("no tenant of these tests is guarded")

    async def score(self, ask: Ask, text: str) -> Scores:
        return {name: 0.1 + 0.8 * level for name, level in ask.control.items()}

    async def stop(self) -> None:
        pass


@dataclass
class Visit:
    """A page and what it did: the addresses that it requested, and the console's errors."""

    page: Any
    url: str
    requested: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def outside(self) -> list[str]:
        """Requests that left the server."""
        own = (f"{self.url}/", "data:", "blob:")
        return [each for each in self.requested if not each.startswith(own)]


@contextmanager
def chromium() -> Iterator[Any]:
    """Debian's chromium without a screen; skips where it, or Playwright, is absent."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    if shutil.which(CHROMIUM) is None:
        pytest.skip(f"needs {CHROMIUM}")
    playwright.expect.set_options(timeout=WAIT_MS)
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextmanager
def visit(
    browser: Any,
    url: str,
    *,
    at: str = "/",
    size: dict[str, int] | None = None,
    theme: str = "light",
    scale: float = 1,
) -> Iterator[Visit]:
    """A fresh profile's visit of the playground; `at` is where it arrives, `/#key=…` too."""
    context = browser.new_context(
        viewport=DESKTOP if size is None else size,
        color_scheme=theme,
        reduced_motion="reduce",
        device_scale_factor=scale,
    )
    context.set_default_timeout(WAIT_MS)
    page = context.new_page()
    found = Visit(page, url)
    context.on("request", lambda request: found.requested.append(request.url))
    page.on("pageerror", lambda error: found.errors.append(str(error)))
    page.on("console", lambda message: found.errors.append(message.text) if message.type == "error" else None)
    page.on("dialog", lambda dialog: found.errors.append(f"dialog: {dialog.message}"))
    page.goto(url + at)
    try:
        yield found
    finally:
        context.close()
