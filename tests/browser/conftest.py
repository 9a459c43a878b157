"""One server for each module of browser tests, and the system's Chromium where there is one."""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from .site import Receiver, Site, receiving

CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
CHROMIUM_FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--disable-quic"),
)
PATIENCE_MS = 30_000
"""A machine that does other work too may take this long over what takes a moment."""

AXE = "axe-core@4.14.1"

Open = Callable[..., Page]


def find_chromium() -> str | None:
    """The operator's choice, else the first that is installed."""
    chosen = os.environ.get("SAFELIGHT_TEST_CHROMIUM")
    return chosen or next((found for name in CHROMIUM_NAMES if (found := shutil.which(name))), None)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with Site(tmp_path_factory.mktemp("site") / "data") as site:
        yield site


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    with receiving() as receiver:
        yield receiver


# Not wider than a module: playwright keeps an event loop running, and other rooms' tests start their own.
@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    executable = find_chromium()
    if executable is None:
        pytest.skip("no Chromium: install it (Debian: apt install chromium), or name one in SAFELIGHT_TEST_CHROMIUM")
    expect.set_options(timeout=PATIENCE_MS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=list(CHROMIUM_FLAGS))
        yield browser
        browser.close()


@pytest.fixture
def complaints() -> list[str]:
    """What the browser's console said that it should not have; a test that expects some clears it."""
    return []


@pytest.fixture
def open_page(browser: Browser, site: Site, complaints: list[str]) -> Iterator[Open]:
    """Opens pages of the site, signed in unless told otherwise, each in a context of its own."""
    contexts: list[BrowserContext] = []

    def open_one(path: str = "/dashboard", *, signed_in: bool = True, **options: object) -> Page:
        context = browser.new_context(base_url=site.url, **options)  # type: ignore[arg-type]
        contexts.append(context)
        if signed_in:
            context.add_cookies([{"name": "safelight", "value": site.session(), "url": site.url}])
        context.set_default_timeout(PATIENCE_MS)
        page = context.new_page()
        page.on("console", lambda said: complaints.append(said.text) if said.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("dialog", lambda dialog: complaints.append(f"dialog: {dialog.message}"))
        page.goto(path)
        return page

    yield open_one
    said = list(complaints)
    for context in contexts:
        context.close()
    assert said == []


@pytest.fixture(scope="session")
def axe(pytestconfig: pytest.Config) -> str:
    """The source of axe-core, from the npm registry, kept in pytest's cache."""
    assert pytestconfig.cache is not None
    folder = pytestconfig.cache.mkdir("axe")
    kept = folder / f"{AXE}.js"
    if not kept.exists():
        _fetch_axe(folder, kept)
    return kept.read_text(encoding="utf-8")


def _fetch_axe(folder: Path, kept: Path) -> None:
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("no npm to fetch axe-core with; install Node.js to check accessibility")
    fetched = subprocess.run([npm, "pack", AXE], cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    if fetched.returncode:
        pytest.skip(f"axe-core could not be fetched: {fetched.stderr.strip().splitlines()[-1:]}")
    with tarfile.open(next(folder.glob("axe-core-*.tgz"))) as packed:
        source = packed.extractfile("package/axe.min.js")
        assert source is not None
        kept.write_bytes(source.read())
