"""The dashboard as a person uses it, in a real browser: from the first sign-in to the revoked key."""

from __future__ import annotations

import http.server
import re
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Error, Page, expect

from safelight.keys import Scope
from safelight.runs import RunStatus

from .conftest import PATIENCE_MS, Open
from .site import Receiver, Site, answering

SCRIPTS = (
    "<script>window.hit = 1</script>",
    "<img src=x onerror=window.hit=1>",
    '"><svg onload=window.hit=1>',
    "' autofocus onfocus=window.hit=1 x='",
    "</textarea><script>window.hit=1</script>",
    "</title><script>window.hit=1</script>",
    "javascript:window.hit=1",
    "{{ 7 * 7 }}${window.hit=1}",
    "<a href='javascript:window.hit=1'>x</a>",
    "\u202e<iframe srcdoc='<script>parent.hit=1</script>'>",
    "--></template><script>window.hit=1</script><!--",
    "&lt;script&gt;window.hit=1&lt;/script&gt;",
)


def draw(page: Page, prompt: str, *, steps: int = 30, pictures: int = 1) -> None:
    page.fill("#prompt", prompt)
    page.fill("#width", "64")
    page.fill("#height", "64")
    page.fill("#num_inference_steps", str(steps))
    page.fill("#num_images_per_prompt", str(pictures))
    page.keyboard.press("Control+Enter")


def wait_for_try(page: Page, number: int) -> None:
    """Reload the page of a run until it shows that try of a delivery as taken."""
    deadline = time.monotonic() + PATIENCE_MS / 1000
    while page.get_by_text(f"Try {number}: 200").count() == 0:
        assert time.monotonic() < deadline, page.inner_text("main")
        page.wait_for_timeout(200)
        page.reload()


def test_a_wrong_key_is_told_so_and_a_right_one_gets_in(open_page: Open, site: Site, complaints: list[str]) -> None:
    page = open_page("/dashboard/runs", signed_in=False)
    page.fill("#key", "sl_live_wrong")
    page.click("button.primary")
    expect(page.get_by_role("alert")).to_contain_text("not a whole API key")
    page.fill("#key", site.key)
    page.click("button.primary")
    page.wait_for_url("**/dashboard/runs")
    # The browser itself notes the 401 of the first try.
    assert all("401" in said for said in complaints)
    complaints.clear()


def test_a_model_is_deployed_from_the_catalogue(open_page: Open, site: Site) -> None:
    page = open_page("/dashboard/models")
    card = page.locator("article", has=page.get_by_role("heading", name="Stable Diffusion 2.1", exact=True))
    expect(card).to_contain_text("safelight pull stable-diffusion")
    card.get_by_role("button", name="Deploy").click()
    page.wait_for_url("**/dashboard/deployments/stable-diffusion**")
    expect(page.get_by_role("status")).to_contain_text("Deployed")
    expect(page.locator("#address")).to_have_text(f"{site.url}/stable-diffusion/predict")
    page.get_by_text("Undeploy", exact=True).click()
    page.get_by_role("button", name="Undeploy stable-diffusion").click()
    expect(page.get_by_text("not served")).to_be_visible()


def test_a_folder_that_is_no_model_is_refused_beside_its_field(open_page: Open, complaints: list[str]) -> None:
    page = open_page("/dashboard/models")
    page.fill("#own-model", "/nowhere/at/all")
    page.locator("form", has=page.locator("#own-model")).get_by_role("button").click()
    expect(page.locator("#own-model-more")).to_contain_text("neither an identifier")
    expect(page.locator("#own-model")).to_have_value("/nowhere/at/all")
    complaints.clear()


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl to paste into")
def test_a_key_is_made_and_its_curl_works_until_it_is_revoked(open_page: Open, tmp_path: Path) -> None:
    page = open_page("/dashboard/keys")
    page.fill("#name", "pasted")
    page.get_by_role("button", name="Create key").click()
    secret = page.locator("#secret").text_content() or ""
    page.get_by_text("Try it").click()
    pasted = (page.locator("#try").text_content() or "").replace("horse on mars.", 'horse.", "width": "64')
    assert secret in pasted
    done = subprocess.run(["bash", "-c", pasted], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
    page.goto("/dashboard/keys")
    assert secret not in page.content()
    row = page.locator("tr", has_text="pasted")
    row.get_by_text("Revoke", exact=True).click()
    row.get_by_role("button", name="Revoke pasted").click()
    expect(page.get_by_role("status")).to_contain_text("refused")
    page.wait_for_timeout(5000)
    refused = subprocess.run(
        ["bash", "-c", pasted], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert "401" in refused.stderr


def test_a_rotated_key_leaves_its_owner_signed_in(open_page: Open, site: Site) -> None:
    key = site.make_key("rotating", Scope.ADMIN)
    page = open_page("/dashboard/sign-in", signed_in=False)
    page.fill("#key", key)
    page.click("button.primary")
    page.wait_for_url("**/dashboard")
    page.goto("/dashboard/keys")
    row = page.locator("tr", has_text="you")
    row.get_by_text("Rotate", exact=True).click()
    row.get_by_label("Old secret works").select_option("0")
    row.get_by_role("button", name="Make the new secret").click()
    fresh = page.locator("#secret").text_content()
    assert fresh and fresh != key
    page.goto("/dashboard")
    expect(page.get_by_role("heading", name="Home")).to_be_visible()


def test_a_key_is_given_limits(open_page: Open, site: Site) -> None:
    site.make_key("limited", Scope.PREDICT)
    page = open_page("/dashboard/keys")
    row = page.locator("tr", has_text="limited")
    row.get_by_text("Limits", exact=True).click()
    row.get_by_label("Pictures per day").fill("25")
    row.get_by_role("button", name="Save").click()
    expect(page.get_by_role("status")).to_contain_text("limits")
    [key] = [each for each in site.call(lambda store: store.keys.list()) if each.name == "limited"]
    assert key.allowance.images_per_day == 25


def test_a_picture_is_drawn_with_live_progress(open_page: Open, site: Site) -> None:
    page = open_page("/dashboard/playground")
    draw(page, "a lighthouse", steps=150, pictures=3)
    expect(page.locator("#progress-text")).to_have_text(re.compile(r"Step \d+ of 450, about .+ left"))
    assert page.locator(".waiting").count() == 3
    preview = page.locator(".waiting").first.locator("img")
    assert preview.evaluate("image => image.naturalWidth") == 8
    expect(page.locator("#results .result")).to_have_count(3)
    expect(page.locator("#progress")).to_be_hidden()
    expect(page.locator("#history li").first).to_contain_text("a lighthouse")
    expect(page.locator("#history li .pill").first).to_have_text("succeeded")
    seed = page.locator("[data-seed]").nth(1).text_content()
    page.locator("#results [data-again]").nth(1).click()
    expect(page.locator("#seed")).to_have_value(seed or "")
    expect(page.locator("#num_images_per_prompt")).to_have_value("1")
    with page.expect_download() as downloading:
        page.locator("#results [data-download]").first.click()
    assert downloading.value.suggested_filename.endswith(".png")


def test_copy_as_curl_asks_for_that_very_picture(open_page: Open) -> None:
    page = open_page("/dashboard/playground", permissions=["clipboard-read", "clipboard-write"])
    draw(page, 'it\'s a "quoted" house', steps=5)
    button = page.locator("#results [data-curl]")
    button.click()
    expect(button).to_contain_text("Copied")
    copied = page.evaluate("navigator.clipboard.readText()")
    seed = page.locator("[data-seed]").text_content()
    assert f'"seed": {seed}' in copied and "quoted" in copied


def test_keys_that_are_held_down_ask_once(open_page: Open) -> None:
    page = open_page("/dashboard/playground")
    asked = []
    page.on("request", lambda request: asked.append(request.url) if request.method == "POST" else None)
    page.fill("#prompt", "a held key")
    page.keyboard.down("Control")
    for _ in range(5):
        page.keyboard.down("Enter")
    page.keyboard.up("Enter")
    page.keyboard.up("Control")
    page.click("#cancel")
    expect(page.locator("#draw")).to_be_enabled()
    assert len([url for url in asked if not url.endswith("/cancel")]) == 1


def test_a_run_is_cancelled_from_the_playground(open_page: Open, site: Site) -> None:
    page = open_page("/dashboard/playground")
    draw(page, "too slow", steps=150, pictures=8)
    expect(page.locator("#progress-text")).to_have_text(re.compile(r"Step \d+"))
    page.click("#cancel")
    expect(page.locator("#history li .pill").first).to_have_text("cancelled")
    expect(page.locator("#draw")).to_be_enabled()


def test_a_wrong_field_and_a_failed_run_are_explained(open_page: Open, complaints: list[str]) -> None:
    page = open_page("/dashboard/playground")
    draw(page, "will fail", steps=5)
    expect(page.locator("#trouble")).to_contain_text("try fewer steps")
    page.locator("#ask").evaluate("form => { form.noValidate = true; form.elements.width.value = '65' }")
    page.click("#draw")
    expect(page.locator("#trouble")).to_contain_text("the nearest is 64")
    complaints.clear()


def test_a_run_shows_its_pictures_and_its_delivery_which_can_be_sent_again(
    open_page: Open, site: Site, receiver: Receiver
) -> None:
    run_id = site.drawn("told to a webhook", webhook_endpoint=receiver.url, num_images_per_prompt=2)
    page = open_page(f"/dashboard/runs/{run_id}")
    expect(page.locator(".result img")).to_have_count(2)
    assert page.locator(".result img").first.evaluate("image => image.decode().then(() => image.naturalWidth)") == 64
    wait_for_try(page, 1)
    page.get_by_role("button", name="Resend").click()
    expect(page.get_by_role("status")).to_contain_text("due now")
    wait_for_try(page, 2)
    assert len(receiver.ids) == 2 and len(set(receiver.ids)) == 1
    page.goto("/dashboard/webhooks")
    expect(page.locator("table").first).to_contain_text(receiver.url)
    page.get_by_role("button", name="Show the secret").click()
    expect(page.locator("#webhook-secret")).to_have_text(re.compile(r"whsec_\S{44}"))


def test_an_endpoint_is_registered_told_given_a_new_secret_switched_off_and_removed(
    open_page: Open, site: Site, receiver: Receiver, complaints: list[str]
) -> None:
    page = open_page("/dashboard/webhooks")
    form = page.locator("form[action$='/webhooks/endpoints']")
    form.get_by_label("Address").fill("http://169.254.169.254/latest")
    form.get_by_role("button", name="Register endpoint").click()
    expect(page.locator("#url-more")).to_be_visible()
    complaints.clear()

    form.get_by_label("Address").fill(receiver.url)
    form.get_by_role("button", name="Register endpoint").click()
    first_secret = page.locator("#endpoint-secret").inner_text()
    assert re.fullmatch(r"whsec_\S{44}", first_secret)

    told = len(receiver.ids)
    run_id = site.drawn("told to an endpoint")
    page.goto(f"/dashboard/runs/{run_id}")
    wait_for_try(page, 1)
    assert len(receiver.ids) == told + 1

    page.goto("/dashboard/webhooks")
    registered = page.locator("section", has=page.get_by_role("heading", name="Registered endpoints")).locator("table")
    registered.get_by_text("Rotate").click()
    page.get_by_role("button", name="Make the new secret").click()
    assert page.locator("#endpoint-secret").inner_text() != first_secret
    expect(registered).to_contain_text("old secret until")
    registered.get_by_text("Disable").first.click()
    registered.get_by_role("button", name="Disable").click()
    expect(registered).to_contain_text("disabled")
    registered.get_by_role("button", name="Enable").click()
    expect(registered).not_to_contain_text("disabled")
    registered.get_by_text("Resend", exact=True).click()
    page.get_by_role("button", name="Resend what failed").click()
    expect(page.get_by_role("status")).to_contain_text("What failed is due now")
    registered.get_by_text("Remove", exact=True).click()
    page.get_by_role("button", name="Remove the endpoint").click()
    expect(page.get_by_role("status")).to_contain_text("gone")
    expect(registered).to_have_count(0)


def test_runs_are_found_by_word_and_state(open_page: Open, site: Site) -> None:
    site.drawn("a green elephant")
    site.drawn("will fail: a green elephant")
    page = open_page("/dashboard/runs")
    page.fill("#text", "GREEN ele")
    page.select_option("#status", "failed")
    page.get_by_role("button", name="Filter").click()
    expect(page.locator("a.run")).to_have_count(1)
    page.locator("a.run").click()
    expect(page.get_by_role("alert")).to_contain_text("try fewer steps")


def test_a_run_is_replayed_with_its_seed_and_deleted(open_page: Open, site: Site) -> None:
    run_id = site.drawn("once more", seed=4711)
    page = open_page(f"/dashboard/runs/{run_id}")
    page.get_by_role("button", name="Replay").click()
    page.wait_for_url(lambda url: run_id not in url)
    expect(page.locator("dl.facts").first).to_contain_text("4711")
    # A page of its own: the replay's looks again by itself when its run has ended.
    page = open_page(f"/dashboard/runs/{run_id}")
    # A picture that is asked for after its run is gone would be an error in the console.
    page.locator(".result img").evaluate("picture => picture.decode()")
    page.get_by_text("Delete", exact=True).click()
    page.get_by_role("button", name="Delete the run").click()
    expect(page.get_by_role("status")).to_contain_text("gone")


def test_a_version_is_saved_and_rolled_back(open_page: Open, site: Site, complaints: list[str]) -> None:
    page = open_page("/dashboard/deployments/pinhole")
    page.fill("#set-num_inference_steps", "0")
    page.get_by_role("button", name="Save as version").click()
    expect(page.locator("#set-num_inference_steps-more")).to_contain_text("the nearest is 1")
    complaints.clear()
    page.fill("#set-num_inference_steps", "20")
    page.get_by_role("button", name="Save as version").click()
    expect(page.get_by_role("status")).to_contain_text("new version")
    expect(page.locator("tbody tr").first).to_contain_text("20 steps")
    page.get_by_role("button", name="Roll back to this").click()
    expect(page.get_by_role("status")).to_contain_text("answers from now on")
    current = site.call(lambda store: store.deployments.get("pinhole"))
    assert (current.version, current.defaults.num_inference_steps) == (1, 50)


def test_prompts_are_text_whatever_they_hold(
    open_page: Open, site: Site, record_property: Callable[[str, object], None]
) -> None:
    record_property("scripts", len(SCRIPTS))
    runs = {site.drawn(prompt, negative_prompt=prompt): prompt for prompt in SCRIPTS}
    site.make_key(SCRIPTS[1], Scope.READ, project=SCRIPTS[2][:60])
    page = open_page("/dashboard")
    for path in ("", "/runs", "/gallery", "/playground", "/keys", "/webhooks"):
        page.goto(f"/dashboard{path}")
        assert page.evaluate("window.hit") is None, path
    for run_id, prompt in runs.items():
        page.goto(f"/dashboard/runs/{run_id}")
        expect(page.locator("h1")).to_have_text(prompt)
        page.goto(f"/dashboard/playground?run={run_id}")
        expect(page.locator("#prompt")).to_have_value(prompt)
        assert page.evaluate("window.hit") is None
    page.goto("/dashboard/gallery")
    page.locator("#pictures a").first.click()
    expect(page.locator("#large-prompt")).to_have_text(SCRIPTS[-1])
    page.goto("/dashboard/runs?text=" + SCRIPTS[0])
    assert page.evaluate("window.hit") is None


def test_no_text_becomes_html_or_a_script_whoever_tries(open_page: Open, complaints: list[str]) -> None:
    page = open_page("/dashboard")
    for attempt in (
        "document.body.append(Object.assign(document.createElement('script'), {text: 'window.hit = 1'}))",
        "document.body.innerHTML = '<img src=x onerror=window.hit=1>'",
        "document.write('<script>window.hit = 1</script>')",
    ):
        with pytest.raises(Error, match="Trusted"):
            page.evaluate(attempt)
    assert page.evaluate("window.hit") is None
    complaints.clear()


def test_another_site_cannot_post_a_form(open_page: Open, site: Site, complaints: list[str]) -> None:
    class Evil(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            form = f'<form method="post" action="{site.url}/dashboard/keys"><input name="name" value="stolen">'
            script = "<script>document.forms[0].submit()</script>"
            page = f'<!doctype html>{form}<input name="scope" value="admin"></form>{script}'
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(page.encode())

        def log_message(self, format: str, *args: object) -> None:
            return

    page = open_page("/dashboard")
    with answering(Evil) as evil:
        with page.expect_response("**/dashboard/keys") as refused:
            # The same site in the browser's eyes, since ports do not count: the cookie is sent, and refused.
            page.goto(evil, wait_until="commit")
        assert refused.value.status == 403
        page.wait_for_load_state()
        with page.expect_response("**/dashboard/keys") as refused:
            page.goto(evil.replace("127.0.0.1", "localhost"), wait_until="commit")
        assert refused.value.status == 403
    keys = site.call(lambda store: store.keys.list())
    assert "stolen" not in [key.name for key in keys]
    complaints.clear()


def test_without_scripts_everything_but_live_progress_works(open_page: Open, site: Site) -> None:
    page = open_page("/dashboard/playground", java_script_enabled=False)
    page.fill("#prompt", "drawn without scripts")
    page.fill("#num_inference_steps", "5")
    page.click("#draw")
    page.wait_for_url("**/dashboard/runs/*")
    expect(page.locator("h1")).to_have_text("drawn without scripts")
    expect(page.locator(".result img")).to_have_count(1)
    page.get_by_text("Again with this seed").click()
    expect(page.locator("#prompt")).to_have_value("drawn without scripts")
    page.goto("/dashboard/gallery")
    page.locator("#pictures a").first.click()
    expect(page.locator("h1")).to_have_text("drawn without scripts")


def test_the_page_of_a_running_run_ends_with_its_pictures(open_page: Open, site: Site) -> None:
    run_id = site.submit("watched", num_inference_steps=150, num_images_per_prompt=3)
    page = open_page(f"/dashboard/runs/{run_id}")
    expect(page.locator("#progress-text")).to_have_text(re.compile("Step"))
    expect(page.locator("#preview img")).to_have_count(1)
    expect(page.locator(".result img")).to_have_count(3)
    assert site.call(lambda store: store.runs.get(run_id)).status is RunStatus.SUCCEEDED
