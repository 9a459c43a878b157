"""Every page at both widths, light and dark: nothing sideways, nothing heavy, nothing that axe finds serious."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page

from .conftest import Open
from .site import Receiver, Site

MAX_BYTES = 200_000
WIDTHS = (390, 1280)
NUM_DIFFERENT = 11
"""The first of `paths` are of different templates."""

WEIGHT = """
  [...performance.getEntriesByType("navigation"), ...performance.getEntriesByType("resource")]
    .filter((each) => each.initiatorType !== "img")
    .reduce((sum, each) => sum + each.decodedBodySize, 0)
"""
"""Bytes of a page with its styles and scripts, without pictures."""

LONG = "averyveryverylongwordthatnobodywouldtype" * 6


@pytest.fixture(scope="module")
def paths(site: Site, receiver: Receiver) -> list[str]:
    """The pages, with something on each."""
    run = site.drawn(f"a house by a lake {LONG}", webhook_endpoint=receiver.url, num_images_per_prompt=2)
    failed = site.drawn("this will fail")
    rooms = (
        "",
        "/playground",
        "/gallery",
        "/runs",
        "/models",
        "/deployments/pinhole",
        "/keys",
        "/webhooks",
        "/settings",
    )
    more = (f"/runs/{run}", f"/runs/{failed}", f"/playground?run={run}", "/runs?text=nothing", "/nowhere")
    return [f"/dashboard{path}" for path in (*rooms, *more)]


def show_everything(page: Page) -> None:
    """Open what can be opened."""
    page.locator("details:not(.menu):not(.confirm)").evaluate_all("all => all.forEach(each => { each.open = true })")


@pytest.mark.parametrize("width", WIDTHS)
def test_no_page_scrolls_sideways(open_page: Open, paths: list[str], width: int, complaints: list[str]) -> None:
    page = open_page("/dashboard", viewport={"width": width, "height": 844})
    for path in ["/dashboard/sign-in", *paths]:
        page.goto(path)
        show_everything(page)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, path
    complaints[:] = [said for said in complaints if "404" not in said]


def test_every_page_is_light(open_page: Open, paths: list[str], complaints: list[str]) -> None:
    page = open_page("/dashboard")
    for path in paths:
        page.goto(path)
        num_bytes = page.evaluate(WEIGHT)
        assert 10_000 < num_bytes < MAX_BYTES, (path, num_bytes)
    complaints[:] = [said for said in complaints if "404" not in said]


def test_axe_finds_nothing_serious(axe_browser: Page, site: Site, paths: list[str], axe: str) -> None:
    page = axe_browser
    page.goto("/dashboard/sign-in")
    found = look(page, axe)
    page.context.add_cookies([{"name": "safelight", "value": site.session(), "url": site.url}])
    for path in paths[:NUM_DIFFERENT]:
        page.goto(path)
        show_everything(page)
        found += look(page, axe)
        # In the dark only the colours are others.
        page.emulate_media(color_scheme="dark")
        found += look(page, axe, rule="color-contrast")
        page.emulate_media(color_scheme="light")
    page.set_viewport_size({"width": 390, "height": 844})
    page.goto("/dashboard/keys")
    page.locator(".menu > summary").click()
    found += look(page, axe)
    assert found == []


@pytest.fixture
def axe_browser(browser: Browser, site: Site) -> Iterator[Page]:
    # axe writes HTML into pages of its own making, which the pages' own policy would refuse.
    context = browser.new_context(base_url=site.url, bypass_csp=True, viewport={"width": 1280, "height": 900})
    yield context.new_page()
    context.close()


def look(page: Page, axe: str, *, rule: str | None = None) -> list[str]:
    """What axe finds serious or critical."""
    page.evaluate(f"window.axe || (() => {{ {axe} }})()")
    options = {"resultTypes": ["violations"]} | ({"runOnly": {"type": "rule", "values": [rule]}} if rule else {})
    results = page.evaluate("options => axe.run(document, options)", options)
    return [
        f"{page.url} {violation['id']} {violation['impact']}: {violation['nodes'][0]['html'][:160]}"
        for violation in results["violations"]
        if violation["impact"] in ("serious", "critical")
    ]
