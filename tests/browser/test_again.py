"""A run once more: from the playground it is opened in, and by the request that its page offers to copy."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace

import httpx2
import pytest
from playwright.sync_api import Page, expect

from safelight.deployments import Defaults, Serving
from safelight.keys import Scope
from safelight.runs import LoraUse, RunParams, Spacing
from safelight.store import Store

from .conftest import Open
from .site import Site

LORAS = (LoraUse("lego", 0.8), LoraUse('"pixel"=art', -1.0))
PICTURE = "began from a picture"


@pytest.fixture(scope="module", autouse=True)
def deployed(site: Site) -> None:
    """The site's deployment has defaults that a request must speak against, and LoRAs."""

    async def redeploy(store: Store) -> None:
        current = await store.deployments.get("pinhole")
        defaults = Defaults(negative_prompt="blurry", spacing=Spacing.KARRAS)
        serving = Serving(lora_files=tuple((use.name, f"/loras/{number}") for number, use in enumerate(LORAS)))
        await store.deployments.deploy(replace(current, defaults=defaults, serving=serving))

    site.call(redeploy)


def params_of(site: Site, run_id: str) -> RunParams:
    return site.call(lambda store: store.runs.get(run_id)).params


def draw(page: Page, site: Site) -> RunParams:
    """Send the form without scripts, which leads to the run; what was asked for."""
    page.click("#draw")
    page.wait_for_url("**/dashboard/runs/*")
    return params_of(site, page.url.rpartition("/")[2])


def ask(site: Site, curl: str, key: str) -> RunParams:
    """Send the body of a curl that was copied; what was asked for."""
    words = shlex.split(curl)
    body = json.loads(words[words.index("-d") + 1])
    headers = {"Authorization": key}
    answer = httpx2.post(words[4], json=body, headers=headers, timeout=30, trust_env=False, verify=False)
    assert answer.status_code == 200, answer.text
    return params_of(site, answer.headers["x-safelight-run-id"])


def test_a_negative_prompt_that_is_cleared_stays_cleared(open_page: Open, site: Site) -> None:
    page = open_page("/dashboard/playground", java_script_enabled=False)
    expect(page.locator("#negative_prompt")).to_have_value("blurry")
    page.fill("#prompt", "as sharp as it comes")
    page.fill("#num_inference_steps", "2")
    assert draw(page, site).negative_prompt == "blurry"
    page.go_back()
    page.fill("#negative_prompt", "")
    assert draw(page, site).negative_prompt == ""


def test_a_run_opened_in_the_playground_is_drawn_as_it_was(open_page: Open, site: Site) -> None:
    run_id = site.drawn("once more", loras=LORAS, deterministic=True, num_images_per_prompt=2)
    page = open_page(f"/dashboard/playground?run={run_id}", java_script_enabled=False)
    expect(page.locator("#ask")).to_contain_text('LoRA lego at 0.8, LoRA "pixel"=art at -1.0, deterministic.')
    expect(page.locator("#ask")).not_to_contain_text(PICTURE)
    assert draw(page, site) == params_of(site, run_id)


def test_a_form_that_is_sent_back_keeps_what_it_had(open_page: Open, site: Site, complaints: list[str]) -> None:
    run_id = site.drawn("sent back", loras=LORAS, deterministic=True)
    page = open_page(f"/dashboard/playground?run={run_id}", java_script_enabled=False)
    page.locator("#ask").evaluate("form => { form.noValidate = true; form.elements.width.value = '65' }")
    page.click("#draw")
    expect(page.locator("#width-more")).to_contain_text("the nearest is 64")
    complaints.clear()
    page.fill("#width", "64")
    assert draw(page, site) == params_of(site, run_id)


def test_the_same_request_asks_for_the_same(open_page: Open, site: Site) -> None:
    key = site.make_key("same", Scope.PREDICT)
    run_id = site.drawn("the same", loras=LORAS, deterministic=True, num_images_per_prompt=2)
    page = open_page(f"/dashboard/runs/{run_id}")
    drawn = params_of(site, run_id)
    assert ask(site, page.locator("#curl").inner_text(), key) == drawn
    said = page.request.get(page.url, headers={"Accept": "application/json"}).json()
    assert ask(site, said["curl"]["1"], key) == replace(drawn, seed=drawn.seed + 1, num_images_per_prompt=1)


def test_a_picture_that_a_run_began_from_is_said_to_be_missing(open_page: Open, site: Site) -> None:
    run_id = site.drawn("begun from a picture", strength=0.5)
    page = open_page(f"/dashboard/runs/{run_id}")
    same = page.locator("section", has=page.get_by_role("heading", name="The same request"))
    expect(same).to_contain_text(PICTURE)
    page.get_by_text("Open in playground").click()
    expect(page.locator("#ask")).to_contain_text(PICTURE)
    page.goto(f"/dashboard/runs/{site.drawn('begun from noise')}")
    expect(same).not_to_contain_text(PICTURE)
