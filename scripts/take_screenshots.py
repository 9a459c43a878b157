"""Takes the pictures of the dashboard in docs/images/: `python scripts/take_screenshots.py URL KEY`.

The server at URL is one with runs to show. Needs the system's Chromium, as the browser tests do.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

IMAGES = Path(__file__).parent.parent / "docs" / "images"
FLAGS = ("--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--hide-scrollbars")
MAX_BYTES = 300_000


@dataclass(frozen=True, slots=True)
class Shot:
    """One picture: of which page, in which light."""

    name: str
    path: str
    scheme: str = "light"


SHOTS = (
    Shot("home", ""),
    Shot("playground", "/playground?run={run}", scheme="dark"),
    Shot("run", "/runs/{run}"),
    Shot("deployment", "/deployments/{deployment}"),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("key", help="an admin key of that server")
    parser.add_argument("--chromium", default="/usr/bin/chromium")
    parser.add_argument("--draw", metavar="PROMPT", help="draw this in the playground for its picture")
    parser.add_argument("--only", nargs="*", default=[], help="names of the pictures to take")
    options = parser.parse_args()
    wanted = [shot for shot in SHOTS if not options.only or shot.name in options.only]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=options.chromium, args=list(FLAGS))
        take(browser, options.url, options.key, wanted, prompt=options.draw)
        browser.close()
    return 0


def take(browser: Browser, url: str, key: str, shots: Sequence[Shot], *, prompt: str | None) -> None:
    """Take every shot and keep it in docs/images."""
    IMAGES.mkdir(exist_ok=True)
    for shot in shots:
        context = browser.new_context(base_url=url, color_scheme=shot.scheme, viewport={"width": 1280, "height": 860})
        page = context.new_page()
        page.set_default_timeout(120_000)
        page.goto("/dashboard/sign-in")
        page.fill("#key", key)
        page.click("button.primary")
        page.wait_for_url("**/dashboard")
        page.goto("/dashboard" + shot.path.format(**names(page)), wait_until="networkidle")
        if shot.name == "playground" and prompt:
            draw(page, prompt)
        keep(page.screenshot(), IMAGES / f"dashboard-{shot.name}.png")
        context.close()


def names(page: Page) -> dict[str, str]:
    """The newest run that succeeded, and what drew it."""
    page.goto("/dashboard/runs?status=succeeded")
    row = page.locator("a.run").first
    run = (row.get_attribute("href") or "").rpartition("/")[2]
    return {"run": run, "deployment": (row.locator(".soft").first.text_content() or "").split(" ")[0]}


def draw(page: Page, prompt: str) -> None:
    """Draw two pictures and wait for them."""
    page.fill("#prompt", prompt)
    page.fill("#num_images_per_prompt", "2")
    page.click("#draw")
    page.locator("#results .result").nth(1).wait_for()
    page.locator("#progress").wait_for(state="hidden")
    page.locator("#results img").nth(1).evaluate("image => image.decode()")


def keep(png: bytes, path: Path) -> None:
    """Write a picture as small as it gets; with fewer colours only where it would be too large."""
    picture = Image.open(io.BytesIO(png)).convert("RGB")
    picture.save(path, optimize=True)
    if path.stat().st_size > MAX_BYTES:
        picture.quantize(256, kmeans=2).save(path, optimize=True)
    if path.stat().st_size > MAX_BYTES:
        print(f"{path.name} is {path.stat().st_size // 1000} kB", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
