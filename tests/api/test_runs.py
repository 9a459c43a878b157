"""/runs: records, pages, images, cancelling, deleting. And what stands beside: deployments and health."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

from safelight.api.views import DeploymentList, RunPage, RunView
from safelight.deployments import DeploymentStatus
from safelight.keys import Scope
from safelight.runs import Outcome, RunError, RunStatus

from .house import EXAMPLE_BODY, failing, solid_png

ISO = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")
ASYNC = {"Prefer": "respond-async"}


async def submit(house, **body: object) -> str:
    answer = await house.client.post("/pinhole/predict", json={"prompt": "x"} | body, headers=ASYNC)
    return answer.json()["run_id"]


async def test_a_record_says_all_there_is_to_say(house):
    async with house.working():
        run_id = (await house.client.post("/pinhole/predict", json=EXAMPLE_BODY | {"seed": 7})).json()["run_id"]
    answer = await house.client.get(f"/runs/{run_id}")
    RunView.model_validate_json(answer.content, strict=False)
    record = answer.json()
    assert record["id"] == record["run_id"] == run_id
    assert (record["deployment"], record["version"], record["status"]) == ("pinhole", 1, "succeeded")
    assert record["params"] == EXAMPLE_BODY | {
        "seed": 7,
        "sampler": "euler",
        "spacing": "automatic",
        "output_format": "png",
        "deterministic": False,
        "strength": None,
        "has_mask": False,
        "loras": [],
    }
    assert record["seeds"] == [7, 8]
    assert all(ISO.fullmatch(record[name]) for name in ("created_at", "started_at", "ended_at"))
    assert record["created_at"] <= record["started_at"] <= record["ended_at"]
    assert record["run_time_ms"] == 12.5
    assert record["progress"]["fraction"] == 1.0
    assert (record["queue_position"], record["eta_seconds"], record["error"]) == (None, None, None)
    assert (record["warnings"], record["webhook_endpoint"]) == ([], None)
    for index, image in enumerate(record["images"]):
        data = solid_png(512, 768, 7 + index)
        assert (image["index"], image["seed"], image["format"], image["bytes"]) == (index, 7 + index, "png", len(data))
        got = await house.client.get(image["url"])
        assert got.content == data
        assert got.headers["content-type"] == "image/png"
        assert got.headers["x-content-type-options"] == "nosniff"
        assert got.headers["cache-control"] == "private, max-age=31536000, immutable"
        assert got.headers["etag"] == f'"{image["sha256"]}"'


async def test_an_image_that_the_client_has_is_not_sent_again(house):
    async with house.working():
        run_id = (await house.predict(width=64, height=64)).json()["run_id"]
    url = f"/runs/{run_id}/images/0"
    tag = (await house.client.get(url)).headers["etag"]
    for tags in (tag, f'"other", W/{tag}'):
        answer = await house.client.get(url, headers={"If-None-Match": tags})
        assert (answer.status_code, answer.content, answer.headers["etag"]) == (304, b"", tag)
    assert (await house.client.get(url, headers={"If-None-Match": '"other"'})).status_code == 200


async def test_runs_that_never_came_to_a_device_make_the_queue_look_no_faster(house):
    async with house.working():
        await house.predict(width=64, height=64)
    for _ in range(20):
        await submit(house)
        (claim,) = await house.store.runs.claim("w", limit=1, lease_seconds=60)
        error = RunError("model_unavailable", "no weights")
        await house.store.runs.finish(claim, Outcome(status=RunStatus.FAILED, run_time_ms=0.0, error=error))
    await submit(house)
    assert (await house.store.runs.backlog()).queue_eta_seconds is None


async def test_runs_know_their_place_in_the_queue_and_how_far_they_are(house):
    async with house.working():
        await house.predict(width=64, height=64)
    run_ids = [await submit(house) for _ in range(3)]
    records = [(await house.client.get(f"/runs/{run_id}")).json() for run_id in run_ids]
    assert [record["queue_position"] for record in records] == [0, 1, 2]
    etas = [record["eta_seconds"] for record in records]
    assert etas == sorted(etas) and all(eta is not None and eta > 0 for eta in etas)
    async with house.working(held=True):
        await house.started(run_ids[0])
        record = (await house.client.get(f"/runs/{run_ids[0]}")).json()
        assert record["status"] == "running" and record["queue_position"] is None
        assert record["progress"] == {"steps_done": 25, "steps_total": 50, "fraction": 0.5, "eta_seconds": None}


async def test_pages_go_from_the_newest_to_the_oldest_without_a_gap(house):
    run_ids = [await submit(house) for _ in range(5)]
    found, query = [], "limit=2"
    while True:
        answer = await house.client.get(f"/runs?{query}")
        RunPage.model_validate_json(answer.content)
        found += [run["id"] for run in answer.json()["runs"]]
        if answer.json()["next_cursor"] is None:
            break
        query = f"limit=2&cursor={answer.json()['next_cursor']}"
    assert found == run_ids[::-1]


async def test_runs_are_filtered_by_status_deployment_and_time(house):
    first = await submit(house)
    second = await submit(house)
    await house.client.post(f"/runs/{first}/cancel")

    async def ids(**params: str) -> list[str]:
        return [run["id"] for run in (await house.client.get("/runs", params=params)).json()["runs"]]

    assert await ids(status="cancelled") == [first]
    assert await ids(status="queued", deployment="pinhole") == [second]
    assert await ids(deployment="other") == []
    created = datetime.fromtimestamp((await house.store.runs.get(second)).created_at, UTC)
    before, after = created - timedelta(hours=1), created + timedelta(hours=1)
    assert await ids(created_after=before.isoformat(), created_before=after.isoformat()) == [second, first]
    assert await ids(created_after=after.strftime("%Y-%m-%dT%H:%M:%SZ")) == []
    assert await ids(created_before=before.strftime("%Y-%m-%d %H:%M")) == []
    answer = await house.client.get(f"/runs?created_after={before.strftime('%Y-%m-%dT%H:%M:%S')}+00:00")
    assert len(answer.json()["runs"]) == 2


async def test_a_queued_run_is_cancelled_at_once_and_an_ended_one_stays(house):
    run_id = await submit(house)
    answer = await house.client.post(f"/runs/{run_id}/cancel")
    assert (answer.status_code, answer.json()["status"]) == (200, "cancelled")
    again = await house.client.post(f"/runs/{run_id}/cancel")
    assert (again.status_code, again.json()) == (200, answer.json())


async def test_a_running_run_is_cancelled_by_its_worker(house):
    run_id = await submit(house)
    async with house.working(held=True):
        await house.started(run_id)
        answer = await house.client.post(f"/runs/{run_id}/cancel")
        assert answer.json()["status"] == "running"
        assert (await house.ended(run_id))["status"] == "cancelled"


async def test_a_run_is_deleted_with_its_images_and_a_running_one_is_not(house):
    async with house.working() as worker:
        run_id = (await house.predict(width=64, height=64)).json()["run_id"]
        answer = await house.client.delete(f"/runs/{run_id}")
        assert (answer.status_code, answer.content) == (204, b"")
        for path in (f"/runs/{run_id}", f"/runs/{run_id}/images/0"):
            assert (await house.client.get(path)).status_code == 404
        assert (await house.client.delete(f"/runs/{run_id}")).status_code == 404
        worker.hold.clear()
        busy = await submit(house)
        await house.started(busy)
        answer = await house.client.delete(f"/runs/{busy}")
        assert (answer.status_code, answer.json()["code"]) == (409, "conflict")
        worker.hold.set()


async def test_an_image_whose_file_is_gone_is_404(house):
    async with house.working():
        run_id = (await house.predict(width=64, height=64)).json()["run_id"]
    await house.store.images.remove([image.path for image in (await house.store.runs.get(run_id)).images])
    answer = await house.client.get(f"/runs/{run_id}/images/0")
    assert (answer.status_code, answer.json()["code"]) == (404, "image_not_found")


async def test_a_failed_run_keeps_its_error(house):
    async with house.working(outcome=failing("out_of_memory", "ask for less")):
        run_id = await submit(house)
        record = await house.ended(run_id)
    assert record["error"] == {"code": "out_of_memory", "message": "ask for less"}
    assert record["progress"]["fraction"] < 1


async def test_deployments_say_what_they_are_and_what_they_allow(house):
    answer = await house.client.get("/deployments")
    DeploymentList.model_validate_json(answer.content)
    (deployment,) = answer.json()["deployments"]
    assert (deployment["name"], deployment["model"], deployment["status"]) == ("pinhole", "pinhole", "cold")
    assert deployment["predict_url"] == "/pinhole/predict"
    assert deployment["defaults"]["num_inference_steps"] == 50
    assert deployment["limits"]["max_side"] == 1024


async def test_health_needs_no_key_and_ready_means_that_somebody_works(house):
    async with house.client_with(None) as client:
        assert (await client.get("/healthz")).json() == {"status": "ok"}
        assert (await client.get("/readyz")).json() == {"status": "ready"}
        assert (await client.get("/")).json()["openapi"] == "/openapi.json"
        await submit(house)
        answer = await client.get("/readyz")
        assert (answer.status_code, answer.json()["code"]) == (503, "not_ready")
        await house.store.deployments.record_placement("w", "pinhole", 1, DeploymentStatus.STARTING)
        assert (await client.get("/readyz")).status_code == 200


async def test_a_preview_is_there_while_the_run_is_drawn_and_not_kept(house):
    run_id = (await house.client.post("/pinhole/predict", json={"prompt": "x"}, headers=ASYNC)).json()["run_id"]
    with house.store.notifications.listen(f"watch:{run_id}") as listener:
        early = await house.client.get(f"/runs/{run_id}/preview")
        assert await listener.wait(1), "who asks watches"
    assert (early.status_code, early.json()["code"]) == (404, "preview_not_found")
    await house.store.previews.write(run_id, b"\x89PNG small")
    answer = await house.client.get(f"/runs/{run_id}/preview")
    assert (answer.status_code, answer.content) == (200, b"\x89PNG small")
    assert (answer.headers["content-type"], answer.headers["cache-control"]) == ("image/png", "no-store")
    async with house.client_with(await house.make_key(Scope.READ, project="other")) as stranger:
        assert (await stranger.get(f"/runs/{run_id}/preview")).status_code == 404
    await house.client.post(f"/runs/{run_id}/cancel")
    late = await house.client.get(f"/runs/{run_id}/preview")
    assert (late.status_code, "has ended" in late.json()["detail"]) == (404, True)
