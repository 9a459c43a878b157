"""/webhooks: registering, changing, rotating, the log, resending; who may do what."""

from __future__ import annotations

import pytest

from safelight.api import webhook_views
from safelight.keys import Scope
from safelight.runs import DeliveryAttempt
from safelight.webhooks.signing import sign

from .documented import the_document

URL = "https://example.com/safelight"
NOBODY = "0b6e3bd5-4a0c-4a3e-9c6b-6a1f6f0f8a55"
SMALL = {"prompt": "x", "height": 64, "width": 64}


@pytest.fixture
async def admin(house):
    async with house.client_with(await house.make_key(Scope.ADMIN)) as client:
        yield client


async def registered(admin, **body):
    answer = await admin.post("/webhooks", json={"url": URL} | body)
    assert answer.status_code == 201, answer.text
    return answer.json()["endpoint"]


async def ended(house, **body):
    answer = await house.client.post("/pinhole/predict", json=SMALL | body, headers={"Prefer": "respond-async"})
    run_id = answer.json()["run_id"]
    await house.client.post(f"/runs/{run_id}/cancel")
    return run_id


async def fail(store):
    for delivery in await store.deliveries.claim_due(limit=100, lease_seconds=60):
        attempt = DeliveryAttempt(number=1, at=1.0, duration_ms=2.0, status_code=500, response_excerpt="internal")
        await store.deliveries.record(
            delivery, attempt, retry_seconds=(0,), delivered=False, give_up=True, retry_after_seconds=None
        )


async def test_an_endpoint_is_registered_with_a_secret_that_signs_and_listed_without(house, admin):
    answer = await admin.post("/webhooks", json={"url": URL, "events": ["failed", "cancelled"]})
    assert answer.status_code == 201
    endpoint, secret = answer.json()["endpoint"], answer.json()["secret"]
    assert sign([secret], "evt", 1, b"{}")
    assert endpoint["events"] == ["cancelled", "failed"]
    assert (endpoint["status"], endpoint["failing_since"]) == ("enabled", None)
    listed = await house.client.get("/webhooks")
    assert listed.json() == {"endpoints": [endpoint]} and secret not in listed.text
    assert (await house.client.get(f"/webhooks/{endpoint['id']}")).json() == endpoint
    assert (await house.store.webhook_endpoints.secrets(endpoint["id"])) == (secret,)


async def test_a_run_that_ends_is_in_the_log_of_its_endpoint(house, admin):
    endpoint = await registered(admin)
    run_id = await ended(house, webhook_endpoint="https://example.com/own")
    log = (await house.client.get("/webhooks/deliveries", params={"run_id": run_id})).json()
    assert {(each["url"], each["endpoint_id"]) for each in log["deliveries"]} == {
        (URL, endpoint["id"]),
        ("https://example.com/own", None),
    }
    log = (await house.client.get("/webhooks/deliveries", params={"endpoint_id": endpoint["id"]})).json()
    (mine,) = log["deliveries"]
    assert (mine["status"], mine["num_attempts"], mine["reason"]) == ("pending", 0, "")
    assert (await house.client.get(f"/webhooks/deliveries/{mine['id']}")).json() == mine


async def test_what_a_receiver_answered_is_for_administrators(house, admin):
    await registered(admin)
    await ended(house)
    await fail(house.store)
    (seen,) = (await house.client.get("/webhooks/deliveries")).json()["deliveries"]
    assert seen["attempts"][0]["response_excerpt"] is None
    (seen,) = (await admin.get("/webhooks/deliveries", params={"status": "failed"})).json()["deliveries"]
    assert seen["attempts"][0]["response_excerpt"] == "internal"


async def test_pages_of_the_log_hold_each_delivery_once(house, admin):
    await registered(admin)
    for _ in range(3):
        await ended(house, webhook_endpoint="https://example.com/own")
    ids, cursor = [], None
    while True:
        params = {"limit": 2} | ({"cursor": cursor} if cursor else {})
        page = (await house.client.get("/webhooks/deliveries", params=params)).json()
        ids += [each["id"] for each in page["deliveries"]]
        if (cursor := page["next_cursor"]) is None:
            break
    assert len(ids) == len(set(ids)) == 6
    for garbled in ("%%%", "bmFuIDE=", "MS4wIDIgMw=="):
        assert (await house.client.get("/webhooks/deliveries", params={"cursor": garbled})).status_code == 422


async def test_an_endpoint_is_changed_disabled_and_enabled(house, admin):
    endpoint = await registered(admin)
    path = f"/webhooks/{endpoint['id']}"
    moved = (await admin.patch(path, json={"url": URL + "/2", "events": ["failed"]})).json()
    assert (moved["url"], moved["events"]) == (URL + "/2", ["failed"])
    assert (await admin.patch(path, json={"status": "disabled"})).json()["status_reason"] == "by request"
    assert (await admin.post(f"{path}/resend", json={"since": "2026-01-01T00:00:00Z"})).status_code == 409
    assert (await admin.patch(path, json={"status": "enabled"})).json()["status"] == "enabled"
    assert (await admin.delete(path)).status_code == 204
    assert (await admin.get(path)).json()["code"] == "endpoint_not_found"


async def test_a_rotation_shows_the_new_secret_and_keeps_the_old_for_a_day(house, admin):
    endpoint = await registered(admin)
    answer = (await admin.post(f"/webhooks/{endpoint['id']}/rotate", json={})).json()
    assert answer["endpoint"]["previous_secret_ends_at"] is not None
    live = await house.store.webhook_endpoints.secrets(endpoint["id"])
    assert live[0] == answer["secret"] and len(live) == 2
    await admin.post(f"/webhooks/{endpoint['id']}/rotate", json={"overlap_hours": 0})
    assert len(await house.store.webhook_endpoints.secrets(endpoint["id"])) == 1


async def test_the_secret_for_the_urls_of_requests_is_shown_and_rotated_over_http(house, admin):
    first = (await admin.get("/webhooks/secret")).json()
    assert (first["project"], first["previous_secret_ends_at"]) == ("default", None)
    assert (first["secret"],) == await house.store.project_secrets.signing("default")
    second = (await admin.post("/webhooks/secret/rotate", json={})).json()
    assert second["previous_secret_ends_at"] is not None
    assert await house.store.project_secrets.signing("default") == (second["secret"], first["secret"])
    assert (await admin.get("/webhooks/secret")).json() == second
    third = (await admin.post("/webhooks/secret/rotate", json={"overlap_hours": 0})).json()
    assert await house.store.project_secrets.signing("default") == (third["secret"],)
    assert (await admin.post("/webhooks/secret/rotate", json={"overlap_hours": -1})).status_code == 422


async def test_an_endpoint_can_be_told_of_the_runs_of_its_own_key_only(house, admin):
    own = await registered(admin, own_runs_only=True)
    everything = await registered(admin, url=URL + "/all")
    assert own["key_id"] is not None and everything["key_id"] is None
    run_id = await ended(house)
    (told,) = (await admin.get("/webhooks/deliveries", params={"run_id": run_id})).json()["deliveries"]
    assert told["endpoint_id"] == everything["id"], "the run is another key's"


async def test_failed_deliveries_are_sent_again_one_by_one_or_since_a_time(house, admin):
    endpoint = await registered(admin)
    for _ in range(2):
        await ended(house)
    await fail(house.store)
    (delivery, _) = (await admin.get("/webhooks/deliveries")).json()["deliveries"]
    again = (await admin.post(f"/webhooks/deliveries/{delivery['id']}/resend")).json()
    assert (again["status"], again["event_id"]) == ("pending", delivery["event_id"])
    path = f"/webhooks/{endpoint['id']}/resend"
    assert (await admin.post(path, json={"since": "2001-01-01T00:00:00Z"})).json() == {"num_due": 1}
    assert (await admin.post(path, json={"since": "2999-01-01T00:00:00Z"})).json() == {"num_due": 0}
    await house.client.delete(f"/runs/{delivery['run_id']}")
    refused = await admin.post(f"/webhooks/deliveries/{delivery['id']}/resend")
    assert (refused.status_code, refused.json()["run_id"]) == (409, delivery["run_id"])


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "url"),
        ({"url": 5}, "url"),
        ({"url": "ftp://example.com"}, "url"),
        ({"url": URL, "events": []}, "events"),
        ({"url": URL, "events": ["queued"]}, "events"),
        ({"url": URL, "secret": "mine"}, "secret"),
        ({"url": URL, "own_runs_only": "perhaps"}, "own_runs_only"),
    ],
)
async def test_a_wrong_endpoint_is_refused_by_field(admin, body, field):
    answer = await admin.post("/webhooks", json=body)
    assert answer.status_code == 422
    assert [wrong["field"] for wrong in answer.json()["errors"]] == [field]


async def test_wrong_bodies_are_refused(admin):
    path = f"/webhooks/{(await registered(admin))['id']}"
    for changed in ({"url": "nonsense"}, {"status": "sleeping"}, {"id": "x"}, {"events": []}):
        assert (await admin.patch(path, json=changed)).status_code == 422
    for since in ({}, {"since": "yesterday"}, {"since": None}):
        assert (await admin.post(f"{path}/resend", json=since)).status_code == 422
    for overlap in ({"overlap_hours": -1}, {"overlap_hours": 1000}, {"overlap_hours": "soon"}):
        assert (await admin.post(f"{path}/rotate", json=overlap)).status_code == 422
    assert (await admin.post("/webhooks", json={"url": URL})).status_code == 409
    json_type = {"Content-Type": "application/json"}
    assert (await admin.post("/webhooks", content=b"{", headers=json_type)).status_code == 400
    assert (await admin.post("/webhooks", content=b"{}")).status_code == 415


CHANGES = [
    ("POST", "/webhooks"),
    ("PATCH", "/webhooks/{id}"),
    ("DELETE", "/webhooks/{id}"),
    ("POST", "/webhooks/{id}/rotate"),
    ("GET", "/webhooks/secret"),
    ("POST", "/webhooks/secret/rotate"),
    ("POST", "/webhooks/{id}/resend"),
    ("POST", "/webhooks/deliveries/{id}/resend"),
]
LOOKS = [
    ("GET", "/webhooks"),
    ("GET", "/webhooks/{id}"),
    ("GET", "/webhooks/deliveries"),
    ("GET", "/webhooks/deliveries/{id}"),
]


async def test_changing_needs_admin_and_looking_read(house):
    async with (
        house.client_with(await house.make_key(Scope.READ)) as reader,
        house.client_with(await house.make_key(Scope.PREDICT)) as predictor,
        house.client_with(None) as nobody,
    ):
        for method, path in CHANGES + LOOKS:
            at = path.format(id=NOBODY)
            assert (await nobody.request(method, at, json={})).status_code == 401
            assert (await predictor.request(method, at, json={})).status_code == 403
            seen = 404 if "{id}" in path else 200
            wanted = 403 if (method, path) in CHANGES else seen
            assert (await reader.request(method, at, json={})).status_code == wanted


async def test_what_belongs_to_another_project_does_not_exist(house, admin):
    endpoint = await registered(admin)
    await ended(house)
    (delivery,) = (await admin.get("/webhooks/deliveries")).json()["deliveries"]
    bodies = {"rotate": {}, "resend": {"since": "2001-01-01T00:00:00Z"}}
    async with house.client_with(await house.make_key(Scope.ADMIN, project="theirs")) as theirs:
        assert (await theirs.get("/webhooks")).json() == {"endpoints": []}
        assert (await theirs.get("/webhooks/deliveries")).json()["deliveries"] == []
        for method, path in CHANGES + LOOKS:
            mine = delivery["id"] if "deliveries" in path else endpoint["id"]
            for each in (mine, "x" * 40) if "{id}" in path else ():
                at = path.format(id=each)
                answer = await theirs.request(method, at, json=bodies.get(at.rpartition("/")[2], {}))
                assert answer.status_code == 404, at


async def test_images_that_have_expired_are_said_to_have(house):
    headers = {"Idempotency-Key": "once"}
    async with house.working():
        done = await house.client.post("/pinhole/predict", json=SMALL, headers=headers)
    run_id = done.json()["run_id"]
    await house.store.retention.expire_images(max_bytes=0)
    record = (await house.client.get(f"/runs/{run_id}")).json()
    assert record["images"] == [] and record["images_expired_at"] is not None and record["status"] == "succeeded"
    assert (await house.client.get(f"/runs/{run_id}/images/0")).json()["code"] == "image_not_found"
    again = await house.client.post("/pinhole/predict", json=SMALL, headers=headers)
    assert (again.status_code, again.json()["code"], again.json()["run_id"]) == (404, "image_not_found", run_id)


def test_the_document_names_every_body():
    schemas = the_document()["components"]["schemas"]
    for name, schema in webhook_views.WEBHOOK_BODIES.items():
        assert schemas[name] == schema and schema["additionalProperties"] is False
