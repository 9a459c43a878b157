"""Who gets in, and that no other site does anything. Plain HTTP; no browser."""

from __future__ import annotations

import io
import itertools
import math
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import httpx2
import pytest
import sqlalchemy as sa
from PIL import Image

from safelight.deployments import Deployment
from safelight.keys import Scope
from safelight.runs import EndpointStatus, Outcome, RunError, RunStatus
from safelight.store import Store
from safelight.store.schema import keys, metadata

from .site import Receiver, Site

SIGN_IN = "/dashboard/sign-in"


def client_of(site: Site, **headers: str) -> httpx2.Client:
    # Without certificates to load, a client costs nothing.
    return httpx2.Client(base_url=site.url, headers=headers, timeout=20, trust_env=False, verify=False)


@pytest.fixture
def signed_in(site: Site) -> httpx2.Client:
    client = client_of(site, Origin=site.url)
    assert client.post(SIGN_IN, data={"key": site.key}).status_code == 303
    return client


def test_a_browser_at_the_root_is_sent_to_the_dashboard(site: Site) -> None:
    with client_of(site) as client:
        answer = client.get("/", headers={"Accept": "text/html,application/xhtml+xml"})
        assert (answer.status_code, answer.headers["location"]) == (303, "/dashboard")
        assert client.get("/").json()["name"] == "safelight"


def test_every_page_asks_a_stranger_to_sign_in(site: Site) -> None:
    with client_of(site) as client:
        for path in ("", "/playground", "/runs", "/gallery", "/models", "/keys", "/webhooks", "/settings"):
            answer = client.get(f"/dashboard{path}")
            assert answer.status_code == 303
            assert answer.headers["location"].startswith(SIGN_IN)
        assert client.get("/dashboard", headers={"Accept": "application/json"}).status_code == 401


def test_the_cookie_is_for_this_site_and_not_for_scripts(site: Site) -> None:
    with client_of(site, Origin=site.url) as client:
        cookie = client.post(SIGN_IN, data={"key": site.key}).headers["set-cookie"]
    assert cookie.startswith("safelight=")
    assert {"httponly", "samesite=strict", "path=/"} <= {part.strip().lower() for part in cookie.split(";")}
    assert site.key not in cookie


def test_over_https_the_cookie_is_bound_to_the_host(site: Site) -> None:
    headers = {"Origin": site.url.replace("http:", "https:"), "X-Forwarded-Proto": "https"}
    with client_of(site, **headers) as client:
        cookie = client.post(SIGN_IN, data={"key": site.key}).headers["set-cookie"]
    assert cookie.startswith("__Host-safelight=")
    assert "secure" in cookie.lower()
    assert "domain" not in cookie.lower()


def test_a_key_that_is_no_admins_does_not_get_in(site: Site) -> None:
    key = site.make_key("reader", Scope.READ, Scope.PREDICT)
    with client_of(site, Origin=site.url) as client:
        refused = client.post(SIGN_IN, data={"key": key})
        assert refused.status_code == 403
        assert "set-cookie" not in refused.headers
        assert client.post(SIGN_IN, data={"key": "sl_live_nonsense"}).status_code == 401


def test_a_sign_in_link_works_once_and_looking_at_it_uses_nothing_up(site: Site) -> None:
    with client_of(site, Origin=site.url) as client:
        for _ in range(2):
            assert "Sign in on this device" in client.get(SIGN_IN, params={"token": site.link}).text
        assert client.post(SIGN_IN, data={"token": site.link}).status_code == 303
        assert client.get("/dashboard").status_code == 200
    with client_of(site, Origin=site.url) as client:
        assert client.post(SIGN_IN, data={"token": site.link}).status_code == 401
        assert client.post(SIGN_IN, data={"token": "../../secret.key"}).status_code == 401


def test_a_session_ends_with_its_key(site: Site) -> None:
    key = site.make_key("leaving", Scope.ADMIN)
    with client_of(site, Origin=site.url) as client:
        client.post(SIGN_IN, data={"key": key})
        assert client.get("/dashboard").status_code == 200
        site.call(lambda store: store.keys.revoke("leaving"))
        revoked_at = time.monotonic()
        while client.get("/dashboard").status_code == 200:
            assert time.monotonic() - revoked_at < 5
            time.sleep(0.2)


def test_a_changed_or_old_cookie_is_none(site: Site, signed_in: httpx2.Client) -> None:
    key_id, issued_at, mac = signed_in.cookies["safelight"].split(".")
    other_digit = "1" if key_id.endswith("0") else "0"
    for forged in (
        f"{key_id}.{int(issued_at) + 1}.{mac}",
        f"{key_id[:-1]}{other_digit}.{issued_at}.{mac}",
        f"{key_id}.{issued_at}.{'0' * 64}",
        f"{key_id}.{issued_at}",
        "",
    ):
        with client_of(site, Cookie=f"safelight={forged}") as client:
            assert client.get("/dashboard").status_code == 303


def test_signing_out_takes_the_cookie_away(signed_in: httpx2.Client) -> None:
    assert signed_in.post("/dashboard/sign-out").status_code == 303
    assert signed_in.get("/dashboard").status_code == 303


def test_after_signing_in_nobody_is_sent_to_another_site(site: Site) -> None:
    for wanted in (
        "https://evil.example",
        "//evil.example",
        "/dashboard/../x",
        "/dashboard//evil.example",
        "javascript:1",
    ):
        with client_of(site, Origin=site.url) as client:
            answer = client.post(SIGN_IN, data={"key": site.key, "next": wanted})
            assert answer.headers["location"] == "/dashboard"


def test_keys_with_an_end_that_no_calendar_has_are_listed(site: Site, signed_in: httpx2.Client) -> None:
    # As older releases stored them.
    async def prolong(store: Store, name: str, expires_at: float) -> None:
        made, _ = await store.keys.create(name, scopes=frozenset({Scope.READ}))
        values = {"expires_at": expires_at}
        await store._database.write(
            lambda connection: connection.execute(sa.update(keys).where(keys.c.id == made.id).values(values))
        )

    for number, expires_at in enumerate((1e15, -1e15, math.inf)):
        site.call(lambda store, of=(f"far off {number}", expires_at): prolong(store, *of))
    page = signed_in.get("/dashboard/keys")
    assert page.status_code == 200
    assert page.text.count("31 Dec 9999, 23:59:59 UTC") == 2


Write = tuple[str, dict[str, str], str | None]

FOREIGN = (
    {},
    {"Origin": "null"},
    {"Origin": "https://evil.example"},
    {"Origin": "http://127.0.0.1:1"},
    {"Origin": "http://localhost"},
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},
    {"Sec-Fetch-Site": "none"},
    {"Sec-Fetch-Site": "same-origin", "Origin": "null"},
    {"Sec-Fetch-Site": "same-origin", "Origin": "https://evil.example"},
    {"Sec-Fetch-Site": "cross-site", "Origin": "SELF"},
    {"Sec-Fetch-Site": "nonsense", "Origin": "SELF"},
    {"Referer": "SELF"},
)
WRITES: tuple[Write, ...] = (
    ("/dashboard/keys", {"name": "stolen", "scope": "admin"}, "keys"),
    ("/dashboard/playground", {"deployment": "pinhole", "prompt": "stolen"}, "runs"),
    ("/dashboard/models", {"model": "pinhole", "name": "stolen"}, "deployments"),
    ("/dashboard/deployments/pinhole/settings", {"width": "64"}, "deployments"),
    ("/dashboard/deployments/pinhole/activate", {"version": "1"}, "deployments"),
    ("/dashboard/keys/{key}/limits", {"images_per_day": "1"}, "keys"),
    ("/dashboard/keys/{key}/rotate", {"overlap": "24"}, "keys"),
    ("/dashboard/keys/{key}/revoke", {}, "keys"),
    ("/dashboard/runs/{waiting}/cancel", {}, "runs"),
    ("/dashboard/runs/{run}/replay", {}, "runs"),
    ("/dashboard/webhooks/secret", {"project": "default"}, None),
    ("/dashboard/webhooks/secret/rotate", {"project": "default", "overlap": "0"}, "project_secrets"),
    ("/dashboard/webhooks/{delivery}/resend", {"back": "run"}, "deliveries"),
    ("/dashboard/webhooks/endpoints", {"url": "http://127.0.0.1:9/", "event": "succeeded"}, "webhook_endpoints"),
    ("/dashboard/webhooks/endpoints/{endpoint}/resend", {"hours": "24"}, "deliveries"),
    ("/dashboard/webhooks/endpoints/{endpoint}/rotate", {"overlap": "24"}, "webhook_endpoints"),
    ("/dashboard/webhooks/endpoints/{endpoint}/status", {"status": "disabled"}, "webhook_endpoints"),
    ("/dashboard/webhooks/endpoints/{endpoint}/remove", {}, "webhook_endpoints"),
    ("/dashboard/runs/{run}/delete", {}, "runs"),
    ("/dashboard/deployments/pinhole/undeploy", {}, "deployments"),
    ("/dashboard/settings/doctor", {}, None),
    ("/dashboard/sign-in", {"key": "{secret}"}, None),
    ("/dashboard/sign-in", {"token": "{link}"}, "sign-in links"),
    ("/dashboard/sign-out", {}, None),
)
"""Every write with a form that it takes, and what it changes, in an order in which each finds something to change."""


def test_no_write_is_taken_from_another_site(
    site: Site, signed_in: httpx2.Client, receiver: Receiver, record_property: Callable[[str, object], None]
) -> None:
    with site.resting():
        places = _furnish(site, receiver)
        before = _state(site)
        with client_of(site, Cookie=f"safelight={signed_in.cookies['safelight']}") as client:
            for write, foreign in itertools.product(WRITES, FOREIGN):
                headers = {name: site.url if value == "SELF" else value for name, value in foreign.items()}
                answer = _send(client, write, places, headers)
                assert answer.status_code == 403, (write, foreign, answer.status_code)
                assert "set-cookie" not in answer.headers
        record_property("foreign_writes", len(WRITES) * len(FOREIGN))
        assert _state(site) == before


def test_the_same_writes_from_our_own_pages_change_what_they_say(tmp_path: Path, receiver: Receiver) -> None:
    with Site(tmp_path / "data") as site, client_of(site, Origin=site.url) as client, site.resting():
        client.post(SIGN_IN, data={"key": site.key})
        places = _furnish(site, receiver)
        for write in WRITES:
            path, _, changes = write
            before = _settled(site)
            answer = _send(client, write, places, {})
            assert answer.status_code in (200, 303), (path, answer.status_code)
            assert changes is None or before[changes] != _state(site)[changes], path


def test_the_list_of_writes_is_whole(site: Site) -> None:
    from safelight.api.dashboard import dashboard_router

    known = {re.sub(r"\{[^}]+\}", "*", path.replace("pinhole", "{name}")) for path, _, _ in WRITES}
    found = {
        re.sub(r"\{[^}]+\}", "*", route.path)
        for route in dashboard_router().routes
        if "POST" in (getattr(route, "methods", None) or ())
    }
    assert known == found


def test_writes_of_our_own_pages_are_taken(site: Site, signed_in: httpx2.Client) -> None:
    own = ({"Origin": site.url}, {"Origin": site.url, "Sec-Fetch-Site": "same-origin"})
    for number, headers in enumerate(own):
        answer = signed_in.post("/dashboard/keys", data={"name": f"own {number}", "scope": "read"}, headers=headers)
        assert answer.status_code == 200
        assert re.search(r"sl_live_\w{36}", answer.text)


def test_a_rebound_name_is_not_answered(site: Site, signed_in: httpx2.Client) -> None:
    headers = {"Host": "evil.example", "Origin": "http://evil.example"}
    assert signed_in.post("/dashboard/keys", data={"name": "x", "scope": "admin"}, headers=headers).status_code == 421


def test_pages_allow_nothing_from_elsewhere(site: Site, signed_in: httpx2.Client) -> None:
    page = signed_in.get("/dashboard")
    policy = page.headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "unsafe" not in policy and "http" not in policy and "data:" not in policy
    assert page.headers["x-content-type-options"] == "nosniff"
    assert page.headers["referrer-policy"] == "same-origin"
    assert page.headers["cache-control"] == "no-store"
    assert not re.search(r"<script(?![^>]* src=)|<style|\sstyle=|\son[a-z]+=|https?://(?!127)", page.text)
    stylesheet = re.search(r'href="([^"]+style\.css)"', page.text)
    assert stylesheet is not None
    asset = signed_in.get(stylesheet[1])
    assert "immutable" in asset.headers["cache-control"]
    assert "url(" not in asset.text and "@import" not in asset.text


def test_sign_in_needs_https_or_this_machine(site: Site) -> None:
    # The Host check lets only names through that the operator listed; here the one of a plain http page is asked for.
    from starlette.datastructures import URL

    from safelight.api.dashboard.sessions import can_keep_secrets

    kept = ("https://pictures.example/", "http://localhost:8000/", "http://127.0.0.1/", "http://[::1]:8000/")
    assert all(can_keep_secrets(URL(url)) for url in kept)
    assert not any(can_keep_secrets(URL(url)) for url in ("http://pictures.example/", "http://192.168.1.5:8000/"))


def _furnish(site: Site, receiver: Receiver) -> dict[str, str]:
    """Something for every write to change, while the worker rests: a run that waits, one that has ended, two
    deliveries that can be sent again, a version before the one that is served."""

    async def furnish(store: Store) -> dict[str, str]:
        await store.deployments.deploy(Deployment(name="pinhole", version=0, model="pinhole"))
        key, _ = await store.keys.create("kept", scopes=frozenset({Scope.READ}))
        endpoint, _ = await store.webhook_endpoints.create(receiver.url)
        await store.webhook_endpoints.update(endpoint.id, status=EndpointStatus.DISABLED)
        ended = Outcome(status=RunStatus.FAILED, run_time_ms=1.0, error=RunError("engine_error", "kept"))
        for claim in await store.runs.claim("test", limit=2, lease_seconds=60):
            await store.runs.finish(claim, ended)
        await store.webhook_endpoints.update(endpoint.id, status=EndpointStatus.ENABLED)
        [delivery] = await store.deliveries.list(run_id=run)
        return {"key": key.id, "endpoint": endpoint.id, "delivery": delivery.id}

    run, _ = site.submit("kept"), site.submit("told")
    found = site.call(furnish)
    return found | {"run": run, "waiting": site.submit("waits"), "secret": site.key, "link": site.link}


def _send(client: httpx2.Client, write: Write, places: dict[str, str], headers: dict[str, str]) -> httpx2.Response:
    path, form, _ = write
    filled = {name: value.format(**places) for name, value in form.items()}
    return client.post(path.format(**places), data=filled, headers=headers)


def _state(site: Site) -> dict[str, list[object]]:
    """What a write could have changed: every row there is, but for when keys were used last, and the links that sign
    in."""

    def read(connection: sa.Connection) -> dict[str, list[object]]:
        return {
            table.name: [
                tuple(row) for row in connection.execute(sa.select(*columns).order_by(*table.primary_key.columns))
            ]
            for table in metadata.sorted_tables
            if (columns := [column for column in table.columns if column is not keys.c.last_used_at])
        }

    async def look(store: Store) -> dict[str, list[object]]:
        return await store._database.read(read)

    return site.call(look) | {"sign-in links": sorted(path.name for path in (site.data / "sign-in").iterdir())}


def _settled(site: Site) -> dict[str, list[object]]:
    """The same once nothing is on its way, so that what changes next is a write's doing."""
    while "pending" in str((state := _state(site))["deliveries"]):
        time.sleep(0.02)
    return state


def test_a_small_picture_is_shown_where_none_can_be_kept(site: Site, signed_in: httpx2.Client) -> None:
    run_id = site.drawn("small", width=512, height=256)
    folder = site.data / "thumbnails"
    shutil.rmtree(folder, ignore_errors=True)
    folder.write_bytes(b"")
    try:
        assert signed_in.get(f"/dashboard/runs/{run_id}/thumbnails/0").headers["content-type"] == "image/webp"
    finally:
        folder.unlink()


def test_a_small_picture_is_made_once_and_goes_with_its_run(site: Site, signed_in: httpx2.Client) -> None:
    run_id = site.drawn("small", width=512, height=256)
    small = signed_in.get(f"/dashboard/runs/{run_id}/thumbnails/0")
    assert small.headers["content-type"] == "image/webp"
    assert Image.open(io.BytesIO(small.content)).size == (320, 160)
    kept = list((site.data / "thumbnails").rglob(f"{run_id}/*.webp"))
    assert len(kept) == 1
    assert signed_in.get(f"/dashboard/runs/{run_id}/thumbnails/0").content == small.content
    assert signed_in.get(f"/dashboard/runs/{run_id}/thumbnails/1").status_code == 404
    site.call(lambda store: store.runs.delete(run_id))
    assert not kept[0].exists()
    assert signed_in.get(f"/dashboard/runs/{run_id}/thumbnails/0").status_code == 404
