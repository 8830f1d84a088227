"""What all tests have: figures, which are for the reader of a run, and a browser for those that need one."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

FIGURE = "figure"
CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")
CHROMIUM_FLAGS = (
    # As root it has no sandbox, and it shows nothing but our own pages.
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    # Else it looks for its maker's hosts.
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip


@pytest.fixture
def figure(record_property: Callable[[str, object], None]) -> Callable[..., None]:
    """Return a function that notes a measured time or count; all of them are printed when the run ends."""

    def note(what: str, value: float, unit: str = "s") -> None:
        record_property(FIGURE, f"{what}: {value:.2f} s" if unit == "s" else f"{what}: {value} {unit}".rstrip())

    return note


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = [*terminalreporter.getreports("passed"), *terminalreporter.getreports("failed")]
    figures = [(report.nodeid, value) for report in reports for name, value in report.user_properties if name == FIGURE]
    if figures:
        terminalreporter.section("figures")
    for test, value in sorted(figures):
        terminalreporter.line(f"{test.rpartition('::')[2]}: {value}")


class Seen:
    """What a browser's page asked for and complained of."""

    def __init__(self) -> None:
        self.urls: list[str] = []
        self.complaints: list[str] = []

    def complaints_but(self, *expected: str) -> list[str]:
        return [text for text in self.complaints if not any(part in text for part in expected)]

    def watch(self, page: Any) -> None:
        def on_console(message: Any) -> None:
            if message.type in ("error", "warning"):
                self.complaints.append(f"{message.type}: {message.text}")

        page.on("console", on_console)
        page.on("pageerror", lambda error: self.complaints.append(f"uncaught: {error}"))
        page.on("request", lambda request: self.urls.append(request.url))
        page.on("websocket", lambda socket: self.urls.append(socket.url))


@pytest.fixture
async def new_page() -> AsyncIterator[Callable[..., Awaitable[tuple[Any, Seen]]]]:
    """Return a function that opens a page in headless Chromium: (playwright's page, what it has seen).

    Skips the test, loudly, where there is no browser or no playwright.
    """
    program = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, CHROMIUM_NAMES)), None)
    if program is None:
        pytest.skip(f"A BROWSER IS MISSING ({', '.join(CHROMIUM_NAMES)}, or CHROMIUM=path): the page was not tried")
    try:
        from playwright.async_api import async_playwright  # noqa: PLC0415  # only these tests need it
    except ImportError:
        pytest.skip("PLAYWRIGHT IS MISSING (`make browser` installs it): the page was not tried")
    async with contextlib.AsyncExitStack() as stack:
        playwright = await stack.enter_async_context(async_playwright())
        browser = await playwright.chromium.launch(executable_path=program, args=[*CHROMIUM_FLAGS])
        stack.push_async_callback(browser.close)

        async def open_page(
            width: int = 1280, height: int = 900, *, is_dark: bool = False, **options: Any
        ) -> tuple[Any, Seen]:
            scheme = "dark" if is_dark else "light"
            viewport = {"width": width, "height": height}
            context = await browser.new_context(viewport=viewport, color_scheme=scheme, **options)
            page = await context.new_page()
            seen = Seen()
            seen.watch(page)
            return page, seen

        yield open_page
