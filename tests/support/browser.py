"""A real Chromium without a window, by playwright, which looks at pages from the disk."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

# no GPU and no window; a container's root may not make the namespaces of Chromium's sandbox
_FLAGS = ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist"]


@dataclass
class Visit:
    """A page, and what it asked for and complained of.

    Args:
        page: Of playwright.
    """

    page: Any
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.complaints.append(dialog.message), dialog.dismiss()))
        self.page.on(
            "console",
            lambda said: self.complaints.append(said.text) if said.type in ("error", "warning") else None,
        )

    def open(self, path: Path, *, viewer: bool = False) -> None:
        """Open a file; with a viewer, wait until that shows the case."""
        self.page.goto(path.as_uri())
        if viewer:
            self.page.wait_for_selector("body[data-ready=yes]", timeout=300_000)

    @property
    def beyond_the_disk(self) -> list[str]:
        """What was asked of anything but the disk and the page itself."""
        return [url for url in self.requests if not url.startswith(("file:", "data:", "blob:"))]


def required_chromium() -> str:
    """Return the path of Chromium; without it the test is skipped, or fails under CTSEG_REQUIRE_BROWSER."""
    try:
        import playwright  # noqa: F401

        found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    except ImportError:
        found = None
    if found is None:
        text = "Chromium or playwright is not installed: scripts/browser.sh, requirements/test.txt"
        if os.environ.get("CTSEG_REQUIRE_BROWSER"):
            pytest.fail(text)
        pytest.skip(text)
    return found


@contextmanager
def visiting(width: int = 900, height: int = 640) -> Iterator[Visit]:
    """Start Chromium and yield an empty page, whose network is cut off."""
    path = required_chromium()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=_FLAGS)
        try:
            context = browser.new_context(viewport={"width": width, "height": height}, offline=True)
            yield Visit(context.new_page())
        finally:
            browser.close()
