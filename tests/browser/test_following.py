"""A run that is watched while the server is away for a moment, or that is deleted meanwhile."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import Page, Route, expect

from safelight.store import Store

from .conftest import Open
from .site import Site

EVENTS = re.compile(r"/dashboard/runs/[0-9a-f-]{36}/events$")
PAGE = re.compile(r"/dashboard/runs/[0-9a-f-]{36}$")
ALWAYS = 1000

FOLLOW_AND_STOP = """
  async () => {
    const script = document.querySelector("script[src$='/playground.js']").src;
    const { follow } = await import(script.replace("playground.js", "follow.js"));
    const stop = follow("00000000-0000-0000-0000-000000000000", {});
    setTimeout(stop, 1000);
  }
"""


def refuse(page: Page, path: re.Pattern[str], *, status: int, times: int) -> list[str]:
    """Answer the first requests for `path` as a proxy does whose server is away; every request is noted."""
    asked: list[str] = []

    def answer(route: Route) -> None:
        asked.append(route.request.url)
        if len(asked) <= times:
            route.fulfill(status=status, body="<h1>Away</h1>", content_type="text/html")
        else:
            route.continue_()

    page.route(path, answer)
    return asked


def draw(page: Page, prompt: str, *, steps: int, pictures: int = 1) -> None:
    page.fill("#prompt", prompt)
    page.fill("#num_inference_steps", str(steps))
    page.fill("#num_images_per_prompt", str(pictures))
    page.click("#draw")


@pytest.mark.parametrize("status", [503, 404])
def test_a_picture_comes_though_the_server_was_away_for_a_moment(
    open_page: Open, complaints: list[str], status: int
) -> None:
    page = open_page("/dashboard/playground")
    asked = refuse(page, EVENTS, status=status, times=1)
    refuse(page, PAGE, status=status, times=1)
    draw(page, "drawn meanwhile", steps=150, pictures=5)
    expect(page.locator("#results .result")).to_have_count(5)
    expect(page.locator("#draw")).to_be_enabled()
    expect(page.locator("#history li .pill").first).to_have_text("succeeded")
    assert len(asked) == 2
    # The browser itself notes each refusal.
    assert len(complaints) == 2 and all(str(status) in said for said in complaints)
    complaints.clear()


def test_the_page_of_a_run_shows_its_pictures_though_no_event_ever_came(
    open_page: Open, site: Site, complaints: list[str]
) -> None:
    page = open_page("/dashboard")
    refuse(page, EVENTS, status=503, times=ALWAYS)
    run_id = site.submit("ended unseen", num_inference_steps=150, num_images_per_prompt=2)
    page.goto(f"/dashboard/runs/{run_id}")
    expect(page.locator("#live")).to_be_visible()
    expect(page.locator(".result img")).to_have_count(2)
    complaints.clear()


def test_a_run_that_is_deleted_meanwhile_frees_the_playground(
    open_page: Open, site: Site, complaints: list[str]
) -> None:
    async def end_and_delete(store: Store, run_id: str) -> None:
        with store.notifications.listen(f"run:{run_id}") as listener:
            while not (await store.runs.get(run_id)).status.has_ended:
                await listener.wait(0.2)
        await store.runs.delete(run_id)

    def answer(route: Route) -> None:
        run_id = route.request.url.split("/")[-2]
        site.call(lambda store: end_and_delete(store, run_id))
        route.continue_()

    page = open_page("/dashboard/playground")
    page.route(EVENTS, answer)
    draw(page, "deleted meanwhile", steps=5)
    expect(page.locator("#trouble")).to_contain_text("there is no such run")
    expect(page.locator("#draw")).to_be_enabled()
    expect(page.locator("#history li .pill").first).to_have_text("failed")
    expect(page.locator("#results .waiting")).to_have_count(0)
    assert all("404" in said for said in complaints)
    complaints.clear()


def test_who_stops_to_follow_asks_no_more(open_page: Open, complaints: list[str]) -> None:
    page = open_page("/dashboard/playground")
    asked = refuse(page, EVENTS, status=503, times=ALWAYS)
    asked_instead = refuse(page, PAGE, status=503, times=ALWAYS)
    page.evaluate(FOLLOW_AND_STOP)
    # Longer than the pause before the next look.
    page.wait_for_timeout(5000)
    assert (len(asked), asked_instead) == (1, [])
    complaints.clear()
